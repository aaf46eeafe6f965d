"""Tests of several data files, of files with misleading names, and of the names of rows."""

from __future__ import annotations

import builtins
import gzip
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.data import file_readers, json_scanner, parquet_rows, sources
from dpo_cli.data.pairs import PreferencePair, SkippedRow, read_pairs
from dpo_cli.data.rows import MAX_ROW_BYTES
from dpo_cli.data.sources import Source
from dpo_cli.errors import DpoError
from tests.support.written import Row, csv_file, jsonl, parquet, zstd

ROWS = [{"prompt": f"p{n}", "chosen": f"c{n}", "rejected": f"r{n}"} for n in range(20)]


def read(path: Path) -> list[PreferencePair | SkippedRow]:
    return list(read_pairs(path))


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_folder_is_its_files_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    put(folder / "part-2.csv", csv_file(ROWS[5:9]))
    put(folder / "part-1.jsonl.gz", gzip.compress(b"\n" + jsonl(ROWS[:5])))
    put(folder / "part-3.json", json.dumps(ROWS[9:]).encode())
    put(folder / "part-4.jsonl", b"")
    put(folder / "README.md", b"no pairs")
    put(folder / ".hidden.jsonl", b"{")
    source = Source((folder,))
    places = source.look()
    assert [(part.first, part.rows) for part in places.parts] == [(1, 6), (7, 4), (11, 11), (22, 0)]
    pairs = list(read_pairs(source))
    assert [pair.line for pair in pairs] == list(range(2, 22))
    assert [pair.chosen[1]["content"] for pair in pairs] == [row["chosen"] for row in ROWS]
    assert places.name(3) == "line 3 of part-1.jsonl.gz"
    assert places.name(7) == "row 1 of part-2.csv"
    assert places.names([3, 7]) == "line 3 of part-1.jsonl.gz, row 1 of part-2.csv"
    assert json.loads(SkippedRow(7, "malformed", "why").to_json(places)) == {
        "line": 1, "file": "part-2.csv", "problem": "malformed", "reason": "why",
    }  # fmt: skip
    for parts in (1, 2, 3, 5):  # the parts that several processes read
        bounds = [1 + 21 * part // parts for part in range(parts + 1)]
        shares = [
            list(read_pairs(source, range(*bounds[part : part + 2]), places))
            for part in range(parts)
        ]
        assert [pair for share in shares for pair in share] == pairs


def test_files_of_one_name_are_called_by_their_paths(tmp_path: Path) -> None:
    paths = [put(tmp_path / folder / "train.jsonl", jsonl(ROWS)) for folder in "ab"]
    assert Source(tuple(paths)).look().name(21) == f"line 1 of {paths[1]}"


def test_content_is_that_of_all_files_in_order(tmp_path: Path) -> None:
    first, second = put(tmp_path / "1.jsonl", b"a"), put(tmp_path / "2.jsonl", b"b")
    contents = {
        Source(paths).content() for paths in ((first,), (second,), (first, second), (second, first))
    }
    assert len(contents) == 4
    assert Source((tmp_path,)).content() == Source((first, second)).content()


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
@pytest.mark.parametrize("kept", [5, 0.5, -4])
def test_a_compressed_file_cut_off(
    tmp_path: Path, compress: Callable[[bytes], bytes], kept: float
) -> None:
    pytest.importorskip("backports.zstd")
    whole = compress(jsonl(ROWS * 50))
    end = int(kept * len(whole)) if isinstance(kept, float) else kept
    path = put(tmp_path / "pairs.jsonl.gz", whole[:end])
    with pytest.raises(DpoError) as caught:
        read(path)
    assert f"{path} is damaged: " in caught.value.message
    assert caught.value.remedy == "Copy or download it again."


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_a_flipped_bit_in_a_compressed_file(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    pytest.importorskip("backports.zstd")
    content = bytearray(compress(jsonl(ROWS * 50)))
    content[len(content) // 2] ^= 16
    path = put(tmp_path / "pairs.jsonl", bytes(content))
    with pytest.raises(DpoError, match="is damaged"):
        read(path)


def test_a_parquet_file_cut_off(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = put(tmp_path / "pairs.parquet", parquet(ROWS)[:-8])
    with pytest.raises(DpoError, match="is damaged"):
        read(path)


def endless(begin: bytes) -> bytes:
    """Return a file of a few megabytes that unpacks to hundreds of megabytes."""
    filler = gzip.compress(b"a" * (1 << 26), 1)
    return gzip.compress(begin) + filler * 6


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("pairs.jsonl", b'{"prompt": "'),
        ("pairs.json", b'[{"prompt": "'),
        ("pairs.csv", b'prompt,chosen,rejected\n"'),
    ],
)
def test_a_huge_compressed_file_takes_little_memory(
    tmp_path: Path, name: str, begin: bytes
) -> None:
    path = put(tmp_path / f"{name}.gz", endless(begin))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if name == "pairs.jsonl":
        (found,) = read(path)
        assert isinstance(found, SkippedRow)
        assert found.reason == "longer than 32 MiB"
    else:
        with pytest.raises(DpoError, match=r"longer than 32 MiB|field larger"):
            read(path)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < 7 * MAX_ROW_BYTES


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'[{"a": 1}, {"a": 2', "row 2: "),
        (b'[{"a": 1}', "the array has no end"),
        (b'[{"a": 1} {"a": 2}]', r"no comma or \] after row 1"),
        (b'[{"a": 1},]', "row 2: Expecting value"),
        (b'[{"a": 1}] {}', "there is text after the array"),
        (b'[{"a": tru}]' + b" " * 100, "row 1: Expecting value"),
        (b'[{"a": ' + b"[" * 100_000, "row 1: "),
        (b'[{"a": ' + b"9" * 5000 + b"}]", "row 1: Exceeds the limit"),
    ],
)
def test_files_that_are_no_array_of_rows(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(DpoError, match=why) as caught:
        read(put(tmp_path / "pairs.json", content))
    assert "JSONL" in caught.value.remedy


def test_an_array_is_read_in_pieces_of_any_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**row, "chosen": 'a "quoted" 😀 \u2028 word'} for row in ROWS]
    for content in (json.dumps(rows), json.dumps(rows, ensure_ascii=False, indent=3)):
        path = put(tmp_path / "pairs.json", content.encode())
        whole = read(path)
        for length in (1, 2, 7, 30):
            monkeypatch.setattr(json_scanner, "_CHUNK_CHARACTERS", length)
            assert read(path) == whole
        monkeypatch.undo()
        assert [pair.line for pair in whole] == list(range(1, 21))


def test_one_malformed_row_of_an_array(tmp_path: Path) -> None:
    half = b'{"prompt": "p", "chosen": "\\ud800", "rejected": "r"}'
    latin = '{"prompt": "é", "chosen": "c", "rejected": "r"}'.encode("latin-1")
    good = json.dumps(ROWS[0]).encode()
    rows = read(put(tmp_path / "a.json", b"[" + b",".join([good, half, b"7", latin, good]) + b"]"))
    assert [isinstance(row, SkippedRow) for row in rows] == [False, True, True, True, False]
    reasons = [row.reason for row in rows if isinstance(row, SkippedRow)]
    assert reasons[1] == "expected a JSON object, got a number (7)"
    assert "UTF-8" in reasons[0]
    assert "UTF-8" in reasons[2]


def test_csv_with_quotes_commas_and_newlines(tmp_path: Path) -> None:
    text = 'He said "yes, yes".\r\nThen\nnothing, "not a word"'
    rows: list[Row] = [
        {"prompt": text, "chosen": "[1, 2]", "rejected": '{"a": 1}'},
        {"prompt": "p", "chosen": '[{"not": "messages"}]', "rejected": "[{broken"},
    ]
    content = b"\xef\xbb\xbf" + csv_file(rows) + b"\r\nonly,two\r\n"
    first, second, third = read(put(tmp_path / "pairs.csv", content))
    assert isinstance(first, PreferencePair)
    assert [turn["content"] for turn in first.chosen] == [text, "[1, 2]"]
    assert first.rejected[1]["content"] == '{"a": 1}'
    assert isinstance(second, PreferencePair)
    assert isinstance(third, SkippedRow)
    assert third.reason == "2 cells, but the header has 3"


def test_csv_with_a_quote_that_does_not_end(tmp_path: Path) -> None:
    path = put(tmp_path / "pairs.csv", b'prompt,chosen,rejected\na,b,c\na,"b,c\nd,e,f\n')
    with pytest.raises(DpoError, match="invalid CSV after row 1"):
        read(path)


def test_csv_with_lists_as_python_writes_them(tmp_path: Path) -> None:
    sides = {side: [{"role": "user", "content": "a"}] for side in ("chosen", "rejected")}
    rows = [{side: str(messages) for side, messages in sides.items()}]
    (found,) = read(put(tmp_path / "pairs.csv", csv_file(rows)))
    assert isinstance(found, SkippedRow)
    assert found.reason == "'chosen' is messages in Python syntax; write them with json.dumps"


@pytest.mark.parametrize("content", [b"[]", b"", b"\n \n"])
def test_no_rows(tmp_path: Path, content: bytes) -> None:
    for name in ("pairs.json", "pairs.csv"):
        if name.endswith("json") or content != b"[]":
            with pytest.raises(DpoError, match="has no rows"):
                read(put(tmp_path / name, content))


@pytest.mark.parametrize(
    ("content", "extra"), [(b"PAR1....", "parquet"), (b"\x28\xb5\x2f\xfd....", "zstd")]
)
def test_an_extra_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, extra: str
) -> None:
    real = builtins.__import__

    def import_without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] in ("pyarrow", "backports", "compression"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", import_without)
    with pytest.raises(DpoError) as caught:
        read(put(tmp_path / "pairs", content))
    package = {"parquet": "pyarrow>=16", "zstd": "backports.zstd>=1"}[extra]
    remedy = caught.value.remedy.replace("backports-zstd", "backports.zstd")
    assert remedy == f"Run pip install '{package}' in the environment of dpo."


def test_a_file_that_is_named_twice(tmp_path: Path) -> None:
    """Pairs held out of one copy would be trained on in the other."""
    path = put(tmp_path / "folder/pairs.jsonl", jsonl(ROWS))
    (tmp_path / "link.jsonl").symlink_to(path)
    for paths in ((path, path), (tmp_path / "folder", path), (tmp_path / "link.jsonl", path)):
        with pytest.raises(DpoError, match=r"occurs twice in data\.data_path") as caught:
            read_pairs(Source(paths)).__next__()
        assert "data.mixture_weights" in caught.value.remedy


def test_a_table_without_the_column_that_is_meant(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = [{"question": "p", "best": "c"}]
    columns = {"prompt": "question", "chosen": "best", "rejected": "worst"}
    source = Source((put(tmp_path / "pairs.parquet", parquet(rows)),), columns=columns)
    with pytest.raises(DpoError, match="no column 'worst', which"):
        list(read_pairs(source))


def test_a_row_of_a_table_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    rows = [*ROWS[:3], {**ROWS[3], "chosen": "x" * 5000}, *ROWS[4:]]
    path = put(tmp_path / "pairs.parquet", parquet(rows))
    monkeypatch.setattr(parquet_rows, "MAX_ROW_BYTES", 2000)
    found = read(path)
    assert [row.line for row in found if isinstance(row, SkippedRow)] == [4]
    assert len(found) == 20


def test_counting_reports_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_PROGRESS_ROWS", 8)
    for name, content in (("a.jsonl", jsonl(ROWS)), ("b.csv", csv_file(ROWS))):
        put(tmp_path / f"shards/{name}", content)
    heard: list[int] = []
    assert Source((tmp_path / "shards",)).look(heard.append).numbers == 40
    assert heard == [8, 16, 28, 36]


def test_only_the_requested_rows_are_parsed(tmp_path: Path) -> None:
    content = jsonl(ROWS[:4]) + b"\xff" * 10
    path = put(tmp_path / "pairs.jsonl", content)
    found = file_readers.read_rows(path, "jsonl", range(2, 4))
    assert [number for number, _ in found] == [2, 3]


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    path = put(tmp_path / "pairs.csv", b"prompt,chosen,chosen,,\na,b,c,,\n")
    with pytest.raises(DpoError, match="two columns are named 'chosen'"):
        read(path)
    put(path, b"prompt,chosen,rejected,,\na,b,c,,\n")
    assert isinstance(read(path)[0], PreferencePair)


def test_a_table_in_an_archive(tmp_path: Path) -> None:
    with pytest.raises(DpoError, match="a compressed Parquet file"):
        read(put(tmp_path / "pairs.parquet.gz", gzip.compress(b"PAR1....PAR1")))


def test_errors_of_the_progress_callback_are_not_errors_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_PROGRESS_ROWS", 8)
    source = Source((put(tmp_path / "pairs.jsonl", jsonl(ROWS)),))

    def tell(rows: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        source.look(tell)


def test_rows_of_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    """A text that is not UTF-8 spoils only its row; a damaged page spoils the rest of the table."""
    pyarrow = pytest.importorskip("pyarrow")
    texts = pyarrow.array([b"a", b"\xff", b"c"]).cast(pyarrow.string(), safe=False)
    columns = {"prompt": ["p"] * 3, "chosen": texts, "rejected": ["r"] * 3}
    sink = pyarrow.BufferOutputStream()
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), sink)
    content = sink.getvalue().to_pybytes()
    found = read(put(tmp_path / "pairs.parquet", content))
    assert [row.line for row in found if isinstance(row, SkippedRow)] == [2]
    assert len(found) == 3
    half = len(content) // 3
    damaged = content[:20] + bytes(half) + content[20 + half :]
    with pytest.raises(DpoError, match=r"is damaged|no known format"):
        read(put(tmp_path / "pairs.parquet", damaged))

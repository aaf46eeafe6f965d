"""Tests of files of other kinds under the name of a row file: read, or named with a remedy."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.data import json_scanner
from dpo_cli.data.file_kinds import kind_of, separator_of
from dpo_cli.data.file_readers import read_rows
from dpo_cli.data.pairs import (
    PreferencePair,
    SkippedRow,
    read_pairs,
    refuse_if_mostly_malformed,
)
from dpo_cli.data.rows import MalformedError
from dpo_cli.data.sources import Source
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.profile.inputs import check_pairs
from tests.support.written import Row, csv_file, jsonl

ROWS: list[Row] = [
    {"prompt": f"p{n}, 你好; é", "chosen": f'c{n}\t"x"', "rejected": f"r{n}"} for n in range(4)
]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345678\n"
PAGE = b"""\r\n<!doctype html>\n<html class="">\n<head><title>Log &amp; in</title></head></html>"""


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def error(path: Path) -> DpoError:
    with pytest.raises(DpoError) as caught:
        list(read_pairs(path))
    assert str(path) in caught.value.message
    assert caught.value.remedy
    assert len(caught.value.message.splitlines()) == 1
    return caught.value


def rows_of(path: Path) -> list[Any]:
    return [row for _, row in read_rows(path, kind_of(path))]


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, jsonl(ROWS))
    return file.getvalue()


def tarred(mode: Any, *names: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(jsonl(ROWS))
            archive.addfile(member, io.BytesIO(jsonl(ROWS)))
    return file.getvalue()


def arrow(stream: bool) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(ROWS)
    sink = pyarrow.BufferOutputStream()
    open_file = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with open_file(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


NAMED = {
    "LFS pointer": (LFS, "is a Git LFS pointer", "git lfs pull"),
    "old LFS pointer": (LFS.replace(b"git-lfs.github", b"hawser.github"), "LFS", "git lfs pull"),
    "annex": (b"/annex/objects/SHA256E-s12--4d7a.jsonl\n", "is a git-annex pointer", "annex get"),
    "annex link": (b"../../.git/annex/objects/x1/S-s1--4d.jsonl", "git-annex", "annex get"),
    "DVC": (b"outs:\n- md5: 0123\n  size: 12\n  path: dpo.jsonl\n", "is a DVC pointer", "dvc pull"),
    "page": (PAGE, 'is a web page ("Log & in")', "Download the file itself"),
    "XML": (
        b'<?xml version="1.0"?>\n<Error><Code>NoSuchKey</Code></Error>',
        'is an XML document ("NoSuchKey")',
        "Download the file itself",
    ),
    "zip": (zipped("a.jsonl"), "is a zip archive (the first file is a.jsonl)", "unzip"),
    "workbook": (zipped("[Content_Types].xml"), "is an Excel workbook", "CSV in UTF-8"),
    "zip of workbooks": (zipped("xl.jsonl", "b"), "is a zip archive", "unzip"),
    "bz2": (bz2.compress(jsonl(ROWS)), "is compressed by bzip2", "bunzip2 -k"),
    "xz": (lzma.compress(jsonl(ROWS)), "is compressed by xz", "xz -dk"),
    "lzma": (lzma.compress(jsonl(ROWS), lzma.FORMAT_ALONE), "compressed by lzma", "xz -dk"),
    "tar": (tarred("w", "dpo/train.jsonl"), "(the first is dpo/train.jsonl)", "tar xf"),
    "tar.gz": (tarred("w:gz", "train.jsonl", "test.jsonl"), "is a tar archive", "tar xf"),
    "tar.bz2": (tarred("w:bz2", "train.jsonl"), "is compressed by bzip2", "bunzip2"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "is a 7z archive", "7z x"),
    "rar": (b"Rar!\x1a\x07\x01\0", "is a RAR archive", "unrar x"),
    "SQLite": (b"SQLite format 3\0...", "is an SQLite database", "CSV or JSON"),
    "pickle": (pickle.dumps(ROWS), "is a Python pickle", "JSONL, CSV or Parquet"),
    "weights": (zipped("archive/data.pkl"), "is a PyTorch file of weights", "JSONL"),
    "gzip of zip": (gzip.compress(zipped("a.jsonl")), "is a zip archive", "unzip"),
    "UTF-16": (jsonl(ROWS).decode().encode("utf-16"), "is text in UTF-16", "iconv -f UTF-16 "),
    "UTF-16, no mark": (jsonl(ROWS).decode().encode("utf-16-le"), "in UTF-16", "-f UTF-16LE"),
    "UTF-16, big": (jsonl(ROWS).decode().encode("utf-16-be"), "in UTF-16", "-f UTF-16BE"),
    "UTF-32": (jsonl(ROWS).decode().encode("utf-32"), "is text in UTF-32", "iconv -f UTF-32 "),
    "UTF-32, no mark": (jsonl(ROWS).decode().encode("utf-32-le"), "in UTF-32", "-f UTF-32LE"),
    "zeros": (bytes(9000), "is filled with zero bytes", "Download the file itself"),
    "failed request": (b'{"error": "Repository not found"}', '"Repository not found"', "login"),
    "encrypted": (b"\0GITCRYPT\0....", "is encrypted by git-crypt", "unlock"),
    "PDF": (b"%PDF-1.7\n", "is a PDF document", "JSONL"),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_other_files_are_named(name: str, suffix: str, tmp_path: Path) -> None:
    content, what, remedy = NAMED[name]
    found = error(put(tmp_path / f"dpo{suffix}", content))
    assert what in found.message
    assert remedy in found.remedy


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_is_converted_by_the_command(stream: bool, tmp_path: Path) -> None:
    path = put(tmp_path / "it's.arrow", arrow(stream))
    found = error(path)
    assert ("an Arrow stream" if stream else "an Arrow file") in found.message
    run(found)
    assert rows_of(path.with_name(path.name + ".parquet")) == ROWS


def run(found: DpoError) -> None:
    """Run the command of a remedy."""
    command = found.remedy.removeprefix("Convert it to Parquet: ").removeprefix("Convert it: ")
    assert command.startswith("python -c ")
    command = command.replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(command, shell=True, check=True, executable="/bin/sh")


def by_column(rows: list[Row]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def numbered(values: list[Any]) -> dict[str, Any]:
    return {str(number): value for number, value in enumerate(values)}


CONTAINERS: dict[str, tuple[Any, str]] = {
    "columns": (by_column(ROWS), "rows by column"),
    "pandas": ({k: numbered(v) for k, v in by_column(ROWS).items()}, "rows by column"),
    "index": (numbered(ROWS), "rows by number"),
    "split": (
        {"columns": list(ROWS[0]), "index": [0], "data": [list(row.values()) for row in ROWS]},
        "columns and data",
    ),
    "data": ({"version": "1.0", "data": ROWS}, "rows below 'data'"),
    "splits": ({"train": ROWS, "test": ROWS[:1]}, "rows below 'train', 'test'"),
    "server": (
        {"features": [{"name": "prompt"}], "rows": [{"row_idx": 0, "row": row} for row in ROWS]},
        "rows below 'features', 'rows'",
    ),
}


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("indent", [None, 1])
def test_rows_inside_one_object_are_converted_by_the_command(
    name: str, indent: int | None, tmp_path: Path
) -> None:
    content, what = CONTAINERS[name]
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    path = put(tmp_path / "my pairs.json", text.encode())
    found = error(path)
    assert f"is one JSON object with {what}, expected a row per line" in found.message
    if indent is None:  # each command runs once, because a process takes a while
        run(found)
        assert rows_of(path.with_name(path.name + ".jsonl")) == ROWS


@pytest.mark.parametrize("name", ["columns", "pandas", "data"])
def test_rows_inside_an_object_that_is_too_long(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole object is not read then: its beginning decides."""
    monkeypatch.setattr(json_scanner, "MAX_ROW_BYTES", 100)
    monkeypatch.setattr(json_scanner, "_CHUNK_CHARACTERS", 50)
    content = dict(CONTAINERS[name][0])
    content.pop("version", None)
    path = put(tmp_path / "pairs.json", json.dumps(content).encode())
    assert "one JSON object with rows or columns in it" in error(path).message
    # A long row of JSONL is a single malformed row.
    path = put(tmp_path / "pairs.jsonl", jsonl([conversational(ROWS[0])] * 3))
    assert kind_of(path) == "jsonl"
    # A first line that is cut off is malformed too.
    assert kind_of(put(path, b'{"tags": ["a", \n' + jsonl(ROWS))) == "jsonl"


def conversational(row: Row) -> Row:
    sides = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    return {"prompt": [{"role": "user", "content": row["prompt"]}], **sides}


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], [conversational(ROWS[0])]])
@pytest.mark.parametrize("separator", ["\n", ",\n", "\n\n", " "])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.json", "pairs.csv"])
def test_objects_over_several_lines(
    rows: list[Row], separator: str, indent: int | None, name: str, tmp_path: Path
) -> None:
    """Rows as an editor or jq formats them; also with commas, as cut from an array."""
    text = separator.join(json.dumps(row, indent=indent, ensure_ascii=False) for row in rows)
    path = put(tmp_path / name, text.encode())
    if separator == " " and indent is None and len(rows) > 1:
        assert kind_of(path) == "jsonl"  # one line with several values
        assert isinstance(rows_of(path)[0], MalformedError)
    else:
        assert rows_of(path) == rows
        assert all(isinstance(pair, PreferencePair) for pair in read_pairs(path))


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "cp1252", "shift_jis"])
@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.json", "pairs.csv"])
def test_other_encodings(encoding: str, name: str, tmp_path: Path) -> None:
    """If rows are skipped only because of their encoding, the remedy names the encoding."""
    words = "é" if encoding == "cp1252" else "日本"
    rows: list[Row] = [{**row, "prompt": f"{words} {n}"} for n, row in enumerate(ROWS)]
    content = {"pairs.jsonl": jsonl(rows), "pairs.csv": csv_file(rows)}
    text = content.get(name, json.dumps(rows, ensure_ascii=False).encode()).decode()
    source = Source((put(tmp_path / name, text.encode(encoding)),))
    skipped = [row for row in read_pairs(source) if isinstance(row, SkippedRow)]
    assert len(skipped) == len(ROWS)
    with pytest.raises(DpoError, match="4 of 4 rows are malformed") as caught:
        refuse_if_mostly_malformed(source, skipped, len(ROWS))
    assert caught.value.remedy.startswith("Save the file as UTF-8.")
    assert "not UTF-8" in caught.value.details[0]


def test_object_that_does_not_end(tmp_path: Path) -> None:
    text = json.dumps(ROWS[0], indent=1) + "\n" + json.dumps(ROWS[1], indent=1)[:-3]
    found = error(put(tmp_path / "pairs.json", text.encode()))
    assert "JSON object 2 cannot be read" in found.message
    assert "JSONL" in found.remedy


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["pairs.csv", "pairs.tsv", "pairs.txt", "pairs"])
def test_separators_of_tables(separator: str, name: str, tmp_path: Path) -> None:
    text = csv_file(ROWS).decode()
    lines = [",".join(ROWS[0])]
    for row in ROWS:
        cells = ['"' + cell.replace('"', '""') + '"' for cell in row.values()]
        lines.append(separator.join(cells))
    if separator == ",":
        assert rows_of(put(tmp_path / name, text.encode())) == ROWS
    lines[0] = lines[0].replace(",", separator)
    for begin in ("", "\ufeff", "\r\n", f"sep={separator}\r\n"):
        path = put(tmp_path / name, (begin + "\r\n".join(lines)).encode())
        assert kind_of(path) == "csv"
        assert rows_of(path) == ROWS


def test_separator_is_not_taken_from_quoted_names() -> None:
    assert separator_of('"a, b, c";d;e\n') == (";", False)
    assert separator_of("chosen\n") == (",", False)
    assert separator_of("a\tb,c\td\n") == ("\t", False)


def test_text_that_is_no_table(tmp_path: Path) -> None:
    for text in ("why; how\n", "chosen ones, and others\n", '"chosen\n', "prompt,answer\n1,2\n"):
        assert kind_of(put(tmp_path / "prompts.txt", text.encode())) == "jsonl"


def test_saved_datasets_are_named(tmp_path: Path) -> None:
    """The JSON files in folders of `datasets` are not taken for rows."""
    split = tmp_path / "ds/train"
    split.mkdir(parents=True)
    (tmp_path / "ds/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    put(split / "data-00000-of-00001.arrow", b"\xff\xff\xff\xff....")
    (split / "state.json").write_text('{"_data_files": []}')
    (split / "dataset_info.json").write_text("{}")
    for path, what, remedy in (
        (tmp_path / "ds", "is a saved DatasetDict (train, test)", "(sys.argv[1])['train']"),
        (split, "is a Dataset saved by save_to_disk", "to_parquet(sys.argv[1] + '.parquet')"),
    ):
        found = error(path)
        assert what in found.message
        assert remedy in found.remedy
        with pytest.raises(UsageError) as caught:
            check_pairs("data.data_path", (path,))
        assert what in caught.value.message
        assert remedy in caught.value.message
    (tmp_path / "ds/dataset_dict.json").write_text("[broken")
    assert "is a saved DatasetDict" in error(tmp_path / "ds").message


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("24-archives-and-pointers/many.tar.gz", "is a tar archive of files"),
        ("24-archives-and-pointers/dpo.jsonl", "is a Git LFS pointer"),
        ("24-archives-and-pointers/login.jsonl", 'is a web page ("Log in")'),
        ("24-archives-and-pointers/pairs.zip", "is a zip archive (the first file is pairs.jsonl)"),
        ("24-archives-and-pointers/pairs.jsonl.bz2", "is compressed by bzip2"),
        ("15-save-to-disk/ds", "is a Dataset saved by save_to_disk"),
        ("15-save-to-disk/dict", "is a saved DatasetDict (train)"),
        ("16-encodings/utf16.jsonl", "is text in UTF-16"),
    ],
)
def test_files_of_other_kinds_are_named(shared: Path, name: str, what: str) -> None:
    assert what in error(shared / "cases" / name).message


def test_table_with_semicolons(shared: Path) -> None:
    source = Source((shared / "cases/41-tables/semicolons.csv",))
    pairs = list(read_pairs(source))
    assert len(pairs) == 10
    assert all(isinstance(pair, PreferencePair) for pair in pairs)

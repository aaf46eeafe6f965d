"""Tests of row files that are small on disk and huge in memory: refused in bounded memory."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.data import compression, csv_lines, encoding, file_readers, json_scanner, pairs, rows
from dpo_cli.data.pairs import PreferencePair, SkippedRow, read_pairs
from dpo_cli.errors import DpoError
from tests.support import memory

MIB = 1 << 20
LINE = b"a" * 99 + b"\n"
GOOD = b'{"prompt":"a","chosen":"b","rejected":"c"}\n'


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    with memory.at_most(400_000_000):
        yield


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    with pytest.raises(DpoError) as caught:
        list(read_pairs(path))
    assert str(path) in caught.value.message
    assert caught.value.remedy
    return caught.value.message


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("record.csv", b"chosen,rejected\n" + b'"' + LINE * (34 * MIB // 100), "record is longer"),
        ("cells.csv", b"chosen,rejected\n" + b"ab," * (6 * MIB), "too many values"),
        ("header.csv", b"ab," * (6 * MIB), "too many values"),
        ("values.json", b'[{"chosen":[' + b"[]," * (3 * MIB) + b"0]}]", "too many values"),
    ],
)
def test_a_row_that_is_small_in_each_dimension(
    name: str, content: bytes, why: str, suffix: str, tmp_path: Path
) -> None:
    assert why in refused(tmp_path / f"{name}{suffix}", content)


def test_too_many_values_in_a_line_are_a_malformed_row(tmp_path: Path) -> None:
    good = {"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    good["rejected"] = [good["chosen"][0], {"role": "assistant", "content": "c"}]
    line = json.dumps(good).encode()
    path = tmp_path / "rows.jsonl"
    for piece in (b"[],", b"{},", b"1,", b'"ab",'):
        large = b'{"chosen":[' + piece * (31 * MIB // len(piece)) + b"0]}"
        path.write_bytes(b"\n".join([line, large, line]))
        kinds = [type(row) for row in read_pairs(path)]
        assert kinds == [PreferencePair, SkippedRow, PreferencePair], piece


def test_a_header_costs_time_in_proportion_to_its_columns(tmp_path: Path) -> None:
    names = ",".join(
        f"c{number}" for number in range(200_000)
    )  # a quadratic search would take hours
    assert "match no known format" in refused(tmp_path / "a.csv", f"{names}\n{names}\n".encode())
    assert "named 'c7'" in refused(tmp_path / "b.csv", f"{names},c7\n".encode())


def test_files_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (file_readers, csv_lines):
        monkeypatch.setattr(module, "MAX_BLANK_LINES", 1000)
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(file_readers, "_MAX_SKIPPED_BYTES", 10_000)
    monkeypatch.setattr(json_scanner, "_CHUNK_CHARACTERS", 1000)
    monkeypatch.setattr(json_scanner, "_MAX_BLANK_CHARACTERS", 10_000)
    monkeypatch.setattr(pairs, "_MAX_SKIPPED", 100)
    blank = b"\n" * 2000
    assert "blank lines" in refused(tmp_path / "a.jsonl", b'{"a":1}\n' + blank)
    assert "blank lines" in refused(tmp_path / "a.csv", b"a,b\n" + blank)
    assert "does not end" in refused(tmp_path / "b.jsonl", b'{"a":1}\n' + b"a" * 20_000)
    assert "does not end" in refused(
        tmp_path / "c.jsonl", b'{"a":1}\n' + b'"%b"\n' % (b"a" * 1500) * 30
    )
    assert "do not end" in refused(tmp_path / "a.json", b'[{"a":1}' + b" " * 20_000)
    assert "100 rows are no usable pairs" in refused(tmp_path / "d.jsonl", GOOD + b"[]\n" * 200)


def test_a_stream_that_decompresses_to_far_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = GOOD * (MIB // 10)
    monkeypatch.setattr(compression, "_MAX_DECOMPRESSED_BYTES", MIB)
    assert "200 times its size" in refused(tmp_path / "a.jsonl.gz", content)
    zstd = pytest.importorskip("backports.zstd")
    (tmp_path / "b.jsonl.zst").write_bytes(zstd.compress(content))
    with pytest.raises(DpoError, match="200 times its size"):
        list(read_pairs(tmp_path / "b.jsonl.zst"))


class TestParquet:
    @pytest.fixture(autouse=True)
    def pyarrow(self) -> Any:
        self.pa = pytest.importorskip("pyarrow")
        self.pq = pytest.importorskip("pyarrow.parquet")

    def write(self, path: Path, column: Any, **options: Any) -> Path:
        table = self.pa.table({"chosen": column, "rejected": column})
        self.pq.write_table(table, path, compression="zstd", **options)
        assert path.stat().st_size < 20_000
        return path

    def entries(self, text: str, count: int) -> Any:
        indices = self.pa.array([0] * count, self.pa.int32())
        return self.pa.DictionaryArray.from_arrays(indices, self.pa.array([text]))

    def test_a_dictionary(self, tmp_path: Path) -> None:
        column = self.entries("x" * (15 * MIB), 64)
        path = self.write(tmp_path / "a.parquet", column, dictionary_pagesize_limit=1 << 30)
        lengths = [len(row["chosen"]) for _, row in file_readers.read_rows(path, "parquet")]
        assert lengths == [15 * MIB] * 64

    def test_a_dictionary_in_lists(self, tmp_path: Path) -> None:
        entries = self.entries("x" * (15 * MIB), 6400)
        offsets = self.pa.array(range(0, 6401, 100), self.pa.int32())
        column = self.pa.ListArray.from_arrays(offsets, entries)
        path = self.write(tmp_path / "a.parquet", column, dictionary_pagesize_limit=1 << 30)
        found = [row for _, row in file_readers.read_rows(path, "parquet")]
        assert all(isinstance(row, rows.MalformedError) for row in found)
        assert len(found) == 64

    def test_a_row_of_nulls(self, tmp_path: Path) -> None:
        nulls = self.pa.nulls(40_000_000, self.pa.string())
        offsets = self.pa.array([0, len(nulls)], self.pa.int32())
        column = self.pa.ListArray.from_arrays(offsets, nulls)
        path = self.write(tmp_path / "a.parquet", column)
        with pytest.raises(DpoError, match="40,000,000 values"):
            list(read_pairs(path))

    def test_a_page(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compression, "_MAX_EXPANDED_BYTES", 20 * MIB)
        column = self.pa.array(["x" * (30 * MIB)])
        path = self.write(tmp_path / "a.parquet", column, use_dictionary=False)
        with pytest.raises(DpoError, match="is too large to be read"):
            list(read_pairs(path))

    def test_dictionaries_read_apart_give_the_same_rows(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        values = [
            [{"role": "user", "content": f"text {n % 7}"}, {"role": None, "content": "你"}]
            * (n % 3)
            for n in range(300)
        ]
        table = self.pa.table({"chosen": values, "name": [f"n{n % 5}" for n in range(300)]})
        self.pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
        usual = list(file_readers.read_rows(tmp_path / "a.parquet", "parquet"))
        monkeypatch.setattr(compression, "_MAX_EXPANDED_BYTES", 0)
        monkeypatch.setattr(compression, "_MAX_RATIO", 1e9)
        assert list(file_readers.read_rows(tmp_path / "a.parquet", "parquet")) == usual


def test_long_rows_are_encoded_in_smaller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_CHARACTERS_PER_BLOCK", 1000)
    sides = [{"role": "assistant", "content": "a" * 130}], [{"role": "assistant", "content": "b"}]
    found = [len(chunk) for chunk in encoding._chunks(PreferencePair(n, *sides) for n in range(20))]
    assert found == [7, 7, 6]

"""Tests of data sets of the Hub as sources of pairs, with a local server."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.convert import convert_source, destination
from dpo_cli.data.encoding import encode_rows
from dpo_cli.data.pairs import SkippedRow, read_pairs
from dpo_cli.data.preview import preview
from dpo_cli.data.row_writers import Layout
from dpo_cli.data.sources import Source
from dpo_cli.data.tokens import EncodedRows
from dpo_cli.errors import DpoError
from dpo_cli.hub.datasets import fetch_data, fetch_first, find_data
from tests.support.cli import HANG_SECONDS
from tests.support.hub import Hub, cached, use_here, wait_until_cached
from tests.support.hub_shapes import SHAPES, orca_pairs, readme, ultrafeedback_binarized
from tests.support.written import Row, jsonl

PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}


def encoded(source: Source, tokenizer: ChatTokenizer) -> EncodedRows:
    return EncodedRows.joined(
        encode_rows(read_pairs(source), tokenizer, empty_think_ratio=0.5, seed=1)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_gives_the_tokens_of_its_pairs(
    shape: str, hub: Hub, shared: Path, rows: list[Row], tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    tokenizer = ChatTokenizer(shared / "tokenizer/minimind2")
    own = tmp_path / "own.jsonl"
    own.write_bytes(jsonl(rows))
    make, name, format = SHAPES[shape]
    commit = hub.push("them/set", make(rows))
    source = Source((Path(name),))
    places = source.look()
    assert {part.format for part in places.parts} == {format}
    assert places.numbers == len(rows) == 24
    found, expected = encoded(source, tokenizer), encoded(Source((own,)), tokenizer)
    assert len(found) == 24
    for column in ("ids", "lengths", "shared", "answers"):
        assert torch.equal(getattr(found, column), getattr(expected, column)), column
    assert fetch_data(name).name.startswith(f"hf:them/set@{commit}:")
    # Only the files of this split were downloaded.
    read = [f"datasets/{file}" for file in fetch_data(name).files]
    assert {f"datasets/{body}" for body in hub.bodies} - {"datasets/README.md"} == {*read}


def test_rows_are_named_by_file(hub: Hub, rows: list[Row]) -> None:
    make, name, _ = SHAPES["hh-rlhf"]
    hub.push("them/set", make(rows))
    places = Source((Path(name),)).look()
    assert places.name(13) == "line 1 of them/set/helpful-base/train.jsonl.gz"
    assert places.find("them/set/helpful-base/train.jsonl.gz:1") == 13
    assert json.loads(SkippedRow(13, "tie", "why").to_json(places))["line"] == 1


def test_files_of_equal_content_are_two_files(hub: Hub) -> None:
    """In the cache both files are links to the same file."""
    hub.push("them/set", {"train/a.jsonl": jsonl([PAIR]), "train/b.jsonl": jsonl([PAIR])})
    assert Source((Path("hf:them/set"),)).look().numbers == 2
    twice = Source((Path("hf:them/set"), Path("hf:them/set:default")))
    with pytest.raises(DpoError, match="occurs twice in "):
        twice.look()


def test_a_list_of_sources(hub: Hub, tmp_path: Path) -> None:
    hub.push("them/set", {"train.jsonl": jsonl([PAIR])})
    (tmp_path / "train.jsonl").write_bytes(jsonl([PAIR] * 2))
    places = Source((tmp_path / "train.jsonl", Path("hf:them/set"))).look()
    assert [(part.source, part.first) for part in places.parts] == [(0, 1), (1, 3)]
    assert places.name(3) == "line 1 of them/set/train.jsonl"


def test_a_commit_stays_the_same(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = hub.push("them/set", {"train.jsonl": jsonl([PAIR])})
    first = fetch_data("hf:them/set")
    newer = hub.push("them/set", {"train.jsonl": jsonl([PAIR] * 3)})
    hub.push("them/set", {"train.jsonl": jsonl([PAIR] * 5)}, branch="refs/convert/parquet")
    use_here(monkeypatch, hub.url, tmp_path / "home")  # like a new process
    assert first.name == f"hf:them/set@{older}:default/train"
    assert Source((Path(first.name),)).look().numbers == 1
    assert fetch_data("hf:them/set").name == f"hf:them/set@{newer}:default/train"
    assert Source((Path("hf:them/set"),)).look().numbers == 3
    assert Source((Path("hf:them/set@refs/convert/parquet"),)).look().numbers == 5


def test_the_cache_needs_no_network(
    hub: Hub, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    hub.push("them/set", ultrafeedback_binarized(rows))
    name = fetch_data("hf:them/set").name
    hub.asked.clear()
    use_here(monkeypatch, hub.url, tmp_path / "home")
    assert fetch_data(name).name == name
    assert not hub.asked  # a known commit needs no request
    for url, offline in ((hub.url, True), ("http://127.0.0.1:1", False)):
        for wanted in ("hf:them/set", "hf:them/set@main", name):
            use_here(monkeypatch, url, tmp_path / "home", offline=offline)
            assert fetch_data(wanted).name == name
            assert Source((Path(wanted),)).look().numbers == 24
    use_here(monkeypatch, hub.url, tmp_path / "home", offline=True)
    for missing in ("hf:them/set:default/test_prefs", "hf:them/other"):
        with pytest.raises(DpoError, match="partly, in this machine's cache") as caught:
            fetch_data(missing)
        assert "hf download --repo-type dataset" in caught.value.remedy
    assert not hub.asked


def test_a_cache_that_was_copied_without_the_list_of_files(
    hub: Hub, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    hub.push("them/set", ultrafeedback_binarized(rows))
    found = fetch_data("hf:them/set")
    (cache,) = (tmp_path / "home/hub").glob("datasets--*")
    for tree in cache.glob("trees/*"):
        tree.unlink()

    def offline() -> None:
        from huggingface_hub import _tree_cache

        _tree_cache._IN_MEMORY_TREE_CACHE.clear()
        use_here(monkeypatch, hub.url, tmp_path / "home", offline=True)

    offline()
    assert fetch_data("hf:them/set") == found
    found.paths[1].unlink()
    offline()
    with pytest.raises(DpoError, match="1 of its files are missing"):
        fetch_data("hf:them/set")


ERRORS = {
    "hf:them/none": ("them/none does not exist on the Hub, or is private", "hf auth login"),
    "hf:them/set@nowhere": ("them/set has no revision nowhere", "Use a branch, tag or commit"),
    "hf:them/gated": ("them/gated is a gated data set", "Request access on its page, then log in"),
    "hf:them//set": ("'them//set' is not a data set name on the Hub", "Write hf:ORG/NAME"),
    "hf:them/set:a/b/c": ("'hf:them/set:a/b/c' is not a data set name", "hf:ORG/NAME:CONFIG/SPLIT"),
    "hf:": ("'hf:' is not a data set name on the Hub", "Write hf:ORG/NAME"),
    "hf:them/script": ("has only a script (script.py), which dpo does not run", "convert/parquet"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_unavailable_data_sets_are_errors(name: str, hub: Hub) -> None:
    hub.push("them/set", {"train.jsonl": jsonl([PAIR])})
    hub.push("them/gated", {"train.jsonl": jsonl([PAIR])})
    hub.push("them/script", {"script.py": b"raise SystemExit", "README.md": b"# Hello"})
    hub.repositories["datasets", "them/gated"].is_gated = True
    message, remedy = ERRORS[name]
    with pytest.raises(DpoError) as caught:
        fetch_data(name)
    assert message in caught.value.message
    assert remedy in caught.value.remedy
    assert "script.py" not in hub.bodies


@pytest.mark.parametrize("shape", SHAPES)
def test_a_killed_download_goes_on_with_the_missing_files(
    shape: str, hub: Hub, rows: list[Row], tmp_path: Path
) -> None:
    """The process is killed in the middle of the last file; the earlier ones have arrived."""
    pytest.importorskip("pyarrow")
    make, name, _ = SHAPES[shape]
    files = make(rows)
    hub.push("them/set", files)
    *earlier, last = find_data(name).files
    hub.cut[last] = len(files[last]) // 2
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            fetch_data(name)
        os._exit(1)
    assert hub.stalled.wait(HANG_SECONDS)
    for file in earlier:
        wait_until_cached(tmp_path / "home", file)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not cached(tmp_path / "home", last)
    hub.cut.clear()
    hub.go_on.set()
    found = fetch_data(name)
    assert [path.read_bytes() for path in found.paths] == [files[file] for file in found.files]
    assert {file: hub.bodies.count(file) for file in earlier} == dict.fromkeys(earlier, 1)


def test_names_that_are_patterns_are_names(hub: Hub) -> None:
    hub.push("them/set", {"train[1].jsonl": jsonl([PAIR]), "train1.jsonl.txt": b"no"})
    assert Source((Path("hf:them/set"),)).look().numbers == 1


def test_a_path_out_of_the_cache_is_not_written(hub: Hub, tmp_path: Path) -> None:
    hub.push("them/set", {"../../../../../train.jsonl": jsonl([PAIR])})
    with pytest.raises(DpoError):
        fetch_data("hf:them/set")
    assert not list(tmp_path.rglob("train.jsonl"))


def test_a_disk_that_is_too_small(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from dpo_cli.hub import download

    hub.push("them/set", {"train.jsonl": jsonl([PAIR] * 100)})
    usage = download.shutil._ntuple_diskusage(10, 10, 3)  # type: ignore[attr-defined]
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DpoError, match=r"has 4\.8 kB, and 3 B are free") as caught:
        fetch_data("hf:them/set")
    assert "HF_HOME" in caught.value.remedy


def test_a_lost_connection_continues_within_the_file(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    content = jsonl([PAIR] * 1000)
    hub.push("them/set", {"train.jsonl": content})
    hub.lost["train.jsonl"] = 9000
    assert fetch_data("hf:them/set").paths[0].read_bytes() == content
    assert hub.ranges == [("train.jsonl", "bytes=9000-")]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_terminal_shows_one_line_of_progress_and_removes_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]
) -> None:
    states = importlib.import_module("huggingface_hub.utils.tqdm").progress_bar_states
    monkeypatch.delitem(
        states, "_global", raising=False
    )  # other code in this process sets the variable
    hub.push("them/set", {"README.md": b"# Set", "train.jsonl": jsonl([PAIR] * 9000)})
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream())
        fetch_data("hf:them/set")
        written = sys.stderr.getvalue()  # type: ignore[attr-defined]
    if stream is Terminal:
        assert "downloading" in written
        assert "432kB of 432kB" in written
        assert "Fetching" not in written
        assert written.endswith("\r")
        assert "\n" not in written
    else:
        assert written == ""


def test_only_the_first_file_is_fetched_for_a_look(hub: Hub, rows: list[Row]) -> None:
    pytest.importorskip("pyarrow")
    hub.push("them/set", ultrafeedback_binarized(rows))
    found, path = fetch_first("hf:them/set")
    assert (path.name, found.rows) == ("train_prefs-00000-of-00002.parquet", 24)
    assert hub.bodies == ["README.md", "data/train_prefs-00000-of-00002.parquet"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_preview_downloads_one_file(shape: str, hub: Hub, rows: list[Row]) -> None:
    pytest.importorskip("pyarrow")
    make, name, format = SHAPES[shape]
    hub.push("them/set", make(rows))
    found = preview(Path(name))
    assert len({*hub.bodies} - {"README.md"}) == 1
    assert found.format == format
    assert found.name.startswith("hf:them/set@")
    assert {"chosen", "generations", "response1"} & {*found.columns}
    assert len(found.pairs) in (12, 24)
    shards = len(fetch_data(name).files)
    assert found.is_estimate == (shards > 1 and shape != "ultrafeedback")
    assert abs(found.rows - 24) <= (12 if found.is_estimate else 0)
    lengths = found.lengths(len)
    assert len(lengths) == len(found.pairs)
    assert min(lengths) > 2 * 8  # two messages or more, each with the tokens of a template


def test_a_preview_of_a_file_counts_its_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([PAIR] * 300 + [{**PAIR, "chosen": "ccc", "id": 1}]))
    (tmp_path / "b.jsonl").write_bytes(jsonl([PAIR]))
    found = preview(tmp_path)
    assert (found.rows, found.is_estimate, found.format, len(found.pairs)) == (
        302, False, "plain", 200,
    )  # fmt: skip
    assert found.columns == ("prompt", "chosen", "rejected")
    assert {*found.lengths(len)} == {2 + 2 * 8}
    assert found.description == "plain (TRL's standard, explicit prompt), JSONL (2 files)"


def test_a_data_set_is_converted(hub: Hub, rows: list[Row], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    hub.push("them/set", ultrafeedback_binarized(rows))
    source = Source((Path("hf:them/set"),))
    to = destination(tmp_path / "pairs.jsonl", source, force=False)
    converted = convert_source(source, to, Layout.TRL, lambda *step: None)
    assert (converted.pairs, converted.settings) == (24, {})
    assert list(read_pairs(to)) == list(read_pairs(source))


def test_a_readme_of_any_content(hub: Hub, rows: list[Row]) -> None:
    for number, text in enumerate((b"", b"---\n: [\n---\n", b"\xff\xfe", b"---\n- a\n---\n")):
        hub.push(f"them/set{number}", {**orca_pairs(rows), "README.md": text})
        assert Source((Path(f"hf:them/set{number}"),)).look().numbers == 24
    large = readme(configs=[{"config_name": "x", "data_files": "none.json"}]) + b" " * (5 << 20)
    hub.push("them/large", {**orca_pairs(rows), "README.md": large})
    assert Source((Path("hf:them/large"),)).look().numbers == 24

"""Tests of the token cache: its content, and damage that must not stop a run."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from dpo_cli import integrity
from dpo_cli.data import token_cache
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.encoding import encode_rows
from dpo_cli.data.pairs import read_pairs
from dpo_cli.data.places import Places
from dpo_cli.data.sources import Source
from dpo_cli.data.token_cache import encode_source, load
from dpo_cli.data.tokens import EncodedRows
from dpo_cli.distributed.process_group import SINGLE_PROCESS
from dpo_cli.errors import DpoError
from dpo_cli.files import cache_directory, sha256_file
from tests.support.cli import run_in

COLUMNS = ("lines", "lengths", "shared", "answers", "answer_counts")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty cache of this test; returns the folder of the tokens."""
    monkeypatch.setenv("DPO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache/tokens"


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> ChatTokenizer:
    return ChatTokenizer(shared / "tokenizer/minimind3")


@pytest.fixture
def data(shared: Path, tmp_path: Path) -> Path:
    """60 real rows, a malformed one, and one with identical sides."""
    path = tmp_path / "pairs.jsonl"
    lines = (shared / "data/dpo_en_zh_400.jsonl").read_text().splitlines()[:60]
    alike = json.loads(lines[0])
    alike["rejected"] = alike["chosen"]
    path.write_text("\n".join([*lines[:30], "{", json.dumps(alike), *lines[30:]]) + "\n")
    return path


def encode(path: Path, tokenizer: ChatTokenizer, **changes: Any) -> EncodedRows:
    options: dict[str, Any] = {
        "empty_think_ratio": 0.5,
        "seed": 1,
        "on_progress": lambda done, total: None,
        "ranks": SINGLE_PROCESS,
    }
    return encode_source(Source((path,)), tokenizer, **(options | changes))


def test_columns_that_are_not_read_are_counted_from_the_cache(
    cache: Path, data: Path, tokenizer: ChatTokenizer
) -> None:
    rows = [line for line in data.read_text().splitlines() if line != "{"]
    with_id = [json.dumps({**json.loads(line), "id": n}) for n, line in enumerate(rows)]
    data.write_text("\n".join(with_id))
    for _ in range(2):
        assert encode(data, tokenizer).unread == {"id": len(rows)}
    assert len([*cache.iterdir()]) == 1


def assert_right(rows: EncodedRows, path: Path, tokenizer: ChatTokenizer) -> None:
    """Assert that the rows equal those that are encoded without a cache."""
    plain = EncodedRows.joined(
        encode_rows(read_pairs(path), tokenizer, empty_think_ratio=0.5, seed=1)
    )
    assert torch.equal(rows.ids.int(), plain.ids.int())
    for name in COLUMNS:
        assert torch.equal(getattr(rows, name), getattr(plain, name)), name
    assert rows.skipped_rows == plain.skipped_rows
    assert rows.content == sha256_file(path)


def only_entry(cache: Path) -> Path:
    (entry,) = cache.iterdir()
    return entry


def never(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("this was not to be called")


@pytest.fixture
def without_encoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that makes encoding and rendering an error."""

    def forbid() -> None:
        monkeypatch.setattr(ChatTokenizer, "encode", never)
        monkeypatch.setattr(ChatTokenizer, "render", never)
        monkeypatch.setattr(token_cache, "read_pairs", never)

    return forbid


def test_the_second_time_nothing_is_encoded(
    cache: Path, data: Path, tokenizer: ChatTokenizer, without_encoding: Callable[[], None]
) -> None:
    heard: list[tuple[int, int]] = []
    first = encode(data, tokenizer, on_progress=lambda *done: heard.append(done))
    assert heard == [(62, 62)]
    assert_right(first, data, tokenizer)
    without_encoding()
    second = encode(data, tokenizer, on_progress=never)
    for name in ("ids", *COLUMNS):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert (first.skipped_rows, first.content) == (second.skipped_rows, second.content)


def test_another_path_and_time_are_the_same_content(
    cache: Path, data: Path, tokenizer: ChatTokenizer, without_encoding: Callable[[], None]
) -> None:
    encode(data, tokenizer)
    copy = data.with_name("copy.jsonl")
    shutil.copy(data, copy)
    os.utime(copy, (1, 1))
    without_encoding()
    assert len(encode(copy, tokenizer)) == 60


@pytest.mark.parametrize(
    "change",
    ["data", "ratio", "seed", "scored", "cuts", "tokenizer", "special", "versions"],
)
def test_all_inputs_of_the_ids_are_part_of_the_key(
    cache: Path,
    data: Path,
    tokenizer: ChatTokenizer,
    shared: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    encode(data, tokenizer)
    options: dict[str, Any] = {}
    if change == "data":
        data.write_bytes(data.read_bytes().replace(b"the", b"teh", 1))
    elif change == "ratio":
        options["empty_think_ratio"] = 0.25
    elif change == "seed":
        options["seed"] = 2
    elif change == "scored":
        options["scored_turns"] = "last"
    elif change == "cuts":
        options["truncation"] = "prompt_start"
    elif change == "tokenizer":
        tokenizer = ChatTokenizer(shared / "tokenizer/minimind2")
    elif change == "special":
        monkeypatch.setattr(ChatTokenizer, "special_tokens", {"bos_token": "<s>"})
    else:
        monkeypatch.setattr("importlib.metadata.version", lambda name: "99")
    encode(data, tokenizer, **options)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_seed_without_effect_is_not_part_of_the_key(
    cache: Path, data: Path, tokenizer: ChatTokenizer, ratio: float
) -> None:
    for seed in (1, 2):
        encode(data, tokenizer, empty_think_ratio=ratio, seed=seed)
    assert only_entry(cache)


FILES = ("ids.bin", "columns.safetensors", "manifest.json")


def test_each_flipped_bit_is_detected(cache: Path, data: Path, tokenizer: ChatTokenizer) -> None:
    """The flipped bits are at random places of both files, and at their ends."""
    encode(data, tokenizer)
    entry = only_entry(cache)
    key = entry.name
    assert load(entry, key) is not None
    draw = random.Random(5)
    for name in FILES[:2]:
        file = entry / name
        intact = file.read_bytes()
        for place in [0, len(intact) - 1, *(draw.randrange(len(intact)) for _ in range(100))]:
            damaged = bytearray(intact)
            damaged[place] ^= 1 << draw.randrange(8)
            file.write_bytes(damaged)
            assert load(entry, key) is None, (name, place)
        file.write_bytes(intact)
    assert load(entry, key) is not None


def cut_off(entry: Path) -> None:
    os.truncate(entry / "ids.bin", (entry / "ids.bin").stat().st_size // 2)


def cut_in_header(entry: Path) -> None:
    os.truncate(entry / "columns.safetensors", 100)


def empty(entry: Path) -> None:
    for name in FILES:
        os.truncate(entry / name, 0)


def lengthen(entry: Path) -> None:
    with (entry / "ids.bin").open("ab") as file:
        file.write(bytes(4))


def overwrite(entry: Path) -> None:
    (entry / "columns.safetensors").write_bytes(random.Random(1).randbytes(100_000))


def flip(entry: Path) -> None:
    content = bytearray((entry / "ids.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (entry / "ids.bin").write_bytes(content)


def lose_a_file(entry: Path) -> None:
    (entry / "ids.bin").unlink()


def nest_the_manifest(entry: Path) -> None:
    (entry / "manifest.json").write_text("[" * 100_000)


def become_a_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("in the way")


def be_another_entry(entry: Path) -> None:
    """Give the entry the key of another one in its manifest."""
    manifest = entry / "manifest.json"
    manifest.write_text(manifest.read_text().replace(entry.name, "0" * 64, 1))


HARMS = [
    *(cut_off, cut_in_header, empty, lengthen, overwrite, flip),
    *(lose_a_file, nest_the_manifest, become_a_file, be_another_entry),
]


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_entry_is_made_again(
    cache: Path,
    data: Path,
    tokenizer: ChatTokenizer,
    harm: Callable[[Path], None],
    without_encoding: Callable[[], None],
) -> None:
    encode(data, tokenizer)
    entry = only_entry(cache)
    harm(entry)
    assert_right(encode(data, tokenizer), data, tokenizer)
    without_encoding()
    assert len(encode(data, tokenizer)) == 60


def write_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(100))


def truncate(path: Path) -> None:
    os.truncate(path, 10)


@pytest.mark.parametrize("name", FILES[:2])
@pytest.mark.parametrize("harm", [write_in_place, truncate])
def test_a_change_of_the_files_in_use_changes_no_bit(
    cache: Path,
    data: Path,
    tokenizer: ChatTokenizer,
    name: str,
    harm: Callable[[Path], None],
) -> None:
    """A memory mapping would show the new bytes, or crash the process at the cut."""
    first = encode(data, tokenizer)
    cached = encode(data, tokenizer)
    harm(only_entry(cache) / name)
    for rows in (first, cached):
        assert_right(rows, data, tokenizer)
    assert_right(encode(data, tokenizer), data, tokenizer)


def refuse_to_open(
    monkeypatch: pytest.MonkeyPatch, unreadable: Callable[[Path], bool], number: int
) -> None:
    """Make opening some files fail, as on a failing disk."""
    open_regular = integrity.open_regular

    def checked(path: Path) -> BufferedReader:
        if unreadable(path):
            raise OSError(number, os.strerror(number), str(path))
        return open_regular(path)

    monkeypatch.setattr(integrity, "open_regular", checked)


@pytest.mark.parametrize(
    ("name", "number"), list(zip(FILES, (errno.EIO, errno.EACCES, errno.ESTALE), strict=True))
)
def test_an_entry_that_cannot_be_read_is_neither_used_nor_removed(
    cache: Path,
    data: Path,
    tokenizer: ChatTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    number: int,
) -> None:
    """The entry may be intact: the rows are encoded again, and the entry stays unchanged."""
    encode(data, tokenizer)
    entry = only_entry(cache)
    before = {path.name: path.stat().st_ino for path in entry.iterdir()}
    with monkeypatch.context() as patched:
        refuse_to_open(patched, lambda path: path == entry / name, number)
        assert_right(encode(data, tokenizer), data, tokenizer)
    assert only_entry(cache) == entry
    assert {path.name: path.stat().st_ino for path in entry.iterdir()} == before
    assert load(entry, entry.name) is not None


def test_an_entry_copied_to_another_name_is_not_used(
    cache: Path, data: Path, tokenizer: ChatTokenizer
) -> None:
    encode(data, tokenizer)
    entry = only_entry(cache)
    assert load(entry, "0" * 64) is None


def no_home(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.delenv("DPO_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))


def file_in_the_way(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    cache.parent.write_text("not a directory")


def null_device(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("DPO_CACHE_DIR", "/dev/null")


def refused(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)


def full_at_the_end(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def refuse(path: Path) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dpo_cli.data.token_cache.fsync_path", refuse)


@pytest.mark.parametrize("obstacle", [no_home, file_in_the_way, null_device, refused])
def test_a_run_continues_without_a_writable_cache(
    cache: Path,
    data: Path,
    tokenizer: ChatTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    obstacle: Callable[[pytest.MonkeyPatch, Path], None],
) -> None:
    obstacle(monkeypatch, cache)
    for _ in range(2):
        assert_right(encode(data, tokenizer), data, tokenizer)
    assert not cache.exists()


def test_a_disk_that_is_full_in_the_end(
    cache: Path, data: Path, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_at_the_end(monkeypatch, cache)
    assert_right(encode(data, tokenizer), data, tokenizer)
    assert not list(cache.iterdir())


def test_a_file_without_a_pair_is_cached_too(
    cache: Path, tokenizer: ChatTokenizer, tmp_path: Path, without_encoding: Callable[[], None]
) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text("{\n[]\n")
    first = encode(path, tokenizer)
    without_encoding()
    assert encode(path, tokenizer).skipped_rows == first.skipped_rows
    assert [row.line for row in first.skipped_rows] == [1, 2]
    assert not len(first)
    assert not first.cut(10).kept


def test_a_file_that_is_being_written_is_refused(
    cache: Path, data: Path, tokenizer: ChatTokenizer
) -> None:
    def read_and_grow(source: Source, lines: range, places: Places) -> Any:
        with data.open("ab") as file:
            file.write(b"\n")
        return read_pairs(source, lines, places)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_cache, "read_pairs", read_and_grow)
        with pytest.raises(DpoError, match="changed while it was read"):
            encode(data, tokenizer)
    assert not list(cache.iterdir())
    assert_right(encode(data, tokenizer), data, tokenizer)


def test_a_template_with_the_current_time_is_not_cached(
    cache: Path, data: Path, shared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(shared / "tokenizer/minimind2", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ strftime_now('%Y') }}" + config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    dated = ChatTokenizer(folder)
    assert_right(encode(data, dated), data, dated)
    assert not cache.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_encoding_leaves_nothing(
    cache: Path, data: Path, tokenizer: ChatTokenizer, error: type[BaseException]
) -> None:
    threads = threading.active_count()

    def interrupt(done: int, total: int) -> None:
        raise error

    with pytest.raises(error):
        encode(data, tokenizer, on_progress=interrupt)
    assert not list(cache.iterdir())
    assert threading.active_count() == threads


class ThreadRank:
    """Process group of a rank that is a thread."""

    def __init__(
        self, number: int, gathered: list[dict[str, Any]], barrier: threading.Barrier
    ) -> None:
        self.host_rank_and_size = number, len(gathered)
        self._gathered, self._barrier = gathered, barrier

    def all_gather_object_on_host(self, stage: str, value: Any) -> list[Any]:
        self._gathered[self.host_rank_and_size[0]][stage] = value
        self._barrier.wait(30)
        return [each[stage] for each in self._gathered]


def encode_together(
    path: Path, tokenizer: ChatTokenizer, parts: int
) -> tuple[list[EncodedRows], list[int]]:
    """Encode with several ranks; return the rows of each, and how many rows each has encoded."""
    gathered: list[dict[str, Any]] = [{} for _ in range(parts)]
    barrier = threading.Barrier(parts)
    done = [0] * parts

    def work(number: int) -> EncodedRows:
        def count(rows: int, total: int) -> None:
            done[number] = rows

        ranks = ThreadRank(number, gathered, barrier)
        return encode(path, tokenizer, ranks=ranks, on_progress=count)

    with ThreadPoolExecutor(parts) as pool:
        return list(pool.map(work, range(parts))), done


@pytest.mark.parametrize("parts", [2, 3])
def test_each_of_several_encodes_its_share(
    cache: Path, data: Path, tokenizer: ChatTokenizer, parts: int
) -> None:
    everyones, done = encode_together(data, tokenizer, parts)
    for rows in everyones:
        assert_right(rows, data, tokenizer)
    assert len(list(cache.iterdir())) == 1  # the parts are gone
    assert 0 not in done
    again, done = encode_together(data, tokenizer, parts)
    assert done == [0] * parts
    assert_right(again[-1], data, tokenizer)


def test_without_a_writable_cache_each_rank_encodes_all_rows(
    cache: Path, data: Path, tokenizer: ChatTokenizer
) -> None:
    cache.parent.mkdir()
    cache.write_text("in the way")
    everyones, _ = encode_together(data, tokenizer, 2)
    for rows in everyones:
        assert_right(rows, data, tokenizer)


def test_two_processes_encode_at_once(
    cache: Path, data: Path, shared: Path, tokenizer: ChatTokenizer
) -> None:
    """Both processes write the entry; each gets the rows, and one entry is left."""
    code = (
        "import sys; from pathlib import Path\n"
        "from dpo_cli.data.chat import ChatTokenizer\n"
        "from dpo_cli.data.sources import Source\n"
        "from dpo_cli.data.token_cache import encode_source\n"
        "from dpo_cli.distributed.process_group import SINGLE_PROCESS\n"
        "tokenizer = ChatTokenizer(Path(sys.argv[2]))\n"
        "source = Source((Path(sys.argv[1]),))\n"
        "rows = encode_source(source, tokenizer, empty_think_ratio=0.5, seed=1,\n"
        "                     on_progress=lambda *_: None, ranks=SINGLE_PROCESS)\n"
        "print(len(rows), int(rows.cut(10_000).kept[59].chosen.ids.sum()))"
    )
    outputs: list[str] = []

    def run() -> None:
        command = [sys.executable, "-c", code, str(data), str(tokenizer.folder)]
        outputs.append(run_in(data.parent, command).stdout)

    both = [threading.Thread(target=run) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    expected = encode(data, tokenizer).cut(10_000).kept[59].chosen.ids.sum()
    assert outputs == [f"60 {expected}\n"] * 2
    assert only_entry(cache)


def test_entries_unused_for_a_month_are_removed(
    cache: Path, data: Path, tokenizer: ChatTokenizer
) -> None:
    encode(data, tokenizer)
    used = only_entry(cache)
    old, torn = cache / ("0" * 64), cache / f".{'1' * 64}.{'0' * 32}.tmp"
    foreign = cache / "notes.txt"
    month_ago = time.time() - 31 * 24 * 3600
    for path in (old, torn):
        path.mkdir()
        (path / "ids.bin").write_text("old")
    foreign.write_text("old")
    for path in (old, torn, foreign):
        os.utime(path, (month_ago, month_ago))
    os.utime(used, (month_ago, month_ago))
    encode(data, tokenizer)  # reading counts as use
    encode(data, tokenizer, seed=2)
    assert not old.exists()
    assert not torn.exists()
    assert used.exists()
    assert foreign.exists()


def test_memory_does_not_grow_with_the_rows(
    cache: Path,
    shared: Path,
    tmp_path: Path,
    tokenizer: ChatTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While ids are written, no block stays in memory after the next one."""
    path = tmp_path / "many.jsonl"
    path.write_bytes((shared / "data/dpo_en_zh_400.jsonl").read_bytes() * 4)
    ids: list[weakref.ref[torch.Tensor]] = []

    def watched(*arguments: Any, **options: Any) -> Iterator[EncodedRows]:
        for block in encode_rows(*arguments, **options):
            ids.append(weakref.ref(block.ids))
            yield block
            assert sum(each() is not None for each in ids) <= 2

    monkeypatch.setattr(token_cache, "encode_rows", watched)
    assert len(encode(path, tokenizer)) == 1600
    assert len(ids) == 7
    assert sum(each() is not None for each in ids) == 0


@pytest.mark.parametrize(
    ("own", "users", "expected"),
    [
        ("/own", "/users", "/own/tokens"),
        (None, "/users", "/users/dpo/tokens"),
        ("", "/users", "/users/dpo/tokens"),
        (None, "relative", "/home/me/.cache/dpo/tokens"),
        (None, None, "/home/me/.cache/dpo/tokens"),
    ],
)
def test_location_of_the_cache(
    own: str | None, users: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in (("DPO_CACHE_DIR", own), ("XDG_CACHE_HOME", users)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    directory = cache_directory()
    assert directory is not None
    assert str(directory / "tokens") == expected

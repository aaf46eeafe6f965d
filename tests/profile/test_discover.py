"""Tests of the search for MiniMind's files, other models and pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_cli.data.sources import looks_like_pairs
from dpo_cli.profile.discover import (
    FoundFiles,
    discover_around,
    discover_in,
    discover_project,
    is_moe_file,
    minimind_version_of,
)


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """Folder with nothing around it."""
    return tmp_path / "far" / "away" / "room"


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def checkout(folder: Path) -> None:
    touch(folder, "out/full_sft_512.pth", "out/pretrain_512.pth", "dataset/dpo.jsonl")
    touch(folder, "model/tokenizer.json", "model/tokenizer_config.json", "dataset/sft.jsonl")


def is_dpo(path: Path) -> bool:
    return "sft" not in path.name


def of_checkout(folder: Path) -> FoundFiles:
    return FoundFiles(
        (folder / "out/full_sft_512.pth",), (folder / "model",), (folder / "dataset/dpo.jsonl",)
    )


@pytest.mark.parametrize("place", [".", "minimind"])
def test_a_checkout_in_the_project(room: Path, place: str) -> None:
    folder = (room / place).resolve()
    checkout(folder)
    assert discover_project(room, is_dpo) == of_checkout(folder)
    assert discover_around(room, is_dpo) == FoundFiles()


@pytest.mark.parametrize("place", ["../minimind", "..", "../.."])
def test_a_checkout_around_the_project(room: Path, place: str) -> None:
    here = room / "a" / "b"
    here.mkdir(parents=True)
    folder = (here / place).resolve()
    checkout(folder)
    assert discover_project(here, is_dpo) == FoundFiles()
    assert discover_around(here, is_dpo) == of_checkout(folder)


def test_a_search_around_a_project_has_limits(room: Path) -> None:
    for number in range(60):
        touch(room / f"folder{number:02d}", *(f"{file}.jsonl" for file in range(10)))
    read: list[Path] = []
    discover_around(room / "here", lambda path: bool(read.append(path)))
    assert len(read) == 300
    found = discover_around(room / "here", lambda path: path.stem == "0")
    assert len(found.pairs) == 30


def test_the_old_layout(room: Path) -> None:
    tokenizer = "model/minimind_tokenizer"
    touch(room, f"{tokenizer}/tokenizer.json", f"{tokenizer}/tokenizer_config.json")
    touch(room, "dataset/dpo/train.jsonl")
    files = discover_project(room, is_dpo)
    assert files.tokenizers == (room / tokenizer,)
    assert files.pairs == (room / "dataset/dpo/train.jsonl",)


def test_only_files_with_rows_are_looked_at(room: Path) -> None:
    touch(room, "dataset/dpo.csv", "data/my_dpo.json.gz", "x.jsonl", "dataset/dpo/a.parquet")
    touch(room, "profiles/dpo.schema.json", "runs/dpo.jsonl", "dataset/dpo.md", "tokenizer.json")
    touch(room, "config.json", ".hidden/dpo.jsonl", "node_modules/dpo.jsonl")
    looked_at: list[Path] = []
    discover_project(room, lambda path: looked_at.append(path) or True)
    names = {"x.jsonl", "dataset/dpo.csv", "data/my_dpo.json.gz", "dataset/dpo/a.parquet"}
    assert {str(path.relative_to(room)) for path in looked_at} == names
    assert len(looked_at) == len(names)


def test_files_that_do_not_match(room: Path) -> None:
    touch(room, "out/full_sft_512.txt", "model/tokenizer.json", ".hidden/full_sft_1.pth")
    (room / "out/full_sft_8.pth").mkdir()
    assert discover_project(room, is_dpo) == FoundFiles()


def test_a_model_without_a_chat_template_comes_last(room: Path) -> None:
    for name in ("models/a", "models/b", "models/c"):
        touch(room, *(f"{name}/{file}" for file in ("config.json", "model.safetensors")))
    (room / "models/b/chat_template.jinja").write_text("{{ messages }}")
    (room / "models/c/tokenizer_config.json").write_text(json.dumps({"chat_template": "x"}))
    found = discover_in((room,), is_dpo).models
    assert [path.name for path in found] == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("name", "text", "is_pairs"),
    [
        ("a.jsonl", '{"prompt": "p", "chosen": "c", "rejected": "r"}\n', True),
        ("a.jsonl", '{broken\n{"prompt": "p", "chosen": "c", "rejected": "r"}\n', True),
        ("a.csv", "chosen;rejected;prompt\nc;r;p\n", True),
        ("a.jsonl", '{"conversations": [{"role": "user", "content": "a"}]}\n', False),
        ("a.jsonl", '{"prompt": "p", "chosen": "c"}\n', False),
        ("a.jsonl", "no rows\n", False),
        ("a.jsonl", "", False),
    ],
)
def test_pairs_are_recognized_by_their_rows(
    tmp_path: Path, name: str, text: str, is_pairs: bool
) -> None:
    (tmp_path / name).write_text(text)
    assert looks_like_pairs(tmp_path / name) is is_pairs


def test_minimind_version_of_a_tokenizer(room: Path) -> None:
    checkout(room)
    assert minimind_version_of(room / "model") == 2
    (room / "model/chat_template.jinja").write_text("... <think>\n\n</think> ...")
    assert minimind_version_of(room / "model") == 3


def test_real_tokenizers(shared: Path) -> None:
    assert minimind_version_of(shared / "tokenizer/minimind2") == 2
    assert minimind_version_of(shared / "tokenizer/minimind3") == 3


def test_moe_by_file_name() -> None:
    assert is_moe_file(Path("full_sft_512_moe.pth"))
    assert not is_moe_file(Path("full_sft_512.pth"))

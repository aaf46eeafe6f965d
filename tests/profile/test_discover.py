"""Search for MiniMind's files, other models and pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_cli.profile.discover import FoundFiles, discover_around, is_moe_file, minimind_version_of


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


@pytest.mark.parametrize("place", [".", "minimind", "../minimind", "..", "../.."])
def test_a_checkout_nearby(room: Path, place: str) -> None:
    here = room / "a" / "b"
    here.mkdir(parents=True)
    folder = (here / place).resolve()
    checkout(folder)
    assert discover_around(here) == FoundFiles(
        (folder / "out/full_sft_512.pth",), (folder / "model",), (folder / "dataset/dpo.jsonl",)
    )


def test_the_old_layout(room: Path) -> None:
    tokenizer = "model/minimind_tokenizer"
    touch(room, f"{tokenizer}/tokenizer.json", f"{tokenizer}/tokenizer_config.json")
    touch(room, "dataset/dpo/train.jsonl")
    files = discover_around(room)
    assert files.tokenizers == (room / tokenizer,)
    assert files.pairs == (room / "dataset/dpo/train.jsonl",)


def test_pairs_in_other_formats(room: Path) -> None:
    touch(room, "dataset/dpo.csv", "dataset/my_dpo.json.gz", "dpo.jsonl", "dataset/dpo/a.parquet")
    touch(room, "profiles/dpo.schema.json", "dpo_results.csv", "dataset/dpo.md")
    names = ("dpo.jsonl", "dataset/dpo.csv", "dataset/my_dpo.json.gz", "dataset/dpo/a.parquet")
    assert discover_around(room).pairs == tuple(room / name for name in names)


def test_files_that_do_not_match(room: Path) -> None:
    touch(room, "out/full_sft_512.txt", "model/tokenizer.json", ".hidden/full_sft_1.pth")
    (room / "out/full_sft_8.pth").mkdir()
    assert discover_around(room) == FoundFiles((), (), ())


def test_nearest_files_come_first(room: Path) -> None:
    here = room / "here"
    checkout(room / "there")
    checkout(here)
    assert discover_around(here).weights[0] == here / "out/full_sft_512.pth"
    assert len(discover_around(here).weights) == 2


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

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_cli.profile.text import did_you_mean, near_path, show_model, show_path, show_value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "unset"),
        (True, "true"),
        (2, "2"),
        (0.1, "0.1"),
        (-1e-8, "-1e-8"),
        (1e-12, "1e-12"),
        (float("nan"), "nan"),
        ('a "b" 模型', '"a \\"b\\" 模型"'),
        (Path("/a/b"), '"/a/b"'),
        ([1, 2], "[1, 2]"),
    ],
)
def test_values_are_shown_as_toml(value: object, shown: str) -> None:
    assert show_value(value) == shown


def test_paths_are_relative_if_that_is_shorter(folder: Path) -> None:
    assert show_path(folder / "profiles/my.toml") == "profiles/my.toml"
    assert show_path(Path("/my.toml")) == "/my.toml"


def test_did_you_mean() -> None:
    assert did_you_mean("full_sft_521", ["rlhf_512", "full_sft_512"]) == (
        "; did you mean full_sft_512?"
    )
    assert did_you_mean("bta", ["beta"], str.upper) == "; did you mean BETA?"
    assert did_you_mean("zzz", ["beta"]) == ""


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("dataset/dpo.json", "dataset/dpo.jsonl"),
        ("datasets/dpoo.jsonl", "dataset/dpo.jsonl"),
        ("profile/my-run.toml", "profiles/my-run.toml"),
        ("./datase", "dataset"),
        ("dataset/zzz", ""),
        ("zzz/dpo.jsonl", ""),
        ("dataset/dpo.jsonl/x", ""),
        ("a\0b", ""),
    ],
)
def test_near_paths_have_their_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, typed: str, near: str
) -> None:
    for name in ("dataset/dpo.jsonl", "profiles/my-run.toml"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    monkeypatch.chdir(folder)
    hint = f"; did you mean {near}?" if near else ""
    assert near_path(Path(typed)) == near_path(folder / typed) == hint


def test_a_model_in_the_cache_of_the_hub_has_its_name() -> None:
    cache = Path("/home/hub/models--me--small-chat/snapshots")
    assert show_model(cache / "09879f34ba708af3fa37078e8afd613d22329f80") == "hf:me/small-chat"
    assert show_model(Path("/models--me--other/weights.pth")) == "/models--me--other/weights.pth"

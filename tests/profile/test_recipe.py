"""Values that a new profile proposes, and their arithmetic."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dpo_cli.profile.load import load_profile
from dpo_cli.profile.recipe import (
    BETA,
    TARGET_LR_SUM,
    Inputs,
    copy_profile,
    learning_recipe,
    minimind_recipe,
    path_value,
    saturation_margin,
    suggest_lr_and_beta,
)

NOTHING = Inputs(None, None, None)


def inputs(folder: Path, rows: int) -> Inputs:
    return Inputs(folder / "out/full_sft_512.pth", folder / "model", folder / "dpo.jsonl", rows)


@pytest.mark.parametrize("name", ["dense", "minimind3"])
@pytest.mark.parametrize("rows", [40, 400, 4349])
def test_the_learning_rates_of_the_run_add_up_to_lr_sum(folder: Path, name: str, rows: int) -> None:
    from dpo_cli.data.sampler import hold_out  # torch: compares with the real schedule
    from dpo_cli.training.optimizer import LearningRate

    draft = learning_recipe(load_profile(Path(name)), inputs(folder, rows), folder)
    pairs, _ = hold_out(rows, draft.values["eval.fraction"], 0)
    steps = -(-len(pairs) // draft.values["train.batch_size"]) * draft.values["train.epochs"]
    rate = LearningRate(
        draft.values["train.schedule"], draft.values["train.learning_rate"], steps, 0
    )
    assert sum(map(rate.at, range(steps))) == pytest.approx(TARGET_LR_SUM, rel=0.15)
    assert steps // draft.values["eval.interval"] >= 5


def test_the_arithmetic_is_written_down(folder: Path) -> None:
    draft = learning_recipe(load_profile(Path("dense")), inputs(folder, 400), folder)
    note = "\n".join(draft.notes["train.learning_rate"])
    assert "400 rows" in note
    assert "40 held out, 4 per batch: up to 90 steps" in note
    assert "0.001 / (90 x 0.6) = 1.9e-5" in note
    assert draft.values["train.learning_rate"] == 1.9e-5


def test_a_higher_learning_rate_comes_with_a_higher_beta() -> None:
    for name in ("dense", "moe", "minimind3", "minimind3-moe"):
        draft = learning_recipe(load_profile(Path(name)), NOTHING, Path())
        assert draft.values["dpo.beta"] == BETA
        assert draft.values["dpo.reduction"] == "mean"


def test_without_pairs_their_number_is_assumed() -> None:
    draft = learning_recipe(load_profile(Path("dense")), NOTHING, Path())
    assert "no file was found" in "\n".join(draft.notes["train.learning_rate"])
    assert draft.values["train.learning_rate"] < 1e-6


def test_the_minimind_recipe_has_the_scripts_values(folder: Path) -> None:
    draft = minimind_recipe(load_profile(Path("minimind3")), NOTHING, folder)
    assert draft.values["train.learning_rate"] == 4e-8
    assert draft.values["dpo.reduction"] == "sum"
    assert "model.hidden_size" not in draft.values  # inferred from the weights
    assert draft.values["model.out_dir"] == "../out"
    assert draft.values["data.data_path"] == "../dataset/dpo.jsonl"
    assert set(draft.notes) == {"model.out_dir", "model.tokenizer", "data.data_path"}


def test_a_copy_has_the_values_of_the_shipped_profile(folder: Path) -> None:
    shipped = load_profile(Path("minimind3-moe"))
    draft = copy_profile(shipped, folder)
    explicit = {key for key, origin in shipped.origins.items() if origin != "default"}
    assert draft.values.keys() == explicit
    assert (folder / draft.values["model.tokenizer"]).resolve() == shipped.profile.model.tokenizer


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/a/b/c/x.pth", "../c/x.pth"),
        ("/a/b/p/$HOME", "$$HOME"),
        ("/a/b/p/~x", "./~x"),
        ("/elsewhere/x", "../../../elsewhere/x"),
    ],
)
def test_paths_are_relative_to_the_profile(path: str, text: str) -> None:
    assert path_value(Path(path), Path("/a/b/p")) == text


def test_far_paths_are_absolute() -> None:
    assert path_value(Path("/elsewhere/x"), Path("/a/b/c/p")) == "/elsewhere/x"


def test_learning_rate_and_beta_are_suggested_together() -> None:
    assert suggest_lr_and_beta(1e-8, 1e-6) == (
        'Set dpo.reduction = "mean", dpo.beta = 5 and train.learning_rate = 1e-5 together (lr_sum'
        " 0.001, as dpo init proposes). Do not raise the learning rate alone."
    )


def test_the_gradient_halves_at_the_saturation_margin() -> None:
    """The gradient is proportional to sigmoid(-u), 1/2 at the start."""
    gap = saturation_margin(5.0, "mean", 100.0)
    assert 1 / (1 + math.exp(5.0 * gap)) == pytest.approx(1 / 4)
    assert saturation_margin(0.05, "sum", 100.0) == pytest.approx(gap)

"""Tests of the values that a new profile proposes, and of their arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_cli.learning_rate import LearningRate
from dpo_cli.profile import doctrine
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.recipe import (
    Draft,
    Inputs,
    copy_profile,
    huggingface_recipe,
    learning_recipe,
    minimind_recipe,
)
from dpo_cli.profile.text import path_value

NOTHING = Inputs(None, None, None)
SMALL, LARGE = 26_000_000, 300_000_000
KINDS = ("dense", "moe", "minimind3", "minimind3-moe", "hf")
ROWS = (2, 5, 8, 20, 60, 89, 90, 200, 492, 999, 1000, 4349, 20_000)


def weights_file(folder: Path, parameters: int) -> Path:
    """File as large as float16 weights; its content is not read."""
    path = folder / f"full_sft_{parameters}.pth"
    with open(path, "wb") as file:
        file.truncate(2 * parameters)
    return path


def model_folder(folder: Path, parameters: int) -> Path:
    """Model directory with a sparse safetensors file of zeros."""
    path = folder / f"model-{parameters}"
    path.mkdir()
    size_bytes = 4 * parameters
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {
                "dtype": "F32",
                "shape": [parameters // 1000, 1000],
                "data_offsets": [0, size_bytes],
            },
        }
    ).encode()
    with open(path / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size_bytes)
    return path


def draft_of(folder: Path, kind: str, parameters: int | None, rows: int | None) -> Draft:
    """Return the profile that `dpo init` writes for a kind of model."""
    make, write = weights_file, learning_recipe
    if kind == "hf":
        make, write = model_folder, huggingface_recipe
    model = make(folder, parameters) if parameters else None
    inputs = Inputs(model, folder / "model", folder / "dpo.jsonl", rows)
    return write(load_profile(Path(kind)), inputs, folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("parameters", "limit"), [(SMALL, 5e-6), (LARGE, 1e-6), (None, 1e-6)])
def test_no_proposal_is_above_what_was_measured(
    folder: Path, kind: str, parameters: int | None, limit: float
) -> None:
    """Neither the rate nor lr_sum exceeds the measured limit, for any number of rows."""
    from dpo_cli.data.sampler import hold_out  # torch: compares with the real schedule

    model = None
    if parameters:
        model = (model_folder if kind == "hf" else weights_file)(folder, parameters)
    shipped = load_profile(Path(kind))
    write = huggingface_recipe if kind == "hf" else learning_recipe
    for rows in ROWS:
        draft = write(shipped, Inputs(model, None, folder / "dpo.jsonl", rows), folder)
        values = draft.values
        assert values["train.learning_rate"] <= limit
        pairs, held_out = hold_out(rows, values["eval.fraction"], 0)
        assert len(held_out) == doctrine.propose_held_out(rows)
        steps = -(-len(pairs) // values["train.batch_size"]) * values["train.epochs"]
        schedule = LearningRate(
            shipped.profile.train.schedule, values["train.learning_rate"], steps, 0
        )
        lr_sum = sum(map(schedule.at, range(steps)))
        # The mean of a cosine over few steps is above its mean over many.
        assert lr_sum <= max(doctrine.MAX_LR_SUM, 1.1 * steps * limit) * 1.01
        assert steps < 5 or steps // values["eval.interval"] >= 5


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_gets_the_same_guarded_loss(folder: Path, kind: str) -> None:
    values = draft_of(folder, kind, SMALL, 400).values
    assert values["dpo.reduction"] == doctrine.REDUCTION
    assert values["dpo.beta"] == doctrine.BETA
    assert values["eval.keep_best"] is True
    assert values["eval.num_samples"] == doctrine.SAMPLES


@pytest.mark.parametrize(("rows", "interval"), [(60, 1), (4349, 10)])
def test_a_short_run_logs_every_step(folder: Path, rows: int, interval: int) -> None:
    assert draft_of(folder, "dense", SMALL, rows).values["train.log_interval"] == interval


def test_the_arithmetic_is_written_down(folder: Path) -> None:
    draft = draft_of(folder, "dense", SMALL, 4349)
    note = "\n".join(draft.notes["train.learning_rate"])
    assert "4,349 rows" in note
    assert "217 held out, 4 per batch: up to 1,033 steps" in note
    assert "0.001 / (1,033 x 0.6) = 1.6e-6" in note
    assert draft.values["train.learning_rate"] == 1.6e-6


def test_a_capped_rate_says_so(folder: Path) -> None:
    note = "\n".join(draft_of(folder, "dense", SMALL, 60).notes["train.learning_rate"])
    assert "5e-6: the largest that is proposed" in note
    assert "an lr_sum (sum over all steps) of 3e-5" in note


@pytest.mark.parametrize("kind", ["dense", "hf"])
def test_few_pairs_say_what_they_cannot_show(folder: Path, kind: str) -> None:
    few = draft_of(folder, kind, SMALL, 60)
    note = " ".join(few.notes["eval.fraction"])
    assert "20 held-out pairs distinguish an accuracy of 0.75 or more" in note
    enough = draft_of(folder, kind, SMALL * 2, 90)
    assert "show an accuracy" not in " ".join(enough.notes["eval.fraction"])


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

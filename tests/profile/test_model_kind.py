"""Tests of defaults by the kind of the model, which are the same in every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_cli.checks.profile import check_profile
from dpo_cli.checks.reporter import Reporter
from dpo_cli.profile.load import load_profile, profile_from_values
from dpo_cli.profile.model_kind import defaults_of, kind_of_weights
from dpo_cli.profile.schema import KEYS
from dpo_cli.run.eval_config import find_eval_config
from dpo_cli.run.models import NamedModel

KEYS_BY_KIND = ("data.empty_think_ratio", "dpo.reduction")
MINIMIND = (0.2, "mean")
HUGGING_FACE = (1.0, "sum")


def put(path: Path, text: str = "{}") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a model of each kind and a file of pairs."""
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "out/full_sft_64.pth")
    put(tmp_path / "pairs.jsonl")
    for name, kind in (("$qwen", "qwen3"), ("published", "minimind"), ("out/inner", "llama")):
        put(tmp_path / name / "config.json", json.dumps({"model_type": kind}))
        put(tmp_path / name / "tokenizer.json")
        put(tmp_path / name / "tokenizer_config.json")
    put(tmp_path / "damaged/config.json", "{")
    return tmp_path


def values(profile: object) -> tuple[object, ...]:
    return tuple(
        getattr(getattr(profile, table), name)
        for table, name in (key.split(".") for key in KEYS_BY_KIND)
    )


WEIGHTS = {
    "./$$qwen": HUGGING_FACE,
    "inner": HUGGING_FACE,
    "hf:org/name": HUGGING_FACE,
    "./published": MINIMIND,
    "full_sft_64": MINIMIND,
    "./damaged": MINIMIND,
    "./missing": MINIMIND,
    "run:earlier": MINIMIND,
}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_defaults_of_a_profile(weights: str, here: Path) -> None:
    text = f'[model]\nout_dir = "out"\nweights = "{weights}"\n[data]\ndata_path = "pairs.jsonl"\n'
    path = put(here / "my.toml", text)
    loaded = load_profile(path)
    assert values(loaded.profile) == WEIGHTS[weights]
    # Stated values win, in the file and on the command line.
    stated = text + "empty_think_ratio = 0.5\n"
    path.write_text(stated)
    mean = load_profile(path, ["dpo.reduction=mean"])
    assert values(mean.profile) == (0.5, "mean")
    assert not mean.kind_defaults
    assert loaded.origins["dpo.reduction"] == mean.origins["train.epochs"] == "default"


def test_weights_on_the_command_line_decide(here: Path) -> None:
    path = put(here / "my.toml", '[data]\ndata_path = "pairs.jsonl"\n')
    assert values(load_profile(path).profile) == MINIMIND
    assert values(load_profile(path, ["model.weights=./$$qwen"]).profile) == HUGGING_FACE


def test_shipped_profile_of_hugging_face_states_the_defaults() -> None:
    assert values(load_profile(Path("hf")).profile) == HUGGING_FACE
    assert {key: KEYS[key].name for key in defaults_of("huggingface", "sigmoid")} == {
        key: key for key in KEYS_BY_KIND
    }


def test_loss_that_is_a_mean(here: Path) -> None:
    """The default must not contradict the loss."""
    for loss in ("simpo", "orpo", ["sigmoid", "orpo"]):
        profile = profile_from_values(
            {
                "model.weights": str(here / "$$qwen"),
                "data.data_path": here / "pairs.jsonl",
                "dpo.loss": loss,
            },
            (),
        )
        assert values(profile) == (1.0, "mean")
    assert kind_of_weights(here / "$qwen") == "huggingface"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("$qwen",), HUGGING_FACE),
        (("$qwen", "out/full_sft_64.pth"), HUGGING_FACE),
        (("published",), MINIMIND),
        (("out/full_sft_64.pth",), MINIMIND),
        (("out/full_sft_64.pth", "$qwen"), MINIMIND),
    ],
)
def test_evaluation_and_merge_without_a_profile(
    names: tuple[str, ...], expected: tuple[object, ...], here: Path
) -> None:
    """Regression: `dpo eval FOLDER` used MiniMind's share of think blocks for every model."""
    config = find_eval_config(
        [NamedModel(here / name) for name in names],
        runs_root=here / "runs",
        data=here / "pairs.jsonl",
        tokenizer=here / "published",
    )
    assert config is not None
    # Without a reference only the ranking is evaluated, by log-probs per token.
    assert values(config.profile) == (expected[0], "mean")
    assert config.default_kind == ("huggingface" if expected == HUGGING_FACE else "minimind")


def test_check_shows_the_defaults(here: Path) -> None:
    text = '[model]\nweights = "./$$qwen"\n[data]\ndata_path = "pairs.jsonl"\n'
    path = put(here / "my.toml", text)
    reporter = Reporter()
    check_profile(reporter, path, ["data.empty_think_ratio=1.0"])
    [finding] = reporter.findings
    assert finding.message.endswith(
        "default; defaults for a Hugging Face model: dpo.reduction = sum"
    )
    reporter = Reporter()
    check_profile(reporter, path, ["model.weights=./published"])
    assert reporter.findings[0].message.endswith(" default")


def test_a_folder_that_is_evaluated_without_a_profile(shared: Path, here: Path) -> None:
    model = NamedModel(shared / "cases/models/qwen3")
    data = shared / "cases/34-no-thinking/pairs.jsonl"
    config = find_eval_config([model], runs_root=here, data=data, reference=model)
    assert config is not None
    assert values(config.profile) == values(load_profile(Path("hf")).profile) == HUGGING_FACE

"""Tests of `dpo eval` and `dpo merge` on trained runs, through the real command line."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_cli.models.loading import build_model, load_model_weights, read_state_dict
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Evaluated
from tests.commands.conftest import Cli
from tests.support import workers
from tests.support.cli import Run
from tests.support.cli import dpo as run_dpo
from tests.support.small_runs import golden_run

CHANGES = {"train.epochs": 1, "eval.interval": 3, "dpo.beta": 5.0}


@dataclass(frozen=True)
class Trained:
    """Trained run, and calls of `dpo` in a process like a worker's."""

    run: RunDirectory
    model_weights: Path

    @property
    def folder(self) -> Path:
        return self.run.path.parent

    def dpo(self, *arguments: str | Path) -> tuple[int, str]:
        """Run `dpo`; return the exit code and the combined output."""
        said = self.folder / "said.txt"
        words = [str(argument) for argument in arguments]
        code = workers.call(partial(_call, [*words, "--runs-dir", str(self.folder)], said))
        return code, said.read_text(encoding="utf-8")

    def evaluated_models(self, *arguments: str | Path) -> dict[str, Any]:
        """Return the output of `dpo eval --json`."""
        code, said = self.dpo("eval", *arguments, "--json")
        assert code == 0, said
        evaluated_models: dict[str, Any] = json.loads(said)
        return evaluated_models

    @property
    def evaluations(self) -> list[Evaluated]:
        return [event for event in Run(self.run).events if isinstance(event, Evaluated)]


def _call(arguments: list[str], said: Path) -> None:
    from dpo_cli import app

    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(app.main(arguments))


def train(shared: Path, root: Path, version: str, moe: bool, **changes: Any) -> Trained:
    run = workers.new_run(root, golden_run(shared, version, moe, **CHANGES, **changes))
    assert workers.work(run) == 0
    name = f"golden/train/{version}/full_sft_64{'_moe' if moe else ''}.pth"
    return Trained(run, shared / name)


@pytest.fixture(scope="module", params=["dense", "moe"])
def trained(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """Train MiniMind version 2 dense, or MiniMind version 3 with experts."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "dense":
        return train(shared, root, "seed", False, **{"eval.keep_best": True})
    return train(shared, root, "head", True)


@pytest.fixture(scope="module")
def dense(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(shared, tmp_path_factory.mktemp("one"), "seed", False)


def assert_as_recorded(evaluated_models: dict[str, Any], event: Evaluated, within: float) -> None:
    [model] = evaluated_models["models"]
    assert model["groups"].keys() == event.groups.keys()
    for name, figures in event.groups.items():
        assert model["groups"][name] == pytest.approx(figures, abs=within, rel=0), name
    of_all = {name: model["groups"]["all"][name] for name in event.metrics}
    assert of_all == pytest.approx(event.metrics, abs=within, rel=0)
    assert model["groups"]["all"]["pairs"] == event.pairs


def test_a_run_as_it_evaluated_itself(trained: Trained) -> None:
    evaluated_models = trained.evaluated_models(trained.run.name)
    assert_as_recorded(evaluated_models, trained.evaluations[-1], within=0.0)
    assert evaluated_models["models"][0]["optimizer_step"] == 6
    assert evaluated_models["held_out"]
    assert evaluated_models["beta"] == 5.0


def test_an_exported_file_the_start_and_a_hugging_face_folder(
    trained: Trained, tmp_path: Path
) -> None:
    """All metrics equal those of the run's own evaluations to 1e-5."""
    by_profile = ("--profile", trained.run.profile_path)
    start = trained.evaluated_models(trained.model_weights, *by_profile)
    assert_as_recorded(start, trained.evaluations[0], within=1e-5)

    file = tmp_path / "x.pth"
    exporting = ("export", trained.run.path, "--to", file, "--dtype", "float32", "--no-evaluate")
    assert trained.dpo(*exporting)[0] == 0
    assert_as_recorded(
        trained.evaluated_models(file, *by_profile), trained.evaluations[-1], within=1e-5
    )

    model_weights = load_model_weights(file, {})
    folder = tmp_path / "hf"
    build_model(model_weights.architecture, model_weights.state).save_pretrained(folder)  # type: ignore[no-untyped-call]
    assert_as_recorded(
        trained.evaluated_models(folder, *by_profile), trained.evaluations[-1], within=1e-5
    )


def test_the_best_state(trained: Trained) -> None:
    event = min(trained.evaluations, key=lambda event: event.metrics["loss"])
    code, said = trained.dpo("eval", trained.run.name, "--best", "--json")
    if not event.optimizer_step:
        assert code == 1
        assert "has no best checkpoint" in said
        return
    assert_as_recorded(json.loads(said), event, within=0.0)
    assert event.optimizer_step == 3


def test_other_pairs_and_another_reference(dense: Trained, shared: Path) -> None:
    """A run compared with itself has no change, and without a reference there is no accuracy."""
    data = shared / "golden/data/train27.jsonl"
    evaluated_models = dense.evaluated_models(
        dense.run.name, "--data", data, "--reference", dense.run.name
    )
    groups = evaluated_models["models"][0]["groups"]
    assert groups["all"]["pairs"] == 27
    assert groups["all"]["kl"] == groups["all"]["margin_per_token"] == 0
    assert groups["all"]["logps/accuracies"] == groups["all"]["ref_logps/accuracies"]
    assert not evaluated_models["held_out"]
    knows = f"{dense.run.name} was trained on pairs of this file and may have seen these"
    assert evaluated_models["notes"][0] == knows

    tokenizer = ("--tokenizer", shared / "tokenizer/minimind2", "--set", "data.max_seq_len=128")
    alone = dense.evaluated_models(dense.model_weights, "--data", data, *tokenizer)
    own = alone["models"][0]["groups"]["all"]
    assert alone["reference"] is None
    assert "loss" not in own
    assert "rewards/accuracies" not in own
    compared = dense.evaluated_models(
        dense.model_weights, "--data", data, *tokenizer, "--reference", dense.run.path
    )
    of_both = compared["models"][0]["groups"]["all"]
    assert {name: of_both[name] for name in own} == pytest.approx(own, abs=1e-6)
    assert of_both["margin_per_token"] == pytest.approx(-gap_of_the_run(dense, data), abs=1e-6)


def gap_of_the_run(dense: Trained, data: Path) -> float:
    evaluated_models = dense.evaluated_models(dense.run.name, "--data", data)
    gap: float = evaluated_models["models"][0]["groups"]["all"]["margin_per_token"]
    assert gap != 0
    return gap


def test_it_writes_nothing_into_the_run(dense: Trained) -> None:
    before = {path: path.stat().st_mtime_ns for path in dense.run.path.rglob("*")}
    code, said = dense.dpo("eval", dense.run.name, "--set", "dpo.beta=2")
    assert code == 0
    assert "5 held-out pairs of" in said
    assert "DPO, beta 2, reduction mean, max_seq_len 128" in said
    assert {path: path.stat().st_mtime_ns for path in dense.run.path.rglob("*")} == before


def test_changed_data_is_not_evaluated_as_held_out(
    dense: Trained, shared: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    rows = (shared / "golden/data/train27.jsonl").read_text(encoding="utf-8").splitlines()
    other.write_text("\n".join(rows[::-1]) + "\n", encoding="utf-8")
    code, said = dense.dpo("eval", dense.run.name, "--set", f"data.data_path={other}")
    assert code == 1
    assert "data.data_path: the content is not what the run began with" in said
    assert dense.dpo("eval", dense.run.name, "--data", other)[0] == 0


def test_a_merge_is_evaluated_beside_both_models(trained: Trained, tmp_path: Path) -> None:
    file = tmp_path / "rlhf_64.pth"
    code, said = trained.dpo(
        *("merge", trained.run.name, trained.model_weights, "--weight", "0.25", "--to", file),
        *("--dtype", "float32"),
    )
    assert code == 0, said
    assert f"wrote {file}: " in said
    assert "0.75 of " in said
    for line in (
        f"A {trained.run.name} after step 6",
        "C ",
        "note: B: ",
    ):
        assert any(shown.startswith(line) for shown in said.splitlines()), line
    start, state = read_state_dict(trained.model_weights), Run(trained.run).weights
    merged = read_state_dict(file)
    assert list(merged) == list(start)
    for name, tensor in state.items():
        exact = 0.75 * tensor.double() + 0.25 * start[name].double()
        assert torch.equal(merged[name], exact.float()), name
    evaluated_models = trained.evaluated_models(file, "--profile", trained.run.profile_path)
    kl = evaluated_models["models"][0]["groups"]["all"]["kl"]
    assert 0 < kl < trained.evaluations[-1].metrics["kl"]


@pytest.mark.parametrize("weight", [0, 1])
def test_the_ends_of_a_merge_are_its_models(dense: Trained, tmp_path: Path, weight: int) -> None:
    file = tmp_path / "m.pth"
    code, said = dense.dpo(
        *("merge", dense.model_weights, dense.run.path, "--weight", str(weight), "--to", file),
        *("--json", "--dtype", "float32"),
    )
    assert code == 0, said
    facts = json.loads(said)
    assert (facts["weight"], facts["dtype"]) == (weight, "float32")
    models = facts["evaluation"]["models"]
    assert [model["optimizer_step"] for model in models] == [None, 6, None]
    assert models[2]["groups"] == models[weight]["groups"]
    whole = Run(dense.run).weights if weight else read_state_dict(dense.model_weights)
    merged = read_state_dict(file)
    assert all(torch.equal(merged[name], tensor.float()) for name, tensor in whole.items())


def test_a_run_that_learned_what_the_other_held_out(
    dense: Trained, shared: Path, tmp_path: Path
) -> None:
    all_pairs = train(shared, tmp_path, "seed", False, **{"eval.fraction": 0})
    to = ("--to", tmp_path / "m.pth", "--json")
    said = dense.dpo("merge", dense.run.path, all_pairs.run.path, *to)[1]
    notes = json.loads(said)["evaluation"]["notes"]
    [knows] = [note for note in notes if "may have seen these" in note]
    assert knows.startswith(all_pairs.run.name)
    # A run that held out the same pairs has not trained on them.
    said = dense.dpo("merge", dense.run.path, dense.run.path, *to, "--force")[1]
    assert "may have seen these" not in said


def test_models_that_cannot_be_merged(dense: Trained, shared: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.pth"
    others = shared / "golden/train/seed/full_sft_64_moe.pth"
    code, said = dense.dpo("merge", dense.model_weights, others, "--to", file)
    assert code == 1
    assert "models of different architectures cannot be merged" in said
    assert "num_experts: 0 in " in said
    assert not file.exists()
    # Two files, and no pairs to evaluate on.
    code, said = dense.dpo("merge", dense.model_weights, dense.model_weights, "--to", file)
    assert code == 0
    assert "not evaluated; to evaluate, name preference pairs with --data FILE" in said
    assert load_model_weights(file, {}).dtype == torch.float16
    code, said = dense.dpo("merge", dense.model_weights, dense.model_weights, "--to", file)
    assert code == 2
    assert f"{file} exists" in said


def test_through_dpo_itself(dense: Trained, tmp_path: Path) -> None:
    out = run_dpo("eval", dense.run.path, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    lines = out.stdout.splitlines()
    assert lines[0] == f"{dense.run.name} after step 6"
    assert lines[1].startswith("5 held-out pairs of ")
    assert lines[3].startswith("chat template of ")
    assert lines[3].endswith("empty think blocks kept in 20 % of the pairs")
    assert "accuracy (95 %)" in lines[5]
    assert lines[6].split()[:2] == ["all", "5"]
    assert out.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("eval",), "MODEL is missing"),
        (("eval", "gone.pth"), "gone.pth: no such file"),
        (("eval", "gone"), "there are no runs in runs"),
        (("eval", "full_sft_512.pth"), "full_sft_512.pth has no pairs of its own"),
        (
            ("eval", "full_sft_512.pth"),
            "Name preference pairs: --data FILE (data=FILE in Python), or the profile",
        ),
        (
            ("eval", "full_sft_512.pth", "--best"),
            "full_sft_512.pth is not a run, so it has no best checkpoint",
        ),
        (("eval", "full_sft_512.pth", "--profile", "mine.toml"), "mine.toml has no held-out pairs"),
        (
            ("eval", "full_sft_512.pth", "--data", "pairs.jsonl"),
            "full_sft_512.pth: the tokenizer of these weights is unknown",
        ),
        (
            ("eval", "full_sft_512.pth", "--data", "pairs.jsonl", "--tokenizer", "."),
            "--tokenizer: . has no tokenizer.json",
        ),
        (
            ("eval", "full_sft_512.pth", "--data", "gone.jsonl"),
            "--data: gone.jsonl does not exist",
        ),
        (("merge", "full_sft_512.pth"), "B is missing"),
        (("merge", "full_sft_512.pth", "full_sft_512.pth"), "--to is missing"),
        (
            ("merge", "full_sft_512.pth", "full_sft_512.pth", "--to", "mine.toml"),
            "mine.toml exists",
        ),
        (
            ("merge", "full_sft_512.pth", "full_sft_512.pth", "--to", "."),
            "contains a model of this",
        ),
        (("merge", "full_sft_512.pth", "x.pth", "--to", "m.pth"), "x.pth: no such file"),
        (
            ("merge", "full_sft_512.pth", "full_sft_512.pth", "--to", "no/m.pth"),
            "no does not exist",
        ),
        (
            ("merge", *["full_sft_512.pth"] * 2, "--to", "m.pth", "--weight", "2"),
            "less than or equal to 1",
        ),
        (("merge", *["full_sft_512.pth"] * 2, "--to", "m.pth", "--best"), "neither model is a run"),
    ],
)
def test_a_wrong_command_line_fails_at_once(
    dpo: Cli, directory: Path, arguments: tuple[str, ...], said: str
) -> None:
    code, out, err = dpo(*arguments)
    assert (code, out) == (2, "")
    assert said in " ".join(err.replace("│", " ").split())

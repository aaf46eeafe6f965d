"""Tests of `dpo export` on a trained run."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch

from dpo_cli.errors import DpoError, UsageError
from dpo_cli.export import export as export_module
from dpo_cli.export import verified_write
from dpo_cli.export.export import export_run
from dpo_cli.export.try_command import TryCommand, try_command
from dpo_cli.inference.evaluate import evaluate_held_out, evaluation_seconds
from dpo_cli.models.convert import StateDict
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.loading import load_model_weights, read_state_dict
from dpo_cli.models.rounding import Rounding
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import Evaluated, Exported, history
from dpo_cli.training import weights as trained_module
from dpo_cli.training.checkpointing import load_weights
from tests.support import workers
from tests.support.cli import Run, dpo
from tests.support.small_runs import golden_run

START = "golden/train/seed/full_sft_64_moe.pth"


@pytest.fixture(scope="session")
def trained(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Run with experts, held-out pairs, and an update that half precision mostly loses."""
    changes = {"train.epochs": 1, "train.learning_rate": 1e-6, "eval.interval": 0}
    root = tmp_path_factory.mktemp("export")
    run = workers.new_run(root / "runs", golden_run(shared, "seed", True, **changes))
    assert workers.work(run) == 0
    return run


def exported_as(
    run: RunDirectory, file: Path, rounding: Rounding, seed: int | None, dtype: str = "float16"
) -> StateDict:
    """Read the weights of the file, as a user of MiniMind's scripts would."""
    report = export_run(run, file, dtype, True, (), rounding, seed)
    assert report.path == file
    architecture = load_model_weights(file, {}).architecture
    written = read_state_dict(file)
    assert set(written) == set(architecture.expected_shapes())
    return written


def test_stochastic_rounding_keeps_what_nearest_loses(
    trained: RunDirectory, shared: Path, tmp_path: Path
) -> None:
    file = tmp_path / "rlhf_64_moe.pth"
    start, state = read_state_dict(shared / START), Run(trained).weights
    nearest = exported_as(trained, file, "nearest", None)
    assert all(torch.equal(nearest[name], tensor.half()) for name, tensor in state.items())
    report = export_run(trained, file, None, True)
    assert report.retention is not None
    assert not report.not_compared
    changed = sum(int((nearest[name] != start[name]).sum()) for name in start)
    tied = int((nearest["lm_head.weight"] != start["lm_head.weight"]).sum())
    parameters = sum(tensor.numel() for name, tensor in start.items() if name != "lm_head.weight")
    assert report.retention.changed == (changed - tied) / parameters
    assert 0 < report.retention.changed < 0.1
    assert report.retention.kept < 0.5 < report.retention.relative_error

    drawn = exported_as(trained, file, "stochastic", 5)
    again = exported_as(trained, file, "stochastic", 5)
    other = exported_as(trained, file, "stochastic", 6)
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    assert any(not torch.equal(drawn[name], other[name]) for name in drawn)
    assert drawn["lm_head.weight"].data_ptr() == drawn["model.embed_tokens.weight"].data_ptr()
    for name, tensor in state.items():
        other_side = torch.where(
            nearest[name].float() < tensor, torch.tensor(torch.inf), torch.tensor(-torch.inf)
        )
        neighbor = torch.nextafter(nearest[name], other_side.half())
        assert ((drawn[name] == nearest[name]) | (drawn[name] == neighbor)).all(), name
    report = export_run(trained, file, None, True, (), "stochastic", 5)
    assert report.retention is not None
    assert report.retention.kept == pytest.approx(1.0, abs=0.1)
    assert report.seed == 5
    assert report.mean_logp_difference < 0.01

    events = [e for e in history(trained.events_path) if isinstance(e, Exported)]
    assert [(e.rounding, e.seed) for e in events[-6:]] == [
        *[("nearest", None)] * 2,
        *[("stochastic", seed) for seed in (5, 5, 6, 5)],
    ]
    assert events[-4].sha256 == events[-3].sha256 == events[-1].sha256 != events[-2].sha256


def test_the_default_seed_is_that_of_the_run(trained: RunDirectory, tmp_path: Path) -> None:
    report = export_run(trained, tmp_path / "x.pth", "bfloat16", False, (), "stochastic")
    assert report.seed == 1337
    assert report.retention is not None
    assert report.retention.source_dtype == "float16"
    assert report.retention.start_error > 8  # the rounding error is larger than the update
    with pytest.raises(UsageError, match="float32 represents every weight exactly"):
        export_run(trained, tmp_path / "y.pth", "float32", False, (), "stochastic")
    assert not (tmp_path / "y.pth").exists()


def test_the_starting_weights_are_missing_or_have_changed(
    trained: RunDirectory, shared: Path, tmp_path: Path
) -> None:
    """The file is written, and the report says why nothing is compared."""
    file = tmp_path / "x.pth"
    gone = export_run(trained, file, None, True, [f"model.weights={tmp_path}/gone.pth"])
    assert "gone.pth does not exist" in gone.not_compared
    assert gone.retention is None
    state = torch.load(shared / START)
    state["model.norm.weight"] *= 2
    torch.save(state, tmp_path / "other.pth")
    others = export_run(trained, file, None, True, [f"model.weights={tmp_path}/other.pth"])
    assert others.not_compared == "model.weights: the content has changed since the run began"


def test_a_file_with_a_wrong_bit_is_not_renamed(
    trained: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is finite and of the right shape, but one bit of one weight is wrong."""
    write = verified_write.write_model

    def flipped(path: Path, state: StateDict, *rest: object) -> None:
        name = "model.layers.1.self_attn.k_proj.weight"
        bits = state[name].clone().view(torch.int16)
        bits[3, 4] ^= 1
        write(path, {**state, name: bits.view(torch.float16)}, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(verified_write, "write_model", flipped)
    with pytest.raises(DpoError, match=r"k_proj.weight read back differs from what was written"):
        export_run(trained, tmp_path / "x.pth", None, False)
    assert not list(tmp_path.iterdir())


def test_weights_beyond_the_range_of_float16_are_an_error(
    trained: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path) -> StateDict:
        state = load_weights(path)
        state["model.norm.weight"][3] = 7e4
        return state

    monkeypatch.setattr(trained_module, "load_weights", load)
    with pytest.raises(DpoError, match=r"norm.weight has a weight of magnitude 70000"):
        export_run(trained, tmp_path / "x.pth", None, False)
    assert not list(tmp_path.iterdir())
    assert export_run(trained, tmp_path / "x.pth", "float32", False).dtype == "float32"


def score_as_the_run_did(run: RunDirectory) -> None:
    state = load_weights(Run(run).checkpoint)
    half = {name: tensor.half() for name, tensor in state.items()}
    calls: list[tuple[object, ...]] = []
    evaluation = evaluate_held_out(run, (), [half, state], lambda *progress: calls.append(progress))
    of_half, of_state = (model.groups["all"] for model in evaluation.models)
    [comparison] = evaluation.comparisons
    assert (comparison.model, comparison.other) == (1, 0)
    assert comparison.result.differences["loss"].mean == pytest.approx(
        of_state["loss"] - of_half["loss"], rel=1e-6
    )
    evaluations = [event for event in Run(run).events if isinstance(event, Evaluated)]
    recorded = evaluations[-1]
    assert {name: of_state[name] for name in recorded.metrics} == recorded.metrics
    assert of_half["logps/chosen"] != recorded.metrics["logps/chosen"]
    assert of_half["pairs"] == of_state["pairs"] == recorded.pairs
    assert calls[-1] == ("evaluation", 5, 5, "pairs")
    assert evaluation_seconds(run) == max(event.seconds for event in evaluations)


def test_starting_weights_are_not_replaced(
    trained: RunDirectory, shared: Path, tmp_path: Path
) -> None:
    """A run that lost its starting weights cannot be resumed."""
    start = tmp_path / "start.pth"
    start.write_bytes((shared / START).read_bytes())
    (tmp_path / "link.pth").symlink_to(start)
    moved = [f"model.weights={start}"]
    for path in (start, tmp_path / "link.pth"):
        with pytest.raises(DpoError, match=r"is model.weights of this run"):
            export_run(trained, path, None, True, moved)
    with pytest.raises(DpoError, match=r"contains model.weights of this run"):
        export_run(trained, tmp_path, None, True, moved, export_format="hf")
    assert start.read_bytes() == (shared / START).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.pth", "start.pth"]


def test_a_refused_destination_costs_no_load_and_names_the_other_run(
    trained: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rlhf_64_moe.pth"
    file.write_bytes(b"weights of the other run")
    other = RunDirectory.create(trained.path.parent, "other", trained.read_profile())
    events = EventWriter(other.events_path, mend=False)
    events.append(
        Exported(
            path=str(file),
            sha256="0" * 64,
            dtype="float16",
            optimizer_step=1,
            rounding="nearest",
            seed=None,
            stops=(),
            commands={},
        )
    )
    events.close()
    monkeypatch.setattr(export_module, "read_trained", None)
    try:
        with pytest.raises(DpoError) as caught:
            export_run(trained, file, None, False)
    finally:
        other.remove()
    assert f"{other.designation} was exported to it, not this run" in caught.value.message
    assert "--to PATH" in caught.value.remedy


def test_held_out_pairs_are_scored_as_the_run_did(trained: RunDirectory) -> None:
    """The metrics are equal to the bit. The new process has a worker's settings of torch."""
    events = trained.events_path.read_bytes()
    assert workers.call(partial(score_as_the_run_did, trained)) == 0
    assert trained.events_path.read_bytes() == events


def test_through_dpo_itself(trained: RunDirectory, tmp_path: Path) -> None:
    out = dpo("export", trained.path, "--to", "x.pth", cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert "float16 rounded to nearest, 47 tensors, after step 6" in out.stdout
    assert "warning: rounding to the nearest float16 has an error of more than 50 %" in out.stdout
    assert re.search(
        r"[\d.]+ % of the weights differ from the starting weights; the file has [\d.]+ % of what",
        out.stdout,
    )
    assert re.search(
        r"held-out \(5 pairs\), .* accuracy 0\.\d+ vs. 0\.\d+, margin/token \S+ vs. \S+", out.stdout
    )
    assert "try it: mkdir -p x && cp x.pth x/rlhf_64_moe.pth && python eval_" in out.stdout
    drawn = dpo(
        *("export", trained.path, "--to", "y.pth", "--rounding", "stochastic", "--seed", "7"),
        *("--dtype", "bfloat16", "--no-evaluate"),
        cwd=tmp_path,
    )
    assert drawn.returncode == 0, drawn.stderr
    assert "bfloat16 rounded stochastically with seed 7" in drawn.stdout
    assert "starting weights are float16, which bfloat16 cannot represent" in drawn.stdout
    assert "held-out" not in drawn.stdout
    assert load_model_weights(tmp_path / "y.pth", {}).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("model_weights", "file", "expected"),
    [
        (
            "seed/full_sft_64",
            "out/rlhf_64.pth",
            "python eval_model.py --model_mode 2 --out_dir out"
            " --hidden_size 64 --num_hidden_layers 2",
        ),
        (
            "seed/full_sft_64_moe",
            "out/rlhf_64_moe.pth",
            "python eval_model.py --model_mode 2 --out_dir out"
            " --hidden_size 64 --num_hidden_layers 2 --use_moe True",
        ),
        (
            "seed/full_sft_64",
            "out/dpo_64.pth",
            "python eval_llm.py --weight dpo --save_dir out --hidden_size 64 --num_hidden_layers 2",
        ),
        (
            "head/full_sft_64_moe",
            "my out/rlhf_64_moe.pth",
            'python eval_llm.py --weight rlhf --save_dir "my out"'
            " --hidden_size 64 --num_hidden_layers 2 --use_moe 1",
        ),
        (
            "head/full_sft_64",
            "mine.pth",
            "mkdir -p mine && cp mine.pth mine/rlhf_64.pth && "
            "python eval_llm.py --weight rlhf --save_dir mine --hidden_size 64"
            " --num_hidden_layers 2",
        ),
    ],
)
def test_the_command_of_that_version(
    golden: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    model_weights: str, file: str, expected: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    tiny = load_model_weights(golden / f"arch/{model_weights}.pth", {}).architecture
    assert try_command(tmp_path / file, tiny) is None  # MiniMind has no tokenizer for this model
    architecture = dataclasses.replace(tiny, vocab_size=6400)
    assert try_command(tmp_path / file, architecture) == TryCommand(expected, True)


def test_the_command_follows_the_scripts_of_the_checkout(
    golden: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = load_model_weights(golden / "arch/seed/full_sft_64.pth", {}).architecture
    architecture = dataclasses.replace(tiny, vocab_size=6400)
    (tmp_path / "eval_model.py").touch()
    # eval_model.py has no option for the file; the copy must not replace out/rlhf_64.pth.
    assert try_command(tmp_path / "out/merged_64.pth", architecture) == TryCommand(
        "mkdir -p out/merged_64 && cp out/merged_64.pth out/merged_64/rlhf_64.pth && "
        "python eval_model.py --model_mode 2 --out_dir out/merged_64"
        " --hidden_size 64 --num_hidden_layers 2",
        is_minimind_script=True,
    )
    (tmp_path / "eval_llm.py").touch()
    assert try_command(tmp_path / "out/rlhf_64.pth", architecture) == TryCommand(
        "python eval_llm.py --weight rlhf --save_dir out --hidden_size 64 --num_hidden_layers 2",
        is_minimind_script=True,
    )


def test_the_command_for_a_directory_can_be_read(tmp_path: Path) -> None:
    command = try_command(Path("/my models/out"), HuggingFace({"model_type": "llama"}, {}))
    assert command is not None
    assert not command.is_minimind_script
    assert "\"'" not in command.text
    assert shlex.split(command.text)[:2] == ["python", "-c"]
    ast.parse(shlex.split(command.text)[2])

"""Tests of bfloat16 weights: the two halves, the optimizer, models, runs and exports."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Parameter

from dpo_cli.api.run import Run as DpoRun
from dpo_cli.checks.check import run_checks
from dpo_cli.data.batching import make_batch
from dpo_cli.errors import UsageError
from dpo_cli.export.export import export_run
from dpo_cli.findings import Level
from dpo_cli.models.loading import build_model, load_model_weights
from dpo_cli.models.options import use_experts_for
from dpo_cli.models.split_weights import (
    full_weight,
    merge,
    rest_of,
    split,
    split_weights,
)
from dpo_cli.models.support import scorer_for
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.train import Train
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Completed, Evaluated, StepDone, history
from dpo_cli.training.optimizer import SplitAdamW, make_optimizer, set_learning_rate
from tests.support import ranks, workers
from tests.support.adapters import assert_starts_at_ln_2, start_weights
from tests.support.cli import Run, dpo, set_options
from tests.support.family_runs import make
from tests.support.small_runs import golden_run, golden_settings
from tests.support.two_layouts import ARCHITECTURES, MAX_SEQ_LEN, odd_pairs

KEY = "model.weights_dtype"
ON = {KEY: "bfloat16"}


# --- the two halves ------------------------------------------------------------------------------


def test_halves_hold_each_float32_number() -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = 10.0 ** torch.randint(-37, 37, (4096,), generator=generator)
    values = torch.randn(4096, generator=generator) * sizes
    values = torch.cat([values, -values, torch.tensor([0.0, -0.0, 1e-44, -1e-44])])
    nearest, rest = split(values)
    assert torch.equal(nearest, values.bfloat16())
    assert torch.equal(merge(nearest, rest).view(torch.int32), values.view(torch.int32))


def test_a_number_in_the_middle_loses_one_spacing_at_most() -> None:
    """One and a half spacings of bfloat16 round up, to an even number, half a spacing down."""
    values = torch.tensor([1 + 1.5 * 2**-7, 1 + 0.5 * 2**-7, -1 - 0.5 * 2**-7])
    nearest, rest = split(values)
    assert torch.equal(nearest, values.bfloat16())
    kept = merge(nearest, rest)
    assert (kept - values).tolist() == [0.0, -(2**-23), 2**-23]
    assert torch.equal(merge(*split(kept)), kept)


# --- the optimizer -------------------------------------------------------------------------------


def halves_of(values: Tensor) -> Parameter:
    layer = torch.nn.Linear(*reversed(values.shape), bias=False)
    layer.weight.data = values.clone()
    layer.get_input_embeddings = lambda: layer  # type: ignore[assignment]
    split_weights(layer, keeps_rests=True)  # type: ignore[arg-type]
    return layer.weight


def follow(weight: Parameter, optimizer: torch.optim.Optimizer, steps: int, rate: float) -> Tensor:
    """Return the float64 weight after steps on gradients of the same signs, but for noise."""
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(weight.shape, generator=generator)
    for _ in range(steps):
        gradient = direction + torch.randn(weight.shape, generator=generator)
        weight.grad = gradient.to(weight.dtype)
        set_learning_rate(optimizer, rate)
        optimizer.step()
    return full_weight(weight).detach().double()


def test_small_updates_are_kept_that_bfloat16_loses() -> None:
    """At 1e-6 an update is a hundredth of bfloat16's spacing at a weight of 0.02."""
    generator = torch.Generator().manual_seed(3)
    start = (0.02 * torch.randn(64, 64, generator=generator)).bfloat16().float()
    exact, wide = Parameter(start.double()), Parameter(start.clone())
    plain, halves = Parameter(start.bfloat16()), halves_of(start)
    exact_end, wide_end, plain_end = (
        follow(weight, torch.optim.AdamW([weight]), 500, 1e-6) for weight in (exact, wide, plain)
    )
    halves_end = follow(halves, make_optimizer([halves], Train()), 500, 1e-6)
    update = (exact_end - start.double()).norm()

    def error(end: Tensor) -> float:
        return float((end - exact_end).norm() / update)

    assert error(wide_end) < 1e-3
    assert error(plain_end) > 0.9
    assert error(halves_end) < 0.01
    # The model computes with the nearest bfloat16 numbers, some of which have changed.
    assert torch.equal(halves.detach(), halves_end.bfloat16())
    assert 0.05 < (halves.detach().float() != start).float().mean() < 1


def test_moments_decay_that_bfloat16_would_keep() -> None:
    """After larger gradients the second moment falls by a thousandth of itself in a step."""
    weight = halves_of(torch.ones(64, 64))
    optimizer = make_optimizer([weight], Train())
    for step in range(1500):
        weight.grad = torch.full_like(weight, 1.0 if step < 500 else 0.0)
        set_learning_rate(optimizer, 1e-6)
        optimizer.step()
    square = optimizer.state[weight]["exp_avg_sq"]
    assert square.dtype == torch.bfloat16
    expected = (1 - 0.999**500) * 0.999**1000
    assert square.double().mean().item() == pytest.approx(expected, rel=0.02)


def test_float32_weights_get_the_bits_of_adamw() -> None:
    """Norms beside the halves, in parts, with betas and weight decay of their own."""
    start = torch.randn(300, generator=torch.Generator().manual_seed(4))
    ours, plain = Parameter(start.clone()), Parameter(start.clone())
    options: dict[str, Any] = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    optimizer = SplitAdamW([ours], **options)
    optimizer.seed = 0
    ends = [
        follow(weight, each, 20, 1e-2)
        for weight, each in ((ours, optimizer), (plain, torch.optim.AdamW([plain], **options)))
    ]
    assert torch.equal(*ends)


# --- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ARCHITECTURES, "llama", "gpt2"])
def test_a_model_computes_as_autocast_does_with_float32_weights(name: str) -> None:
    """Weights that bfloat16 represents, and a layer norm: the same bits, in both directions."""
    weights = start_weights(name)
    state = {key: (each.bfloat16().float() if each.ndim > 1 else each)
             for key, each in weights.state.items()}  # fmt: skip
    batch = make_batch(odd_pairs()[:3], "packed", max_seq_len=MAX_SEQ_LEN)
    found = []
    for is_split in (False, True):
        model = build_model(weights.architecture, state)
        if weights.architecture.use_moe:
            use_experts_for(model, float32=False)
        scorer = scorer_for(model, MAX_SEQ_LEN)
        if is_split:
            split_weights(model, keeps_rests=True)
        with torch.autocast("cpu", torch.bfloat16):
            logps = scorer(batch).token_logps
        logps[batch.mask].sum().backward()
        found.append((logps, {key: each.grad for key, each in model.named_parameters()}))
    (expected, gradients), (logps, own) = found
    assert torch.equal(logps, expected)
    # Only sums over several uses of a weight round in bfloat16: embedding, tied head.
    for key, gradient in gradients.items():
        if gradient is None:
            assert own[key] is None
            continue
        assert own[key].dtype == (torch.bfloat16 if gradient.ndim > 1 else torch.float32)
        error = (own[key].float() - gradient).norm() / gradient.norm()
        assert error < 0.01, key


# --- runs ----------------------------------------------------------------------------------------


def run_of(shared: Path, version: str, moe: bool, **changes: Any) -> list[str]:
    return golden_run(shared, version, moe, **{**ON, "train.epochs": 2, **changes})


@pytest.fixture(scope="module", params=[False, True], ids=["dense", "moe"])
def trained(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    run = workers.new_run(tmp_path_factory.mktemp("bf16"), run_of(shared, "seed", request.param))
    assert workers.work(run) == 0
    return run


def test_a_run_starts_at_ln_2_and_learns(trained: RunDirectory) -> None:
    events = list(history(trained.events_path))
    steps = assert_starts_at_ln_2(events)
    assert steps[-1].losses[0] < 0.69
    plan = trained.read_plan()
    assert plan is not None
    assert plan.dtype == "bfloat16"
    checkpoint = Run(trained).checkpoint
    dtypes = {
        name: {each.dtype for each in load_file(checkpoint / f"{name}.safetensors").values()}
        for name in ("weights", "exp_avg", "exp_avg_sq")
    }
    assert dtypes["weights"] == {torch.float32}
    assert dtypes["exp_avg"] == dtypes["exp_avg_sq"] == {torch.float32, torch.bfloat16}
    assert trained.worker_log_path.read_text() == ""


def test_an_evaluation_has_the_bits_of_the_run(trained: RunDirectory) -> None:
    last = [event for event in history(trained.events_path) if isinstance(event, Evaluated)][-1]
    found = DpoRun(trained).evaluate().models[0].groups["all"]
    assert found["loss"] == last.metrics["loss"]
    assert found["margin_per_token"] == last.metrics["margin_per_token"]


def test_exports_hold_more_than_bfloat16(trained: RunDirectory, tmp_path: Path) -> None:
    """The float32 file is the checkpoint; no file loses what the second halves hold."""
    state = load_file(Run(trained).checkpoint / "weights.safetensors")
    retained = {}
    for dtype in ("float32", "float16", "bfloat16"):
        report = export_run(trained, tmp_path / f"{dtype}.pth", dtype, False)
        assert report.retention is not None
        retained[dtype] = report.retention
    written = load_model_weights(tmp_path / "float32.pth", {}).state
    assert all(torch.equal(written[name], each) for name, each in state.items())
    assert not all(torch.equal(each, each.bfloat16().float()) for each in state.values())
    assert retained["float32"].kept == pytest.approx(1)
    # The weights started as float16, so float16 adds no error of its own.
    assert retained["float16"].start_error == 0
    assert retained["float16"].relative_error < retained["bfloat16"].relative_error / 4


def test_two_ranks_train_alike(shared: Path, tmp_path: Path) -> None:
    """The sum of two gradients is rounded once on two ranks, and in one process, too."""
    runs = []
    for size in (1, 2):
        keys = {"train.batch_size": 1, "train.max_tokens_per_forward": 1, "train.epochs": 1}
        arguments = run_of(shared, "head", True, **keys, **{"train.accumulation_steps": 2 // size})
        run = workers.new_run(tmp_path / f"{size}", arguments)
        assert ranks.work(run, size) == [0] * size
        runs.append(Run(run))
    one, two = runs
    assert two.metric_rows == one.metric_rows
    assert two.files()["weights.safetensors"] == one.files()["weights.safetensors"]


def llama_story(folder: Path) -> None:
    profile = make(folder, "llama", torch.bfloat16)
    settings = [f"{KEY}=bfloat16"]
    diagnosis = run_checks(profile, settings, folder / "runs", None, lambda *_: None)
    errors = {each.code for each in diagnosis.findings if each.level is Level.ERROR}
    assert errors == {"tokenizer-mismatch"}  # random weights
    findings = {each.code: each.message for each in diagnosis.findings}
    assert "agree exactly" in findings["first-loss"]


def test_a_llama_is_checked_and_trained(tmp_path: Path) -> None:
    assert workers.call(partial(llama_story, tmp_path)) == 0
    arguments = ["train", str(tmp_path / "my.toml"), *set_options(ON)]
    run = workers.new_run(tmp_path / "runs", arguments)
    assert workers.work(run) == 0
    events = list(history(run.events_path))
    [first, *_] = [event for event in events if isinstance(event, StepDone)]
    assert first.losses == (math.log(2),)
    assert isinstance(events[-1], Completed)
    report = export_run(run, tmp_path / "exported", None, False)
    assert (report.dtype, report.rounding) == ("bfloat16", "stochastic")


# --- wrong input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"lora.rank": 4}, "is for the training of all weights; remove it"),
        ({"train.optimizer": "muon"}, 'with train.optimizer = "adamw" only, not with "muon"'),
        ({"train.kahan_summation": True}, "remove train.kahan_summation"),
        ({"train.dtype": "float32"}, 'set train.dtype = "auto"'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_are_refused(
    shared: Path, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "dense"\n')
    settings = {**golden_settings(shared, "seed", False), **ON, **changes}
    with pytest.raises(UsageError) as caught:
        load_profile(path, set_options(settings)[1::2])
    [line] = caught.value.details
    assert line.startswith(f'--set  {KEY} = "bfloat16": ')
    assert problem in line


def test_a_resume_in_another_dtype_is_refused(trained: RunDirectory) -> None:
    settings = ["--set", f"{KEY}=float32"]
    result = dpo("resume", str(trained.path), *settings, cwd=trained.path.parent)
    output = " ".join((result.stdout + result.stderr).split())
    assert result.returncode == 2, output
    assert "cannot continue with weights of another dtype" in output


def test_only_a_trained_model_keeps_second_halves() -> None:
    weights = start_weights("minimind2")
    model = build_model(weights.architecture, weights.state)
    split_weights(model, keeps_rests=False)
    assert all(rest_of(each) is None for each in model.parameters())

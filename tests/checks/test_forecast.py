"""Tests of the forecast of time and memory."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from dpo_cli import checks
from dpo_cli.checks import forecast, memory
from dpo_cli.checks.check import run_checks
from dpo_cli.checks.forecast import Sample, evaluations_of, fit_line, global_batch_tokens
from dpo_cli.checks.memory import longest_global_batch, smaller
from dpo_cli.checks.resources import estimate_memory
from dpo_cli.checks.trial_trainer import make_trial_trainer
from dpo_cli.data.sampler import GlobalBatch
from dpo_cli.findings import Level
from dpo_cli.run.events import StepDone
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.trainer import Trainer
from tests.checks.conftest import Examine, architecture, of, prepared_with, random_scorer, row, save
from tests.support.cli import Run, dpo


def global_pairs(inputs: RunInputs) -> int:
    return inputs.order.batch_size * inputs.order.accumulation_steps


@pytest.fixture
def uneven(bench: Path) -> Path:
    """Twenty pairs of very different lengths."""
    rows = [row("Tell me. " * number, "Yes. " * number, "No.") for number in range(1, 21)]
    (bench / "pairs.jsonl").write_text("".join(rows))
    return bench


# --- time --------------------------------------------------------------------------------------


def test_the_line_through_the_samples() -> None:
    exact = [Sample(tokens, 0.5 + 0.001 * tokens) for tokens in (100, 900, 400)]
    assert fit_line(exact) == pytest.approx((0.5, 0.001))
    assert fit_line([Sample(100, 1.0), Sample(100, 3.0)]) == pytest.approx((0.0, 0.02))
    # Neither part is below zero, and the mean is unchanged.
    assert fit_line([Sample(100, 3.0), Sample(300, 1.0)]) == pytest.approx((2.0, 0.0))
    assert fit_line([Sample(100, 1.0), Sample(300, 9.0)]) == pytest.approx((0.0, 0.025))


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["train.layout=padded"],
        ["model.dropout=0.1"],
        ["data.shuffle=true", "train.accumulation_steps=3"],
    ],
)
def test_tokens_are_counted_as_the_trainer_computes_them(uneven: Path, settings: list[str]) -> None:
    inputs = prepared_with(uneven, "train.batch_size=2", *settings)
    trial = make_trial_trainer(inputs, lambda *_: None)
    for batch in itertools.islice(inputs.order.global_batches(), 3):
        done, _ = trial.step(batch)
        assert global_batch_tokens(inputs, batch) == done.tokens


@pytest.mark.parametrize("interval", [0, 1, 2, 3, 5, 100])
def test_evaluations_are_counted_as_the_trainer_makes_them(bench: Path, interval: int) -> None:
    settings = (f"eval.interval={interval}", "train.batch_size=1", "train.accumulation_steps=2")
    inputs = prepared_with(bench, *settings)
    made: list[int] = []

    class Counted(Trainer):
        def evaluate(self, *, is_due: bool = True) -> bool:
            made.append(self.step)
            return False

    trainer = make_trial_trainer(inputs, lambda *_: None).trainer
    fields = {field.name: getattr(trainer, field.name) for field in dataclasses.fields(Trainer)}
    Counted(**fields).train()
    assert evaluations_of(inputs) == len(made)


def test_the_forecast_counts_all_that_the_run_computes(bench: Path, examined: Examine) -> None:
    """Seconds are not tested, because they depend on the load of the machine."""
    done = dpo("train", "my.toml", "--plain", cwd=bench)
    assert done.returncode == 0, done.stderr
    steps = Run.only(bench).steps
    diagnosis = examined()
    predicted = diagnosis.facts["forecast"]
    assert predicted["tokens"] == sum(step.tokens for step in steps)
    parts = ("startup", "training", "reference", "evaluation", "saving")
    total = sum(predicted[f"{part}_seconds"] for part in parts)
    assert predicted["seconds"] == pytest.approx(total)
    assert predicted["process_bytes"] > estimate_memory(prepared_with(bench)).state
    assert of(diagnosis, "time").message.startswith("about ")


def test_a_long_run_names_the_keys_that_would_shorten_it(
    bench: Path, examined: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert of(examined(), "time").level is Level.OK
    inputs = prepared_with(bench, "train.epochs=4", "eval.interval=1", "data.max_seq_len=40")
    parts = {
        "startup_seconds": 0.0, "training_seconds": 6000.0, "reference_seconds": 0.0,
        "evaluation_seconds": 4000.0, "saving_seconds": 0.0,
    }  # fmt: skip
    long = forecast.Forecast(
        seconds=10_000.0, **parts, step_seconds=1.0, longest_step_seconds=1.0, tokens=1,
        process_bytes=1, device_bytes=0,
    )  # fmt: skip
    words = forecast.how_to_shorten(inputs, long)
    assert "train.epochs = 1 trains 1/4 as long" in words
    assert "data.max_seq_len = 20 has" in words
    assert "a larger eval.interval" in words
    assert "train.save_interval" not in words
    assert "packed" not in words
    short = dataclasses.replace(long, seconds=100.0)
    assert forecast.how_to_shorten(inputs, short) == ""


def test_a_reference_that_is_in_the_cache_takes_no_time(
    bench: Path, examined: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("DPO_CACHE_DIR", str(cache))
    assert examined().facts["forecast"]["reference_seconds"] > 0
    # The key contains the thread count, because the bits depend on it.
    threads = str(torch.get_num_threads())
    done = dpo("train", "my.toml", "--plain", cwd=bench, OMP_NUM_THREADS=threads)
    assert done.returncode == 0, done.stderr
    assert examined().facts["forecast"]["reference_seconds"] == 0


def test_the_measurement_has_a_time_limit(uneven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = make_trial_trainer(prepared_with(uneven, "train.batch_size=1"), lambda *_: None)
    assert len(forecast.take_samples(trial, lambda *_: None)) == forecast.SAMPLES
    monkeypatch.setattr(forecast, "MAX_SECONDS", 0.0)
    few = forecast.take_samples(trial, lambda *_: None)
    assert len(few) == 1


def test_a_part_of_a_large_global_batch_is_timed(
    uneven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "_CPU_MAX_TOKENS", 300)
    settings = ("train.batch_size=1", "train.accumulation_steps=20", "train.epochs=1")
    inputs = prepared_with(uneven, *settings)
    [sample] = forecast.take_samples(make_trial_trainer(inputs, lambda *_: None), lambda *_: None)
    assert (
        0 < sample.tokens <= 300 < global_batch_tokens(inputs, next(inputs.order.global_batches()))
    )


def test_a_quick_check_builds_no_model(
    bench: Path, examined: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not(*arguments: object) -> None:
        raise AssertionError("a model was built")

    for module in (checks.model, checks.trial_trainer):
        monkeypatch.setattr(module, "make_scorer", must_not)
    diagnosis = run_checks(
        bench / "my.toml", (), bench / "runs", None, lambda *_: None, takes_steps=False
    )
    assert diagnosis.is_clean
    assert of(diagnosis, "steps").level is Level.SKIP
    assert of(diagnosis, "saturation").level is Level.OK
    assert "forecast" not in diagnosis.facts
    assert {"plan", "lr_sum"} <= diagnosis.facts.keys()


# --- memory ------------------------------------------------------------------------------------


def test_the_longest_batch_of_the_run(uneven: Path) -> None:
    inputs = prepared_with(uneven, "data.max_seq_len=2048", "train.max_tokens_per_forward=700")
    [indices] = longest_global_batch(inputs).micro_batches
    tokens = inputs.pairs.computed_tokens
    all_forwards = [
        sum(tokens[list(forward.indices)].tolist())
        for batch in inputs.order.global_batches()
        for forward in inputs.batches.micro_batches(batch.micro_batches)
    ]
    assert sum(tokens[list(indices)].tolist()) == max(all_forwards)


@pytest.mark.parametrize("settings", [[], ["train.layout=padded"], ["model.dropout=0.1"]])
def test_smaller_settings_need_less_memory_and_keep_the_recipe(
    uneven: Path, settings: list[str]
) -> None:
    start = ("train.batch_size=6", "train.accumulation_steps=2", "data.max_seq_len=2048")
    inputs = prepared_with(uneven, *start, *settings)
    found = list(smaller(inputs))
    taken = [estimate_memory(other).total for other, _ in found]
    frugal = next(n for n, (_, keys) in enumerate(found) if "checkpointing" in keys)
    assert frugal > 1
    for part in (taken[:frugal], taken[frugal:]):
        assert part == sorted(part, reverse=True)
    assert max(taken) < estimate_memory(inputs).total
    for other, keys in found:
        assert global_pairs(other) == 12
        assert ("max_tokens_per_forward" in keys) is (not settings and keys != found[frugal][1])
    if settings:
        assert found[0][1] == (
            "train.batch_size = 3 and train.accumulation_steps = 4 (still 12 pairs per step)"
        )


def test_accumulation_steps_are_omitted_with_a_global_batch_size(uneven: Path) -> None:
    settings = ("train.batch_size=4", "train.global_batch_size=8", "train.layout=padded")
    keys = [keys for _, keys in smaller(prepared_with(uneven, *settings))]
    assert keys[:2] == [
        "train.batch_size = 2 (still 8 pairs per step)",
        "train.batch_size = 1 (still 8 pairs per step)",
    ]


def test_a_batch_that_will_not_fit_is_not_tried_on_a_cpu(
    examined: Examine, uneven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = prepared_with(uneven, "train.layout=padded")
    [(other, keys), *_] = smaller(inputs)
    free = estimate_memory(other).total + 1
    monkeypatch.setattr(memory, "free_memory", lambda device: free)

    def must_not(*_: object) -> bool:
        raise AssertionError

    monkeypatch.setattr(memory, "_try_longest", must_not)
    diagnosis = examined("train.layout=padded")
    tight = of(diagnosis, "memory-tight")
    assert tight.level is Level.WARN
    assert tight.remedy == f"Set {keys}. This is the largest setting that fits."
    assert of(diagnosis, "time").level is Level.SKIP
    assert diagnosis.facts["forecast"] is None
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    assert "data.max_seq_len" in of(examined(), "memory-tight").remedy


def test_out_of_memory_in_a_real_step_finds_what_fits(
    examined: Examine, uneven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU an allocation fails, and another attempt is possible."""
    settings = (
        "train.batch_size=2",
        "train.accumulation_steps=10",
        "train.max_tokens_per_forward=9999",
    )
    inputs = prepared_with(uneven, *settings)
    [longest] = longest_global_batch(inputs).micro_batches
    half = sum(inputs.pairs.computed_tokens[list(longest)].tolist()) // 2
    take_step = Trainer.take_step

    def limited(self: Trainer, batch: GlobalBatch) -> StepDone:
        done = take_step(self, batch)
        if done.tokens > half:
            # The failure may come inside the optimizer, which then has a part of its state.
            for state in self.optimizer.state.values():
                del state["exp_avg_sq"]
            raise torch.OutOfMemoryError("CUDA out of memory")
        return done

    monkeypatch.setattr(Trainer, "take_step", limited)
    out = of(examined(*settings), "memory-out")
    assert out.level is Level.ERROR
    assert (
        out.remedy
        == f"Set train.max_tokens_per_forward = {half}. This is the largest setting that fits."
    )


def test_experts_are_measured_too(examined: Examine, bench: Path) -> None:
    shape = architecture(3, experts=2)
    save(bench / "full_sft_32_moe.pth", random_scorer(shape), shape)
    diagnosis = examined("model.weights=./full_sft_32_moe.pth")
    assert of(diagnosis, "memory").level is Level.OK
    assert diagnosis.facts["forecast"]["tokens"] > 0

"""Forecast of the run's time: a few real steps on this device, scaled by exact token counts."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dpo_cli.checks.memory import Peak, check_memory, measure_peak
from dpo_cli.checks.reporter import Reporter
from dpo_cli.checks.trial_trainer import Sample, TrialTrainer
from dpo_cli.compute.device import DTYPES
from dpo_cli.data.sampler import GlobalBatch
from dpo_cli.data.tokens import TokenizedPairs
from dpo_cli.formatting import format_duration, format_percent, format_seconds
from dpo_cli.run.cpu_time import contention
from dpo_cli.training.checkpointing import pause_seconds, state_bytes
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.reference import CachedReference, open_references
from dpo_cli.training.sources import OnProgress

SAMPLES = 3
"""Number of timed steps besides the one on the longest batch: short, average and long."""
MAX_SECONDS = 10.0
"""Time limit of the measurement; one step is timed in any case."""
LONG_SECONDS = 3600.0
"""Duration from which the settings that shorten a run are named."""
_WORTHWHILE = 0.2
"""Share of the run's time that a named setting saves, or that its part takes."""
_CPU_MAX_TOKENS, _GPU_MAX_TOKENS = 1 << 12, 1 << 18
"""Tokens of one sample; a larger global batch is cut to its first micro-batches."""
_SAVED_BYTES_PER_SECOND = 350e6
"""Measured rate of writing, hashing and flushing a checkpoint (benchmarks/RESULTS.md, "Saving")."""


@dataclass(frozen=True)
class Forecast:
    """Time and memory of the whole run.

    Attributes:
        seconds: total time, the sum of the five parts that follow.
        startup_seconds: time until the first step.
        training_seconds: all optimizer steps, without the reference.
        reference_seconds: the reference's log-probs of the training pairs.
        evaluation_seconds: all evaluations of the held-out pairs.
        saving_seconds: all checkpoints.
        step_seconds: average time of one optimizer step, including the reference.
        longest_step_seconds: time of the optimizer step with the most tokens.
        tokens: tokens that the policy computes in training.
        process_bytes: peak memory of the process.
        device_bytes: peak memory of tensors on a GPU; 0 on the CPU.
    """

    seconds: float
    startup_seconds: float
    training_seconds: float
    reference_seconds: float
    evaluation_seconds: float
    saving_seconds: float
    step_seconds: float
    longest_step_seconds: float
    tokens: int
    process_bytes: int
    device_bytes: int


def check_forecast(
    reporter: Reporter, trial: TrialTrainer, startup_seconds: float, on_progress: OnProgress
) -> dict[str, Any] | None:
    """Measure memory and time of real steps, and report a forecast of the run.

    Args:
        reporter: gets the findings.
        trial: takes the steps, which change its weights.
        startup_seconds: time to load the libraries and read the inputs.
        on_progress: called with phase, done, total and unit.

    Returns:
        The forecast as plain values; None if the run does not fit into memory.
    """
    # Look before the trial computes log-probs, which could get into the cache.
    is_cached = _reference_is_cached(trial.inputs)
    began, cpu_began = time.perf_counter(), time.thread_time()
    on_progress("trying the longest batch", 0, 0, "")
    longest = check_memory(reporter, trial)
    if longest is None:
        reporter.skip("time", "a run that fits into memory")
        return None
    samples = [longest, *take_samples(trial, on_progress)]
    peak = measure_peak(reporter, trial, reference_is_cached=is_cached)
    forecast = predict(trial, samples, startup_seconds, is_cached, peak)
    seconds, cpu_seconds = time.perf_counter() - began, time.thread_time() - cpu_began
    busy = contention(seconds, cpu_seconds) if trial.inputs.device.type == "cpu" else None
    parts = {
        "training": forecast.training_seconds,
        "start": forecast.startup_seconds,
        "reference": forecast.reference_seconds,
        "evaluation": forecast.evaluation_seconds,
        "saving": forecast.saving_seconds,
    }
    by_size = sorted(parts.items(), key=lambda part: -part[1])
    listed = ", ".join(f"{name} {format_duration(part)}" for name, part in by_size if part >= 1)
    message = (
        f"about {format_duration(forecast.seconds)} on this device:"
        f" {format_seconds(forecast.step_seconds)} per step on average, at most"
        f" {format_seconds(forecast.longest_step_seconds)}" + (f"; {listed}" if listed else "")
    )
    if busy:
        message += (
            "; measured while other processes used the CPU: about"
            f" {format_duration(forecast.seconds / busy)} by its CPU time"
        )
    if remedy := how_to_shorten(trial.inputs, forecast):
        reporter.warn("time", "", message, remedy)
    else:
        reporter.ok("time", "", message)
    return asdict(forecast)


def how_to_shorten(inputs: RunInputs, forecast: Forecast) -> str:
    """Return the settings that would shorten a long run noticeably, largest part first.

    An empty text for a short run.
    """
    if forecast.seconds < LONG_SECONDS:
        return ""
    train, least = inputs.profile.train, _WORTHWHILE * forecast.seconds
    ways: list[str] = []
    if train.layout == "padded":
        ways.append('train.layout = "packed" computes no padding')
    if train.epochs > 1 and forecast.training_seconds * (1 - 1 / train.epochs) > least:
        ways.append(f"train.epochs = 1 trains 1/{train.epochs} as long")
    limit = inputs.profile.data.max_seq_len // 2
    lengths = inputs.pairs.lengths
    fewer = 1 - int(lengths.clamp(max=limit).sum()) / int(lengths.sum())
    if fewer * forecast.training_seconds > least:
        cut = float((lengths > limit).any(dim=1).double().mean())
        ways.append(
            f"data.max_seq_len = {limit} has {format_percent(fewer, 0)} fewer tokens"
            f" ({format_percent(cut, 0)} of the pairs are cut)"
        )
    if not ways and forecast.training_seconds > least:
        ways.append("fewer pairs train in fewer steps")
    parts = [(forecast.training_seconds, ways)]
    if forecast.evaluation_seconds > least and evaluations_of(inputs) > 2:
        evaluating = ["a larger eval.interval evaluates less often"]
        parts.append((forecast.evaluation_seconds, evaluating))
    if forecast.saving_seconds > least:
        parts.append((forecast.saving_seconds, ["a larger train.save_interval saves less often"]))
    ways = [way for _, each in sorted(parts, key=lambda part: -part[0]) for way in each]
    return f"To shorten the run: {'; '.join(ways)}." if ways else ""


def take_samples(trial: TrialTrainer, on_progress: OnProgress) -> list[Sample]:
    """Time real steps on global batches of the first epoch: average, long and short ones."""
    inputs = trial.inputs
    limit = _CPU_MAX_TOKENS if inputs.device.type == "cpu" else _GPU_MAX_TOKENS
    global_batches = [batch for batch in inputs.order.global_batches() if batch.epoch == 0]
    tokens = [global_batch_tokens(inputs, batch) for batch in global_batches]
    by_tokens = sorted(range(len(global_batches)), key=lambda n: tokens[n])
    count = min(SAMPLES, len(global_batches))
    # The middle of each third of the lengths. The average one comes first, because with the longest
    # batch it gives a line even if the time is over.
    positions = [int((n + 0.5) / count * len(global_batches)) for n in range(count)]
    samples: list[Sample] = []
    began = time.perf_counter()
    for number, position in enumerate([*positions[1::2], *positions[::-2]]):
        on_progress("timing steps", number, count, "steps")
        if samples and time.perf_counter() - began > MAX_SECONDS:
            break
        batch = _shortened(inputs, global_batches[by_tokens[position]], limit)
        _, seconds = trial.step(batch)
        samples.append(Sample(global_batch_tokens(inputs, batch), seconds))
    return samples


def predict(
    trial: TrialTrainer,
    samples: Sequence[Sample],
    startup_seconds: float,
    reference_is_cached: bool,
    peak: Peak,
) -> Forecast:
    """Extrapolate the samples to the whole run.

    Args:
        trial: has timed the reference.
        samples: timed steps.
        startup_seconds: see `check_forecast`.
        reference_is_cached: the reference's log-probs are in the cache.
        peak: measured memory.
    """
    inputs = trial.inputs
    order, packed = inputs.order, inputs.profile.train.layout == "packed"
    per_step, per_token = fit_line(samples)
    epoch = [
        global_batch_tokens(inputs, batch) for batch in order.global_batches() if batch.epoch == 0
    ]
    tokens = order.epochs * sum(epoch)
    training = per_step * order.optimizer_steps + per_token * tokens
    forward = trial.reference.seconds / max(1, trial.reference.tokens)
    # The packed layout computes the reference in the first epoch only, then reads the cache.
    reference = forward * (sum(epoch) if packed else tokens)
    held_out = sum(
        batch_tokens(inputs, inputs.held_out, indices)
        for indices in inputs.batches.held_out_batches
    )
    evaluations = evaluations_of(inputs) if held_out else 0
    if not packed:
        evaluations *= 2  # policy and reference each time
    elif inputs.policy_starts_as_reference:
        evaluations -= 1  # step 0 reuses the reference's log-probs
    evaluation = forward * held_out * evaluations
    if packed and reference_is_cached:
        reference = 0.0
    elif packed:
        evaluation += forward * held_out
    computing = training + reference + evaluation
    saving = saving_seconds(inputs, computing)
    return Forecast(
        seconds=startup_seconds + computing + saving,
        startup_seconds=startup_seconds,
        training_seconds=training,
        reference_seconds=reference,
        evaluation_seconds=evaluation,
        saving_seconds=saving,
        step_seconds=(training + reference) / order.optimizer_steps,
        longest_step_seconds=per_step + (per_token + (forward if reference else 0)) * max(epoch),
        tokens=tokens,
        process_bytes=peak.process_bytes,
        device_bytes=peak.device_bytes,
    )


def fit_line(samples: Sequence[Sample]) -> tuple[float, float]:
    """Fit seconds per step and per token by least squares, with neither below zero."""
    count = len(samples)
    tokens = sum(s.tokens for s in samples) / count
    seconds = sum(s.seconds for s in samples) / count
    spread = sum((s.tokens - tokens) ** 2 for s in samples)
    if not spread:
        return 0.0, seconds / tokens
    slope = sum((s.tokens - tokens) * (s.seconds - seconds) for s in samples) / spread
    slope = min(max(slope, 0.0), seconds / tokens)
    return seconds - slope * tokens, slope


def global_batch_tokens(inputs: RunInputs, batch: GlobalBatch) -> int:
    """Count the tokens that the policy computes for a global batch."""
    return sum(batch_tokens(inputs, inputs.pairs, indices) for indices in batch.micro_batches)


def batch_tokens(inputs: RunInputs, pairs: TokenizedPairs, indices: Sequence[int]) -> int:
    """Count the computed tokens of a batch of pairs without building it."""
    profile = inputs.profile
    if profile.train.layout == "padded":
        return 2 * len(indices) * (profile.data.max_seq_len - 1)
    selected = pairs.select(indices)
    if profile.has_dropout:  # the sides do not share their prompt
        return int((selected.lengths - 1).sum())
    return int(selected.computed_tokens.sum())


def evaluations_of(inputs: RunInputs) -> int:
    """Count the evaluations: at the start, after each interval, and at the end."""
    order, interval = inputs.order, inputs.profile.eval.interval
    between = 0
    for step in range(1, order.optimizer_steps):
        before, after = order.steps_done(step - 1), order.steps_done(step)
        between += bool(interval) and after // interval > before // interval
    return 2 + between


def saving_seconds(inputs: RunInputs, computing_seconds: float) -> float:
    """Estimate the seconds of all checkpoints, the one at the end included."""
    train, parameters = inputs.profile.train, inputs.trainable.parameters
    checkpoint_bytes = state_bytes(parameters, train, inputs.profile.model.weights_dtype)
    file_bytes = DTYPES[inputs.export_dtype].itemsize * parameters
    once = (checkpoint_bytes + file_bytes) / _SAVED_BYTES_PER_SECOND
    steps = inputs.order.micro_batches
    between = max(
        pause_seconds(train, once), computing_seconds * min(1.0, train.save_interval / steps)
    )
    return once * (1 + math.floor(computing_seconds / between if between else 0))


def _shortened(inputs: RunInputs, batch: GlobalBatch, limit: int) -> GlobalBatch:
    """Cut a global batch to its first micro-batches, at least one, with at most `limit` tokens."""
    total = 0
    for number, indices in enumerate(batch.micro_batches):
        total += batch_tokens(inputs, inputs.pairs, indices)
        if total > limit and number:
            return replace(batch, micro_batches=batch.micro_batches[:number])
    return batch


def _reference_is_cached(inputs: RunInputs) -> bool:
    """Return True if the cache has the reference's log-probs of all batches of this run."""
    if inputs.profile.train.layout == "padded":
        return False

    def load_reference() -> Any:
        raise AssertionError("only the cache is read")

    directory = Path("/dev/null/none")  # cannot exist, so that only the shared cache is read
    references = open_references(inputs, load_reference, directory)
    return all(
        isinstance(reference, CachedReference) and reference.is_complete for reference in references
    )

"""How long the run will take, from a few real steps on this device and exact counts of all."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dpo_cli.checks.memory import Peak, measure_peak, try_longest
from dpo_cli.checks.reporter import Reporter
from dpo_cli.checks.trial_trainer import TrialTrainer
from dpo_cli.compute.device import DTYPES
from dpo_cli.data.sampler import GlobalBatch
from dpo_cli.data.tokens import TokenizedPairs
from dpo_cli.formatting import format_duration
from dpo_cli.training.checkpointing import state_bytes
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.reference import CachedReference, open_references
from dpo_cli.training.sources import OnProgress
from dpo_cli.training.trainer import pause_seconds

SAMPLES = 6
MOST_SECONDS = 20.0
"""Of measuring; three samples are taken in any case."""
_LEAST_SAMPLES = 3
_MOST_TOKENS = {"cpu": 1 << 13, "cuda": 1 << 18}
"""Of one sample, by device: of a longer window the first micro-batches."""
_SAVED_BYTES_A_SECOND = 350e6
"""What writing, hashing and flushing a state came to (benchmarks/RESULTS.md, "Saving")."""


@dataclass(frozen=True)
class Sample:
    """One real update: what it computed, and its seconds without the reference's."""

    tokens: int
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """What the whole run will take.

    Attributes:
        seconds: from the command to the end, of all that follows.
        startup_seconds: until the first step.
        training_seconds: of all updates, without the reference.
        reference_seconds: of the reference's log-probs of the training pairs.
        evaluation_seconds: of the held-out pairs, each time.
        saving_seconds: of all saves.
        step_seconds: of an update in the mean, the reference included.
        longest_step_seconds: of the one with the most tokens.
        tokens: positions that the policy computes in training.
        process_bytes: the most memory of the process.
        device_bytes: the most memory of tensors on a card; 0 on the CPU.
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
    """Measure memory and time by real updates, and say what the run will take.

    Args:
        reporter: gets the findings.
        trial: makes the updates; its weights move.
        startup_seconds: of reading what a run reads.
        on_progress: hears how far it is.

    Returns:
        The forecast as plain values; None where the run does not fit into memory.
    """
    is_known = _reference_is_known(trial.inputs)
    on_progress("trying the longest batch", 0, 0, "")
    if not try_longest(reporter, trial):
        reporter.skip("time", "a run that fits into memory")
        return None
    samples = take_samples(trial, on_progress)
    peak = measure_peak(reporter, trial, reference_is_known=is_known)
    forecast = predict(trial, samples, startup_seconds, is_known, peak)
    parts = {
        "start": forecast.startup_seconds,
        "reference": forecast.reference_seconds,
        "evaluation": forecast.evaluation_seconds,
        "saving": forecast.saving_seconds,
    }
    listed = ", ".join(
        f"{name} {format_duration(part)}" for name, part in parts.items() if part >= 1
    )
    reporter.ok(
        "time",
        "",
        f"about {format_duration(forecast.seconds)} on this device: {forecast.step_seconds:.2g} s"
        f" an update in the mean, {forecast.longest_step_seconds:.2g} s the longest"
        + (f"; of it {listed}" if listed else ""),
    )
    return asdict(forecast)


def take_samples(trial: TrialTrainer, on_progress: OnProgress) -> list[Sample]:
    """Real updates on windows of the first epoch, from short to long ones."""
    inputs = trial.inputs
    limit = _MOST_TOKENS[inputs.device.type]
    global_batches = [window for window in inputs.order.global_batches() if window.epoch == 0]
    tokens = [global_batch_tokens(inputs, window) for window in global_batches]
    by_tokens = sorted(range(len(global_batches)), key=lambda n: tokens[n])
    count = min(SAMPLES, len(global_batches))
    # The middle of each sixth; every other one first, so that a few are of all lengths, too.
    places = [int((n + 0.5) / count * len(global_batches)) for n in range(count)]
    samples: list[Sample] = []
    began = time.perf_counter()
    for number, place in enumerate([*places[1::2], *places[::2]]):
        on_progress("timing updates", number, count, "updates")
        if number >= _LEAST_SAMPLES and time.perf_counter() - began > MOST_SECONDS:
            break
        window = _shortened(inputs, global_batches[by_tokens[place]], limit)
        _, seconds = trial.step(window)
        samples.append(Sample(global_batch_tokens(inputs, window), seconds))
    return samples


def predict(
    trial: TrialTrainer,
    samples: Sequence[Sample],
    startup_seconds: float,
    reference_is_known: bool,
    peak: Peak,
) -> Forecast:
    """What the whole run comes to, if it goes on as its samples.

    Args:
        trial: has timed the reference.
        samples: of updates.
        startup_seconds: see `check_forecast`.
        reference_is_known: its log-probs lie in the cache.
        peak: memory.
    """
    inputs = trial.inputs
    order, packed = inputs.order, inputs.profile.train.layout == "packed"
    each, token = fit_line(samples)
    epoch = [global_batch_tokens(inputs, w) for w in inputs.order.global_batches() if w.epoch == 0]
    tokens = order.epochs * sum(epoch)
    training = each * order.optimizer_steps + token * tokens
    forward = trial.reference.seconds / max(1, trial.reference.tokens)
    reference = forward * (sum(epoch) if packed else tokens)
    held_out = sum(
        batch_tokens(inputs, inputs.held_out, indices)
        for indices in inputs.batches.held_out_batches
    )
    evaluations = evaluations_of(inputs) if held_out else 0
    if not packed:
        evaluations *= 2
    elif inputs.policy_starts_as_reference:
        evaluations -= 1
    evaluation = forward * held_out * evaluations
    if packed and reference_is_known:
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
        longest_step_seconds=each + (token + (forward if reference else 0)) * max(epoch),
        tokens=tokens,
        process_bytes=peak.process_bytes,
        device_bytes=peak.device_bytes,
    )


def fit_line(samples: Sequence[Sample]) -> tuple[float, float]:
    """Seconds of each update, and of each token: the nearest line that has neither below zero."""
    count = len(samples)
    tokens = sum(s.tokens for s in samples) / count
    seconds = sum(s.seconds for s in samples) / count
    spread = sum((s.tokens - tokens) ** 2 for s in samples)
    if not spread:
        return 0.0, seconds / tokens
    slope = sum((s.tokens - tokens) * (s.seconds - seconds) for s in samples) / spread
    slope = min(max(slope, 0.0), seconds / tokens)
    return seconds - slope * tokens, slope


def global_batch_tokens(inputs: RunInputs, window: GlobalBatch) -> int:
    """Positions that the policy computes of a window."""
    return sum(batch_tokens(inputs, inputs.pairs, indices) for indices in window.micro_batches)


def batch_tokens(inputs: RunInputs, pairs: TokenizedPairs, indices: Sequence[int]) -> int:
    """`computed_tokens` of the batch of these pairs, without making it."""
    profile = inputs.profile
    if profile.train.layout == "padded":
        return 2 * len(indices) * (profile.data.max_seq_len - 1)
    some = pairs.select(indices)
    if profile.model.dropout:
        return int((some.lengths - 1).sum())
    return int(some.computed_tokens.sum())


def evaluations_of(inputs: RunInputs) -> int:
    """How often held-out pairs are scored: before, at each interval, and at the end."""
    order, interval = inputs.order, inputs.profile.eval.interval
    passed = 0
    for step in range(1, order.optimizer_steps):
        before, after = order.steps_done(step - 1), order.steps_done(step)
        passed += bool(interval) and after // interval > before // interval
    return 2 + passed


def saving_seconds(inputs: RunInputs, computing_seconds: float) -> float:
    """Of the state that is saved at the end, and of those before."""
    train, parameters = inputs.profile.train, inputs.weights.parameters
    file_bytes = DTYPES[inputs.export_dtype].itemsize * parameters
    once = (state_bytes(parameters, train) + file_bytes) / _SAVED_BYTES_A_SECOND
    steps = inputs.order.micro_batches
    between = max(
        pause_seconds(train, once), computing_seconds * min(1.0, train.save_interval / steps)
    )
    return once * (1 + math.floor(computing_seconds / between if between else 0))


def _shortened(inputs: RunInputs, window: GlobalBatch, limit: int) -> GlobalBatch:
    """The first micro-batches of a window, up to so many tokens; one of them at least."""
    total = 0
    for number, indices in enumerate(window.micro_batches):
        total += batch_tokens(inputs, inputs.pairs, indices)
        if total > limit and number:
            return replace(window, micro_batches=window.micro_batches[:number])
    return window


def _reference_is_known(inputs: RunInputs) -> bool:
    """Whether another run has left its log-probs of these very batches in the cache."""
    if inputs.profile.train.layout == "padded":
        return False

    def load() -> Any:
        raise AssertionError("nothing is computed here")

    nowhere = Path("/dev/null/none")
    references = open_references(inputs, load, nowhere)
    return all(isinstance(one, CachedReference) and one.is_complete for one in references)

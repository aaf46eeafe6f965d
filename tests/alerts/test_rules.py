"""Tests of the alert rules on synthetic events: each alert at the right step, once.

tests/alerts/test_real_runs.py provokes each alert in a real run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from dpo_cli.alerts.history import WINDOW, RunFacts
from dpo_cli.alerts.rules import RULES, AlertRules
from dpo_cli.intervals import wilson_interval
from dpo_cli.profile.doctrine import RunRecipe, learn_more, saturation_margin
from dpo_cli.run.events import (
    Alert,
    Evaluated,
    Event,
    Progress,
    Sample,
    Sampled,
    StepDone,
    WorkerStarted,
)

STEPS = 120
FACTS = RunFacts(
    recipe=RunRecipe("mean", 5.0, learning_rate=1e-5, lr_sum=6e-4, parameters=1_000_000),
    optimizer_steps=STEPS,
    vocab_size=6400,
    saturation_margin=saturation_margin(5.0, "mean", 100.0),
    export_dtype="float16",
    state_bytes=14_000_000,
    threads=2,
    rows_of=lambda optimizer_step, micro_batch: f"lines {10 * optimizer_step + micro_batch}, 7",
)


def with_loss(facts: RunFacts, reduction: str, beta: float) -> RunFacts:
    return replace(
        facts,
        recipe=replace(facts.recipe, reduction=reduction, beta=beta),
        saturation_margin=saturation_margin(beta, reduction, 100.0),
    )


BLIND = with_loss(FACTS, "mean", 0.1)
MADE: dict[str, Any] = {
    "step": 0,
    "epoch": 1,
    "learning_rate": 1e-5,
    "pairs": 4,
    "padding_tokens": 0,
    "process_bytes": 0,
    "device_bytes": 0,
}


def step(number: int, **changes: Any) -> StepDone:
    """Return optimizer step `number` of a healthy run; metrics differ from step to step.

    Metrics may be given by name, with "_" for "/".
    """
    share = number / STEPS
    noise = 0.03 * math.sin(2.3 * number)
    margin = (number > 1) * (1.5 * share + noise)
    metrics = {
        "loss": math.log1p(math.exp(-margin)),
        "rewards/chosen": 0.3 * margin,
        "rewards/rejected": -0.7 * margin,
        "rewards/margins": margin,
        "rewards/accuracies": 0.5 + 0.25 * (number % 3 > 0) * (number > 1),
        "margin_per_token": margin / FACTS.recipe.beta,
        "kl": 0.02 * share,
        "grad_norm": 8.0 + noise,
    }
    if number == 1 or number % 10 == 0:
        metrics["weights_moved"] = min(0.9, 3 * share)
    names = {name.replace("/", "_"): name for name in [*metrics, "weights_moved", "logps/chosen"]}
    metrics |= {names[name]: changes.pop(name) for name in list(changes) if name in names}
    fields = {**MADE, "tokens": 1000, "seconds": 0.1, "losses": (metrics["loss"],), **changes}
    return StepDone(**{**fields, "step": number}, optimizer_step=number, metrics=metrics)


def steps(
    change: Callable[[int], dict[str, Any]] = lambda _: {}, last: int = STEPS
) -> Iterator[StepDone]:
    for number in range(1, last + 1):
        yield step(number, **change(number))


def alerts_of(
    events: Iterable[Event], facts: RunFacts = FACTS, history: Iterable[Event] = ()
) -> list[tuple[int, str]]:
    """Return the alerts with their optimizer steps."""
    rules, said, number = AlertRules(facts, history), [], 0
    for event in events:
        number = getattr(event, "optimizer_step", number)
        said += [(number, alert.code) for alert in rules.take(event)]
    return said


def text(events: Iterable[Event], code: str, facts: RunFacts = FACTS) -> Alert:
    rules = AlertRules(facts)
    [alert] = [a for event in events for a in rules.take(event) if a.code == code]
    return alert


def test_a_healthy_run_gives_no_alert() -> None:
    events: list[Event] = list(steps())
    held_out = {"kl": 0.03, "loss": 0.6}
    events.insert(60, Evaluated(step=60, optimizer_step=60, metrics=held_out, pairs=9, seconds=1.0))
    events.insert(0, Progress(phase="x", done=1, total=2, unit="pairs"))
    assert alerts_of(events) == []


# --- learning ------------------------------------------------------------------------------------


def both_fall(number: int) -> dict[str, Any]:
    margin = 0.02 * number
    return {"rewards_chosen": -0.5 * margin, "rewards_rejected": -1.5 * margin}


def test_displacement() -> None:
    """The alert comes as soon as the last steps do not overlap with the first ones."""
    assert alerts_of(steps(both_fall)) == [(2 * WINDOW, "displacement")]


@pytest.mark.parametrize("chosen", [0.1, -0.1])
def test_rejected_answers_that_lose_far_more_are_no_displacement(chosen: float) -> None:
    changes = list(
        steps(lambda n: {"rewards_chosen": chosen * n / 80, "rewards_rejected": -1.5 * n / 80})
    )
    assert alerts_of(changes) == []


def test_rewards_that_fall_by_chance_are_no_displacement() -> None:
    """The noise is ten times as large as the fall."""

    def falls(number: int) -> dict[str, Any]:
        noise = 2.0 * math.sin(1.7 * number)
        return {
            "rewards_chosen": noise - 0.001 * number,
            "rewards_rejected": noise - 0.002 * number,
        }

    assert alerts_of(steps(falls)) == []


def at_ln_2(number: int) -> dict[str, Any]:
    return {"loss": math.log(2) - 1e-5 * number}


def test_a_loss_that_stays_because_the_weights_do() -> None:
    still = list(steps(lambda n: at_ln_2(n) | ({"weights_moved": 0.01} if n % 10 == 0 else {})))
    said = alerts_of(still, BLIND)
    assert said == [(40, "lr-sum-small"), (60, "below-resolution")]
    alert = text(still, "lr-sum-small", BLIND)
    assert alert.message == (
        "the loss still reads 0.6928 after 40 of 120 updates: an lr_sum (sum of the learning rates)"
        " of 4.0e-04 so far hardly moves the weights (1.0 % of them changed in a float16 file)"
    )
    assert alert.remedy == learn_more(FACTS.recipe)


def test_a_loss_that_stays_although_the_weights_move() -> None:
    assert alerts_of(steps(at_ln_2), BLIND) == [(40, "no-saturation")]
    alert = text(steps(at_ln_2), "no-saturation", BLIND)
    assert "although 90 % of the weights have changed: with mean and beta 0.1" in alert.message
    assert "11 nats a token" in alert.message
    # A sum over a hundred tokens saturates.
    saturating = with_loss(BLIND, "sum", 0.1)
    assert alerts_of(steps(at_ln_2), saturating) == []


def test_a_loss_that_fell_once_and_a_run_too_short_to_judge() -> None:
    falls = list(steps(lambda n: {"loss": math.log(2) - (0.02 if n > 20 else 0.0)}))
    assert alerts_of(falls, BLIND) == []
    brief = replace(BLIND, optimizer_steps=WINDOW - 1)
    assert alerts_of(steps(at_ln_2, last=WINDOW - 1), brief) == []


def test_an_accuracy_that_stays_at_a_half() -> None:
    """The upper end of the interval falls below 0.55 after about 400 pairs, at 4 per step."""
    tossed = list(
        steps(
            lambda n: {
                "loss": 0.7 + 0.02 * math.sin(n - 1),
                "rewards_accuracies": 0.25 + 0.5 * (n % 2),
            },
            last=240,
        )
    )
    long = replace(FACTS, optimizer_steps=240)
    [(step, code)] = alerts_of(tossed, long)
    assert code == "accuracy-stuck"
    pairs = [each for each in range(2, 201) if wilson_interval(0.5, 4 * each)[1] < 0.55]
    assert pairs[0] <= step <= pairs[0] + 5
    message = text(tossed, "accuracy-stuck", long).message
    assert f"the accuracy of the last {4 * step} pairs is 0.50 (95 %: 0.45 to 0.55)" in message
    assert (
        alerts_of(tossed[:60]) == []
    )  # 0.5 on 240 pairs: a run that learns may have the same accuracy
    better = [replace(e, metrics={**e.metrics, "rewards/accuracies": 0.55}) for e in tossed]
    assert alerts_of(better) == []


def test_resolution_names_a_better_format_where_there_is_one() -> None:
    still = list(steps(lambda n: {"weights_moved": 0.01} if n % 10 == 0 else {}))
    assert alerts_of(still) == [(60, "below-resolution")]
    assert text(still, "below-resolution").remedy.startswith('Set export.dtype = "float32"')
    whole = replace(FACTS, export_dtype="float32")
    assert text(still, "below-resolution", whole).remedy == learn_more(FACTS.recipe)


# --- stability -----------------------------------------------------------------------------------


def test_a_gradient_below_the_epsilon() -> None:
    tiny = list(steps(lambda n: {"grad_norm": 5e-6}))
    assert alerts_of(tiny) == [(WINDOW, "gradient-vanishing")]
    assert text(tiny, "gradient-vanishing").remedy.startswith("Raise dpo.beta")


def test_memorized_pairs() -> None:
    known = list(steps(lambda n: {"grad_norm": 1e-3, "loss": 1e-4} if n > 60 else {}))
    [(number, code)] = alerts_of(known)
    assert code == "gradient-vanishing"
    assert 70 <= number <= 80
    assert "memorized" in text(known, "gradient-vanishing").message
    small = list(steps(lambda n: {"grad_norm": 0.1, "loss": 1e-4} if n > 60 else {}))
    assert alerts_of(small) == []


def test_an_exploding_gradient_is_one_that_stays() -> None:
    explodes = list(steps(lambda n: {"grad_norm": 30.0} if n > 60 else {}))
    [(number, code)] = alerts_of(explodes)
    assert code == "gradient-exploding"
    assert 70 <= number <= 72
    once = list(steps(lambda n: {"grad_norm": 3000.0} if n in (60, 70, 71) else {}))
    assert alerts_of(once) == []


def test_a_spike_names_the_micro_batch_that_made_it() -> None:
    spike = list(steps(lambda n: {"losses": (0.6, 3.0, 0.6)} if n in (50, 90) else {}))
    assert alerts_of(spike) == [(50, "loss-spike")]
    message = text(spike, "loss-spike").message
    assert message == (
        "step 50: the loss was 3.00, after 0.55 before, on these pairs: lines 501, 7"
    )


def test_a_hard_pair_late_in_a_run_is_no_spike() -> None:
    hard = list(steps(lambda n: {"losses": ({1: 0.693, 90: 1.2}.get(n, 0.001),)}))
    assert alerts_of(hard) == []
    # A large loss is no spike either if losses usually vary as much.
    scattered = list(steps(lambda n: {"losses": (0.7 + 0.6 * math.sin(n),) if n != 90 else (3.0,)}))
    assert alerts_of(scattered) == []


def test_drift_of_training_and_of_held_out_pairs() -> None:
    assert alerts_of(steps(lambda n: {"kl": 0.01 * n})) == [(60, "drift")]
    far = Evaluated(step=30, optimizer_step=30, metrics={"kl": 0.6}, pairs=9, seconds=1.0)
    assert alerts_of([*steps(last=30), far]) == [(30, "drift")]
    assert "held-out" in text([*steps(last=30), far], "drift").message
    without = [replace(each, metrics={**each.metrics}) for each in steps()]
    for each in without:
        del each.metrics["kl"]
    assert alerts_of(without) == []


# --- the machine ---------------------------------------------------------------------------------


def slow_after(number: int, factor: float = 3.0) -> Callable[[int], dict[str, Any]]:
    return lambda n: {"seconds": 1.0 * (factor if n > number else 1.0)}


def test_a_speed_that_drops_and_stays_low() -> None:
    assert alerts_of(steps(slow_after(80))) == [(100, "slow")]
    assert "333 tokens/s for 60 s; the usual speed of this run is 1,000" in (
        text(steps(slow_after(80)), "slow").message
    )
    assert alerts_of(steps(slow_after(80, factor=1.8))) == []
    assert alerts_of(steps(lambda n: {"seconds": 300.0 if n % 20 == 0 else 1.0})) == []
    brief = list(steps(lambda n: {"seconds": 0.03 if n > 60 else 0.01}))
    assert alerts_of(brief) == []


def test_another_start_has_a_speed_of_its_own() -> None:
    started = WorkerStarted(pid=1, device="cpu", device_name="", dtype="float32", versions={})
    events: list[Event] = list(steps(slow_after(80)))
    assert alerts_of([*events[:80], started, *events[80:]]) == []


def busy_after(number: int, times: float = 2.0) -> Callable[[int], dict[str, Any]]:
    return lambda n: {"seconds": times if n > number else 1.0, "cpu_seconds": 1.0}


def test_a_cpu_that_other_processes_use_too() -> None:
    """The first 20 seconds count, except the first step, which also loads code."""
    busy = list(steps(busy_after(0)))
    assert [each for each in alerts_of(busy) if each[1] != "slow"] == [(11, "cpu-contention")]
    alert = text(busy, "cpu-contention")
    assert alert.message == (
        "step 11: the CPU is busy with other processes: a step takes 2.0 times its CPU time"
    )
    assert alert.remedy.startswith("Set train.threads = 1, or stop the other processes")
    # With 8 micro-batches in each optimizer step, which is the one that the message counts.
    accumulated = [replace(each, step=8 * each.step) for each in busy]
    assert text(accumulated, "cpu-contention").message == alert.message
    later = [each for each in alerts_of(steps(busy_after(31, 10.0))) if each[1] != "slow"]
    assert later == [(32, "cpu-contention")]
    assert alerts_of(steps(busy_after(0, times=1.4))) == []
    on_a_gpu = [replace(each, cpu_seconds=0.0) for each in busy]
    assert "cpu-contention" not in [code for _, code in alerts_of(on_a_gpu)]


def test_the_host_of_a_virtual_machine_is_named() -> None:
    rules = AlertRules(replace(FACTS, threads=1))
    said = [a for e in steps(busy_after(0)) for a in rules.take(e, stolen=lambda: 0.3)]
    [alert] = [each for each in said if each.code == "cpu-contention"]
    assert alert.message.endswith("; the host of this virtual machine takes 30 % of the CPU time")
    assert "train.threads" not in alert.remedy


def test_the_disk_is_watched_ahead() -> None:
    rules = AlertRules(FACTS)
    assert rules.take(step(1), 3 * FACTS.state_bytes) == []
    [alert] = rules.take(step(2), 3 * FACTS.state_bytes - 1)
    assert alert.code == "disk-filling"
    assert alert.message == "0.04 GB are free on the disk of the run, and each save writes 0.01 GB"
    assert rules.take(step(3), 0) == []


# --- once, and the same after a resume -----------------------------------------------------------


def bad(number: int) -> dict[str, Any]:
    """Displacement at step 40, a spike at 50, drift at 60, and later a large gradient."""
    return both_fall(number) | {
        "losses": (5.0,) if number in (50, 70) else (0.6,),
        "kl": 0.01 * number,
        "grad_norm": 8.0 if number <= 70 else 40.0,
    }


@pytest.mark.parametrize("resumed_after", [1, 19, 39, 40, 45, 50, 59, 79, 100])
def test_a_resumed_run_gives_the_remaining_alerts(resumed_after: int) -> None:
    whole = alerts_of(steps(bad))
    assert [code for _, code in whole] == [
        "displacement",
        "loss-spike",
        "drift",
        "gradient-exploding",
    ]
    events = list(steps(bad))
    after = alerts_of(events[resumed_after:], history=events[:resumed_after])
    assert after == [(number, code) for number, code in whole if number > resumed_after]


def test_alerts_of_lost_steps_are_not_repeated() -> None:
    events = list(steps(bad))
    said = [Alert(code="displacement", message=""), Alert(code="slow", message="")]
    codes = [code for _, code in alerts_of(events[30:], history=[*events[:30], *said])]
    assert codes == ["loss-spike", "drift", "gradient-exploding"]


def test_skipped_steps_are_ignored() -> None:
    """The metrics of skipped steps may be NaN or infinite."""

    def some_skipped(number: int) -> dict[str, Any]:
        if number % 7:
            return {}
        return {"is_skipped": True, "loss": math.nan, "grad_norm": math.inf, "losses": (math.nan,)}

    assert alerts_of(steps(some_skipped)) == []


def test_every_code_belongs_to_one_rule() -> None:
    codes = [code for codes in RULES.values() for code in codes]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize(("nats", "is_told"), [(8.3, False), (8.5, True)])
def test_a_model_that_guesses(nats: float, is_told: bool) -> None:
    """ln 6,400 = 8.76. One alert, at the first evaluation or, with a mean, at the first step."""
    held_out = {"loss": 0.6931, "token_logps/chosen": -nats}
    start = Evaluated(step=0, optimizer_step=0, metrics=held_out, pairs=9, seconds=1.0)
    told = ["tokenizer-mismatch"] * is_told
    rules = AlertRules(replace(FACTS, recipe=replace(FACTS.recipe, reduction="sum")))
    assert [alert.code for alert in rules.take(start)] == told
    assert rules.take(start) == []
    assert rules.take(step(1, logps_chosen=-300.0)) == []
    alone = AlertRules(FACTS)
    assert [alert.code for alert in alone.take(step(1, logps_chosen=-nats))] == told
    assert alone.take(step(2, logps_chosen=-8.7)) == []


def sampled(step_number: int, *answers: str) -> Sampled:
    samples = tuple(
        Sample(place="line 1", prompt="p", question="q", policy=answer, reference=answer)
        for answer in answers
    )
    return Sampled(step=step_number, optimizer_step=step_number, samples=samples, seconds=1.0)


def test_answers_that_repeat_before_training_have_their_own_alert() -> None:
    broken, whole = "- " * 40, "The mill grinds corn for the whole village every morning."
    [alert] = AlertRules(FACTS).take(sampled(0, broken, broken))
    assert alert.code == "start-repeats"
    assert alert.message.startswith("before training, the answers to 2 prompts already repeat")
    assert AlertRules(FACTS).take(sampled(0, whole, whole)) == []
    assert AlertRules(FACTS).take(sampled(0, broken, whole, whole)) == []  # a third, on average
    assert AlertRules(FACTS).take(sampled(0, broken, broken, whole))
    assert AlertRules(FACTS).take(sampled(1, broken, broken)) == []  # see the verdict of the run
    resumed = AlertRules(FACTS, [alert])
    assert resumed.take(sampled(0, broken, broken)) == []

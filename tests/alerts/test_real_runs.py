"""Tests of each alert in a real run, and of a run that gives none.

tests/faults/test_disk.py has the alert of a disk that fills.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Alert, EventReader, Resumed
from tests.support import worker_faults, workers
from tests.support.cli import Run, dpo
from tests.support.small_runs import golden_run

ROWS = "golden/data/train27.jsonl"
HEALTHY = {"dpo.beta": 5.0, "train.learning_rate": 1e-5}
TINY = {"train.learning_rate": 1e-8}
ONCE = {"train.epochs": 1, "eval.fraction": 0.0}


def arguments(shared: Path, **changes: Any) -> list[str]:
    """72 optimizer steps, nine per epoch; the weights are compared every fifth step."""
    keys = {
        "data.max_seq_len": 96,
        "train.batch_size": 2,
        "train.epochs": 8,
        "train.log_interval": 5,
        "train.save_interval": 10,
    }
    return golden_run(shared, "seed", False, **{**keys, **changes})


def trained(
    shared: Path, root: Path, arm: Callable[[], object] | None = None, **changes: Any
) -> RunDirectory:
    run = workers.new_run(root, arguments(shared, **changes))
    assert workers.work(run, arm) == 0, run.worker_log_path.read_text()
    return run


def alerts(run: RunDirectory) -> list[Alert]:
    """Return the alerts of a run, except those of this machine's load and of untrained weights."""
    events = EventReader(run.events_path).read_new()
    found = [event for event in events if isinstance(event, Alert)]
    return [alert for alert in found if alert.code not in ("cpu-contention", "tokenizer-mismatch")]


def codes(run: RunDirectory) -> set[str]:
    """Return the codes of the alerts, and require that each alert appears once."""
    counted = Counter(alert.code for alert in alerts(run))
    assert max(counted.values(), default=1) == 1, counted
    return set(counted)


def only(run: RunDirectory, code: str) -> Alert:
    [alert] = [alert for alert in alerts(run) if alert.code == code]
    return alert


def swapped(row: str) -> str:
    pair = json.loads(row)
    return json.dumps({"chosen": pair["rejected"], "rejected": pair["chosen"]})


def test_a_healthy_run_gives_no_alert(shared: Path, tmp_path: Path) -> None:
    run = trained(shared, tmp_path, **HEALTHY)
    assert alerts(run) == []
    last = Run(run).steps[-1].metrics
    assert last["loss"] < 0.6  # the policy has learned
    assert last["weights_moved"] > 0.5


def test_an_lr_sum_too_small(shared: Path, tmp_path: Path) -> None:
    """The learning rate is that of MiniMind's scripts."""
    run = trained(shared, tmp_path, **TINY)
    assert codes(run) == {"lr-sum-small", "below-resolution"}
    assert "the loss still reads 0.6931" in only(run, "lr-sum-small").message
    assert "Do not raise the learning rate alone" in only(run, "lr-sum-small").remedy
    assert only(run, "below-resolution").remedy.startswith('Set export.dtype = "float32"')


def test_no_saturation(shared: Path, tmp_path: Path) -> None:
    run = trained(shared, tmp_path, **{"train.learning_rate": 3e-6})
    assert codes(run) == {"no-saturation"}
    assert "dpo.beta = 0.1 and train.learning_rate" in only(run, "no-saturation").remedy


def test_a_gradient_below_the_epsilon(shared: Path, tmp_path: Path) -> None:
    run = trained(shared, tmp_path, **{"dpo.beta": 1e-6, "train.learning_rate": 3e-6})
    assert "below AdamW's epsilon" in only(run, "gradient-vanishing").message
    assert codes(run) <= {"gradient-vanishing", "lr-sum-small", "no-saturation", "below-resolution"}


def test_a_wild_learning_rate(shared: Path, tmp_path: Path) -> None:
    run = trained(shared, tmp_path, **{"dpo.beta": 5.0, "train.learning_rate": 1e-2})
    assert codes(run) >= {"displacement", "drift", "gradient-vanishing"}
    assert "memorized" in only(run, "gradient-vanishing").message
    message = only(run, "displacement").message
    assert re.search(r"\(chosen -[\d.]+, rejected -[\d.]+\)", message), message


def test_pairs_that_turn_around(shared: Path, tmp_path: Path) -> None:
    """The pairs come four times, then twice with swapped sides; the alert names a swapped one."""
    rows = (shared / ROWS).read_text(encoding="utf-8").splitlines()
    data = tmp_path / "turned.jsonl"
    data.write_text("\n".join([*rows * 4, *map(swapped, rows * 2)]), encoding="utf-8")
    run = trained(
        shared,
        tmp_path,
        **ONCE,
        **{"data.data_path": data, "train.batch_size": 1},
        **{"dpo.beta": 0.1, "train.learning_rate": 4e-3},
    )
    assert codes(run) >= {"loss-spike", "gradient-exploding"}
    aside = {json.loads(row)["line"] for row in run.skipped_rows_path.read_text().splitlines()}
    named = re.search(r"on these pairs: line (\d+)", only(run, "loss-spike").message)
    assert named is not None
    assert int(named[1]) in set(range(4 * len(rows) + 1, 6 * len(rows) + 1)) - aside


def test_pairs_that_contradict_each_other(shared: Path, tmp_path: Path) -> None:
    rows = (shared / ROWS).read_text(encoding="utf-8").splitlines() * 30
    random.Random(1).shuffle(rows)
    data = tmp_path / "tossed.jsonl"
    data.write_text("\n".join(map(swapped, rows[::2])) + "\n" + "\n".join(rows[1::2]), "utf-8")
    run = trained(
        shared,
        tmp_path,
        **ONCE,
        **{"data.data_path": data, "data.shuffle": True, "train.batch_size": 4},
        **{"dpo.beta": 5.0, "train.learning_rate": 1e-4},
    )
    assert codes(run) == {"accuracy-stuck"}


def slowed(optimizer_step: int) -> None:
    """Let steps from this one on report six times their duration, and count one second as long."""
    from dpo_cli.alerts import machine
    from dpo_cli.training.trainer import Trainer

    machine.SLOW_SECONDS = 1.0
    take_step = Trainer.take_step

    def timed(self: Trainer, *arguments: Any) -> Any:
        is_slow = self.optimizer_step >= optimizer_step
        done = take_step(self, *arguments)
        # Not the true seconds: other processes on this machine must not cause the alert.
        return dataclasses.replace(done, seconds=0.3 if is_slow else 0.05)

    Trainer.take_step = timed  # type: ignore[method-assign]


def test_a_machine_that_slows_down(shared: Path, tmp_path: Path) -> None:
    run = trained(shared, tmp_path, partial(slowed, 62), **{**HEALTHY, "train.epochs": 9})
    assert codes(run) == {"slow"}
    assert re.match(r"step 80: [\d,]+ tokens/s for \d+ s", only(run, "slow").message)


@pytest.mark.parametrize("step", [37, 52])
def test_a_killed_run_repeats_no_alert(shared: Path, tmp_path: Path, step: int) -> None:
    """The kill comes after one alert, or after both; the step of the last alert was not saved."""
    whole = trained(shared, tmp_path / "whole", **TINY)
    run = workers.new_run(tmp_path, arguments(shared, **TINY))
    assert workers.work(run, partial(worker_faults.kill_at, step)) < 0
    assert workers.work(run) == 0
    [resumed] = [e for e in EventReader(run.events_path).read_new() if isinstance(e, Resumed)]
    assert resumed.optimizer_step < step
    said = [(alert.code, alert.message, alert.remedy) for alert in alerts(run)]
    assert said == [(alert.code, alert.message, alert.remedy) for alert in alerts(whole)]
    assert len(said) == 2


def test_dpo_prints_meaning_and_remedy_of_an_alert(shared: Path, tmp_path: Path) -> None:
    """The alert is printed during training, and later by `dpo show`."""
    result = dpo(*arguments(shared, **TINY), "--plain", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = Run.only(tmp_path).directory
    alert = only(run, "lr-sum-small")
    output = " ".join((result.stdout + result.stderr).split())
    assert f"warning: {alert.message} help: {alert.remedy}" in output
    assert (
        alert.message[:40] in dpo("show", run.path, cwd=tmp_path).stdout
    )  # as much as fits into the line

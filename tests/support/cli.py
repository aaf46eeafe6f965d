"""Run the real `dpo` in its own process, and read the files that it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_cli.models.convert import StateDict
from dpo_cli.models.minimind import MiniMind
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Evaluated, Event, StepDone, history
from dpo_cli.run.lookup import find_runs
from dpo_cli.training.checkpointing import load_weights
from tests.support import warm

REPOSITORY = Path(__file__).resolve().parents[2]
DPO = [sys.executable, "-m", "dpo_cli"]

HANG_SECONDS = 600.0
"""Limit of each wait for a condition. Only a hang reaches it, however busy the machine is."""


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of this process with one thread, no terminal width and no colors."""
    own = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR")}
    return {**own, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **changes}


def dpo(
    *arguments: str | Path, cwd: Path, timeout: float = HANG_SECONDS, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run `dpo` to its end; return exit code, stdout and stderr."""
    words, wanted = [*map(str, arguments)], environment(**changes)
    if warm.can_run(wanted):
        process = warm.Process(words, cwd, wanted, one_output=False)
        output, errors = process.communicate(timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
    return run_in(cwd, [*DPO, *words], timeout, **changes)


def start(*arguments: str | Path, cwd: Path) -> warm.Process:
    """Start `dpo`; stderr is merged into stdout."""
    return warm.Process([*map(str, arguments)], cwd, environment(), one_output=True)


def run_in(
    cwd: Path, command: Sequence[str], timeout: float = HANG_SECONDS, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run any command in the environment of the tests, and capture its output."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def set_options(settings: Mapping[str, Any]) -> list[str]:
    """Return `--set` options for profile keys."""
    words = []
    for key, value in settings.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        words += ["--set", f"{key}={text}"]
    return words


@dataclass(frozen=True)
class Run:
    """Files and events of a finished `dpo train`."""

    directory: RunDirectory

    @classmethod
    def only(cls, cwd: Path) -> Run:
        """Return the only run under `cwd`."""
        (directory,) = find_runs(cwd / "runs")
        return cls(directory)

    @property
    def events(self) -> list[Event]:
        return list(history(self.directory.events_path))

    @property
    def steps(self) -> list[StepDone]:
        return [event for event in self.events if isinstance(event, StepDone)]

    @property
    def losses(self) -> list[float]:
        """Return the loss of each micro-batch."""
        return [loss for step in self.steps for loss in step.losses]

    @property
    def grad_norms(self) -> list[float]:
        return [step.metrics["grad_norm"] for step in self.steps]

    @property
    def metric_rows(self) -> list[dict[str, Any]]:
        """Return the metrics that must be bit-equal in a resumed run."""
        kept = ("step", "optimizer_step", "epoch", "learning_rate", "losses", "metrics", "tokens")
        return [{key: getattr(step, key) for key in kept} for step in self.steps]

    @property
    def evaluations(self) -> list[tuple[int, dict[str, float]]]:
        """Return the evaluations without their times, which must be bit-equal too."""
        return [(e.step, e.metrics) for e in self.events if isinstance(e, Evaluated)]

    @property
    def architecture(self) -> MiniMind:
        plan = self.directory.read_plan()
        assert plan is not None
        return MiniMind(**plan.model.shape)

    @property
    def checkpoint(self) -> Path:
        checkpoint, passed_over = self.directory.newest_verified()
        assert checkpoint is not None
        assert not passed_over
        return checkpoint.path

    @property
    def weights(self) -> StateDict:
        """Return the final float32 weights under MiniMind's names."""
        return self.architecture.to_native_names(load_weights(self.checkpoint))

    def files(self) -> dict[str, bytes]:
        """Return each file of the newest checkpoint except the manifest, which has random names."""
        paths = sorted(self.checkpoint.iterdir())
        return {path.name: path.read_bytes() for path in paths if path.name != "manifest.json"}

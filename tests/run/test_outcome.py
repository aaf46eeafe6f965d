"""Tests of the outcome of a launch, as a table over return code, signals and events."""

from __future__ import annotations

import signal

import pytest

from dpo_cli.errors import ExitCode
from dpo_cli.run.events import (
    Completed,
    Event,
    Failed,
    Planned,
    RankEnded,
    Resumed,
    Stopped,
    WorkerStarted,
)
from dpo_cli.run.outcome import End, LastEvents, Outcome, SentSignals, outcome_of

DONE, FAILED, USAGE = ExitCode.DONE, ExitCode.FAILED, ExitCode.USAGE
INTERRUPTED, TERMINATED, NO_SPACE = (
    ExitCode.INTERRUPTED,
    ExitCode.TERMINATED,
    ExitCode.NO_SPACE,
)
PLANNED = Planned(plan={})
RESUMED = Resumed(optimizer_step=1, step=1, checkpoint="step-00000001")
COMPLETED = Completed(step=1, optimizer_step=1, weights="w")
STOPPED = Stopped(reason="interrupted", step=1, optimizer_step=1)
ENDED = Stopped(reason="terminated", step=1, optimizer_step=1)
REFUSED = Failed(message="m", remedy="r", details=(), exit_code=USAGE)
FULL = Failed(message="m", remedy="r", details=(), exit_code=NO_SPACE)
LOST = RankEnded(rank=1, host="h", pid=1, exit_code=137, signal=9, message="")
STARTED = WorkerStarted(pid=1, device="cpu", device_name="", dtype="", versions={})

NONE, ONE, TWO = SentSignals(), SentSignals(interrupts=1), SentSignals(interrupts=2)
TERM, BOTH = SentSignals(terminated=True), SentSignals(interrupts=1, terminated=True)
INT, KILL, SEGV = -signal.SIGINT, -signal.SIGKILL, -signal.SIGSEGV
DIED = -signal.SIGTERM

Row = tuple[int, SentSignals, list[Event], Outcome]
SAVED = End.SAVED
TABLE: dict[str, Row] = {
    # One worker: the return code determines the outcome.
    "complete": (0, NONE, [PLANNED, COMPLETED], Outcome(SAVED, DONE)),
    "complete after a resume": (0, NONE, [RESUMED, COMPLETED], Outcome(SAVED, DONE)),
    "complete without a plan": (0, NONE, [COMPLETED], Outcome(SAVED, DONE)),
    "saved after Ctrl-C": (130, ONE, [PLANNED, STOPPED], Outcome(SAVED, INTERRUPTED)),
    "saved after SIGTERM": (143, TERM, [PLANNED, ENDED], Outcome(SAVED, TERMINATED)),
    "saved after dpo stop": (130, NONE, [PLANNED, STOPPED], Outcome(SAVED, INTERRUPTED)),
    "saved before SIGKILL arrived": (130, TWO, [PLANNED, STOPPED], Outcome(SAVED, INTERRUPTED)),
    "complete despite Ctrl-C": (0, ONE, [PLANNED, COMPLETED], Outcome(SAVED, DONE)),
    # Several ranks: the agent returns 0, or 1 after a loss; the stream has the outcome.
    "ranks stopped": (0, ONE, [PLANNED, STOPPED], Outcome(SAVED, INTERRUPTED)),
    "ranks terminated": (0, TERM, [PLANNED, ENDED], Outcome(SAVED, TERMINATED)),
    "rank lost after the end": (1, NONE, [PLANNED, COMPLETED, LOST], Outcome(SAVED, DONE)),
    "rank lost after a stop": (1, ONE, [PLANNED, STOPPED, LOST], Outcome(SAVED, INTERRUPTED)),
    "rank lost": (1, NONE, [PLANNED, LOST], Outcome(End.RANK_LOST, FAILED)),
    "rank lost before the plan": (1, NONE, [LOST], Outcome(End.RANK_LOST, FAILED)),
    "rank lost, all killed": (KILL, NONE, [PLANNED, LOST], Outcome(End.RANK_LOST, FAILED)),
    "rank lost, restarted": (0, NONE, [PLANNED, LOST, STARTED, COMPLETED], Outcome(SAVED, DONE)),
    "restarted, then crashed": (1, NONE, [PLANNED, LOST, STARTED], Outcome(End.CRASHED, FAILED)),
    # Stopped before there was anything to save.
    "killed by Ctrl-C, no plan": (INT, ONE, [], Outcome(End.NOT_STARTED, INTERRUPTED, undo=True)),
    "killed by SIGTERM, no plan": (DIED, TERM, [], Outcome(End.NOT_STARTED, TERMINATED, undo=True)),
    "killed twice, no plan": (KILL, TWO, [], Outcome(End.NOT_STARTED, INTERRUPTED, undo=True)),
    "exit 130, no plan": (130, ONE, [], Outcome(End.NOT_STARTED, INTERRUPTED, undo=True)),
    "exit 143, no plan": (143, TERM, [], Outcome(End.NOT_STARTED, TERMINATED, undo=True)),
    "stopped, no plan": (130, ONE, [STOPPED], Outcome(End.NOT_STARTED, INTERRUPTED, undo=True)),
    "ranks, no plan": (0, ONE, [STOPPED], Outcome(End.NOT_STARTED, INTERRUPTED, undo=True)),
    # Killed by a signal that the launcher sent.
    "second Ctrl-C": (KILL, TWO, [PLANNED], Outcome(End.KILLED, INTERRUPTED)),
    "second Ctrl-C, ranks": (KILL, TWO, [PLANNED, LOST], Outcome(End.KILLED, INTERRUPTED)),
    "first Ctrl-C, no handler": (INT, ONE, [RESUMED], Outcome(End.KILLED, INTERRUPTED)),
    "SIGTERM, no handler": (DIED, TERM, [RESUMED], Outcome(End.KILLED, TERMINATED)),
    "SIGTERM and Ctrl-C": (DIED, BOTH, [PLANNED], Outcome(End.KILLED, TERMINATED)),
    "second Ctrl-C after a rank was lost": (
        *(KILL, TWO, [PLANNED, COMPLETED, LOST]),
        Outcome(End.KILLED, INTERRUPTED),
    ),
    # The same signals from elsewhere are crashes.
    "SIGKILL from elsewhere": (KILL, NONE, [PLANNED], Outcome(End.CRASHED, FAILED)),
    "SIGKILL after one Ctrl-C": (KILL, ONE, [PLANNED], Outcome(End.CRASHED, FAILED)),
    "SIGKILL after SIGTERM": (KILL, TERM, [PLANNED], Outcome(End.CRASHED, FAILED)),
    "SIGINT from elsewhere": (INT, NONE, [PLANNED], Outcome(End.CRASHED, FAILED)),
    "SIGTERM from elsewhere": (DIED, ONE, [PLANNED], Outcome(End.CRASHED, FAILED)),
    "segmentation fault": (SEGV, NONE, [PLANNED], Outcome(End.CRASHED, FAILED)),
    "fault after the end": (SEGV, NONE, [PLANNED, COMPLETED], Outcome(End.CRASHED, FAILED)),
    # A crash keeps the directory even before the plan: the reason is in its logs.
    "exit code 1": (1, NONE, [PLANNED], Outcome(End.CRASHED, FAILED)),
    "exit code 1, no plan": (1, NONE, [], Outcome(End.CRASHED, FAILED)),
    "exit code 1 after Ctrl-C": (1, ONE, [], Outcome(End.CRASHED, FAILED)),
    # Errors that the worker reported.
    "refused": (2, NONE, [REFUSED], Outcome(End.FAILED, USAGE, undo=True)),
    "refused by the agent": (1, NONE, [REFUSED], Outcome(End.FAILED, USAGE, undo=True)),
    "refused while stopping": (2, ONE, [REFUSED], Outcome(End.FAILED, USAGE, undo=True)),
    "failed": (2, NONE, [PLANNED, REFUSED], Outcome(End.FAILED, USAGE)),
    "failed after a resume": (2, NONE, [RESUMED, REFUSED], Outcome(End.FAILED, USAGE)),
    "failed, and a rank was lost": (1, NONE, [PLANNED, REFUSED, LOST], Outcome(End.FAILED, USAGE)),
    "failed, then killed": (KILL, TWO, [PLANNED, REFUSED], Outcome(End.FAILED, USAGE)),
    # A full disk, with or without room for the report.
    "disk full": (75, NONE, [PLANNED, FULL], Outcome(End.FAILED, NO_SPACE)),
    "disk full, no report": (75, NONE, [PLANNED], Outcome(End.NO_SPACE, NO_SPACE)),
    "disk full, no plan": (75, NONE, [], Outcome(End.NO_SPACE, NO_SPACE)),
}


@pytest.mark.parametrize("name", TABLE)
def test_outcomes(name: str) -> None:
    returncode, sent, events, expected = TABLE[name]
    last = LastEvents()
    for event in events:
        last = last.after(event)
    assert outcome_of(returncode, sent, last) == expected


@pytest.mark.parametrize("sent", [NONE, ONE, TWO, TERM, BOTH])
@pytest.mark.parametrize("returncode", [0, 1, 2, 75, 130, 143, INT, DIED, KILL, SEGV])
def test_a_run_under_way_is_never_undone(returncode: int, sent: SentSignals) -> None:
    for events in ([], [COMPLETED], [STOPPED], [LOST], [REFUSED], [STOPPED, LOST]):
        last = LastEvents(under_way=True)
        for event in events:
            last = last.after(event)
        assert not outcome_of(returncode, sent, last).undo

"""Tests of signals that a launcher relays, with a worker that only records them."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from dpo_cli.errors import ExitCode
from dpo_cli.run.signals import SignalRelay


class RecordingWorker:
    """Worker that never ends and records the signals it receives."""

    returncode = None

    def __init__(self) -> None:
        # No such process group exists: a SIGKILL for it must not hit any process.
        self.pid = 2**22 + 1
        self.received: list[int] = []

    def poll(self) -> int | None:
        return None

    def send_signal(self, sig: int) -> None:
        self.received.append(sig)


def send(numbers: Sequence[signal.Signals]) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def test_signals_before_the_worker_is_started_are_sent_to_it_once() -> None:
    with SignalRelay() as relay:
        send([signal.SIGINT, signal.SIGTERM])
        first, second = RecordingWorker(), RecordingWorker()
        relay.attach(first)
        relay.attach(second)
    assert first.received == [signal.SIGINT, signal.SIGTERM]
    assert second.received == []


def test_a_signal_between_two_workers_reaches_the_second() -> None:
    first, second = RecordingWorker(), RecordingWorker()
    with SignalRelay() as relay:
        relay.attach(first)
        relay.detach()
        send([signal.SIGTERM])
        relay.attach(second)
        assert relay.sent.stop_code is ExitCode.TERMINATED
    assert first.received == []
    assert second.received == [signal.SIGTERM]


def test_sighup_is_ignored_and_the_handlers_are_restored() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with SignalRelay() as relay:
        send([signal.SIGHUP])
        assert relay.sent.stop_code is None
    assert [signal.getsignal(number) for number in numbers] == before

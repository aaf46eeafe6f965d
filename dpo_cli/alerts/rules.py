"""The alert rules together: each event is checked, and each alert is given once per run.

Alerts about learning depend on reproducible metrics only. A resumed run first reads its own
history, so it gives the same alerts as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dpo_cli.alerts.history import RunFacts, RunHistory
from dpo_cli.alerts.learning import displacement, guessing, resolution, stuck
from dpo_cli.alerts.machine import Contention, Speed, disk
from dpo_cli.alerts.stability import drift, gradient, spike
from dpo_cli.alerts.start import start_repeats
from dpo_cli.run.events import Alert, Evaluated, Event, Sampled, StepDone, WorkerStarted

AlertRule = Callable[[RunHistory, RunFacts], Alert | None]

RULES: dict[AlertRule, tuple[str, ...]] = {
    guessing: ("tokenizer-mismatch",),
    displacement: ("displacement",),
    stuck: ("lr-sum-small", "no-saturation", "accuracy-stuck"),
    gradient: ("gradient-vanishing", "gradient-exploding"),
    resolution: ("below-resolution",),
    spike: ("loss-spike",),
    drift: ("drift",),
}
"""Rules about learning and stability, each with the codes of its alerts."""


class AlertRules:
    """Checks the events of one run.

    Args:
        facts: facts about the run.
        history: its earlier events, without those that a resume made void.
    """

    def __init__(self, facts: RunFacts, history: Iterable[Event] = ()) -> None:
        self._facts = facts
        self._history = RunHistory()
        self._speed = Speed()
        self._contention = Contention(facts.threads)
        self._given: set[str] = set()
        """Codes of the alerts that were given."""
        for event in history:
            self.take(event)

    def take(
        self,
        event: Event,
        free_bytes: int | None = None,
        stolen: Callable[[], float] = lambda: 0.0,
    ) -> list[Alert]:
        """Return the new alerts after an event.

        Args:
            event: the next event of the run, of any kind.
            free_bytes: free space on the disk of the run; None if it was not measured.
            stolen: see `dpo_cli.alerts.machine.Contention.take`.
        """
        alerts: list[Alert | None] = []
        match event:
            case Alert():
                self._given.add(event.code)
            case WorkerStarted():
                self._speed = Speed()
                self._contention = Contention(self._facts.threads)
            case StepDone(is_skipped=False) | Evaluated():
                self._history.add(event)
                alerts = [
                    rule(self._history, self._facts)
                    for rule, codes in RULES.items()
                    if not self._given.intersection(codes)
                ]
            case Sampled(step=0):
                alerts = [start_repeats([sample["policy"] for sample in event.samples])]
        if isinstance(event, StepDone):
            alerts += [self._speed.take(event), self._contention.take(event, stolen)]
        if free_bytes is not None:
            alerts.append(disk(free_bytes, self._facts.state_bytes))
        new = [alert for alert in alerts if alert and alert.code not in self._given]
        self._given.update(alert.code for alert in new)
        return new

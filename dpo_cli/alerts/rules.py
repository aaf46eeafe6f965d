"""Alerts that teach: what the figures of a run mean, while there is time to act on them.

Each comes once a run. What those about learning say depends on reproducible figures alone, so that
a resumed run, after it has heard its own history, says what one never interrupted does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dpo_cli.alerts.history import RunFacts, RunHistory
from dpo_cli.alerts.learning import displacement, resolution, stuck
from dpo_cli.alerts.machine import Speed, disk
from dpo_cli.alerts.stability import drift, gradient, spike
from dpo_cli.run.events import Alert, Evaluated, Event, StepDone, WorkerStarted

AlertRule = Callable[[RunHistory, RunFacts], Alert | None]

RULES: dict[AlertRule, tuple[str, ...]] = {
    displacement: ("displacement",),
    stuck: ("lr-sum-small", "no-saturation", "accuracy-stuck"),
    gradient: ("gradient-vanishing", "gradient-exploding"),
    resolution: ("below-resolution",),
    spike: ("loss-spike",),
    drift: ("drift",),
}
"""Each with the codes of what it may say."""


class AlertRules:
    """Hears the events of one run, and says what they mean.

    Args:
        facts: of the run.
        history: its events so far, what counts of them: it is heard in silence.
    """

    def __init__(self, facts: RunFacts, history: Iterable[Event] = ()) -> None:
        self._facts = facts
        self._history = RunHistory()
        self._speed = Speed()
        self._silent: set[str] = set()
        for event in history:
            self.take(event)

    def take(self, event: Event, free_bytes: int | None = None) -> list[Alert]:
        """What is to be said after an event.

        Args:
            event: any of the run's, in their order.
            free_bytes: on the disk where the run lies; None if nobody looked.
        """
        alerts: list[Alert | None] = []
        match event:
            case Alert():
                self._silent.add(event.code)
            case WorkerStarted():
                self._speed = Speed()
            case StepDone(is_skipped=False) | Evaluated():
                self._history.add(event)
                alerts = [
                    alarm(self._history, self._facts)
                    for alarm, codes in RULES.items()
                    if not self._silent.intersection(codes)
                ]
        if isinstance(event, StepDone):
            alerts.append(self._speed.take(event))
        if free_bytes is not None:
            alerts.append(disk(free_bytes, self._facts.state_bytes))
        said = [alert for alert in alerts if alert and alert.code not in self._silent]
        self._silent.update(alert.code for alert in said)
        return said

"""Python runs this at the start of each process whose PYTHONPATH has this folder: see `hold_at`.

The worker of a real `dpo` stops itself right after an optimizer step. A test that sent the SIGSTOP
would come too late on a busy machine, where the whole run is over before the test is scheduled.
"""

from __future__ import annotations

import os
import signal

from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import Event, StepDone

_append = EventWriter.append


def _append_and_hold(self: EventWriter, event: Event) -> None:
    _append(self, event)
    is_first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    held_at = int(os.environ["DPO_TEST_HOLD_AT"])
    if isinstance(event, StepDone) and event.optimizer_step == held_at and is_first:
        os.kill(os.getpid(), signal.SIGSTOP)


EventWriter.append = _append_and_hold  # type: ignore[method-assign]

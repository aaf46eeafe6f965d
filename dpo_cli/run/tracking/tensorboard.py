"""TensorBoard: event files in the run directory, written without torch.

The usual writers are not used because they put the host name into the file name.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

from dpo_cli.run.tracking.rows import Row
from dpo_cli.run.tracking.tracker import TrackedRun

_FORMAT = "brain.Event:2"


class TensorBoard:
    """Appends rows to a new event file; see `Tracker`."""

    can_go_back: ClassVar[bool] = True

    def __init__(self, run: TrackedRun, state: dict[str, Any]) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._events, self._summaries = event_pb2, summary_pb2
        folder = run.directory / "tensorboard"
        folder.mkdir(exist_ok=True)
        # Readers process the files of a folder in the order of their names.
        number = len(list(folder.glob("events.out.tfevents.*")))
        file = (folder / f"events.out.tfevents.{number:06d}").open("xb")
        self._records = RecordWriter(file)
        self._write(event_pb2.Event(wall_time=time.time(), file_version=_FORMAT))
        self.go_back(state.get("sent", -1))

    def go_back(self, optimizer_step: int) -> None:
        """Make readers discard the rows after a step."""
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        event = self._events.Event(
            wall_time=time.time(), step=optimizer_step + 1, session_log=start
        )
        self._write(event)

    def log(self, row: Row) -> None:
        """Append a row."""
        value = self._summaries.Summary.Value
        values = [value(tag=name, simple_value=metric) for name, metric in row.metrics.items()]
        summary = self._summaries.Summary(value=values)
        if row.samples:
            summary.MergeFrom(_samples(row))
        event = self._events.Event(wall_time=row.time, step=row.optimizer_step, summary=summary)
        self._write(event)

    def flush(self) -> None:
        """Flush the rows to the file."""
        self._records.flush()

    def finish(self) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())


def _samples(row: Row) -> Any:
    """Return the samples as a text summary, in Markdown."""
    from tensorboard.plugins.text.summary_v2 import text_pb

    return text_pb("eval/samples", row.samples_as_markdown())

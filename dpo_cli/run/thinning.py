"""Events of a long run, without most of its steps.

Parsing takes 35 us per line, so a stream of 100,000 steps would take seconds. Charts have a few
hundred points, for which two thousand steps are enough. All other events, the last steps, the
steps without an update, and the totals over all steps are exact.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dpo_cli.run.event_lines import STEP_DONE, valid_lines
from dpo_cli.run.events import Event, EventReader, parse_line
from dpo_cli.run.view import RECENT_STEPS, RunView

_KEPT = 1024
"""Most steps to keep of each kind, without and with `weights_moved`, before a stride doubles."""
_BYTES_PER_STEP, _STEPS_PER_LOG = 700, 16
_STEP = re.compile(rb'"step": (\d+), "optimizer_step": ')
_PAIRS = b'"pairs": '
_COUNTS = re.compile(rb'"pairs": (\d+), "tokens": (\d+), "padding_tokens": (\d+), ')
_IS_SKIPPED, _HAS_MOVED = b'"is_skipped": true', b'"weights_moved": '


class _Line(NamedTuple):
    content: bytes
    is_kept: bool


@dataclass
class ThinnedHistory:
    """Events like those of `events.history`, with some of the steps of a long run.

    Attributes:
        path: the event stream.
        last_step: leave out everything after this step; None for all.
        pairs: pairs over all steps; this and the next two are set by iterating over the events.
        tokens: positions computed over all steps, padding included.
        padding_tokens: positions that were padding.
        end: offset after the last line read so far.
    """

    path: Path
    last_step: int | None = None
    pairs: int = 0
    tokens: int = 0
    padding_tokens: int = 0
    end: int = 0
    _strides: list[int] = field(default_factory=list)
    _seen: list[int] = field(default_factory=list)
    _kept: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[Event]:
        self.pairs = self.tokens = self.padding_tokens = 0
        self._estimate_strides()
        waiting: deque[_Line] = deque()  # at most RECENT_STEPS steps, which may be the last ones
        steps = 0
        for end, content in valid_lines(self.path):
            self.end = end
            counts = _step_and_counts(content)
            if counts is None:
                event = parse_line(content)
                if event is None:
                    continue
                if self.last_step is not None and getattr(event, "step", 0) > self.last_step:
                    break
                waiting.append(_Line(content, True))
                continue
            step, pairs, tokens, padding_tokens = counts
            if self.last_step is not None and step > self.last_step:
                break
            self.pairs += pairs
            self.tokens += tokens
            self.padding_tokens += padding_tokens
            waiting.append(_Line(content, self._is_kept(content)))
            steps += 1
            while steps > RECENT_STEPS:
                line = waiting.popleft()
                steps -= line.content.startswith(STEP_DONE)
                if line.is_kept and (event := parse_line(line.content)) is not None:
                    yield event
        for line in waiting:
            if (event := parse_line(line.content)) is not None:
                yield event

    def _is_kept(self, content: bytes) -> bool:
        kind = _HAS_MOVED in content  # index of the three lists: 0 without, 1 with the metric
        is_kept = self._seen[kind] % self._strides[kind] == 0
        self._seen[kind] += 1
        self._kept[kind] += is_kept
        if self._kept[kind] > _KEPT:  # the estimate was too low
            self._kept[kind], self._strides[kind] = 0, 2 * self._strides[kind]
        return is_kept or _IS_SKIPPED in content

    def _estimate_strides(self) -> None:
        """Set the strides (one step of how many is kept) by the size of the stream."""
        size_bytes = self.path.stat().st_size if self.path.is_file() else 0
        stride = max(1, size_bytes // (_BYTES_PER_STEP * _KEPT))
        self._strides = [stride, max(1, stride // _STEPS_PER_LOG)]
        self._seen, self._kept = [0, 0], [0, 0]


class ThinnedReader:
    """Event reader whose first read leaves out most steps, as `ThinnedHistory` does."""

    def __init__(self, path: Path) -> None:
        self._past = ThinnedHistory(path)
        self._reader: EventReader | None = None

    def read_new(self) -> Iterator[Event]:
        """Yield the events appended since the last call; at the first call, the thinned history."""
        if self._reader is None:
            yield from self._past
            self._reader = EventReader(self._past.path, self._past.end)
        yield from self._reader.read_new()


def _step_and_counts(content: bytes) -> tuple[int, int, int, int] | None:
    """Return step, pairs, tokens and padding tokens of a `StepDone`; None for another line."""
    if not content.startswith(STEP_DONE):
        return None
    # The counts follow the metrics, which are most of the line: looking for them from its end takes
    # a fifth of the time of one regular expression over all of it.
    counts = _COUNTS.match(content, max(0, content.rfind(_PAIRS)))
    step = _STEP.search(content)
    if step is None or counts is None:
        return None
    pairs, tokens, padding_tokens = map(int, counts.groups())
    return int(step[1]), pairs, tokens, padding_tokens


def read_view(events_path: Path) -> RunView:
    """Return the view of a whole run, from its event stream."""
    return RunView.of(ThinnedHistory(events_path))

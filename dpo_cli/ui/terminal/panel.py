"""Live panel on a terminal: reads events, draws, and handles keys until the run ends.

The panel only reads the run's event stream and writes requests into its control file. It can
therefore be closed, reopened or crash without any effect on the run.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleDimensions
from rich.control import Control
from rich.screen import Screen
from rich.text import Text

from dpo_cli.errors import DpoError
from dpo_cli.run import checkpoints
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Event
from dpo_cli.run.view import RunView
from dpo_cli.ui.terminal.dashboard import Dashboard, Disk
from dpo_cli.ui.terminal.keyboard import Keyboard, is_in_foreground

KEYS = {"s": "save", "e": "evaluate", "q": "stop", "d": "detach", "?": "help"}
REPLAY_KEYS = {"d": "leave", "?": "help"}

_POLL_SECONDS = 0.25
_DRAWING_SHARE = 0.004
"""Share of one core's time spent on drawing: training may run on the same cores.

The pause after a drawing is its CPU time divided by this share."""
_LONGEST_PAUSE_SECONDS = 3.0
_DISK_SECONDS = 5.0
_NOTICE_SECONDS = 6.0
_CTRL_Z = "\x1a"


def has_terminal(console: Console) -> bool:
    """Return True if standard output is a terminal that can show the panel."""
    return (
        sys.stdout.isatty()  # rich also returns True if FORCE_COLOR is set
        and not console.is_dumb_terminal
        and console.encoding.startswith("utf")
        and is_in_foreground(sys.stdout.fileno())
    )


def terminal_size() -> ConsoleDimensions:
    """Return the current size of standard output; unlike rich, ignore $COLUMNS and $LINES."""
    return ConsoleDimensions(*os.get_terminal_size(sys.stdout.fileno()))


def disk_usage(run: RunDirectory) -> Disk | None:
    """Return free space and number of checkpoints; None if the run was removed or is unreadable."""
    try:
        free_bytes = shutil.disk_usage(run.path).free
        return Disk(free_bytes, len(checkpoints.list_checkpoints(run.checkpoints_path)))
    except OSError:
        return None


@contextmanager
def _alternate_screen(console: Console) -> Iterator[None]:
    """Use the terminal's alternate screen, which keeps the content of the main screen."""
    with console.screen():
        try:
            yield
        finally:
            # After a resize, tmux moves lines of this screen into the main one: clear them first.
            console.control(Control.clear(), Control.home())


class _SteadyClock:
    """Wall-clock seconds that do not jump between two calls of `set`.

    Elapsed and remaining times would jump if the system clock were corrected while training."""

    def __init__(self) -> None:
        self.set()

    def set(self) -> None:
        """Synchronize with the wall clock."""
        self._ahead_seconds = time.time() - time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() + self._ahead_seconds


class Panel:
    """Live panel of a run.

    Args:
        run: the run to draw and to send requests to.
        console: a terminal.
        read_new: returns the events since the last call.
        clock: wall-clock seconds, as in the events; default: the system's clock.
        keys: available keys, a subset of `KEYS`.
    """

    def __init__(
        self,
        run: RunDirectory,
        console: Console,
        read_new: Callable[[], Iterable[Event]],
        *,
        clock: Callable[[], float] | None = None,
        keys: dict[str, str] = KEYS,
    ) -> None:
        self.view = RunView()
        self._run = run
        self._console = console
        self._read_new = read_new
        self._steady_clock = _SteadyClock()
        self._clock = clock or self._steady_clock
        self._keys = keys
        self._disk: Disk | None = None
        self._disk_at = float("-inf")
        self._notice = ""
        self._notice_until = 0.0
        self._asked_to_stop_once = False
        self._shows_help = False
        self._may_draw_at = 0.0
        self._drawn: tuple[object, ...] = (None,)

    def catch_up(self) -> None:
        """Process the new events."""
        for event in self._read_new():
            self.view.take(event)
            self._steady_clock.set()  # a corrected clock is also in the times of new events

    def show(self, has_ended: Callable[[], bool]) -> bool:
        """Draw until the run ends (return True) or the user detaches (return False)."""
        with _alternate_screen(self._console), Keyboard() as keyboard:
            self._keys = self._keys if keyboard.is_available else {}
            while True:
                is_over = has_ended()  # before reading, so that the last events are not missed
                self.catch_up()
                if is_over:
                    return True
                self._draw_if_due()
                if (key := keyboard.wait(_POLL_SECONDS)) in self._keys or key == _CTRL_Z:
                    if key in ("d", _CTRL_Z):
                        return False
                    self._press(key)

    def show_stopping(self) -> None:
        """Show that a stop was requested, by Ctrl-C or a key."""
        self.view.is_stopping = True
        self._notify("Stopping after this step. Press Ctrl-C again to stop now.")

    # --- keys ------------------------------------------------------------------------------------

    def _press(self, key: str) -> None:
        is_confirmed = key == "q" and self._asked_to_stop_once
        self._asked_to_stop_once = False
        if key == "?":
            self._shows_help = not self._shows_help
        elif key == "q" and not is_confirmed:
            self._asked_to_stop_once = True
            self._notify("Press q again to save and stop the run.")
        elif key == "q":
            if self._request("stop"):
                self.show_stopping()
        elif not self.view.is_under_way:
            self._notify("Training has not started yet.")
        elif key == "e" and self.view.held_out is None:
            self._notify("There are no held-out pairs.")
        elif self._request(self._keys[key]):
            self._notify(f"Will {self._keys[key]} after this step.")

    def _request(self, word: str) -> bool:
        try:
            self._run.put_request(word)
        except DpoError as error:
            self._notify(error.message)
            return False
        return True

    def _notify(self, notice: str) -> None:
        self._notice, self._notice_until = notice, time.monotonic() + _NOTICE_SECONDS

    # --- drawing ---------------------------------------------------------------------------------

    def _draw_if_due(self) -> None:
        """Draw if something changed and the pause after the last drawing is over."""
        size = terminal_size()
        now = time.monotonic()
        if now > self._notice_until:
            self._notice, self._asked_to_stop_once = "", False
        # A change of these is drawn at once: the user has acted, or waits for the new state.
        urgent = (size, self.view.state, self._notice, self._shows_help)
        content = (urgent, self.view.events, int(self._clock()))
        if content == self._drawn or (urgent == self._drawn[0] and now < self._may_draw_at):
            return
        if now - self._disk_at >= _DISK_SECONDS:
            self._disk, self._disk_at = disk_usage(self._run), now
        self._console.size = size
        before = time.process_time()
        self._draw()
        self._drawn = content
        cost = time.process_time() - before
        self._may_draw_at = now + min(cost / _DRAWING_SHARE, _LONGEST_PAUSE_SECONDS)

    def _headline(self) -> tuple[Text, Text] | None:
        """Return a line above the picture (left, right); None for a single run."""
        return None

    def _draw(self) -> None:
        picture = Dashboard(
            self.view,
            self._run.designation,
            self._run.path,
            now=self._clock(),
            disk=self._disk,
            notice=self._notice,
            keys=self._keys,
            shows_help=self._shows_help,
            headline=self._headline(),
        )
        with self._console:  # buffers into one write; several would flicker
            self._console.control(Control.home())
            self._console.print(Screen(picture), end="")

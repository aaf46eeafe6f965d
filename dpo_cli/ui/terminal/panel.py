"""The panel on a terminal: takes in events, draws, and hears keys until the run is over.

It learns a run from its stream alone and asks by the run's control file, so that it may come, go
or crash as it likes.
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
"""Of the time of one core: what a picture cost decides when the next may come."""
_LONGEST_REST_SECONDS = 3.0
_DISK_SECONDS = 5.0
_NOTICE_SECONDS = 6.0
_CTRL_Z = "\x1a"


def has_terminal(console: Console) -> bool:
    """Whether standard output is a terminal that can show the panel, and is ours to use."""
    return (
        sys.stdout.isatty()  # rich would believe FORCE_COLOR, too
        and not console.is_dumb_terminal
        and console.encoding.startswith("utf")
        and is_in_foreground(sys.stdout.fileno())
    )


def terminal_size() -> ConsoleDimensions:
    """That of standard output, now; rich would believe COLUMNS and LINES, too."""
    return ConsoleDimensions(*os.get_terminal_size(sys.stdout.fileno()))


def disk_usage(run: RunDirectory) -> Disk | None:
    """What the panel shows of the run's disk; None if the run is gone."""
    try:
        free_bytes = shutil.disk_usage(run.path).free
    except OSError:
        return None
    return Disk(free_bytes, len(checkpoints.list_checkpoints(run.checkpoints_path)))


@contextmanager
def _whole_screen(console: Console) -> Iterator[None]:
    """The terminal's other screen, which leaves what was on the first one as it is."""
    with console.screen():
        try:
            yield
        finally:
            # tmux puts lines of this screen among those of the first, if it was resized meanwhile.
            console.control(Control.clear(), Control.home())


class _SteadyClock:
    """Wall-clock seconds that go on evenly between two settings, whatever the wall clock does."""

    def __init__(self) -> None:
        self.set()

    def set(self) -> None:
        """Take over what the wall clock shows now."""
        self._ahead_seconds = time.time() - time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() + self._ahead_seconds


class Panel:
    """The live panel of a run.

    Args:
        run: what to draw, and where to put requests.
        console: a terminal.
        read_new: the events that came since it was last called.
        clock: wall-clock seconds, as events are stamped with; else the system's, which may jump.
        keys: what is offered, of `KEYS`.
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
        """Take in what is new."""
        for event in self._read_new():
            self.view.take(event)
            self._steady_clock.set()  # a jump shows in the time of this event, too

    def show(self, has_ended: Callable[[], bool]) -> bool:
        """Draw until the run has ended (True), or the user leaves (False)."""
        with _whole_screen(self._console), Keyboard() as keyboard:
            self._keys = self._keys if keyboard.is_available else {}
            while True:
                is_over = has_ended()  # asked first, so that what was written before is taken in
                self.catch_up()
                if is_over:
                    return True
                self._draw_if_due()
                if (key := keyboard.wait(_POLL_SECONDS)) in self._keys or key == _CTRL_Z:
                    if key in ("d", _CTRL_Z):
                        return False
                    self._press(key)

    def show_stopping(self) -> None:
        """Show that the run was asked to stop, by Ctrl-C or a key."""
        self.view.is_stopping = True
        self._tell("stopping after this step; Ctrl-C again to stop now")

    # --- keys ------------------------------------------------------------------------------------

    def _press(self, key: str) -> None:
        is_confirmed = key == "q" and self._asked_to_stop_once
        self._asked_to_stop_once = False
        if key == "?":
            self._shows_help = not self._shows_help
        elif key == "q" and not is_confirmed:
            self._asked_to_stop_once = True
            self._tell("q again: save and stop the run")
        elif key == "q":
            if self._request("stop"):
                self.show_stopping()
        elif not self.view.is_under_way:
            self._tell("it does not train yet")
        elif key == "e" and self.view.held_out is None:
            self._tell("no pairs are held out")
        elif self._request(self._keys[key]):
            self._tell(f"will {self._keys[key]} after this step")

    def _request(self, word: str) -> bool:
        try:
            self._run.put_request(word)
        except DpoError as error:
            self._tell(error.message)
            return False
        return True

    def _tell(self, notice: str) -> None:
        self._notice, self._notice_until = notice, time.monotonic() + _NOTICE_SECONDS

    # --- drawing ---------------------------------------------------------------------------------

    def _draw_if_due(self) -> None:
        """Draw if there is anything new to see, and drawing has not taken too much time already."""
        size = terminal_size()
        now = time.monotonic()
        if now > self._notice_until:
            self._notice, self._asked_to_stop_once = "", False
        urgent = (size, self.view.state, self._notice, self._shows_help)
        sight = (urgent, self.view.events, int(self._clock()))
        if sight == self._drawn or (urgent == self._drawn[0] and now < self._may_draw_at):
            return
        if now - self._disk_at >= _DISK_SECONDS:
            self._disk, self._disk_at = disk_usage(self._run), now
        self._console.size = size
        before = time.process_time()
        self._draw()
        self._drawn = sight
        cost = time.process_time() - before
        self._may_draw_at = now + min(cost / _DRAWING_SHARE, _LONGEST_REST_SECONDS)

    def _headline(self) -> tuple[Text, Text] | None:
        """Of what the run is a part of: left and right."""
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
        with self._console:  # one write, so that nothing flickers
            self._console.control(Control.home())
            self._console.print(Screen(picture), end="")

"""Single key presses and Ctrl-C from a terminal."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

_LFLAG, _CC = 3, 6  # indices of local modes and control characters in the list of tcgetattr
_NEVER = b"\0"  # disables a control character
_CHARACTER_BYTES = 4  # maximum length of one character in UTF-8


def is_in_foreground(descriptor: int) -> bool:
    """Return True if this process may use the terminal; a background job would be stopped."""
    if termios is None:  # Windows has no job control
        return True
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:  # not our controlling terminal, so there is no job control
        return True


@contextlib.contextmanager
def deferred_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Record Ctrl-C instead of raising KeyboardInterrupt; a second Ctrl-C raises it.

    Yields:
        A function that returns True if Ctrl-C was pressed.
    """
    was_pressed = False

    def press(number: int, frame: object) -> None:
        nonlocal was_pressed
        if was_pressed:
            raise KeyboardInterrupt
        was_pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: was_pressed
    finally:
        signal.signal(signal.SIGINT, before)


class Keyboard:
    """Standard input without echo and without waiting for Enter, if it is our terminal.

    On Windows no key is read; Ctrl-C works.

    Ctrl-C stays a signal. Ctrl-Z becomes a key: a suspended process would leave the terminal
    without echo. The earlier settings are restored on exit, also after an error.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._before: list[Any] = []

    def __enter__(self) -> Keyboard:
        if termios and sys.stdin and sys.stdin.isatty() and is_in_foreground(sys.stdin.fileno()):
            self._descriptor = sys.stdin.fileno()
            self._before = termios.tcgetattr(self._descriptor)
            modes = termios.tcgetattr(self._descriptor)
            modes[_LFLAG] &= ~(termios.ECHO | termios.ICANON)
            modes[_CC][termios.VMIN], modes[_CC][termios.VTIME] = 1, 0
            modes[_CC][termios.VSUSP] = _NEVER
            termios.tcsetattr(self._descriptor, termios.TCSANOW, modes)
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(termios.error):  # the terminal may be gone
                termios.tcflush(self._descriptor, termios.TCIFLUSH)
                termios.tcsetattr(self._descriptor, termios.TCSANOW, self._before)

    @property
    def is_available(self) -> bool:
        """Return True if key presses can be read."""
        return self._descriptor is not None

    def wait(self, seconds: float) -> str:
        """Wait for a key press; return "" if there is none.

        Several characters at once come from a paste or a function key and are dropped.
        """
        if self._descriptor is None:
            time.sleep(seconds)
            return ""
        ready, _, _ = select.select([self._descriptor], [], [], seconds)
        if not ready:
            return ""
        pressed = os.read(self._descriptor, 1024)  # a whole paste, so that nothing is left over
        if not pressed:  # the terminal hung up
            self._descriptor = None
        text = pressed[: _CHARACTER_BYTES + 1].decode(errors="replace")
        return text.lower() if len(text) == 1 else ""

"""Pseudo-terminal with a process: keys, size and screen content."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.cli import HANG_SECONDS, environment

_CONTROL = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|[()][A-Z0-9])|\r")
# The process makes the terminal its own, so that Ctrl-C reaches it as a signal.
_DRAINED = b"\0drained\0"
_OWN = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"


class Terminal:
    """Python `script` on a terminal of the given size; a context manager."""

    def __init__(
        self,
        script: str,
        *arguments: object,
        cwd: Path,
        columns: int = 80,
        rows: int = 24,
        **changes: str,
    ) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(columns, rows)
        self.modes = termios.tcgetattr(self._slave)
        self._output = b""
        env: Mapping[str, str] = environment(**{"TERM": "xterm-256color", **changes})
        self.process = subprocess.Popen(
            [sys.executable, "-c", _OWN + script, *map(str, arguments)],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
            cwd=cwd,
            env=env,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._slave)
        self.hang_up()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                return
            if not data:
                return
            self._output += data

    @property
    def raw(self) -> str:
        """Return all output so far."""
        return self._output.decode(errors="replace")

    @property
    def picture(self) -> list[str]:
        """Return the lines of the newest complete picture; [] if there is none."""
        # A picture starts at the top left, and is complete when the next one starts.
        pictures = self.raw.split("\x1b[H")[1:]
        return _plain(pictures[-1]).split("\n") if pictures else []

    @property
    def lines(self) -> list[str]:
        """Return the lines of the main screen: the output before and after the panel."""
        return [
            line.rstrip()
            for part in re.split(r"\x1b\[\?1049h.*?\x1b\[\?1049l", self.raw, flags=re.DOTALL)
            for line in _plain(part).split("\n")
            if line.strip()
        ]

    def modes_now(self) -> list[Any]:
        """Return the modes of the terminal."""
        return termios.tcgetattr(self._slave)

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the terminal, which sends SIGWINCH to the processes."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hang_up(self) -> None:
        """Close the terminal, like a closed window or a lost connection."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    def until(self, condition: Callable[[], object], seconds: float = HANG_SECONDS) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            shown = "\n".join(self.picture) or self.raw
            assert time.monotonic() < deadline, f"it never came; the terminal shows\n{shown}"
            time.sleep(0.05)

    def until_shown(self, text: str) -> None:
        """Wait until the newest picture contains the text."""
        self.until(lambda: any(text in line for line in self.picture))

    def wait(self) -> int:
        """Wait for the end of the process and of the output; return the exit code."""
        code = self.process.wait(HANG_SECONDS)
        # A terminal keeps the order, so all earlier output has been read after these bytes.
        os.write(self._slave, _DRAINED)
        self.until(lambda: _DRAINED in self._output)
        self._output = self._output.replace(_DRAINED, b"")
        return code


def _plain(text: str) -> str:
    return _CONTROL.sub("", text)

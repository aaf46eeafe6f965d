"""Limits on the memory of this process while a test runs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextlib.contextmanager
def at_most(more_bytes: int) -> Iterator[None]:
    """Assert that the block allocates at most this much memory."""
    _CLEAR.write_text("5")  # makes the current size the peak
    before = _read("VmRSS")
    yield
    assert _read("VmHWM") - before < more_bytes


def _read(name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10

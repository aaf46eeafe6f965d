"""Run mutated inputs against a target within limits of time and memory."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from tests.fuzz.targets import TARGETS, Target

CORPUS = Path(__file__).parent / "corpus"
HANG_SECONDS = 120
"""Limit of one input. Only a hang reaches it, however busy the machine is."""
_TURN_SECONDS = 1.0
MAX_GROWTH_KILOBYTES = 600_000


class HangError(Exception):
    """Raised for an input that takes too long."""


def check(target: Target, content: bytes) -> None:
    """Check one input in an empty folder.

    Raises:
        Exception: it is not handled, takes too long or takes too much memory.
    """

    def hang(number: int, frame: FrameType | None) -> None:
        raise HangError(f"more than {HANG_SECONDS} seconds")

    before_kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANG_SECONDS)
    try:
        with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as folder:
            target.check(content, Path(folder))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kilobytes
    assert grown < MAX_GROWTH_KILOBYTES, f"{grown} kB of memory"


def inputs(target: Target, seed: int) -> Iterator[bytes]:
    """Yield mutated inputs without end; a seed always gives the same ones."""
    rng = random.Random(f"{target.name} {seed}")
    examples = target.examples()
    while True:
        content = rng.choice(examples)
        for _ in range(rng.choice((1, 1, 2, 4))):
            content = target.mutate(rng, content)
        yield content


def corpus(target: Target) -> list[Path]:
    """Return the inputs that were found before."""
    return sorted((CORPUS / target.name).glob("*.bin"))


def _turns(streams: dict[str, Iterator[bytes]]) -> Iterator[tuple[str, bytes]]:
    """Yield inputs of each target for a second."""
    for name, stream in streams.items():
        end = time.monotonic() + _TURN_SECONDS
        while time.monotonic() < end:
            yield name, next(stream)


def fuzz(seconds: float, seed: int, names: list[str]) -> int:
    """Fuzz targets by turns; save what fails in the corpus, print it, and return the number."""
    faults = 0
    seen: set[str] = set()
    streams = {name: inputs(TARGETS[name], seed) for name in names}
    counts = dict.fromkeys(names, 0)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for name, content in _turns(streams):
            counts[name] += 1
            running = CORPUS / name / f"running-{os.getpid()}.bin"  # left behind by a crash
            running.parent.mkdir(parents=True, exist_ok=True)
            running.write_bytes(content)
            try:
                check(TARGETS[name], content)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                last = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{name} {type(error).__name__} {last.filename}:{last.lineno}"
                if isinstance(error, AssertionError):
                    kind = f"{name} {str(error)[:160]}"
                if kind in seen:
                    continue
                seen.add(kind)
                faults += 1
                path = CORPUS / name / f"{hashlib.sha256(content).hexdigest()[:16]}.bin"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                trace = "".join(traceback.format_exception(error))[-1500:]
                print(f"--- {path}\n{trace}", flush=True)
            finally:
                running.unlink()
    print(f"seed {seed}: {counts}, {faults} faults", flush=True)
    return faults

"""How the CPU multiplies float32 matrices: by torch's default library, or by oneDNN."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from pathlib import Path

import torch

from dpo_cli.files import cache_directory

_FLOAT32_ERROR = 1e-5
"""Of a product, by its largest element: float32 stays below a tenth of it, TF32 makes 5e-4."""
_SETTINGS = ("highest", "medium")
_TRIALS, _WORTHWHILE = 8, 1.2
_TRIED_SHAPES = ((1, 512, 512), (96, 64, 96), (700, 512, 1408), (512, 700, 640))


def choose_matmul(chosen: str | None = None) -> None:
    """Let the CPU multiply float32 matrices by oneDNN where that is much faster, and is float32.

    On some processors it is (the default library is Intel's own), and torch reaches it by a setting
    that permits bfloat16, too. So both are tried, on the shapes of a small model: where a product
    really is rounded, or the gain is small enough to come from chance, all stays as it was. What
    was found is remembered: stopwatches err, and equal runs must multiply alike.

    Args:
        chosen: what a run began with; None to choose now.
    """
    torch.set_float32_matmul_precision("medium")
    is_exact = all(_matmul_error(*shape) < _FLOAT32_ERROR for shape in _TRIED_SHAPES)
    if not is_exact or (chosen or _remembered() or _remember(_faster_matmul())) == "highest":
        torch.set_float32_matmul_precision("highest")


def processor() -> list[str]:
    """What the system says of the CPU's kind and abilities: bits of a product depend on them."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return sorted({line for line in lines if line.startswith(("model name", "flags"))})
    return []


def _remembered() -> str | None:
    """What was found on this machine, with this torch."""
    if (memory := _memory()) is not None:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            setting = memory.read_text(encoding="ascii")
            return setting if setting in _SETTINGS else None
    return None


def _remember(setting: str) -> str:
    """Of two processes that try at once, the second one takes what the first has found."""
    if (memory := _memory()) is None:
        return setting
    temporary = memory.with_name(f"{memory.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(setting, encoding="ascii")
        try:
            os.link(temporary, memory)
        except OSError:  # the other was faster; or this file system has no links
            if not _remembered():
                os.replace(temporary, memory)
        temporary.unlink(missing_ok=True)
    return _remembered() or setting


def _memory() -> Path | None:
    """Where that is: another file for each processor, torch and number of threads."""
    directory = cache_directory()
    if directory is None:
        return None
    facts = f"{processor()} {torch.__version__} {torch.get_num_threads()}"
    return directory / f"matmul-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"


def _faster_matmul() -> str:
    """The setting under which one large product takes less time by far."""
    left, right = torch.ones(1024, 512), torch.ones(512, 1408)
    seconds = dict.fromkeys(_SETTINGS, float("inf"))
    for _ in range(_TRIALS):  # by turns, so that whatever else the machine does hits both
        for setting in seconds:
            torch.set_float32_matmul_precision(setting)
            began = time.perf_counter()
            left @ right
            seconds[setting] = min(seconds[setting], time.perf_counter() - began)
    torch.set_float32_matmul_precision("medium")
    return "medium" if seconds["highest"] > _WORTHWHILE * seconds["medium"] else "highest"


def _matmul_error(rows: int, inner: int, columns: int) -> float:
    """The largest error of one product, and of the transposed one, by the largest element."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, inner, generator=generator)
    right = torch.randn(inner, columns, generator=generator)
    exact = left.double() @ right.double()
    errors = ((left @ right) - exact, (right.T @ left.T) - exact.T)
    return float(max(error.abs().max() for error in errors) / exact.abs().max())

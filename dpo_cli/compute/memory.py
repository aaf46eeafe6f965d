"""Memory of the process and of its device."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from dpo_cli.machine import IS_WINDOWS, available_memory

_PROC = Path("/proc")
"""Files of Linux about processes and memory; psutil asks other systems."""


def process_bytes() -> int:
    """Return the resident bytes of this process."""
    try:
        pages = int((_PROC / "self/statm").read_text(encoding="ascii").split()[1])
    except FileNotFoundError:
        import psutil

        return int(psutil.Process().memory_info().rss)
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_process_bytes() -> int:
    """Return the peak resident bytes of this process."""
    try:
        status = (_PROC / "self/status").read_text(encoding="utf-8")
    except FileNotFoundError:
        return _peak_elsewhere()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def free_memory(device: torch.device) -> int:
    """Return the bytes that tensors of this process can still take on a device.

    On a GPU, memory that torch has reserved and no tensor uses counts as free.
    """
    if device.type == "mps":
        return total_memory(device) - int(torch.mps.driver_allocated_memory())
    if device.type != "cpu":
        module = torch.get_device_module(device)
        unused = module.memory_reserved(device) - module.memory_allocated(device)
        return int(module.mem_get_info(device)[0] + unused)
    return available_memory(_PROC)


def total_memory(device: torch.device) -> int:
    """Return the bytes of memory of a device."""
    if device.type == "cpu":
        if hasattr(os, "sysconf"):
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        import psutil

        return int(psutil.virtual_memory().total)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return int(torch.get_device_module(device).mem_get_info(device)[1])


def _peak_elsewhere() -> int:
    if IS_WINDOWS:
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, else KiB

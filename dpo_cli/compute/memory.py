"""Memory of the process and of its device."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from dpo_cli.compute.accelerator import is_cuda, module_of


def process_bytes() -> int:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_process_bytes() -> int:
    """Return the peak resident memory of this process (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def free_memory(device: torch.device) -> int:
    """Return the bytes that tensors of this process can still take on a device.

    On a GPU, memory that torch has reserved and no tensor uses counts as free.
    """
    if is_cuda(device):
        cuda = module_of(device)
        unused = cuda.memory_reserved(device) - cuda.memory_allocated(device)
        return int(cuda.mem_get_info(device)[0] + unused)
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    facts = dict(line.split(":", 1) for line in lines)
    return int(facts["MemAvailable"].split()[0]) * 1024


def total_memory(device: torch.device) -> int:
    """Return the bytes of memory of a GPU."""
    return int(module_of(device).mem_get_info(device)[1])

"""Number of CUDA GPUs, counted without torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path


def count_gpus(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> int:
    """Count the CUDA GPUs of this machine that `CUDA_VISIBLE_DEVICES` leaves visible.

    Importing torch for this would take seconds, and initializing CUDA would make a later fork
    impossible.

    Args:
        environment: environment variables.
        devices: directory in which the driver creates `nvidia0`, `nvidia1`, ...
    """
    present = sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in devices.glob("nvidia*"))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not present:
        return present
    count = 0
    for name in map(str.strip, visible.split(",")):
        # CUDA ignores the first invalid entry and all entries after it.
        if not name or (name.lstrip("-").isdigit() and not 0 <= int(name) < present):
            break
        count += 1
    return count

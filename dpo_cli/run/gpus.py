"""How many CUDA cards a process could use, as far as that shows without torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path


def count_gpus(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> int:
    """The CUDA cards of this machine that `CUDA_VISIBLE_DEVICES` leaves, if it is set.

    Args:
        environment: where that may be.
        devices: where the driver puts `nvidia0` and so on.
    """
    present = sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in devices.glob("nvidia*"))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not present:
        return present
    count = 0
    for name in map(str.strip, visible.split(",")):
        if not name or (name.lstrip("-").isdigit() and not 0 <= int(name) < present):
            break  # as CUDA does: what follows a card that is none is not seen
        count += 1
    return count

"""One rank of the all-reduce of `dpo check`: `python -m dpo_cli.distributed.probe cpu|cuda`.

The agent starts it as it starts the ranks of a run. A failure goes to torchrun's error file.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from dpo_cli.errors import first_line
from dpo_cli.run.processes import die_with_parent

_TIMEOUT = timedelta(seconds=60)
_NUMEL = 1 << 20


def main(device_type: str) -> int:
    """Sum a tensor over all ranks; return 0 if the sum is correct on this rank, else 1."""
    import torch
    from torch import distributed

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        device = torch.device(device_type)
        if device_type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        distributed.init_process_group(backend_for(device_type), timeout=_TIMEOUT)
        tensor = torch.full((_NUMEL,), rank + 1.0, device=device)
        distributed.all_reduce(tensor)
        expected = world_size * (world_size + 1) / 2
        if not bool((tensor == expected).all()):
            wrong = tensor[tensor != expected][0].item()
            raise RuntimeError(f"the sum over {world_size} ranks is {wrong} instead of {expected}")
        distributed.destroy_process_group()
    except (RuntimeError, ValueError) as error:
        _write_error(first_line(error))
        return 1
    return 0


def backend_for(device_type: str) -> str:
    """Return the backend of torch.distributed for a device type."""
    return "nccl" if device_type == "cuda" else "gloo"


def _write_error(text: str) -> None:
    message = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(
        json.dumps({"message": message}), encoding="utf-8"
    )


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main(sys.argv[1]))

"""One rank of the sum that `dpo check` tries: `python -m dpo_cli.distributed.probe cpu|cuda`.

It is started as the ranks of a run are, and says in its last words why it failed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from dpo_cli.run.processes import die_with_parent

_TIMEOUT = timedelta(seconds=60)
_NUMBERS = 1 << 20


def main(device_type: str) -> int:
    """Add up one tensor over all ranks; 0 if the sum is right on this one."""
    import torch
    from torch import distributed

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        device = torch.device(device_type)
        if device_type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        distributed.init_process_group(backend_for(device_type), timeout=_TIMEOUT)
        numbers = torch.full((_NUMBERS,), rank + 1.0, device=device)
        distributed.all_reduce(numbers)
        expected = world_size * (world_size + 1) / 2
        if not bool((numbers == expected).all()):
            wrong = numbers[numbers != expected][0].item()
            raise RuntimeError(
                f"the sum over {world_size} ranks is {wrong}, and must be {expected}"
            )
        distributed.destroy_process_group()
    except (RuntimeError, ValueError) as error:
        _last_words(str(error).splitlines()[0])
        return 1
    return 0


def backend_for(device_type: str) -> str:
    """What carries sums between ranks."""
    return "nccl" if device_type == "cuda" else "gloo"


def _last_words(text: str) -> None:
    """Where the agent reads them."""
    message = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(
        json.dumps({"message": message}), encoding="utf-8"
    )


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main(sys.argv[1]))

"""Prints in how many of so many fresh processes a function's first call has other bits.

OMP_NUM_THREADS=2 python -m tests.training.first_calls PROCESSES tuned|raw
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

import torch

from dpo_cli.training.device import Compute, tune

_FUNCTIONS = (
    *(torch.exp, torch.log, torch.log2, torch.log10, torch.sqrt, torch.erf, torch.erfc),
    *(torch.sin, torch.cos, torch.tan, torch.asin, torch.acos, torch.atan, torch.tanh),
)
_SAME, _OTHER, _FAILED = 0, 3, 1


def _differs(is_tuned: bool) -> bool:
    if is_tuned:
        tune(Compute(torch.device("cpu"), torch.float32), "highest")
    numbers = torch.linspace(0.1, 0.9, 700 * 512).view(700, 512)
    table = numbers @ torch.full((512, 2048), 1 / 512)  # wakes the other threads
    return any(not torch.equal(function(table), function(table)) for function in _FUNCTIONS)


def main() -> None:
    """See above."""
    processes, is_tuned = int(sys.argv[1]), sys.argv[2] == "tuned"
    differing = 0
    for _ in range(processes):
        child = os.fork()  # nothing was computed here, so that each copy begins afresh
        if child == 0:
            _end(is_tuned)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code not in (_SAME, _OTHER):
            sys.exit(f"a process ended with {code}")
        differing += code == _OTHER
    print(differing, "of", processes)


def _end(is_tuned: bool) -> NoReturn:
    code = _FAILED
    try:
        code = _OTHER if _differs(is_tuned) else _SAME
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()

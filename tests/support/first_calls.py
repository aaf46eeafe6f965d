"""Count fresh processes in which the first call of a function differs from the second in its bits.

Usage: OMP_NUM_THREADS=2 python -m tests.support.first_calls PROCESSES built|raw
"""

from __future__ import annotations

import os
import sys

import torch

from dpo_cli.models.loading import build_model
from dpo_cli.run.processes import fork
from tests.support.two_layouts import ARCHITECTURES, empty_state

_FUNCTIONS = (
    *(torch.exp, torch.log, torch.log2, torch.log10, torch.sqrt, torch.erf, torch.erfc),
    *(torch.sin, torch.cos, torch.tan, torch.asin, torch.acos, torch.atan, torch.tanh),
)
_EQUAL, _DIFFERENT = 0, 3  # exit codes; an exception exits with 1


def _compare(is_built: bool) -> int:
    """Compare the first call of each function with the second, with or without building a model."""
    if is_built:
        architecture = ARCHITECTURES["minimind2"]
        build_model(architecture, empty_state(architecture))
    numbers = torch.linspace(0.1, 0.9, 96 * 512).view(96, 512)
    table = numbers @ torch.full((512, 2048), 1 / 512)  # starts the other threads
    equal = all(torch.equal(function(table), function(table)) for function in _FUNCTIONS)
    return _EQUAL if equal else _DIFFERENT


def main() -> None:
    """Run the processes and print the count."""
    processes, is_built = int(sys.argv[1]), sys.argv[2] == "built"
    differing = 0
    for _ in range(processes):
        child = fork(lambda: _compare(is_built))  # from a parent that has computed nothing
        code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        if code not in (_EQUAL, _DIFFERENT):
            sys.exit(f"a process ended with {code}")
        differing += code == _DIFFERENT
    print(differing, "of", processes)


if __name__ == "__main__":
    main()

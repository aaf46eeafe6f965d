"""Environment variables of child processes, and the search path for modules."""

# `drop_relative_search_path` must run before other imports, so this module imports very little.
from __future__ import annotations

import os
import sys
from collections.abc import Mapping

PARENT_PID = "DPO_PARENT_PID"
"""Process id of the parent, for `processes.die_with_parent`."""

_SPINS = 1000
_BLOCK_MILLISECONDS = 1
"""Time that an OpenMP thread spins at a barrier before it sleeps, for libgomp and for libiomp.

Without a bound the threads of a step spin while the kernel runs another process on their core.
The bound changes no result. Seconds of the demo's median step on 2 cores of an AMD EPYC, alone and
beside one busy loop (`benchmarks/spin.py`, 2026-11-30; 10000 and default beside it: an earlier
measurement on another machine):

    GOMP_SPINCOUNT   default       10000         3000          1000
    alone            0.102         0.099         0.106         0.116
    busy             9.4 to 19     1.08          0.450         0.272

1000 is the largest of these with which a busy core costs less than four times the step alone.
Steps of larger models have as many barriers, so they lose a smaller share. libiomp was not
measured: 1 ms is the shortest time that it accepts beside 0, and its default is 200 ms.
"""


def child_environment() -> dict[str, str]:
    """Return the environment of this process, changed for a child process.

    Adds the id of this process and a bounded spin, and removes entries of PYTHONPATH that depend on
    the working directory.
    """
    environment = {**os.environ, **bounded_spin(os.environ)}
    environment |= {PARENT_PID: str(os.getpid()), "PYTHONSAFEPATH": "1"}
    if "PYTHONPATH" in environment:
        environment["PYTHONPATH"] = _absolute_only(environment["PYTHONPATH"])
    return environment


def bounded_spin(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that bound the spin of OpenMP's threads.

    Variables that `environment` sets are left out. OpenMP reads them when it is loaded.
    """
    if "OMP_WAIT_POLICY" in environment:
        return {}
    bounds = {"GOMP_SPINCOUNT": str(_SPINS), "KMP_BLOCKTIME": str(_BLOCK_MILLISECONDS)}
    return {name: value for name, value in bounds.items() if name not in environment}


def drop_relative_search_path() -> None:
    """Remove the relative entries of PYTHONPATH from `sys.path`."""
    search_path = os.environ.get("PYTHONPATH", "")
    kept = _absolute_only(search_path).split(os.pathsep)
    for entry in search_path.split(os.pathsep) if search_path else ():
        directory = os.path.abspath(entry)
        if directory not in kept and directory in sys.path:
            sys.path.remove(directory)


def _absolute_only(search_path: str) -> str:
    """Return PYTHONPATH without relative entries; an empty entry means the working directory.

    The entry of this package is kept as an absolute path, because the child imports the package.
    """
    own = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    kept = []
    for entry in search_path.split(os.pathsep):
        if os.path.isabs(entry):
            kept.append(entry)
        elif os.path.realpath(entry) == os.path.realpath(own):
            kept.append(own)
    return os.pathsep.join(kept)

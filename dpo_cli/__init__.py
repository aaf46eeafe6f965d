"""Direct Preference Optimization for small language models, from the terminal and from Python.

Example::

    import dpo_cli as dpo

    run = dpo.train("demo", {"train.epochs": 2})
    print(run.evaluate().models[0].groups["all"]["rewards/accuracies"])
    run.export("my-model", format="hf")

The names below are imported when they are used: `import dpo_cli` alone loads no other package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpo_cli.api import check, evaluate, load_profile, open_run, runs, train
    from dpo_cli.api.run import Run
    from dpo_cli.errors import DpoError, NoSpaceError, UsageError
    from dpo_cli.run.events import Alert, Evaluated, Event, Saved, StepDone

__version__ = "0.1.0"

_HOMES = {
    "dpo_cli.api": ("Run", "check", "evaluate", "load_profile", "open_run", "runs", "train"),
    "dpo_cli.errors": ("DpoError", "NoSpaceError", "UsageError"),
    "dpo_cli.run.events": ("Alert", "Evaluated", "Event", "Saved", "StepDone"),
}
__all__ = [
    "Alert",
    "DpoError",
    "Evaluated",
    "Event",
    "NoSpaceError",
    "Run",
    "Saved",
    "StepDone",
    "UsageError",
    "check",
    "evaluate",
    "load_profile",
    "open_run",
    "runs",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

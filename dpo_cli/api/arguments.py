"""Arguments of the Python functions in the form that the packages below expect."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from dpo_cli.errors import UsageError
from dpo_cli.run.directory import runs_root
from dpo_cli.run.placement import recognize

Settings = Mapping[str, Any] | Sequence[str]
"""Profile values by dotted key, for example {"train.epochs": 1, "dpo.beta": 5.0}, or the strings of
`--set`, for example ["train.epochs=1"]."""
OnProgress = Callable[[str, int, int, str], None]
"""Called with phase, done, total (0 if unknown) and unit."""


def as_overrides(settings: Settings | None) -> list[str]:
    """Return settings in the form of `--set`: "train.epochs=1".

    Args:
        settings: values by dotted key, or strings that are returned as they are.

    Raises:
        UsageError: a value has no form in TOML.
    """
    if settings is None or not isinstance(settings, Mapping):
        return list(settings or ())
    return [f"{key}={_toml_value(key, value)}" for key, value in settings.items()]


def _toml_value(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        fields = (f"{tomli_w.dumps({k: 0})[:-5]} = {_toml_value(key, v)}" for k, v in value.items())
        return f"{{ {', '.join(fields)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml_value(key, each) for each in value)}]"
    try:
        return tomli_w.dumps({"": str(value) if isinstance(value, Path) else value})[5:-1]
    except TypeError:
        raise UsageError(
            f"{key}: a profile cannot hold {value!r}",
            "Use a number, string, bool, path, list or dict; leave a key out to get its default.",
        ) from None


def root_of(runs_dir: str | Path | None) -> Path:
    """Return the directory of the runs: the argument, else DPO_RUNS_DIR, else "runs"."""
    return runs_root(None if runs_dir is None else Path(runs_dir))


def ignore_progress(phase: str, done: int, total: int, unit: str) -> None:
    """Show no progress."""


def refuse_ranks() -> None:
    """Refuse to train in a process of torchrun or Slurm: every rank would start a run."""
    if place := recognize(os.environ):
        raise UsageError(
            f"{place.starter} has started {place.world_size} processes, and each would train",
            "Start the script once and set launch.nproc_per_node, or run dpo train under"
            f" {place.starter}.",
        )


def require_choice(name: str, value: str | None, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices; None is the default.

    Raises:
        UsageError: lists the choices.
    """
    if value is not None and value not in choices:
        raise UsageError(f"{name} = {value!r}", f"Use {' or '.join(map(repr, choices))}.")

"""Which trackers there are, which of them a profile asks for, and whether they are installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from dpo_cli.errors import UsageError
from dpo_cli.profile.schema import Profile

TITLES: Mapping[str, str] = {
    "tensorboard": "TensorBoard",
    "wandb": "Weights & Biases",
    "swanlab": "SwanLab",
}
"""The trackers; each is called so as a package, as an extra and in its key of [track]."""


def requested_trackers(profile: Profile) -> list[str]:
    """The trackers that a profile asks for."""
    return [name for name in TITLES if getattr(profile.track, f"use_{name}")]


def missing_trackers(profile: Profile) -> list[UsageError]:
    """Of those that a profile asks for, what is to be said of each that is not installed."""
    return [
        UsageError(
            f"track.use_{name}: {TITLES[name]} is not installed",
            f"Run pip install '.[{name}]' in a clone of this repository.",
        )
        for name in requested_trackers(profile)
        if not _is_installed(name)
    ]


def require_trackers(profile: Profile) -> None:
    """Check that all trackers are installed that a profile asks for.

    Raises:
        UsageError: one is not; names the extra.
    """
    for error in missing_trackers(profile):
        raise error


def _is_installed(package: str) -> bool:
    """Whether a package can be imported; a mere folder of that name, as W&B leaves, is none."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None

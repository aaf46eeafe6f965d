"""Names of the trackers, those that a profile requests, and whether they are installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from dpo_cli.errors import UsageError
from dpo_cli.extras import install_extra
from dpo_cli.profile.schema import Profile

TITLES: Mapping[str, str] = {
    "tensorboard": "TensorBoard",
    "wandb": "Weights & Biases",
    "swanlab": "SwanLab",
    "trackio": "Trackio",
    "mlflow": "MLflow",
}
"""Titles by name; the name is that of the package, of our extra, and in the key of [track]."""


def requested_trackers(profile: Profile) -> list[str]:
    """Return the names of the trackers that a profile requests."""
    return [name for name in TITLES if getattr(profile.track, f"use_{name}")]


def missing_trackers(profile: Profile) -> list[UsageError]:
    """Return an error for each requested tracker that is not installed."""
    return [
        UsageError(
            f"track.use_{name}: {TITLES[name]} is not installed",
            install_extra(name),
        )
        for name in requested_trackers(profile)
        if not _is_installed(name)
    ]


def require_trackers(profile: Profile) -> None:
    """Check that all requested trackers are installed.

    Raises:
        UsageError: one is not; the remedy names the extra to install.
    """
    for error in missing_trackers(profile):
        raise error


def _is_installed(package: str) -> bool:
    spec = find_spec(package)
    # A folder without __init__.py, such as the `wandb` folder that W&B writes, has no origin.
    return spec is not None and spec.origin is not None

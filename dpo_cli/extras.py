"""Packages of the extras, and the remedy where this environment lacks one."""

from __future__ import annotations

import contextlib
import re
from importlib import metadata

_DISTRIBUTION = "dpo-cli"


def install_extra(extra: str) -> str:
    """Return the sentence that says how to install the packages of an extra.

    It names the packages, not the extra: they can be installed beside `dpo` from a clone, from a
    wheel and from an index.

    Args:
        extra: name in `project.optional-dependencies` of pyproject.toml.
    """
    words = [
        f"'{package.strip()}'"
        for package, marker in _requirements()
        if f"extra == '{extra}'" in marker
    ]
    if not words:  # a clone that is not installed, or was before the extra was added
        return f"Run pip install '.[{extra}]' in the clone of dpo."
    return f"Run pip install {' '.join(words)} in the environment of dpo."


def packages_of_extras() -> list[str]:
    """Return the names of the packages of all extras but `dev`, sorted."""
    names = {
        re.split(r"[^\w.-]", package)[0]
        for package, marker in _requirements()
        if "extra ==" in marker and "extra == 'dev'" not in marker
    }
    return sorted(names)


def _requirements() -> list[tuple[str, str]]:
    """Return the requirements of this installation: package with its version, and marker."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        parts = (each.partition(";") for each in metadata.requires(_DISTRIBUTION) or [])
        return [(package, marker.replace('"', "'")) for package, _, marker in parts]
    return []

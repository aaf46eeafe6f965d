"""Remedy for a package of an extra that this environment lacks."""

from __future__ import annotations

import contextlib
from importlib import metadata

_DISTRIBUTION = "dpo-cli"


def install_extra(extra: str) -> str:
    """Return the sentence that says how to install the packages of an extra.

    It names the packages, not the extra: they can be installed beside `dpo` from a clone, from a
    wheel and from an index.

    Args:
        extra: name in `project.optional-dependencies` of pyproject.toml.
    """
    requirements: list[str] = []
    with contextlib.suppress(metadata.PackageNotFoundError):
        requirements = metadata.requires(_DISTRIBUTION) or []
    words = []
    for requirement in requirements:
        package, _, marker = requirement.partition(";")
        if f"extra == '{extra}'" in marker.replace('"', "'"):
            words.append(f"'{package.strip()}'")
    if not words:  # a clone that is not installed, or was before the extra was added
        return f"Run pip install '.[{extra}]' in the clone of dpo."
    return f"Run pip install {' '.join(words)} in the environment of dpo."

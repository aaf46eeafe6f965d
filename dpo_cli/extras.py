"""Remedy for a package of an extra that this environment lacks."""

from __future__ import annotations

from importlib import metadata

_DISTRIBUTION = "dpo-cli"


def install_extra(extra: str) -> str:
    """Return the sentence that says how to install the packages of an extra.

    It names the packages, not the extra: they can be installed beside `dpo` from a clone, from a
    wheel and from an index.

    Args:
        extra: name in `project.optional-dependencies` of pyproject.toml.
    """
    try:
        requirements = metadata.requires(_DISTRIBUTION) or ()
    except metadata.PackageNotFoundError:  # a clone that is on the search path, not installed
        return f"Run pip install '.[{extra}]' in the clone of dpo."
    words = []
    for requirement in requirements:
        package, _, marker = requirement.partition(";")
        if f"extra == '{extra}'" in marker.replace('"', "'"):
            words.append(f"'{package.strip()}'")
    return f"Run pip install {' '.join(words)} in the environment of dpo."

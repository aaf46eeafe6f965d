"""Packages that the export to GGUF needs beside those of every installation."""

from __future__ import annotations

from importlib.util import find_spec

from dpo_cli.errors import DpoError

INSTALL = "Run pip install '.[gguf]' in a clone of this repository."


def require_gguf() -> None:
    """Refuse an export if the package gguf is not installed.

    Raises:
        DpoError: names the command that installs it.
    """
    if find_spec("gguf") is None:
        raise DpoError("--format gguf: the package gguf is not installed", INSTALL)

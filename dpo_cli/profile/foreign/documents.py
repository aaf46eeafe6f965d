"""Reading of YAML and JSON files that somebody else wrote, with bounds on size and nesting."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_cli.errors import UsageError, first_line
from dpo_cli.profile.text import show_path

_MAX_BYTES = 1 << 20
_MAX_NODES = 20_000
_WRITE_AGAIN = "Name a file with the settings of one DPO run, or quote its command line."


def read_text(path: Path) -> str:
    """Return the text of a small file.

    Raises:
        UsageError: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UsageError(f"{show_path(path)}: cannot be read ({reason})", _WRITE_AGAIN) from error
    if len(content) > _MAX_BYTES:
        raise UsageError(f"{show_path(path)}: larger than 1 MiB", _WRITE_AGAIN)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{show_path(path)}: not UTF-8 text", _WRITE_AGAIN) from error


def read_yaml(content: str, where: str) -> tuple[dict[str, Any], list[str]]:
    """Return the mapping in a YAML or JSON text, and remarks about names that occur twice.

    Raises:
        UsageError: it is not YAML, no mapping, or grows beyond `_MAX_NODES` through aliases.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(content)
        try:
            node = loader.get_single_node()
            if _size(node, {}) > _MAX_NODES:
                raise UsageError(f"{where}: more than {_MAX_NODES:,} values", _WRITE_AGAIN)
            values = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UsageError(
            f"{where}:{line} not valid YAML ({problem})", "Correct this line."
        ) from error
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(
            f"{where}: a value cannot be read ({first_line(error)})", _WRITE_AGAIN
        ) from error
    except RecursionError as error:
        raise UsageError(f"{where}: nested too deeply", _WRITE_AGAIN) from error
    if not isinstance(values, dict):
        raise UsageError(f"{where}: has no settings (a mapping of names to values)", _WRITE_AGAIN)
    twice = [f"{name}: written more than once; the last value is used" for name in _repeated(node)]
    return _with_text_names(values), twice


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{show_path(path)}: not valid JSON ({first_line(error)})", "Correct this file."
        ) from error


def _size(node: Any, sizes: dict[int, int]) -> int:
    """Return the number of values after all aliases are replaced; infinite for a cycle."""
    if node is None or isinstance(node.value, str):
        return 1
    if id(node) in sizes:
        return sizes[id(node)]
    sizes[id(node)] = _MAX_NODES + 1  # until its children are counted: a cycle is too large
    total = 1
    for child in node.value:
        for each in child if isinstance(child, tuple) else (child,):
            total += _size(each, sizes)
    sizes[id(node)] = total
    return total


def _repeated(node: Any) -> list[str]:
    """Return the names that occur twice at the top level."""
    names = [str(key.value) for key, _ in node.value]
    return sorted({name for name in names if names.count(name) > 1})


def _with_text_names(value: Any) -> Any:
    """Return nested mappings with texts as names: YAML reads `on` as true, and 1 as a number."""
    if isinstance(value, Mapping):
        return {str(key): _with_text_names(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_text_names(each) for each in value]
    return value

"""Values, paths and suggestions as texts for messages."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

_LONGEST_INTEGER_BITS, _SHOWN_DIGITS = 128, 20
_FAR_AWAY = os.path.join(*[os.pardir] * 4)
_CACHED_MODEL = "models--"
_NEAR = 0.75
"""Similarity from which a name is probably another one, mistyped; "epoch" and "epochs" have 0.91,
"report_to" and "export" 0.67."""


def show_value(value: object) -> str:
    """Format `value` as TOML; "unset" for None."""
    match value:
        case None:
            return "unset"
        case bool():
            return str(value).lower()
        case int() if value.bit_length() > _LONGEST_INTEGER_BITS:
            return f"{hex(value)[:_SHOWN_DIGITS]}..."  # str() refuses more than 4300 digits
        case float():
            return re.sub(r"e([+-])0", r"e\1", repr(value))  # 1e-8, where Python says 1e-08
        case str() | Path():
            return json.dumps(str(value), ensure_ascii=False)
        case list():
            return f"[{', '.join(map(show_value, value))}]"
        case dict():
            pairs = [f"{key} = {show_value(each)}" for key, each in value.items()]
            return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
        case _:
            return str(value)


def show_path(path: Path) -> str:
    """Format `path` relative to the working directory, or absolute if that is shorter."""
    return min(os.path.relpath(path), os.path.abspath(path), key=len)


def show_model(path: Path) -> str:
    """Format the path of a model: hf:ORG/NAME for a snapshot in the Hub's cache, else the path."""
    snapshots, repository = path.parent, path.parent.parent.name
    if snapshots.name == "snapshots" and repository.startswith(_CACHED_MODEL):
        return f"hf:{repository.removeprefix(_CACHED_MODEL).replace('--', '/')}"
    return show_path(path)


def path_value(path: Path, folder: Path) -> str:
    """Format `path` for a profile in `folder`: relative, or absolute if it is far away."""
    relative = os.path.relpath(path, folder)
    text = str(path.absolute()) if relative.startswith(_FAR_AWAY) else relative
    return (f"./{text}" if text.startswith("~") else text).replace("$", "$$")


def did_you_mean(name: str, candidates: Iterable[str], show: Callable[[str], str] = str) -> str:
    """Return "; did you mean X?" with the closest candidate, or "" if none is close."""
    near = difflib.get_close_matches(name, list(candidates), n=1, cutoff=_NEAR)
    return f"; did you mean {show(near[0])}?" if near else ""


def near_path(path: Path) -> str:
    """Return "; did you mean FOLDER/NAME?" with the closest existing path, or "" if none is close.

    The folders of the path may be mistyped, too. The suggestion is relative if `path` is.
    """
    candidates = [Path(path.anchor)]
    for part in path.relative_to(path.anchor).parts:
        here = [parent / part for parent in candidates if os.path.exists(parent / part)]
        candidates = here or [
            parent / name
            for parent in candidates
            for name in difflib.get_close_matches(part, _names_in(parent), n=3, cutoff=_NEAR)
        ]
    near = next((each for each in candidates if each != path), None)
    return f"; did you mean {show_path(near) if path.is_absolute() else near}?" if near else ""


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (OSError, ValueError):  # no folder, no permission, or a NUL in the path
        return []

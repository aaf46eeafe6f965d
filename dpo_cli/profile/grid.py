"""Grids: the points of a sweep, each a profile with its own values."""

from __future__ import annotations

import dataclasses
import itertools
import json
import string
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_cli.errors import UsageError
from dpo_cli.profile.load import LoadedProfile, Problem, read_profile
from dpo_cli.profile.resolved import to_tables, values_affecting
from dpo_cli.profile.schema import Profile, keys_affecting
from dpo_cli.profile.table import Affects
from dpo_cli.profile.text import show_path, show_value

Grid = Mapping[str, Sequence[Any]]
"""Values by dotted key."""

_LETTERS = string.ascii_uppercase
_EXAMPLE = "Write it like --grid 'dpo.beta=[0.1,2,5]'."


@dataclass(frozen=True)
class Point:
    """One combination of the values of a grid, labeled by `letter`."""

    letter: str
    values: Mapping[str, Any]
    loaded: LoadedProfile

    @property
    def profile(self) -> Profile:
        """Profile with these values."""
        return self.loaded.profile

    @property
    def text(self) -> str:
        """Keys without their tables, and values, in one line."""
        return "  ".join(
            f"{short_key(key)} {show_value(value)}" for key, value in self.values.items()
        )


def short_key(key: str) -> str:
    """Return the key without its table."""
    return key.rpartition(".")[2]


def parse_grid(words: Sequence[str]) -> dict[str, list[Any]]:
    """Parse `--grid` options, for example "dpo.beta=[0.1,2,5]", into values by key.

    Strings are accepted without quotes, because a shell removes them.

    Raises:
        UsageError: an option has no key or no values, or a key occurs twice.
    """
    grid: dict[str, list[Any]] = {}
    for word in words:
        key, equals, text = (part.strip() for part in word.partition("="))
        if not (key and equals and text.startswith("[") and text.endswith("]")):
            raise UsageError(f"--grid {word}: needs a key and values in brackets", _EXAMPLE)
        if key in grid:
            raise UsageError(f"--grid {key} is given twice", "Put all its values in one list.")
        grid[key] = _values(text)
        if not grid[key]:
            raise UsageError(f"--grid {key} has no values", _EXAMPLE)
    return grid


def _values(text: str) -> list[Any]:
    try:
        values: list[Any] = tomllib.loads(f"values = {text}")["values"]
    except tomllib.TOMLDecodeError:
        words = text[1:-1].split(",")
        return [_value(word.strip()) for word in words if word.strip()]
    return values


def _value(word: str) -> Any:
    try:
        return tomllib.loads(f"value = {word}")["value"]
    except tomllib.TOMLDecodeError:
        return word


def load_points(path: Path, settings: Sequence[str], grid: Grid) -> list[Point]:
    """Load one profile per combination of the values; the last key varies fastest.

    Args:
        path: see `load_profile`.
        settings: overrides, see `load_profile`.
        grid: values that are set on top of the overrides.

    Raises:
        UsageError: a key is in `settings` and in `grid`, there are too few or too many points, two
            points are equal, or the profile has errors.
    """
    overridden = {setting.partition("=")[0].strip() for setting in settings}
    if twice := [key for key in grid if key in overridden]:
        raise UsageError(f"{twice[0]} is in --set and in --grid", "Remove one of them.")
    combinations = list(itertools.islice(itertools.product(*grid.values()), len(_LETTERS) + 1))
    if len(combinations) == 1:
        raise UsageError(
            "the grid has one run only", "Give a key several values, or use: dpo train PROFILE"
        )
    if len(combinations) > len(_LETTERS):
        raise UsageError(f"a sweep has at most {len(_LETTERS)} runs", "Use fewer values.")
    points, problems = [], []
    for letter, combination in zip(_LETTERS, combinations, strict=False):
        values = dict(zip(grid, combination, strict=True))
        overrides = [f"{key}={show_value(value)}" for key, value in values.items()]
        loaded, point_problems = read_profile(path, [*settings, *overrides])
        origins = {**loaded.origins, **dict.fromkeys(grid, "--grid")}
        points.append(Point(letter, values, dataclasses.replace(loaded, origins=origins)))
        problems += point_problems
    if details := _merge_problems(problems, grid):
        count = "1 error" if len(details) == 1 else f"{len(details)} errors"
        raise UsageError(f"{show_path(points[0].loaded.path)}: {count}", details=details)
    for one, other in itertools.combinations(points, 2):
        if one.profile == other.profile:
            raise UsageError(f"{one.text} and {other.text} are the same run", "Remove one of them.")
    return points


def _merge_problems(problems: Sequence[Problem], grid: Grid) -> list[str]:
    """Merge the problems of all points with the same key and reason into one line each."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        alike = groups.setdefault((problem.key, problem.reason), [])
        if problem not in alike:
            alike.append(problem)
    lines = []
    for (key, _), alike in groups.items():
        first = alike[0]
        if key in grid and first.origin == "--set":
            values = ", ".join(each.statement.partition(" = ")[2] for each in alike)
            first = dataclasses.replace(first, origin="--grid", statement=f"{key} = {values}")
        lines.append(str(first))
    return lines


def count_references(profiles: Sequence[Profile]) -> int:
    """Count the sets of reference log-probs to compute; 0 if the profiles cache none."""
    caching = [p for p in profiles if p.dpo.needs_reference and p.train.layout == "packed"]
    return len({_reference_settings(profile) for profile in caching})


def _reference_settings(profile: Profile) -> str:
    relevant = values_affecting(Affects.REFERENCE, to_tables(profile))
    # These two decide how pairs are grouped into forwards, which changes the last bits.
    return json.dumps([relevant, profile.dpo.use_weighting, profile.dpo.needs_whole_batch])


def has_held_out_pairs(profile: Profile) -> bool:
    """Return True if the profile has held-out pairs."""
    return bool(profile.eval.fraction or profile.eval.path)


def keys_changing_held_out(points: Sequence[Point]) -> list[str]:
    """Return the keys of the grid that change the held-out pairs from run to run."""
    has_own_file = points[0].profile.eval.path is not None
    deciding = keys_affecting(
        Affects.HELD_OUT if has_own_file else Affects.HELD_OUT | Affects.SPLIT
    )
    return [key for key in points[0].values if key in deciding]

"""A grid of settings over a profile: the points of a sweep, each a profile of its own."""

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
"""The values that each key is to take."""

_LETTERS = string.ascii_uppercase
_EXAMPLE = "for example --grid 'dpo.beta=[0.1,2,5]'"


@dataclass(frozen=True)
class Point:
    """One combination of the values of a grid; `letter` stands for it everywhere."""

    letter: str
    values: Mapping[str, Any]
    loaded: LoadedProfile

    @property
    def profile(self) -> Profile:
        """The profile with these values."""
        return self.loaded.profile

    @property
    def text(self) -> str:
        """The values in a line, by the last part of their keys."""
        return "  ".join(
            f"{short_key(key)} {show_value(value)}" for key, value in self.values.items()
        )


def short_key(key: str) -> str:
    """The last part of a key."""
    return key.rpartition(".")[2]


def parse_grid(words: Sequence[str]) -> dict[str, list[Any]]:
    """The values by key of `--grid` options such as "dpo.beta=[0.1,2,5]".

    A shell may have taken the quotes off strings; they are understood without.

    Raises:
        UsageError: one names no key or no values, or a key comes twice.
    """
    grid: dict[str, list[Any]] = {}
    for word in words:
        key, equals, text = (part.strip() for part in word.partition("="))
        if not (key and equals and text.startswith("[") and text.endswith("]")):
            raise UsageError(f"--grid {word}: needs a key and values in brackets", _EXAMPLE)
        if key in grid:
            raise UsageError(f"--grid {key} is stated twice", "put all its values in one list")
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
    """Every combination of the values, the last key's going round fastest.

    Args:
        path, settings: see `load_profile`.
        grid: on top of them.

    Raises:
        UsageError: a key is stated by `settings`, too; there are too few points or too many; two
            are one; or anything in the profile, or in a value, is wrong.
    """
    stated = {setting.partition("=")[0].strip() for setting in settings}
    if twice := [key for key in grid if key in stated]:
        raise UsageError(f"{twice[0]} is stated by --set and by --grid", "leave one of them out")
    combinations = list(itertools.islice(itertools.product(*grid.values()), len(_LETTERS) + 1))
    if len(combinations) == 1:
        raise UsageError("this grid is one run", "give a key several values, or: dpo train PROFILE")
    if len(combinations) > len(_LETTERS):
        raise UsageError(f"a sweep has up to {len(_LETTERS)} runs", "state fewer values")
    points, problems = [], []
    for letter, combination in zip(_LETTERS, combinations, strict=False):
        values = dict(zip(grid, combination, strict=True))
        overrides = [f"{key}={show_value(value)}" for key, value in values.items()]
        loaded, found = read_profile(path, [*settings, *overrides])
        origins = {**loaded.origins, **dict.fromkeys(grid, "--grid")}
        points.append(Point(letter, values, dataclasses.replace(loaded, origins=origins)))
        problems += found
    if details := _told_once(problems, grid):
        count = "1 error" if len(details) == 1 else f"{len(details)} errors"
        raise UsageError(f"{show_path(points[0].loaded.path)}: {count}", details=details)
    for one, other in itertools.combinations(points, 2):
        if one.profile == other.profile:
            raise UsageError(f"{one.text} and {other.text} are the same run", "state it once")
    return points


def _told_once(problems: Sequence[Problem], grid: Grid) -> list[str]:
    """Problems of all points, those of one key for one reason together."""
    found: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        alike = found.setdefault((problem.key, problem.reason), [])
        if problem not in alike:
            alike.append(problem)
    told = []
    for (key, _), alike in found.items():
        first = alike[0]
        if key in grid and first.origin == "--set":
            values = ", ".join(each.statement.partition(" = ")[2] for each in alike)
            first = dataclasses.replace(first, origin="--grid", statement=f"{key} = {values}")
        told.append(str(first))
    return told


def count_references(profiles: Sequence[Profile]) -> int:
    """How many different sets of reference log-probs these profiles need; 0 if they keep none."""
    keeping = [p for p in profiles if p.dpo.needs_reference and p.train.layout == "packed"]
    return len({_reference_settings(profile) for profile in keeping})


def _reference_settings(profile: Profile) -> str:
    relevant = values_affecting(Affects.REFERENCE, to_tables(profile))
    # These two decide how pairs are grouped into forwards, which changes the last bits.
    return json.dumps([relevant, profile.dpo.use_weighting, profile.dpo.needs_whole_batch])


def has_held_out_pairs(profile: Profile) -> bool:
    """Whether pairs are held out at all."""
    return bool(profile.eval.fraction or profile.eval.path)


def keys_changing_held_out(points: Sequence[Point]) -> list[str]:
    """Return the keys of the grid that change the held-out pairs from run to run."""
    has_own_file = points[0].profile.eval.path is not None
    deciding = keys_affecting(
        Affects.HELD_OUT if has_own_file else Affects.HELD_OUT | Affects.SPLIT
    )
    return [key for key in points[0].values if key in deciding]

"""Building blocks of the tables of other tools: rules from one setting to keys of a profile."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_cli.files import expanded
from dpo_cli.hub.download import is_on_hub
from dpo_cli.profile.folder import exists
from dpo_cli.profile.text import path_value

_HUB_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_MAX_PARENTS = 4


class NoCounterpartError(Exception):
    """A setting, or this value of it, has no counterpart; the text says what changes."""


@dataclass
class Context:
    """Surroundings of a setting.

    Attributes:
        values: all settings of the file and defaults of the tool, by name.
        folders: folders to which a relative path may belong, the most likely first.
        profile_folder: folder of the new profile.
        differences: remarks about what changes although a setting has a counterpart.
        without_effect: remarks about settings that the tool itself does not use.
        script: shipped profile with the defaults of MiniMind's script; empty for other tools.
    """

    values: Mapping[str, Any]
    folders: tuple[Path, ...]
    profile_folder: Path
    differences: list[str] = field(default_factory=list)
    without_effect: list[str] = field(default_factory=list)
    script: str = ""

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimizer step."""
        for name in ("gradient_accumulation_steps", "accumulation_steps"):
            if self.values.get(name) not in (None, "auto"):
                return whole(self.values[name])
        return 1

    def find(self, name: str) -> Path | None:
        """Return the file or folder `name`, relative to one of the folders; None if there is none.

        A configuration often lies below the folder that its paths are relative to.
        """
        path = expanded(name)
        for folder in self.folders:
            for ancestor in (folder, *folder.parents[:_MAX_PARENTS]):
                if exists(ancestor / path):
                    return ancestor / path
                if path.is_absolute() or folder is self.folders[0]:
                    break
        return None

    def path(self, name: str) -> str:
        """Format a path for the profile, also that of a missing file."""
        path = self.find(name) or self.folders[0] / expanded(name)
        return relative_path(Path(os.path.normpath(path)), self.profile_folder)


Convert = Callable[[Any, Context], Mapping[str, Any]]


@dataclass(frozen=True)
class Rule:
    """Translation of one setting.

    Attributes:
        keys: keys of a profile that the setting may set, the usual one first.
        convert: returns their values; raises NoCounterpartError, or ValueError for a wrong type.
        is_part: True if the rule of another setting reads this one, too.
    """

    keys: tuple[str, ...]
    convert: Convert
    is_part: bool = False


def whole(value: Any) -> int:
    """Return a whole number, also from a text; raise ValueError for any other value."""
    number_ = number(value)
    if number_ != int(number_):
        raise ValueError("must be a whole number")
    return int(number_)


def number(value: Any) -> float:
    """Return a finite number, also from a text ("1e-6", a text in YAML); raise ValueError."""
    try:
        result = float("x" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("must be a number") from None
    if abs(result) > 1e15 or result != result:
        raise ValueError("must be a number of usual size")
    return result


def switch(value: Any) -> bool:
    """Return a boolean, also from a text or from 0 and 1; raise ValueError."""
    texts = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if str(value).lower() not in texts:
        raise ValueError("must be true or false")
    return texts[str(value).lower()]


def text(value: Any) -> str:
    """Return a text without control characters; raise ValueError for any other value."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("must be a text of one line")
    return value


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping, an empty one for None; raise ValueError for any other value."""
    if value is not None and not isinstance(value, Mapping):
        raise ValueError("must be names with their values")
    return value or {}


def items(value: Any) -> list[Any]:
    """Return the items of a list, or of a text that separates them by commas."""
    if isinstance(value, str):
        return [each.strip() for each in value.strip("[]").split(",") if each.strip()]
    return value if isinstance(value, list) else [value]


def to(key: str, read: Callable[[Any], Any]) -> Rule:
    """Set `key` to the value as `read` returns it."""
    return Rule((key,), lambda value, _: {key: read(value)})


def steps(key: str) -> Rule:
    """Set `key`, in micro-batches, from a number of optimizer steps."""

    def convert(value: Any, context: Context) -> Mapping[str, Any]:
        count = number(value)
        if 0 < count < 1:
            raise NoCounterpartError(
                f"a share of the run; set {key} to that share of its micro-batches"
            )
        return {key: whole(count) * context.accumulation}

    return Rule((key,), convert)


def only(why: str, *expected: Any) -> Rule:
    """Accept the values that every run has; others have no counterpart."""

    def convert(value: Any, _: Context) -> Mapping[str, Any]:
        if not any(is_equal(value, each) for each in expected):
            raise NoCounterpartError(why)
        return {}

    return Rule((), convert)


def is_equal(value: Any, other: Any) -> bool:
    """Return True if two values are the same, also as texts: "1e-6" is 1e-06."""
    if str(value).lower() == str(other).lower():
        return True
    try:
        return number(value) == number(other)
    except ValueError:
        return False


def choice(key: str, values: Mapping[str, Any], why: str = "") -> Rule:
    """Set `key` to the value that `values` has for a name."""

    def convert(value: Any, _: Context) -> Mapping[str, Any]:
        if str(value).lower() not in values:
            raise NoCounterpartError(why or f"{key} has no such value")
        return {key: values[str(value).lower()]}

    return Rule((key,), convert)


def unless(value: Any, rule: Rule) -> Rule:
    """Apply a rule unless the setting is `value`, which changes nothing."""
    return Rule(
        rule.keys,
        lambda given, context: {} if is_equal(given, value) else rule.convert(given, context),
    )


def part_of(key: str, *owners: str) -> Rule:
    """Accept a setting that the rule of one of `owners` reads, for the same key."""

    def convert(value: Any, context: Context) -> Mapping[str, Any]:
        if owners and not any(owner in context.values for owner in owners):
            raise NoCounterpartError(f"has no effect without {owners[0]}")
        return {}

    return Rule((key,), convert, is_part=True)


def on_hub(name: str) -> bool:
    """Return True if `name` may be a repository on the Hub."""
    return _HUB_NAME.fullmatch(name) is not None and not name.startswith(".")


def place(name: str, context: Context) -> str:
    """Return a path for the profile if there is such a file, else "hf:NAME" for a Hub name."""
    if is_on_hub(name):
        return name
    name = name.rstrip("/") or name
    if context.find(name) is None and on_hub(name):
        return f"hf:{name}"
    return context.path(name)


def relative_path(path: Path, folder: Path) -> str:
    """Format `path` for a profile in `folder`."""
    value = path_value(path, folder.absolute())
    return value if "/" in value else f"./{value}"


def flat(
    values: Mapping[str, Any], known: Callable[[str], bool], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of nested settings, down to names that are `known`."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and not known(name):
            yield from flat(value, known, f"{name}.")
        else:
            yield name, value

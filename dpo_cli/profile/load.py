"""From TOML files and `--set` to a `Profile`: every value's origin known, all errors at once."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dpo_cli.errors import UsageError
from dpo_cli.profile.hub import PREFIX
from dpo_cli.profile.renames import RENAMED_KEYS, RENAMED_VALUES
from dpo_cli.profile.schema import KEYS, TABLES, Key, Profile
from dpo_cli.profile.source import Document, expand_path, find_profile, read_chain
from dpo_cli.profile.table import Kind
from dpo_cli.profile.text import did_you_mean, show_path, show_value


@dataclass(frozen=True)
class LoadedProfile:
    """A valid profile and where it comes from."""

    profile: Profile
    origins: Mapping[str, str]
    """Where each key has its value from: "profiles/dense.toml:12", "--set" or "default"."""
    path: Path
    """The file that was asked for, absolute; its parents by `extends` are in `origins`."""
    name: str
    """The file's name without its suffix: runs are called after it."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a profile, or with a file that it names."""

    key: str
    """The dotted key; one that does not exist, perhaps."""
    origin: str
    """Where it is stated: "profiles/my.toml:12" or "--set"."""
    statement: str
    """As it stands there: "train.beta = -1"; the key alone where that is missing."""
    reason: str
    """What is wrong with it; after the first "; ", what to do about it."""

    def __str__(self) -> str:
        return f"{self.origin}  {self.statement}: {self.reason}"


@dataclass(frozen=True)
class _Statement:
    """One `key = value` of a file or of `--set`."""

    key: str
    value: Any
    origin: str
    base: Path  # what a relative path is relative to

    def resolved(self) -> Any:
        """The value; if it is a path, as an absolute one.

        Raises:
            ValueError: the path cannot be resolved.
        """
        if isinstance(self.value, list):
            return [self._resolved(each) for each in self.value]
        return self._resolved(self.value)

    def _resolved(self, value: Any) -> Any:
        kind = KEYS[self.key].kind
        if isinstance(value, str) and (
            kind is Kind.PATH or (kind is Kind.WEIGHTS and _is_path(value))
        ):
            path = expand_path(value, self.base)
            return path if kind is Kind.PATH else str(path)
        return value

    def rejected(self, reason: str) -> Problem:
        """What is wrong with this statement, for the user."""
        return Problem(self.key, self.origin, f"{self.key} = {show_value(self.value)}", reason)


def load_profile(path: Path, overrides: Sequence[str] = ()) -> LoadedProfile:
    """Read, merge and validate the profile at `path`, with `overrides` ("table.key=value") on top.

    Paths become absolute: those of a file relative to it, those of an override relative to the
    working directory. A `path` that does not exist may be a shipped profile's name.

    Raises:
        UsageError: the profile cannot be read, or anything in it is wrong; `details` has it all.
    """
    loaded, problems = read_profile(path, overrides)
    if problems:
        count = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
        raise UsageError(f"{show_path(loaded.path)}: {count}", details=list(map(str, problems)))
    return loaded


def read_profile(path: Path, overrides: Sequence[str] = ()) -> tuple[LoadedProfile, list[Problem]]:
    """`load_profile` for who wants to go on in spite of errors: the profile, and all of those.

    A key with a problem has its default instead, or a path that leads nowhere where it has none:
    only what does not depend on it can be believed.

    Raises:
        UsageError: the profile, or one that it extends, is missing or no TOML.
    """
    path = find_profile(path, str(path)).absolute()
    statements: dict[str, _Statement] = {}
    for document in read_chain(path):
        statements |= _in_file(document)
    problems = _override(statements, overrides)
    profile, reasons = _validate(statements)
    problems += [s.rejected(reasons[key]) for key, s in statements.items() if key in reasons]
    missing = [key for key in reasons if key not in statements]
    problems += [Problem(key, show_path(path), key, reasons[key]) for key in missing]
    origins = {key: statements[key].origin if key in statements else "default" for key in KEYS}
    while profile is None:  # a default may contradict what was measured by the wrong value
        statements = _without(statements, reasons)
        profile, reasons = _validate(statements)
    return LoadedProfile(profile, origins, path, path.stem), problems


def profile_from_values(stated: Mapping[str, object], overrides: Sequence[str]) -> Profile:
    """A profile without a file, with `overrides` on top of what is stated.

    Args:
        stated: values by dotted key, among them all that a profile must have; paths absolute.
        overrides: see `load_profile`.

    Raises:
        UsageError: anything is wrong; `details` has it all.
    """
    statements = {key: _Statement(key, its, "stated", Path.cwd()) for key, its in stated.items()}
    problems = _override(statements, overrides)
    profile, reasons = _validate(statements)
    problems += [s.rejected(reasons[key]) for key, s in statements.items() if key in reasons]
    if profile is None or problems:
        raise UsageError("--set: this cannot be", details=list(map(str, problems)))
    return profile


def _override(statements: dict[str, _Statement], overrides: Sequence[str]) -> list[Problem]:
    """Put `overrides` among the statements; what is wrong with those that are none."""
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if equals:
            statements |= _in_override(key.strip(), text.strip())
        else:
            reason = "needs a value; for example --set train.epochs=1"
            problems.append(Problem(override, "--set", override, reason))
    return problems


def _without(statements: Mapping[str, _Statement], keys: Collection[str]) -> dict[str, _Statement]:
    """What is left without `keys`; those that a profile must have lead nowhere."""
    nowhere = {
        key: _Statement(key, os.devnull, "nowhere", Path.cwd())
        for key in keys
        if key in KEYS and KEYS[key].is_required
    }
    return {key: s for key, s in statements.items() if key not in keys} | nowhere


def _in_file(document: Document) -> dict[str, _Statement]:
    base = document.path.parent
    return {
        key: _Statement(key, value, document.origin(key), base)
        for key, value in _leaves(document.values)
        if key != "extends"
    }


def _in_override(key: str, text: str) -> dict[str, _Statement]:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare string, so that paths need no quotes within the shell's quotes
    return {
        leaf: _Statement(leaf, leaf_value, "--set", Path.cwd())
        for leaf, leaf_value in _leaves({key: value})
    }


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of nested tables, down to the profile's keys or to what is no table."""
    for name, value in values.items():
        key = prefix + name
        if isinstance(value, dict) and key not in KEYS and (value or key in TABLES):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _validate(statements: Mapping[str, _Statement]) -> tuple[Profile | None, dict[str, str]]:
    """The profile, unless a value is wrong, and what is wrong with each key."""
    problems = {}
    tables: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
    for key, statement in statements.items():
        if key not in KEYS:
            problems[key] = _unknown(key)
            continue
        table, field = key.split(".")
        try:
            tables[table][field] = statement.resolved()
        except ValueError as error:
            problems[key] = str(error)
            tables[table][field] = statement.value  # stated, if badly: not missing
    try:
        return Profile.model_validate(tables), problems
    except ValidationError as error:
        for finding in error.errors(include_url=False):
            key = ".".join(map(str, finding["loc"][:2]))  # what follows is a place in an array
            problems[key] = _explain(finding, KEYS[key])
    return None, problems


def _unknown(key: str) -> str:
    """What to do about a key that does not exist; its namesake in another table, for example."""
    if key in TABLES:
        return f"is a table, with keys of its own; write [{key}] above them"
    if key == "extends":
        return "only a file can extend another profile"
    if key in RENAMED_KEYS:
        return f"{key} is now {RENAMED_KEYS[key]}; rename it"
    table, _, field = key.rpartition(".")

    def full_name(near: str) -> str:
        if f"{table}.{near}" in KEYS:
            return f"{table}.{near}"
        return " or ".join(known for known in KEYS if known.endswith(f".{near}")) or near

    fields = [known.split(".")[1] for known in KEYS]
    hint = did_you_mean(field, [*fields, *TABLES, "extends"], full_name)
    if hint:
        return f"unknown key{hint}"
    if table in TABLES:
        return f"unknown key; [{table}] has {', '.join(TABLES[table].model_fields)}"
    return f"unknown key; the tables are {', '.join(TABLES)}"


_EXPECTED = {
    "bool_type": "true or false, without quotes",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a string in quotes",
    "path_type": "a path in quotes",
}

_GOT = {
    bool: "a truth value",
    int: "a whole number",
    float: "a fractional number",
    str: "a string",
    list: "an array",
    dict: "a table",
}


def _explain(finding: ErrorDetails, key: Key) -> str:
    """What pydantic found, in the words of a profile, and a value that would do."""
    match finding["type"]:
        case "contradiction":
            return finding["msg"]
        case "literal_error" if new := RENAMED_VALUES.get((key.name, str(finding["input"]))):
            old, new = show_value(finding["input"]), show_value(new)
            return f"{old} is now {new}; set {key.name} = {new}"
        case "missing":
            problem = f"missing. {key.description}"
        case "string_pattern_mismatch":
            problem = "has the wrong form"
        case mistyped if mistyped in _EXPECTED:
            got = _GOT.get(type(finding["input"]), "a date or time")
            problem = f"must be {_EXPECTED[mistyped]}, not {got}"
        case _:
            problem = re.sub(r"^(Input|String) should", "must", finding["msg"])
    examples = " or ".join(map(show_value, key.examples))
    return f"{problem.rstrip('.')}; for example {key.name} = {examples}"


def _is_path(weights: str) -> bool:
    """Whether a checkpoint or reference is a path; no name of a run, on the Hub or in out_dir."""
    is_name = weights.startswith(("run:", PREFIX))
    return not is_name and ("/" in weights or weights[:1] in ("~", "$"))

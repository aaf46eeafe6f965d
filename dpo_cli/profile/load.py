"""Loading of profiles from TOML files and `--set`, with the origin of each value and all errors."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dpo_cli.errors import UsageError
from dpo_cli.hub.download import PREFIX, is_on_hub
from dpo_cli.profile.folder import exists
from dpo_cli.profile.model_kind import ModelKind, defaults_of, kind_of_weights
from dpo_cli.profile.renames import RENAMED_VALUES
from dpo_cli.profile.schema import KEYS, TABLES, Key, Profile
from dpo_cli.profile.source import Document, expand_path, find_profile, read_chain
from dpo_cli.profile.table import Kind
from dpo_cli.profile.text import show_path, show_value
from dpo_cli.profile.unknown_keys import explain_unknown_key

_NOT_LOCAL = ("run:", PREFIX)
"""Prefixes of weights that are not local files: an earlier run, and a model on the Hub."""
_ENDS = ("", ".pth", ".safetensors")


@dataclass(frozen=True)
class LoadedProfile:
    """Valid profile with the origins of its values."""

    profile: Profile
    origins: Mapping[str, str]
    """Origin of each key's value: "profiles/dense.toml:12", "--set" or "default"."""
    path: Path
    """Absolute path of the file that was loaded, without those that it extends."""
    name: str
    """File name without suffix; runs are named after it."""
    kind: ModelKind
    """Kind of the model, which decides some defaults."""
    kind_defaults: Mapping[str, Any]
    """Defaults of this kind that the profile uses, by key."""


@dataclass(frozen=True)
class Problem:
    """One error in a profile, or in a file that it names."""

    key: str
    """Dotted key, which may be unknown."""
    origin: str
    """Place of the statement: "profiles/my.toml:12" or "--set"."""
    statement: str
    """Text of the statement, "train.beta = -1", or the key if it is missing."""
    reason: str
    """Error and, after the first "; ", the remedy."""

    def __str__(self) -> str:
        return f"{self.origin}  {self.statement}: {self.reason}"


@dataclass(frozen=True)
class _Statement:
    """One `key = value` in a file or in `--set`."""

    key: str
    value: Any
    origin: str
    base: Path  # what a relative path is relative to

    def resolved(self) -> Any:
        """Return the value, with paths made absolute.

        Raises:
            ValueError: a path cannot be expanded.
        """
        values = self.value if isinstance(self.value, list) else [self.value]
        if any(type(value) is int and not -(2**63) <= value < 2**63 for value in values):
            raise ValueError("an integer has at most 64 bits")
        if isinstance(self.value, list):
            return [self._resolve(each) for each in self.value]
        return self._resolve(self.value)

    def _resolve(self, value: Any) -> Any:
        kind = KEYS[self.key].kind
        if not isinstance(value, str) or kind is Kind.PLAIN:
            return value
        if kind is Kind.WEIGHTS:
            return str(expand_path(value, self.base)) if _is_path(value) else value
        if kind is Kind.DATA and is_on_hub(value):
            return Path(value)
        return expand_path(value, self.base)

    def problem(self, reason: str) -> Problem:
        return Problem(self.key, self.origin, f"{self.key} = {show_value(self.value)}", reason)


def load_profile(path: Path, overrides: Sequence[str] = ()) -> LoadedProfile:
    """Read, merge and validate the profile at `path`.

    Paths become absolute: those in a file are relative to the file, those in an override to the
    working directory.

    Args:
        path: a file, or the name of a shipped profile.
        overrides: "table.key=value", applied on top of the file.

    Raises:
        UsageError: the profile cannot be read, or has errors; `details` lists all of them.
    """
    loaded, problems = read_profile(path, overrides)
    if problems:
        count = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
        raise UsageError(f"{show_path(loaded.path)}: {count}", details=list(map(str, problems)))
    return loaded


def read_profile(path: Path, overrides: Sequence[str] = ()) -> tuple[LoadedProfile, list[Problem]]:
    """Read a profile like `load_profile`, but return its errors instead of raising.

    An invalid key gets its default, or an empty path if it is required. Do not use values that
    depend on a key with an error.

    Raises:
        UsageError: the profile, or one that it extends, is missing or not valid TOML.
    """
    path = find_profile(path, str(path)).absolute()
    statements: dict[str, _Statement] = {}
    for document in read_chain(path):
        statements |= _in_file(document)
    problems = _override(statements, overrides)
    statements |= _weights_as_paths(statements)
    kind, defaults = _kind_defaults(statements)
    profile, reasons = _validate(defaults | statements)
    problems += [s.problem(reasons[key]) for key, s in statements.items() if key in reasons]
    missing = [key for key in reasons if key not in statements]
    problems += [Problem(key, show_path(path), key, reasons[key]) for key in missing]
    origins = {key: statements[key].origin if key in statements else "default" for key in KEYS}
    # Drop invalid keys until the rest is valid. This ends, because the defaults alone are valid.
    while profile is None:  # without the wrong value, a default may contradict another key
        statements = _without(statements, reasons)
        profile, reasons = _validate(statements)
    taken = {key: statement.value for key, statement in defaults.items()}
    return LoadedProfile(profile, origins, path, path.stem, kind, taken), problems


def profile_from_values(values: Mapping[str, object], overrides: Sequence[str]) -> Profile:
    """Build a profile without a file.

    Args:
        values: by dotted key, including all required keys; paths absolute.
        overrides: see `load_profile`.

    Raises:
        UsageError: the profile has errors; `details` lists all of them.
    """
    statements = {key: _Statement(key, value, "code", Path.cwd()) for key, value in values.items()}
    problems = _override(statements, overrides)
    statements |= _weights_as_paths(statements)
    profile, reasons = _validate(_kind_defaults(statements)[1] | statements)
    problems += [s.problem(reasons[key]) for key, s in statements.items() if key in reasons]
    if profile is None or problems:
        raise UsageError("--set: invalid values", details=list(map(str, problems)))
    return profile


def invalid_values(values: Mapping[str, object], folder: Path) -> Mapping[str, str]:
    """Return the errors of values for a profile in `folder`, by key.

    A required key without a value is an error, too.
    """
    statements = {key: _Statement(key, value, "code", folder) for key, value in values.items()}
    statements |= _weights_as_paths(statements)
    return _validate(_kind_defaults(statements)[1] | statements)[1]


def _resolved(statements: Mapping[str, _Statement], key: str) -> Any:
    """Return the value of a key; None if it is not stated, or no path."""
    try:
        return statements[key].resolved() if key in statements else None
    except ValueError:
        return None


def _weights_as_paths(statements: Mapping[str, _Statement]) -> dict[str, _Statement]:
    """Return the statements of weights whose plain name is that of a file or directory.

    A name in model.out_dir takes precedence. Otherwise "tiny-llama" means "./tiny-llama", if that
    exists, as in the arguments of all commands.
    """
    changed = {}
    out_dir = _resolved(statements, "model.out_dir")
    for key in ("model.weights", "model.reference"):
        statement = statements.get(key)
        name = statement.value if statement else None
        if not statement or not isinstance(name, str) or not _is_plain_name(name):
            continue
        in_out_dir = out_dir and any(exists(out_dir / f"{name}{end}") for end in _ENDS)
        if not in_out_dir and exists(statement.base / name):
            changed[key] = replace(statement, value=f"./{name}")
    return changed


def _kind_defaults(
    statements: Mapping[str, _Statement],
) -> tuple[ModelKind, dict[str, _Statement]]:
    """Return the kind of the model, and the defaults of this kind for keys without a statement."""

    weights, out_dir = (_resolved(statements, key) for key in ("model.weights", "model.out_dir"))
    kind = kind_of_weights(weights, out_dir)
    defaults = defaults_of(kind, _resolved(statements, "dpo.loss"))
    missing = {key: each for key, each in defaults.items() if key not in statements}
    return kind, {
        key: _Statement(key, each, "default", Path.cwd()) for key, each in missing.items()
    }


def _override(statements: dict[str, _Statement], overrides: Sequence[str]) -> list[Problem]:
    """Add `overrides` to `statements`; return the problems of malformed ones."""
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
    """Drop `keys`; required ones get an empty file in their place."""
    placeholders = {
        key: _Statement(key, os.devnull, "placeholder", Path.cwd())
        for key in keys
        if key in KEYS and KEYS[key].is_required
    }
    return {key: s for key, s in statements.items() if key not in keys} | placeholders


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
        value = text  # a bare string, so that a path needs no quotes inside the shell's quotes
    return {
        leaf: _Statement(leaf, leaf_value, "--set", Path.cwd())
        for leaf, leaf_value in _leaves({key: value})
    }


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values of nested tables, down to the profile's keys."""
    for name, value in values.items():
        key = prefix + name
        if isinstance(value, dict) and key not in KEYS and (value or key in TABLES):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _validate(statements: Mapping[str, _Statement]) -> tuple[Profile | None, dict[str, str]]:
    """Return the profile, or None if a value is invalid, and the errors by key."""
    problems = {}
    tables: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
    for key, statement in statements.items():
        if key not in KEYS:
            problems[key] = explain_unknown_key(key)
            continue
        table, field = key.split(".")
        try:
            tables[table][field] = statement.resolved()
        except ValueError as error:
            problems[key] = str(error)
            tables[table][field] = statement.value  # so that it is not reported as missing, too
    try:
        return Profile.model_validate(tables), problems
    except ValidationError as error:
        for details in error.errors(include_url=False):
            # The rest of the place is an index into a list.
            key = details.get("ctx", {}).get("key") or ".".join(map(str, details["loc"][:2]))
            problems[key] = _explain(details, KEYS[key])
    return None, problems


_EXPECTED = {
    "bool_type": "true or false, without quotes",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a string in quotes",
    "path_type": "a path in quotes",
}

_GOT = {
    bool: "a boolean",
    int: "a whole number",
    float: "a fractional number",
    str: "a string",
    list: "an array",
    dict: "a table",
}


def _renamed(key: str, value: Any) -> Any:
    """Return the new value of a renamed one; None for others, also those that no text can show."""
    return RENAMED_VALUES.get((key, value)) if isinstance(value, str) else None


def _explain(details: ErrorDetails, key: Key) -> str:
    """Explain an error of pydantic in terms of the profile, with a valid example."""
    match details["type"]:
        case "contradiction":
            return details["msg"]
        case "literal_error" if new := _renamed(key.name, details["input"]):
            old, new = show_value(details["input"]), show_value(new)
            return f"{old} is now {new}; set {key.name} = {new}"
        case "missing":
            problem = f"missing. {key.description}"
        case "string_pattern_mismatch":
            problem = "has the wrong form"
        case mistyped if mistyped in _EXPECTED:
            got = _GOT.get(type(details["input"]), "a date or time")
            problem = f"must be {_EXPECTED[mistyped]}, not {got}"
        case _:
            problem = re.sub(r"^(Input|String) should", "must", details["msg"])
    examples = " or ".join(map(show_value, key.examples))
    return f"{problem.rstrip('.')}; for example {key.name} = {examples}"


def _is_path(weights: str) -> bool:
    """Return False for a run, a model on the Hub, or a name in out_dir."""
    is_name = weights.startswith(_NOT_LOCAL)
    return not is_name and ("/" in weights or weights[:1] in ("~", "$"))


def _is_plain_name(weights: str) -> bool:
    return bool(weights) and not _is_path(weights) and not weights.startswith(_NOT_LOCAL)

"""Resolved profiles in plain values and as TOML, and their differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from dpo_cli.profile.schema import KEYS, TABLES, Profile, keys_affecting
from dpo_cli.profile.table import Affects, Effect, Kind
from dpo_cli.profile.text import show_value


@dataclass(frozen=True)
class Change:
    """One key whose value differs between two profiles."""

    key: str
    old: object
    new: object
    effect: Effect
    """Effect of the change on a resumed run."""

    def __str__(self) -> str:
        return f"{self.key}: {show_value(self.old)} -> {show_value(self.new)}"


def differences(old: Profile, new: Profile) -> list[Change]:
    """Return the keys whose values differ, in the order of the schema."""
    return [
        Change(key, old_value, new_value, _effect(key, old_value, new_value))
        for (key, old_value), (_, new_value) in zip(_values(old), _values(new), strict=True)
        if old_value != new_value
    ]


def to_tables(profile: Profile) -> dict[str, dict[str, Any]]:
    """Convert to plain values, without unset keys; the inverse of `from_tables`."""
    tables: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
    for key, value in _values(profile):
        if value is not None:
            table, field = key.split(".")
            tables[table][field] = _plain(value)
    return tables


def values_affecting(
    affects: Affects, tables: Mapping[str, Mapping[str, Any]], *, plain: bool = False
) -> dict[str, Any]:
    """Return the values of `keys_affecting(affects, plain=plain)` in nested tables.

    A key without a value has None.
    """
    split = (key.split(".") for key in keys_affecting(affects, plain=plain))
    return {f"{table}.{field}": tables.get(table, {}).get(field) for table, field in split}


def from_tables(tables: Mapping[str, Any]) -> Profile:
    """Restore the profile from the output of `to_tables`.

    Raises:
        ValueError: the tables are not a valid profile.
    """
    return Profile.model_validate(tables)


def to_toml(profile: Profile) -> str:
    """Convert to TOML without unset keys; loading the text gives an equal profile."""
    tables = to_tables(profile)
    for table, fields in tables.items():
        tables[table] = {f: _literal(f"{table}.{f}", value) for f, value in fields.items()}
    return tomli_w.dumps(tables)


def _effect(key: str, old: object, new: object) -> Effect:
    # A resume compares files by content, so another path is no change.
    has_moved = KEYS[key].kind is not Kind.PLAIN and old is not None and new is not None
    return Effect.NONE if has_moved else KEYS[key].effect


def _values(profile: Profile) -> Iterator[tuple[str, Any]]:
    for key in KEYS:
        table, field = key.split(".")
        yield key, getattr(getattr(profile, table), field)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _literal(key: str, value: Any) -> Any:
    # A resolved path has no variables left, so that each $ is literal and must be escaped.
    if isinstance(value, list):
        return [_literal(key, each) for each in value]
    if KEYS[key].kind is not Kind.PLAIN and str(value).startswith("/"):
        return str(value).replace("$", "$$")
    return value

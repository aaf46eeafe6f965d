"""The schema of a profile, as editors read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_cli.profile.schema import KEYS, TABLES, Key


def json_schema() -> dict[str, Any]:
    """The JSON Schema (Draft 4) that editors complete and check a profile with.

    No key is required in it, since a profile may inherit any by `extends`. The effect of a change
    on a resume is in `x-effect`.
    """
    definitions = {
        table: {
            "type": "object",
            "description": model.__doc__,
            "additionalProperties": False,
            "properties": {
                field: _to_draft4(schema, KEYS[f"{table}.{field}"])
                for field, schema in model.model_json_schema()["properties"].items()
            },
        }
        for table, model in TABLES.items()
    }
    extends = {
        "type": "string",
        "description": "Another profile whose values hold wherever this one is silent: a path, "
        "relative to this file, or the name of a shipped profile.",
    }
    return {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "title": "dpo profile",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "extends": extends,
            **{table: {"$ref": f"#/definitions/{table}"} for table in TABLES},
        },
        "definitions": definitions,
    }


def _to_draft4(schema: Mapping[str, Any], key: Key) -> dict[str, Any]:
    """One key's schema in Draft 4, where pydantic writes 2020-12; without null: TOML has none."""
    draft4 = {**schema, "description": key.description, "x-effect": key.effect.value}
    branches = [branch for branch in draft4.pop("anyOf", []) if branch != {"type": "null"}]
    for branch in branches:
        if "const" in branch:
            branch["enum"] = [branch.pop("const")]
    if len(branches) > 1:
        draft4["anyOf"] = branches
    else:
        draft4 |= branches[0] if branches else {}
    for unknown in ("title", "examples"):
        draft4.pop(unknown, None)
    for part in (draft4, draft4.get("items", {})):
        for limit in ("Minimum", "Maximum"):
            if (bound := part.pop(f"exclusive{limit}", None)) is not None:
                part |= {limit.lower(): bound, f"exclusive{limit}": True}
    if draft4.get("default", ...) is None:
        del draft4["default"]
    return draft4

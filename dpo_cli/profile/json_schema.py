"""JSON Schema of a profile, for editors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_cli.profile.schema import KEYS, TABLES, Key


def json_schema() -> dict[str, Any]:
    """Build the JSON Schema (Draft 4) for completion and validation in editors.

    No key is required, because a profile may inherit any key by `extends`. `x-effect` is the effect
    of a changed key on a resume.
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
        "description": "Profile to inherit from: a path relative to this file, or the name of a "
        "shipped profile. Keys set here take precedence.",
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
    """Convert one key from pydantic's draft 2020-12 to Draft 4, without null, which TOML lacks."""
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
    # Draft 4 has a boolean beside the limit, 2020-12 has the exclusive limit itself.
    for part in (draft4, draft4.get("items", {})):
        for limit in ("Minimum", "Maximum"):
            if (bound := part.pop(f"exclusive{limit}", None)) is not None:
                part |= {limit.lower(): bound, f"exclusive{limit}": True}
    if draft4.get("default", ...) is None:
        del draft4["default"]
    return draft4

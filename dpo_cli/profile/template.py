"""A new profile as text: every key with its meaning, and the reference's value beside it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from dpo_cli.profile.json_schema import json_schema
from dpo_cli.profile.recipe import Draft
from dpo_cli.profile.schema import KEYS, TABLES, Key, Profile
from dpo_cli.profile.table import Kind
from dpo_cli.profile.text import show_value

SCHEMA_NAME = "dpo.schema.json"

_WIDTH = 96
_SCRIPT_KEYS = frozenset(
    f"{table}.{name}"
    for table, names in {
        "model": ("out_dir", "tokenizer", "hidden_size", "num_hidden_layers", "use_moe"),
        "data": ("data_path", "max_seq_len", "shuffle"),
        "dpo": ("beta", "reduction"),
        "train": (
            *("epochs", "batch_size", "accumulation_steps", "learning_rate", "schedule"),
            *("warmup_iters", "grad_clip", "seed", "device", "log_interval", "save_interval"),
        ),
        "export": ("prefix",),
        "track": ("use_wandb", "wandb_project"),
    }.items()
    for name in names
)
"""What the reference script has too, as an argument or written into it."""


def schema_text() -> str:
    """The JSON Schema as the text of a file."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def render(draft: Draft, title: str, reference: Profile) -> str:
    """The text of a profile, with the schema's file beside it.

    Args:
        draft: what it states; every other key stands there behind a #.
        title: what it is, in a line.
        reference: the script's values for this kind of model.
    """
    lines = [
        f"#:schema {SCHEMA_NAME}",
        "",
        f"# {title}",
        "#",
        "# Every key is here. One behind a # is not stated: the value is its default, or an",
        '# example where "unset" follows. "reference" is the value of the script train_dpo.py.',
        "# Paths are relative to this file.",
    ]
    for table, model in TABLES.items():
        lines += ["", "", *_comment(model.__doc__ or ""), f"[{table}]"]
        for key in KEYS.values():
            if key.name.startswith(f"{table}."):
                lines += ["", *_key_lines(key, draft, reference)]
    return "\n".join(lines) + "\n"


def _key_lines(key: Key, draft: Draft, reference: Profile) -> Iterator[str]:
    yield from _comment(key.description)
    if notes := draft.notes.get(key.name):
        yield from ("#", *(f"# {note}" for note in notes))
    name, beside = key.name.split(".")[1], []
    if key.name in draft.values:
        statement = f"{name} = {show_value(draft.values[key.name])}"
    else:
        value = key.examples[0] if key.default is None else key.default
        statement = f"#{name} = {show_value(value)}"
        beside += ["unset"] if key.default is None else []
    if key.name in _SCRIPT_KEYS:
        beside.append(f"reference: {show_value(_reference_value(key, reference))}")
    yield f"{statement}  # {', '.join(beside)}" if beside else statement


def _reference_value(key: Key, reference: Profile) -> Any:
    """The script's value; of a path its own, relative to its own place."""
    table, name = key.name.split(".")
    value = getattr(getattr(reference, table), name)
    return key.examples[0] if value is None or key.kind is Kind.PATH else value


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        _WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )

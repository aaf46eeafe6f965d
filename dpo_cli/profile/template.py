"""Text of a new profile: every key with its description and the value of MiniMind's script."""

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
"""Keys that MiniMind's script train_dpo.py has, too, as arguments or as constants."""


def schema_text() -> str:
    """Format the JSON Schema as the text of a file."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def render(draft: Draft, title: str, minimind: Profile) -> str:
    """Format a draft as a profile that uses the schema file beside it.

    Args:
        draft: values to set; all other keys are commented out.
        title: first line of the profile.
        minimind: values of MiniMind's script for this kind of model.
    """
    lines = [
        f"#:schema {SCHEMA_NAME}",
        "",
        f"# {title}",
        "#",
        '# Commented-out keys keep their default; "unset" marks keys without one, with an example.',
        '# "minimind" is the value of MiniMind\'s script train_dpo.py.',
        "# Paths are relative to this file.",
    ]
    for table, model in TABLES.items():
        lines += ["", "", *_comment(model.__doc__ or ""), f"[{table}]"]
        for key in KEYS.values():
            if key.name.startswith(f"{table}."):
                lines += ["", *_key_lines(key, draft, minimind)]
    return "\n".join(lines) + "\n"


def _key_lines(key: Key, draft: Draft, minimind: Profile) -> Iterator[str]:
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
        beside.append(f"minimind: {show_value(_minimind_value(key, minimind))}")
    yield f"{statement}  # {', '.join(beside)}" if beside else statement


def _minimind_value(key: Key, minimind: Profile) -> Any:
    table, name = key.name.split(".")
    value = getattr(getattr(minimind, table), name)
    # The example of a path is the script's own, relative to the script.
    return key.examples[0] if value is None or key.kind in (Kind.PATH, Kind.DATA) else value


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        _WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )

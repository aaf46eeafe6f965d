"""Text of a new profile: the important keys, or every key with its description."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from dpo_cli.profile.json_schema import json_schema
from dpo_cli.profile.recipe import Draft
from dpo_cli.profile.schema import KEYS, TABLES, Key, Profile
from dpo_cli.profile.table import Kind
from dpo_cli.profile.text import show_value

SCHEMA_NAME = "dpo.schema.json"

_WIDTH = 96
_UNBROKEN = 10_000
"""Width that no line reaches, for a command that is copied whole."""
_IMPORTANT_KEYS = (
    *("model.out_dir", "model.weights", "model.tokenizer", "data.data_path", "data.max_seq_len"),
    *("dpo.beta", "dpo.reduction", "train.epochs", "train.batch_size", "train.learning_rate"),
    *("eval.fraction", "eval.interval"),
)
"""Keys that a short profile has also with their default, first in their table."""
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
    }.items()
    for name in names
)
"""Keys that MiniMind's script train_dpo.py has, too, as arguments or as constants."""
_WITHOUT_EXAMPLES = "model"
"""Table whose examples fit one model and would be wrong for most others."""


def schema_text() -> str:
    """Format the JSON Schema as the text of a file."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def render_short(draft: Draft, title: str, show_all: str) -> str:
    """Format a draft as a profile with the important keys, each with one sentence about it.

    Args:
        draft: values to set; those that equal the default are left out.
        title: first line of the profile.
        show_all: command line that shows all keys.
    """
    lines = [
        f"#:schema {SCHEMA_NAME}",
        "",
        f"# {title}",
        *_comment(f"All keys with their values: {show_all}", _UNBROKEN),
        "# Paths are relative to this file.",
        *_remarks(draft),
    ]
    for table in TABLES:
        keys = [key for key in KEYS.values() if key.name.startswith(f"{table}.")]
        important = [
            key for key in keys if key.name in _IMPORTANT_KEYS and key.name in draft.values
        ]
        others = [
            key
            for key in keys
            if key not in important
            and key.name in draft.values
            and (key.name in draft.origins or draft.values[key.name] != key.default)
        ]
        if important or others:
            lines += ["", f"[{table}]"]
        for key in important:
            lines += _comment(_first_sentence(key.description))
            lines += [f"# {note}" for note in draft.notes.get(key.name, ())]
            lines.append(_with_remarks(_statement(key, draft), _origin(key, draft)))
        for key in others:
            if key.name not in draft.origins:  # otherwise the origin beside the key explains it
                lines += _comment(_first_sentence(key.description))
            lines.append(_with_remarks(_statement(key, draft), _origin(key, draft)))
    return "\n".join(lines) + "\n"


def render(draft: Draft, title: str, minimind: Profile | None) -> str:
    """Format a draft as a profile with every key and its whole description.

    Args:
        draft: values to set; all other keys are commented out.
        title: first line of the profile.
        minimind: values of MiniMind's script for this kind of model; None for other models.
    """
    lines = [
        f"#:schema {SCHEMA_NAME}",
        "",
        f"# {title}",
        "#",
        '# Commented-out keys keep their default; "unset" marks keys without one, with an example.',
    ]
    if minimind:
        lines.append('# "minimind" is the value of MiniMind\'s script train_dpo.py.')
    lines += ["# Paths are relative to this file.", *_remarks(draft)]
    for table, model in TABLES.items():
        lines += ["", "", *_comment(model.__doc__ or ""), f"[{table}]"]
        for key in KEYS.values():
            if key.name.startswith(f"{table}."):
                lines += ["", *_key_lines(key, draft, minimind)]
    return "\n".join(lines) + "\n"


def _remarks(draft: Draft) -> list[str]:
    return ["#", *(f"# {line}".rstrip() for line in draft.remarks)] if draft.remarks else []


def _origin(key: Key, draft: Draft) -> list[str]:
    return [draft.origins[key.name]] if key.name in draft.origins else []


def _with_remarks(statement: str, remarks: Sequence[str]) -> str:
    return f"{statement}  # {', '.join(remarks)}" if remarks else statement


def _statement(key: Key, draft: Draft) -> str:
    return f"{key.name.split('.')[1]} = {show_value(draft.values[key.name])}"


def _key_lines(key: Key, draft: Draft, minimind: Profile | None) -> Iterator[str]:
    yield from _comment(key.description)
    if notes := draft.notes.get(key.name):
        yield from ("#", *(f"# {note}" for note in notes))
    name, beside = key.name.split(".")[1], _origin(key, draft)
    if key.name in draft.values:
        statement = _statement(key, draft)
    elif key.default is not None:
        statement = f"#{name} = {show_value(key.default)}"
    elif key.name.startswith(f"{_WITHOUT_EXAMPLES}."):
        statement = f"#{name} ="
        beside.append("unset")
    else:
        statement = f"#{name} = {show_value(key.examples[0])}"
        beside.append("unset")
    if minimind and key.name in _SCRIPT_KEYS:
        value = _minimind_value(key, minimind)
        if value is not None:
            beside.append(f"minimind: {show_value(value)}")
    yield _with_remarks(statement, beside)


def _minimind_value(key: Key, minimind: Profile) -> Any:
    table, name = key.name.split(".")
    # The example of a path is the script's own, relative to the script.
    if key.kind in (Kind.PATH, Kind.DATA):
        return key.examples[0]
    return getattr(getattr(minimind, table), name)


def _first_sentence(text: str) -> str:
    return f"{text.split('. ')[0].rstrip('.')}."


def _comment(text: str, width: int = _WIDTH) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )

"""Data sets as other tools name them: dataset_info.json, Axolotl's types, mixers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpo_cli.profile.foreign.documents import read_json
from dpo_cli.profile.foreign.rules import (
    Context,
    NoCounterpartError,
    items,
    mapping,
    number,
    on_hub,
    place,
    text,
)

_PATH, _COLUMNS, _FORMAT = "data.data_path", "data.columns", "data.format"
_INFO = "dataset_info.json"
_FACTORY_COLUMNS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "alpaca": {
        "prompt": ("instruction", "instruction"),
        "query": ("input", "input"),
        "history": ("history", "history"),
        "system": ("system", "system"),
        "chosen": ("chosen", "chosen"),
        "rejected": ("rejected", "rejected"),
    },
    "sharegpt": {
        "messages": ("conversations", "conversations"),
        "system": ("system", "system"),
        "tools": ("tools", "tools"),
        "chosen": ("chosen", "chosen"),
        "rejected": ("rejected", "rejected"),
    },
}
"""For each column of LLaMA-Factory its usual name there, and the column of our format."""
_FACTORY_READ = ("file_name", "hf_hub_url", "subset", "split", "formatting", "columns", "ranking")
_OPENAI_TAGS = {"role_tag": "role", "content_tag": "content"}
_AXOLOTL_TYPES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "intel": ("plain", {"prompt": "question"}),
    "argilla": ("swift", {}),
    "argilla_chat": ("minimind", {}),
    "icr": ("plain", {"prompt": "input"}),
    "ultra": ("ultrafeedback", {}),
    "prompt_pairs": ("plain", {}),
    "default": ("", {}),
}
"""Format and columns of Axolotl's types, by what follows "chatml." or "llama3."."""
_AXOLOTL_COLUMNS = {
    "field_messages": "messages",
    "field_prompt": "prompt",
    "field_system": "system",
    "field_chosen": "chosen",
    "field_rejected": "rejected",
    "field_tools": "tools",
}
_AXOLOTL_READ = ("path", "data_files", "name", "split", "type", "ds_type", "revision")

_TORCHTUNE_BUILDERS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "preference_dataset": ("", {}),
    "hh_rlhf_helpful_dataset": ("RLHFlow/HH-RLHF-Helpful-standard", {}),
    "stack_exchange_paired_dataset": (
        "lvwerra/stack-exchange-paired",
        {"prompt": "question", "chosen": "response_j", "rejected": "response_k"},
    ),
}
"""Usual source and columns of torchtune's builders."""


def factory_data(value: Any, context: Context) -> Mapping[str, Any]:
    """Translate LLaMA-Factory's `dataset`, whose names dataset_info.json explains."""
    names = items(value)
    folder = str(context.values.get("dataset_dir", "data"))
    path = context.find(f"{folder}/{_INFO}") or context.find(_INFO)
    if path is None:
        hub = [place(text(name), context) for name in names if "/" in str(name)]
        if len(hub) == len(names):
            return {_PATH: _one_or_all(hub)}
        raise NoCounterpartError(
            f"{folder}/{_INFO} was not found, so its files are unknown; set data.data_path"
        )
    info = read_json(path)
    found: list[dict[str, Any]] = []
    for name in names:
        entry = info.get(str(name)) if isinstance(info, dict) else None
        if not isinstance(entry, dict):
            raise NoCounterpartError(f"{path.name} has no {name!r}; set data.data_path")
        folders = (path.parent, *context.folders)
        inner = Context(context.values, folders, context.profile_folder, context.differences)
        found.append(_factory_entry(str(name), entry, inner))
    return _join_data_sets(found, context)


def factory_held_out(value: Any, context: Context) -> Mapping[str, Any]:
    """Translate LLaMA-Factory's `eval_dataset`."""
    data = factory_data(value, context)[_PATH]
    if isinstance(data, list):
        raise NoCounterpartError("several sets of held-out pairs; eval.path names one")
    return {"eval.path": data}


def _factory_entry(name: str, entry: Mapping[str, Any], context: Context) -> dict[str, Any]:
    if entry.get("hf_hub_url"):
        data = _on_hub(entry["hf_hub_url"], entry.get("subset"), entry.get("split"))
    elif entry.get("file_name"):
        data = context.path(text(entry["file_name"]))
    else:
        raise NoCounterpartError(f"{name} names no file and no Hub data set; set data.data_path")
    if not entry.get("ranking"):
        context.differences.append(f'{name} has no "ranking": true, so it may hold no pairs')
    formatting = str(entry.get("formatting", "alpaca"))
    known = _FACTORY_COLUMNS.get(formatting)
    if known is None:
        raise NoCounterpartError(f"{name} has the formatting {formatting!r}; set data.format")
    tags = mapping(entry.get("tags"))
    is_openai = all(tags.get(tag) == usual for tag, usual in _OPENAI_TAGS.items())
    if is_openai and formatting == "sharegpt":
        known = {**known, "messages": ("messages", "messages")}
    columns, given = {}, mapping(entry.get("columns"))
    for column, named in given.items():
        usual = known.get(column)
        if usual is None:
            context.differences.append(f"{name}: the column {column} = {named!r} is not read")
        elif named != usual[1]:
            columns[usual[1]] = text(named)
    others = [key for key in entry if key not in (*_FACTORY_READ, "tags")]
    if tags and not is_openai:
        others.append("tags")
    context.differences.extend(f"{name}: {each} in {_INFO} is not used" for each in others)
    result: dict[str, Any] = {_PATH: data}
    if columns:
        ours = "messages" if is_openai else formatting
        result |= {_COLUMNS: columns, _FORMAT: ours}
    return result


def axolotl_data(value: Any, context: Context) -> Mapping[str, Any]:
    """Translate Axolotl's list `datasets`."""
    if not isinstance(value, list) or not value:
        raise NoCounterpartError("must be a list of data sets; set data.data_path")
    return _join_data_sets([_axolotl_entry(each, context) for each in value], context)


def axolotl_held_out(value: Any, context: Context) -> Mapping[str, Any]:
    """Translate Axolotl's list `test_datasets`."""
    data = axolotl_data(value, context)[_PATH]
    if isinstance(data, list):
        raise NoCounterpartError("several sets of held-out pairs; eval.path names one")
    return {"eval.path": data}


def _axolotl_entry(entry: Any, context: Context) -> dict[str, Any]:
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        raise NoCounterpartError("a data set needs a path; set data.data_path")
    name = entry["path"]
    if name in ("json", "parquet", "csv") and entry.get("data_files"):
        files = [context.path(text(each)) for each in items(entry["data_files"])]
        result: dict[str, Any] = {_PATH: _one_or_all(files)}
    elif context.find(name) is None and on_hub(name):
        result = {
            _PATH: _on_hub(name, entry.get("name"), entry.get("split"), entry.get("revision"))
        }
        if entry.get("data_files"):
            context.differences.append(f"{name}: data_files is not used; all of its files are read")
    else:
        result = {_PATH: context.path(name)}
    kind = entry.get("type")
    template, fields = ("", kind) if isinstance(kind, dict) else (str(kind or ""), entry)
    columns = {
        ours: text(fields[foreign_name])
        for foreign_name, ours in _AXOLOTL_COLUMNS.items()
        if isinstance(fields.get(foreign_name), str) and fields[foreign_name] != ours
    }
    suffix = template.rpartition(".")[2]
    if template.startswith(("chatml.", "llama3.", "chat_template.")) and suffix in _AXOLOTL_TYPES:
        ours, own = _AXOLOTL_TYPES[suffix]
        columns = {**own, **columns}
        if template.startswith("chat_template"):
            ours = "messages" if columns else ""
        if (ours and columns) or ours in ("swift", "minimind", "ultrafeedback"):
            result[_FORMAT] = ours
    elif template and not template.startswith("user_defined"):
        context.differences.append(
            f"{name}: the type {template} is unknown; the format is detected"
        )
    if columns:
        result[_COLUMNS] = columns
        result.setdefault(_FORMAT, "messages" if "messages" in columns else "plain")
    read = (*_AXOLOTL_READ, *_AXOLOTL_COLUMNS)
    unread = [key for key in entry if key not in read and not _is_unchanged(entry[key], key)]
    if isinstance(kind, dict):
        unread += [f"type.{key}" for key in kind if key not in _AXOLOTL_COLUMNS]
    elif template:
        context.differences.append(
            f"{name}: the chat template of the tokenizer renders the pairs, not {template}"
        )
    context.differences.extend(f"{name}: {each} is not used" for each in unread)
    return result


def _is_unchanged(value: Any, key: str) -> bool:
    """Return True for Axolotl's names of the parts of a message if they are the usual ones."""
    return (
        key == "message_property_mappings"
        and isinstance(value, Mapping)
        and all(name == usual for usual, name in value.items())
    )


def swift_data(value: Any, context: Context) -> Mapping[str, Any]:
    """Translate ms-swift's `dataset`: NAME[:SUBSET][#ROWS], of ModelScope or the Hub."""
    found = []
    on_hf = str(context.values.get("use_hf", "")).lower() in ("true", "1")
    for each in items(value):
        name, _, rows = text(each).partition("#")
        if rows:
            context.differences.append(f"{name}: all rows are used, not {rows}")
        source, _, plain = name.rpartition("::")
        if context.find(name) is not None or not on_hub(plain.partition(":")[0]):
            found.append(context.path(name))
            continue
        repository, _, subset = plain.partition(":")
        if source.upper() != "HF" and not on_hf:
            context.differences.append(
                f"{repository} is a name of ModelScope; check that the Hub has the same data"
            )
        found.append(_on_hub(repository, subset))
    return {_PATH: _one_or_all(found)}


def mixer(value: Any, context: Context) -> Mapping[str, Any]:
    """Translate open-instruct's mixers: {NAME: SHARE}, or [NAME, SHARE, NAME, SHARE]."""
    if isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        listed = items(value)
        pairs = list(zip(listed[::2], listed[1::2], strict=False))
        if len(listed) % 2:
            raise NoCounterpartError("must be names, each with its share; set data.data_path")
    found, weights = [], []
    for name, share in pairs:
        amount = number(share)
        if amount > 1 and "." not in str(share):
            context.differences.append(f"{name}: all rows are used, not {share}")
            amount = 1.0
        found.append(place(text(name), context))
        weights.append(amount)
    result = {_PATH: _one_or_all(found)}
    return result if set(weights) == {1.0} else {**result, "data.mixture_weights": weights}


def torchtune_data(value: Any, context: Context) -> Mapping[str, Any]:
    """Translate torchtune's `dataset`: a builder with its arguments."""
    if not isinstance(value, Mapping):
        raise NoCounterpartError("several data sets; set data.data_path to a list")
    builder = str(value.get("_component_", "")).rpartition(".")[2]
    known = _TORCHTUNE_BUILDERS.get(builder)
    if known is None:
        raise NoCounterpartError(f"the data set {builder!r} is unknown; set data.data_path")
    source, usual = known
    source = text(value.get("source", source))
    if value.get("data_files"):
        files = [context.path(text(each)) for each in items(value["data_files"])]
        result: dict[str, Any] = {_PATH: _one_or_all(files)}
    else:
        result = {_PATH: _on_hub(source, value.get("name"), value.get("split"))}
    renamed = mapping(value.get("column_map")) or usual
    columns = {
        ours: text(foreign_name) for ours, foreign_name in renamed.items() if foreign_name != ours
    }
    if columns:
        result |= {_COLUMNS: columns, _FORMAT: "plain"}
    read = ("_component_", "source", "data_files", "name", "split", "column_map")
    context.differences.extend(f"dataset.{each} is not used" for each in value if each not in read)
    return result


def _on_hub(name: Any, config: Any = None, split: Any = None, revision: Any = None) -> str:
    """Return the name of a data set on the Hub, with its parts."""
    result = f"hf:{text(name)}" + (f"@{text(revision)}" if revision else "")
    if config or split not in (None, "", "train"):
        part = text(config) if config else "default"
        result += f":{part}" + (f"/{text(split)}" if split else "")
    return result


def _one_or_all(found: Sequence[str]) -> Any:
    return found[0] if len(found) == 1 else list(found)


def _join_data_sets(found: Sequence[Mapping[str, Any]], context: Context) -> Mapping[str, Any]:
    """Join several data sets, which must have the same columns."""
    named = [each[_PATH] for each in found]
    paths = [path for each in named for path in (each if isinstance(each, list) else [each])]
    shapes = [{key: value for key, value in each.items() if key != _PATH} for each in found]
    if any(shape != shapes[0] for shape in shapes):
        context.differences.append(
            "the data sets have different formats or columns, and data.format and data.columns"
            " apply to all: convert them to one format"
        )
        return {_PATH: _one_or_all(paths)}
    return {_PATH: _one_or_all(paths), **shapes[0]}

"""Hugging Face model directories, by the names of their files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_cli.errors import DpoError, first_line
from dpo_cli.shell import quote
from dpo_cli.signatures import HEAD_BYTES, refuse

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
ADAPTER = "adapter_config.json"
_INDEX = ".index.json"
_MAX_JSON_BYTES = 1 << 24
_MAX_NAME_BYTES = 255
_WEIGHTS = (WEIGHTS, "pytorch_model.bin")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
"""Required files of a tokenizer."""
TOKENIZER_OPTIONAL = (
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model"),
    *("sentencepiece.bpe.model", "tekken.json"),
)
"""Optional files of a tokenizer."""
TEMPLATES = "additional_chat_templates"
"""Directory with further chat templates of a tokenizer, for example for tools."""
_SHARD = re.compile(r"(model|pytorch_model)(-\d{5}-of-\d{5})(\.safetensors|\.bin)")
_OTHER_WEIGHTS = (
    (r".*\.gguf", "weights in GGUF"),
    (r"consolidated.*\.(pth|safetensors)", "weights in the original layout of their makers"),
    (r"tf_model.*\.h5|.*\.keras", "weights of TensorFlow"),
    (r"flax_model.*\.msgpack", "weights of Flax"),
    (r".*\.onnx", "weights in ONNX"),
    (r".*\.(safetensors|bin|pth|pt|ckpt)", "weights under another name"),
)
"""Files of weights that are not read, and their names for users."""
_OTHER_TOKENIZERS = (
    (("tokenizer.model",), "a SentencePiece or tiktoken model"),
    (("spiece.model",), "a SentencePiece model"),
    (("sentencepiece.bpe.model",), "a SentencePiece model"),
    (("vocab.json", "merges.txt"), "a vocabulary with merges"),
    (("vocab.txt",), "a WordPiece vocabulary"),
    (("*.tiktoken",), "a tiktoken vocabulary"),
    (("tekken.json",), "a tekken vocabulary"),
)
"""Files of tokenizers that are not read, and their names for users."""
CARD = "README.md"
WRITTEN = frozenset(
    (CARD, CONFIG, GENERATION_CONFIG, WEIGHTS, *TOKENIZER, *TOKENIZER_OPTIONAL, TEMPLATES)
)
"""Files and directories that an export writes."""


def exists(path: Path) -> bool:
    """Return True if there is such a file; False also for a name that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_model(folder: Path) -> bool:
    """Return True if the directory has a model config."""
    return exists(folder / CONFIG) and (folder / CONFIG).is_file()


def is_adapter(folder: Path) -> bool:
    """Return True if the directory has the config of an adapter."""
    return (folder / ADAPTER).is_file()


def has_weights(folder: Path) -> bool:
    """Return True if the directory has weights, in one file or sharded."""
    return any((folder / f"{name}{end}").is_file() for name in _WEIGHTS for end in ("", _INDEX))


def has_chat_template(folder: Path) -> bool:
    """Return True if the tokenizer in a directory has a chat template, which training needs."""
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    if any((folder / TEMPLATES).glob("*.jinja")):
        return True
    try:
        return bool(read_json(folder / TOKENIZER[1]).get("chat_template"))
    except DpoError:
        return False


def longest_input(folder: Path) -> int | None:
    """Return the number of positions that a model was made for; None if config.json lacks it."""
    try:
        config = read_json(folder / CONFIG)
    except DpoError:
        return None
    lengths = [config.get(name) for name in ("max_position_embeddings", "n_positions")]
    return next((each for each in lengths if type(each) is int and each > 1), None)


def tokenizer_files(folder: Path) -> list[str]:
    """Return the names of the tokenizer's files that exist, relative to the directory."""
    names = [name for name in (*TOKENIZER, *TOKENIZER_OPTIONAL) if (folder / name).is_file()]
    templates = sorted((folder / TEMPLATES).glob("*.jinja"))
    return names + [f"{TEMPLATES}/{path.name}" for path in templates if path.is_file()]


def other_files(folder: Path) -> set[str]:
    """Return the names of files that belong to no model; empty if there is no directory."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not is_model(folder):
        return names
    weights = {path.name for path in weight_files(folder)} if has_weights(folder) else set()
    return names - WRITTEN - weights - {f"{name}{_INDEX}" for name in _WEIGHTS}


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights: one, or the shards that an index names.

    Raises:
        DpoError: there are no weights, or the index is damaged.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}{_INDEX}"
        if index.is_file():
            parts = read_json(index).get("weight_map")
            if not isinstance(parts, dict) or not all(map(_is_plain, parts.values())):
                raise DpoError(f"{index}: has no valid weight_map", "Copy or download it again.")
            return sorted(folder / part for part in set(parts.values()))
    raise missing_weights(folder)


def missing_weights(folder: Path) -> DpoError:
    """Return the error for a directory without readable weights, by the files that it has."""
    if is_adapter(folder):
        return DpoError(
            f"{folder} holds an adapter{_base_of(folder / ADAPTER)}, not a whole model",
            "Set model.weights to its base model and model.adapter to this directory. Or merge it"
            + how_to_merge(folder).removeprefix("Merge it"),
        )
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if shards := [name for name in names if _SHARD.fullmatch(name)]:
        index = _SHARD.sub(r"\1\3", shards[0]) + _INDEX
        return DpoError(
            f"{folder} has {shards[0]}, but no {index}", "Copy or download the index, too."
        )
    for pattern, what in _OTHER_WEIGHTS:
        if found := [name for name in names if re.fullmatch(pattern, name)]:
            return DpoError(
                f"{folder} has only {what} ({found[0]})", f"Use a version with {WEIGHTS}."
            )
    return DpoError(
        f"{folder} has a {CONFIG}, but no {WEIGHTS}",
        "Copy or download it again.",
    )


def how_to_merge(adapter: Path) -> str:
    """Return the remedy for the directory of an adapter, with the command that merges it."""
    return (
        'Merge it: python -c "import sys, peft;'
        " peft.AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]).merge_and_unload()"
        f".save_pretrained(sys.argv[1] + '-merged')\" {quote(str(adapter))}"
    )


def missing_tokenizer(folder: Path) -> DpoError | None:
    """Return the error for a directory with a tokenizer in other files than `tokenizer.json`."""
    for patterns, what in _OTHER_TOKENIZERS:
        names = [next(iter(sorted(folder.glob(pattern))), None) for pattern in patterns]
        if all(names) and not (folder / TOKENIZER[0]).exists():
            shown = ", ".join(path.name for path in names if path)
            return DpoError(
                f"{folder} has {what} ({shown}), but no {TOKENIZER[0]}",
                'Convert it: python -c "import sys, transformers; transformers.AutoTokenizer'
                '.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])"'
                f" {quote(str(folder))}",
            )
    return None


def _base_of(path: Path) -> str:
    try:
        base = read_json(path).get("base_model_name_or_path")
    except DpoError:
        return ""
    return f" of {base}" if isinstance(base, str) and base.isprintable() and base else ""


def read_json(path: Path) -> Mapping[str, Any]:
    """Read the object in a JSON file.

    Raises:
        DpoError: the file cannot be read, or holds no object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"it has {path.stat().st_size >> 20} MiB")
        raw = path.read_bytes()
        refuse(path, raw[:HEAD_BYTES])
        content = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise DpoError(
            f"{path}: cannot be read as JSON ({first_line(error)})", "Copy or download it again."
        ) from error
    if not isinstance(content, dict):
        raise DpoError(f"{path}: is not a JSON object", "Copy or download it again.")
    return content


def _is_plain(name: object) -> bool:
    # An index must not point outside of its directory.
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
        return False
    return len(name.encode(errors="replace")) <= _MAX_NAME_BYTES

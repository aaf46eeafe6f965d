"""Shell command that chats with exported weights, in transformers or in MiniMind's own script."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpo_cli.models.minimind import MiniMind
from dpo_cli.models.spec import Architecture
from dpo_cli.shell import join, quote

_MINIMIND_VOCABULARY = 6400
"""Vocabulary of both MiniMind tokenizers, which MiniMind's own scripts load."""
_Script = Literal["eval_model.py", "eval_llm.py"]
_PREFIX = "rlhf"


@dataclass(frozen=True)
class TryCommand:
    """Shell command that chats with weights.

    Attributes:
        text: the command.
        is_minimind_script: the command runs a script of a MiniMind checkout.
    """

    text: str
    is_minimind_script: bool


def try_command(path: Path, architecture: Architecture) -> TryCommand | None:
    """Return a shell command that chats with these weights.

    A directory is used with a pipeline of transformers, a MiniMind file with MiniMind's own script,
    from the root of its checkout. A file whose name the script cannot load is copied first. None
    if the vocabulary is not MiniMind's, because the scripts load MiniMind's own tokenizer.
    """
    if not isinstance(architecture, MiniMind):
        pipe = f"pipeline('text-generation', {str(path)!r})"
        turns = "[{'role': 'user', 'content': 'Hello'}]"
        code = f"from transformers import pipeline; print({pipe}({turns})[0]['generated_text'])"
        return TryCommand(f"python -c {quote(code)}", is_minimind_script=False)
    if architecture.vocab_size != _MINIMIND_VOCABULARY:
        return None
    # Both scripts build the file's name from prefix and shape, and load no other name.
    # eval_model.py has a fixed prefix.
    ending = architecture.file_name("")
    script = _script_of(path, architecture, path.name.removesuffix(ending))
    wanted = f"{_PREFIX}{ending}"
    if path.name.endswith(ending) and (script == "eval_llm.py" or path.name == wanted):
        return TryCommand(_call(script, path, architecture), is_minimind_script=True)
    # A folder of its own, so that the copy replaces no other export.
    copy = path.with_name(path.name.split(".")[0]) / wanted
    folder, source, target = map(os.path.relpath, (copy.parent, path, copy))
    copying = f"{join(['mkdir', '-p', folder])} && {join(['cp', source, target])}"
    calling = _call(script, copy, architecture)
    return TryCommand(f"{copying} && {calling}", is_minimind_script=True)


def _script_of(path: Path, architecture: MiniMind, prefix: str) -> _Script:
    """Return the script that the checkout of the file has; else the one of the weights' version."""
    for folder in (Path.cwd(), path.parent.parent):
        if (folder / "eval_llm.py").is_file():
            return "eval_llm.py"
        if (folder / "eval_model.py").is_file():
            return "eval_model.py"
    # MiniMind's checkouts with version 2 weights and other prefixes have eval_llm.py.
    return "eval_model.py" if architecture.version == 2 and prefix == _PREFIX else "eval_llm.py"


def _call(script: _Script, path: Path, architecture: MiniMind) -> str:
    # A relative path, because eval_model.py puts "./" before its out_dir.
    directory = os.path.relpath(path.parent)
    prefix = path.name.removesuffix(architecture.file_name(""))
    if script == "eval_model.py":
        words = ["--model_mode", "2", "--out_dir", directory]
        moe = ["--use_moe", "True"]
    else:
        words = ["--weight", prefix, "--save_dir", directory]
        moe = ["--use_moe", "1"]
    shape = ["--hidden_size", str(architecture.hidden_size)]
    shape += ["--num_hidden_layers", str(architecture.num_hidden_layers)]
    return join(["python", script, *words, *shape, *(moe if architecture.use_moe else [])])

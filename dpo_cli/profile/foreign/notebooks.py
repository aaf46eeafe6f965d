"""Literal settings in Python scripts and notebook cells; the code is parsed, never run."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dpo_cli.errors import UsageError, first_line

_CONFIGS = ("DPOConfig", "TrainingArguments", "DPOTrainer", "UnslothDPOTrainer")
_ADAPTERS = ("get_peft_model", "LoraConfig", "PeftConfig")
_QUANTIZED = ("BitsAndBytesConfig",)
_MODELS = ("from_pretrained",)
_OBJECTS = ("args", "model", "ref_model", "tokenizer", "processing_class", "peft_config")
"""Arguments that the script builds itself; a rule reads the call that builds them."""
_POSITIONS: Mapping[str, tuple[str, ...]] = {
    "load_dataset": ("dataset_name", "dataset_config"),
    "from_pretrained": ("model_name",),
    "DPOConfig": ("output_dir",),
    "TrainingArguments": ("output_dir",),
}
_DATASET = {
    "path": "dataset_name",
    "name": "dataset_config",
    "split": "dataset_train_split",
    "data_files": "data_files",
    "revision": "dataset_revision",
}


@dataclass
class PythonSettings:
    """Settings of a script.

    Attributes:
        values: literal arguments by name, those of adapters as "peft_config.NAME".
        unread: arguments that are expressions, with their text.
        uses_unsloth: True if the script loads its model with Unsloth.
    """

    values: dict[str, Any] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    uses_unsloth: bool = False


def python_of_notebook(content: str, where: str) -> str:
    """Return the code of a notebook's cells.

    Raises:
        UsageError: it is no notebook.
    """
    try:
        cells = json.loads(content)["cells"]
        sources = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
        return "\n".join("".join(source) for source in sources)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{where}: not a notebook ({first_line(error)})",
            "Save its cells as a .py file, and name that file.",
        ) from error


def parse_python(content: str, where: str) -> PythonSettings:
    """Collect the literal arguments of the calls that configure a DPO run.

    Raises:
        UsageError: it is not Python, or has no such call.
    """
    # Lines for the notebook or the shell are no Python.
    code = re.sub(r"^(\s*)[!%].*$", r"\1pass", content, flags=re.MULTILINE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the file, not about this program
            tree = ast.parse(code)
        nodes = list(ast.walk(tree))
    except SyntaxError as error:
        raise UsageError(
            f"{where}: line {error.lineno}: not valid Python ({error.msg})", "Correct this line."
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise UsageError(
            f"{where}: cannot be parsed as Python ({first_line(error)})",
            "Copy the cell with the settings into a file of its own.",
        ) from error
    names = dict(_assigned(nodes))
    settings = PythonSettings()
    configured = False
    for node in nodes:
        if isinstance(node, ast.Call):
            function = _name(node.func)
            configured |= function in _CONFIGS
            settings.uses_unsloth |= ast.unparse(node.func).startswith("Fast")
            _read_call(node, function, names, settings)
    if not configured:
        raise UsageError(
            f"{where}: no call of DPOConfig, TrainingArguments or DPOTrainer",
            "Name the file or notebook that calls it.",
        )
    return settings


def _read_call(
    node: ast.Call, function: str, names: Mapping[str, Any], settings: PythonSettings
) -> None:
    """Add the arguments of one call."""
    prefix = "peft_config." if function in _ADAPTERS else ""
    if function not in (*_CONFIGS, *_ADAPTERS, *_QUANTIZED, *_MODELS, "load_dataset"):
        return
    if function in _MODELS and "Tokenizer" in ast.unparse(node.func):
        return
    given: list[tuple[str, ast.expr]] = []
    for at, argument in enumerate(node.args):
        known = _POSITIONS.get(function, ())
        if at < len(known):
            given.append((known[at], argument))
        elif not isinstance(argument, ast.Name):
            settings.unread.append(f"{function}(... {ast.unparse(argument)[:80]} ...)")
    for keyword in node.keywords:
        name = keyword.arg or "**"
        given.append(
            (_DATASET.get(name, name) if function == "load_dataset" else name, keyword.value)
        )
    for name, value in given:
        if name in _OBJECTS and not isinstance(value, ast.Constant):
            continue
        try:
            literal = ast.literal_eval(_with_names(value, names))
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            text = ast.unparse(value).replace("\n", " ")[:80]
            settings.unread.append(f"{name} = {text}: an expression, which is not run")
            continue
        settings.values.setdefault(f"{prefix}{name}", literal)


def _assigned(nodes: list[ast.AST]) -> Iterator[tuple[str, ast.expr]]:
    """Yield names that are assigned a literal exactly once."""
    found: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append(node.value)
    for name, values in found.items():
        if len(values) == 1 and isinstance(values[0], ast.Constant | ast.List | ast.UnaryOp):
            yield name, values[0]


def _with_names(value: ast.expr, names: Mapping[str, ast.expr]) -> ast.expr:
    return names.get(value.id, value) if isinstance(value, ast.Name) else value


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")

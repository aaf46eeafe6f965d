"""Reference pages, made from the code when the site is built: commands, profile keys, pair issues.

Each page is Markdown. Headings and labels are in the language of the site; descriptions are those
that `dpo` itself prints.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import typer.main

from dpo_cli import app
from dpo_cli.commands.group import load_command
from dpo_cli.commands.help import command_path, metavar, shown_default, usage
from dpo_cli.findings import PairIssue
from dpo_cli.profile.json_schema import json_schema
from dpo_cli.profile.schema import KEYS, TABLES, Key
from dpo_cli.profile.table import Effect
from dpo_cli.profile.text import show_value

ENGLISH = {
    "commands": "Commands",
    "about commands": "This page is made from the program: each command's own help. "
    "`dpo COMMAND --help` prints the same.",
    "arguments": "Arguments",
    "options": "Options",
    "required": "required",
    "default": "default",
    "keys": "Profile keys",
    "about keys": "This page is made from the schema that checks a profile. `dpo config show "
    "PROFILE` prints the value of each key and where it comes from; `dpo schema` writes the schema "
    "for an editor.",
    "unset": "unset",
    "for example": ", for example",
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "`true` or `false`",
    "object": "table",
    "list of": "list, each ",
    "list of these": "a list of these",
    "or": ", or ",
    "minimum": "at least ",
    "exclusiveMinimum": "above ",
    "maximum": "at most ",
    "exclusiveMaximum": "below ",
    Effect.NONE: "you can change it at a resume",
    Effect.MATHEMATICS: "a change at a resume needs `--allow-changes`",
    Effect.POSITION: "fixed for the run",
    "issues": "Problems of pairs",
    "about issues": "`dpo check` counts pairs with these properties. `dpo data PROFILE "
    "--only NAME` shows those of one kind.",
    "name": "name",
    "meaning": "meaning",
}
CHINESE = {
    "commands": "命令",
    "about commands": "本页由程序生成：每个命令自己的帮助（英文），"
    "`dpo COMMAND --help` 打印同样的内容。",
    "arguments": "参数",
    "options": "选项",
    "required": "必填",
    "default": "默认",
    "keys": "配置键",
    "about keys": "本页由检查配置的模式（schema）生成，说明为英文。"
    "`dpo config show PROFILE` 打印每个键的值和来源；`dpo schema` 写出供编辑器使用的模式。",
    "unset": "不设",
    "for example": "，例如",
    "string": "文本",
    "integer": "整数",
    "number": "数",
    "boolean": "`true` 或 `false`",
    "object": "表",
    "list of": "列表，每个是",
    "list of these": "由这些组成的列表",
    "or": "，或者",
    "minimum": "不小于 ",
    "exclusiveMinimum": "大于 ",
    "maximum": "不大于 ",
    "exclusiveMaximum": "小于 ",
    Effect.NONE: "续训时可以改变",
    Effect.MATHEMATICS: "续训时改变需要 `--allow-changes`",
    Effect.POSITION: "在一次训练中不能改变",
    "issues": "偏好对的问题",
    "about issues": "`dpo check` 统计有这些特征的偏好对（说明为英文）。"
    "`dpo data PROFILE --only NAME` 显示其中一种。",
    "name": "名称",
    "meaning": "含义",
}


def pages(language: str) -> dict[str, str]:
    """Return the Markdown of each page by file name.

    Args:
        language: "en" or "zh".
    """
    labels = CHINESE if language == "zh" else ENGLISH
    return {
        "commands.md": "\n".join(_commands(labels)),
        "keys.md": "\n".join(_keys(labels)),
        "pair-issues.md": "\n".join(_pair_issues(labels)),
    }


def _commands(labels: Mapping[str, str]) -> Iterator[str]:
    yield f"# {labels['commands']}\n\n{labels['about commands']}\n"
    group = typer.main.get_command(app.app)
    root = group.make_context("dpo", [], resilient_parsing=True)
    for name, module in app.CommandGroup.modules.items():
        yield from _command(load_command(name, module), root, labels)


def _command(command: Any, parent: Any, labels: Mapping[str, str], level: int = 2) -> Iterator[str]:
    """Yield the section of a command, and of the commands of a group below it."""
    context = command.context_class(command, info_name=command.name, parent=parent)
    yield f"{'#' * level} `{command_path(context)}`\n"
    yield f"{command.help or ''}\n"
    yield f"```\n{usage(context)}\n```\n"
    for kind in ("argument", "option"):
        parameters = [p for p in command.params if p.param_type_name == kind]
        if parameters:
            yield f"**{labels[f'{kind}s']}**\n"
        for parameter in parameters:
            yield from _parameter(parameter, labels)
    for child in getattr(command, "commands", {}).values():
        yield from _command(child, context, labels, level + 1)


def _parameter(parameter: Any, labels: Mapping[str, str]) -> Iterator[str]:
    names = [metavar(parameter)]
    if parameter.param_type_name == "option":
        value = "" if parameter.is_flag else f" {names[0]}"
        names = [f"{name}{value}" for name in (*parameter.opts, *parameter.secondary_opts)]
    remarks = [labels["required"]] if parameter.required else []
    default = shown_default(parameter)
    if default is not None:
        remarks.append(f"{labels['default']} `{default}`")
    yield ", ".join(f"`{name}`" for name in names)
    about = [parameter.help or "", *([f"({', '.join(remarks)})"] if remarks else [])]
    yield f":   {' '.join(about)}\n"


def _keys(labels: Mapping[str, str]) -> Iterator[str]:
    yield f"# {labels['keys']}\n\n{labels['about keys']}\n"
    definitions = json_schema()["definitions"]
    for table, model in TABLES.items():
        yield f"## `[{table}]`\n\n{' '.join((model.__doc__ or '').split())}\n"
        for field, schema in definitions[table]["properties"].items():
            key = KEYS[f"{table}.{field}"]
            remarks = [type_text(schema, labels)]
            remarks.append(labels["required"] if key.is_required else _default(key, labels))
            yield f"### `{key.name}`\n"
            yield f"{' · '.join([*remarks, labels[key.effect]])}\n{{ .facts }}\n"
            yield f"{_with_links(key.description, key.name)}\n"


def _default(key: Key, labels: Mapping[str, str]) -> str:
    """Describe the default of a key; of a key without one, a value that it may have."""
    if key.default is not None:
        return f"{labels['default']} `{show_value(key.default)}`"
    example = next((value for value in key.examples if value is not None), None)
    unset = labels["unset"]
    return unset if example is None else f"{unset}{labels['for example']} `{show_value(example)}`"


def type_text(schema: Mapping[str, Any], labels: Mapping[str, str] = ENGLISH) -> str:
    """Describe the type of a key, from its part of the JSON Schema, with its limits."""
    if "anyOf" in schema:
        first, *others = schema["anyOf"]
        texts = [type_text(first, labels)]
        for branch in others:
            is_list = branch.get("items") == first
            texts.append(labels["list of these"] if is_list else type_text(branch, labels))
        return labels["or"].join(texts)
    if "enum" in schema:
        return ", ".join(f"`{show_value(value)}`" for value in schema["enum"])
    if schema["type"] == "array":
        return labels["list of"] + type_text(schema["items"], labels)
    parts = [labels[schema["type"]]]
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if bound in schema:
            word = labels[exclusive if schema.get(exclusive) else bound]
            parts.append(f"{word}{show_value(schema[bound])}")
    return ", ".join(parts)


def _with_links(description: str, own_name: str) -> str:
    """Escape a description for Markdown, with links to the other keys that it names."""
    table = own_name.split(".")[0]
    text = re.sub(r"([*<>\[\]`\\|])", r"\\\1", description)

    def link(match: re.Match[str]) -> str:
        name = match.group() if match.group() in KEYS else f"{table}.{match.group()}"
        if name not in KEYS:
            return match.group()
        shown = f"`{match.group()}`"
        return shown if name == own_name else f"[{shown}](#{name.replace('.', '')})"

    return re.sub(r"[a-z]+\.\w+|\b\w+_\w+\b", link, text)


def _pair_issues(labels: Mapping[str, str]) -> Iterator[str]:
    yield f"# {labels['issues']}\n\n{labels['about issues']}\n"
    yield f"| {labels['name']} | {labels['meaning']} |\n|---|---|"
    for issue, text in member_docstrings(PairIssue).items():
        yield f"| `{issue.value}` | {text} |"


def member_docstrings(enum: type[Enum]) -> dict[Enum, str]:
    """Return the docstring below each member of an enum, which Python itself does not keep."""
    [definition] = ast.parse(inspect.getsource(enum)).body
    assert isinstance(definition, ast.ClassDef)
    texts: dict[Enum, str] = {}
    for before, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(before, ast.Assign) and isinstance(after, ast.Expr):
            [name] = before.targets
            texts[enum[ast.unparse(name)]] = " ".join(ast.literal_eval(after.value).split())
    return texts

"""Help pages of the commands, as plain text that fits the terminal."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Any

import typer
from typer.core import TyperCommand

from dpo_cli.errors import naming
from dpo_cli.streams import stream_name

HELP_OPTIONS = ["-h", "--help"]
_WIDEST = 100
_WIDEST_LABEL = 28
_INDENT = "  "


class HelpCommand(TyperCommand):
    """Command with our help page."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; errors of the parser get the context that they lack."""
        try:
            with naming(stream_name(sys.stdout)):  # help options print here
                return super().parse_args(ctx, args)
        except Exception as error:
            if getattr(error, "ctx", ctx) is None:
                error.ctx = ctx  # type: ignore[attr-defined]
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help page."""
        formatter.write(help_page(ctx))


def help_page(ctx: Any) -> str:
    """Return the help page of a command or group: text, usage, arguments, options, example.

    Args:
        ctx: context of the command; its own class differs between versions of typer.
    """
    command = ctx.command
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    paragraphs = [" ".join(each.split()) for each in (command.help or "").split("\n\n")]
    text = [each for each in paragraphs if not each.startswith("Example:")]
    example = [each for each in paragraphs if each.startswith("Example:")]
    parts = [_wrapped(each, width) for each in text]
    parts.append([f"{_heading('Usage:')} {usage(ctx)}"])
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    parts.append(_section("Arguments", [(metavar(p), _about(p)) for p in arguments], width))
    if hasattr(command, "list_commands"):
        children = [(n, command.get_command(ctx, n)) for n in command.list_commands(ctx)]
        rows = [(name, _first_sentence(child.help or "")) for name, child in children]
        parts.append(_section("Commands", rows, width))
    options = [p for p in command.get_params(ctx) if p.param_type_name == "option"]
    parts.append(_section("Options", [(_option(p), _about(p)) for p in options], width))
    parts += [[_plain(each)] for each in example]  # not wrapped, so that it can be pasted
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def usage(ctx: Any) -> str:
    """Return the usage line, for example "dpo train PROFILE [OPTIONS]"."""
    command = ctx.command
    words = [command_path(ctx)]
    if hasattr(command, "list_commands"):
        return " ".join([*words, "COMMAND"])
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            name = metavar(parameter)
            words.append(name if parameter.required else f"[{name}]")
        elif parameter.required:
            words.append(f"{parameter.opts[0]} {metavar(parameter)}")
    return " ".join([*words, "[OPTIONS]"])


def command_path(ctx: Any) -> str:
    """Return the words that name a command, for example "dpo cache size"."""
    words: list[str] = []
    while ctx.parent is not None:
        words.insert(0, ctx.info_name)
        ctx = ctx.parent
    return " ".join(["dpo", *words])


def metavar(parameter: Any) -> str:
    """Return the name of an argument, or of the value of an option."""
    return parameter.metavar or str(parameter.name).upper()


def _option(parameter: Any) -> str:
    short = [name for name in parameter.opts if not name.startswith("--")]
    long = [name for name in [*parameter.opts, *parameter.secondary_opts] if name not in short]
    names = f"{short[0]}, " if short else "    "
    names += ", ".join(long)
    return names if parameter.is_flag else f"{names} {metavar(parameter)}"


def _about(parameter: Any) -> str:
    """Return the help of a parameter, with its default if it has one to show."""
    text = _plain(parameter.help or "")
    default = shown_default(parameter)
    return text if default is None else f"{text} [default: {default}]".strip()


def shown_default(parameter: Any) -> object:
    """Return the default of a parameter if help pages show it, else None."""
    default = parameter.default
    if isinstance(default, Enum):
        default = default.value
    is_shown = parameter.show_default and not parameter.required and not parameter.is_eager
    if not is_shown or default in ((), []) or isinstance(default, bool):
        return None
    result: object = default
    return result


def _section(title: str, rows: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Return a heading and two columns: labels, and texts wrapped to the width."""
    if not rows:
        return []
    labels = [len(label) for label, _ in rows if len(label) <= _WIDEST_LABEL]
    column = max(labels, default=_WIDEST_LABEL) + 2 * len(_INDENT)
    return [_heading(f"{title}:"), *(line for row in rows for line in _row(row, column, width))]


def _row(row: tuple[str, str], column: int, width: int) -> Iterator[str]:
    label, text = row
    first, *others = _wrapped(text, max(width - column, _WIDEST_LABEL)) or [""]
    if len(_INDENT) + len(label) < column:
        yield f"{_INDENT}{label}".ljust(column) + first
    else:
        yield f"{_INDENT}{label}"
        yield " " * column + first
    yield from (" " * column + other for other in others)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(_plain(text), width, break_long_words=False, break_on_hyphens=False)


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def _plain(text: str) -> str:
    """Remove the backticks around code."""
    return text.replace("`", "")


def _heading(text: str) -> str:
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if is_plain else typer.style(text, bold=True)  # removed unless it is a terminal


def parameter_names(parameters: Iterable[Any]) -> list[str]:
    """Return the long options of a command."""
    return [name for p in parameters for name in p.opts if name.startswith("--")]

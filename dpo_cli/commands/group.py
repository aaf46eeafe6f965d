"""Lazy command group: imports the module of a command only when the command is called."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import typer.main
from typer.core import TyperCommand, TyperGroup

from dpo_cli.commands.help import HELP_OPTIONS, HelpCommand, help_page
from dpo_cli.errors import naming
from dpo_cli.streams import stream_name


class HelpGroup(TyperGroup):
    """Group with our help page."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; an error of printing help names the stream."""
        with naming(stream_name(sys.stdout)):
            return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help page."""
        formatter.write(help_page(ctx))


class LazyGroup(HelpGroup):
    """Group that lists its commands without importing them.

    `dpo --help` and shell completion need only names and first lines. The modules import the
    profile's schema (pydantic), which costs more than the whole help page.

    Attributes:
        modules: module path of each command, in the order of the help page. The module defines a
            function of its own last name, or a `typer.Typer` with that name for a subgroup. It may
            define COMMAND_CLASS, a subclass of `TyperCommand`.
    """

    modules: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        # typer reads the names for "Did you mean ...?" from here.
        self.commands = {name: TyperCommand(name) for name in self.modules}

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a stand-in that has only a name and a help text."""
        command = self.commands.get(cmd_name)
        if command is not None and command.help is None:
            command.help = docstring(self.modules[cmd_name])
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that the arguments name."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name, self.modules[name]) if name else command, rest


def load_command(name: str, module: str) -> Any:
    """Import the module of a command and build the command from its function's signature."""
    imported = importlib.import_module(module)
    target = getattr(imported, module.rpartition(".")[2])
    if not isinstance(target, typer.Typer):
        function, target = target, typer.Typer(add_completion=False)
        target.command(name, cls=getattr(imported, "COMMAND_CLASS", HelpCommand))(function)
    target.pretty_exceptions_enable = False
    command = typer.main.get_command(target)
    command.name = name
    command.context_settings["help_option_names"] = HELP_OPTIONS
    return command


def docstring(module: str) -> str:
    """Read the docstring of a command from the source of its module.

    The function has the module's last name; in a subgroup, where that is a `typer.Typer`, it is
    the group's callback `about`.
    """
    spec = importlib.util.find_spec(module)
    source = spec.loader.get_source(module) if spec and spec.loader else ""  # type: ignore[attr-defined]
    names = (module.rpartition(".")[2], "about")
    for node in ast.parse(source or "").body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            return ast.get_docstring(node) or ""
    return ""

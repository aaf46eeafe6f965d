"""Lazy command group: imports the module of a command only when the command is called."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import typer.main
from typer.core import TyperCommand, TyperGroup

from dpo_cli.printable import printable

MARKUP_MODE: Literal["markdown"] = "markdown"


class LazyGroup(TyperGroup):
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

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Parse the arguments of the group itself."""
        with _printable_errors():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Parse the arguments of the command and run it."""
        with _printable_errors():
            return super().invoke(ctx)

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


@contextlib.contextmanager
def _printable_errors() -> Iterator[None]:
    """Make the messages of usage errors safe to print, because typer prints them unchanged.

    They quote arguments, which may be file names that a shell has completed.
    """
    try:
        yield
    except Exception as error:
        if isinstance(message := getattr(error, "message", None), str):
            error.message = printable(message)  # type: ignore[attr-defined]
        raise


def load_command(name: str, module: str) -> Any:
    """Import the module of a command and build the command from its function's signature."""
    imported = importlib.import_module(module)
    target = getattr(imported, module.rpartition(".")[2])
    if not isinstance(target, typer.Typer):
        function, target = target, typer.Typer(add_completion=False)
        target.command(name, cls=getattr(imported, "COMMAND_CLASS", None))(function)
    target.pretty_exceptions_enable = False
    target.rich_markup_mode = MARKUP_MODE
    command = typer.main.get_command(target)
    command.name = name
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

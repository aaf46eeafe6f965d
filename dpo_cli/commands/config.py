"""`dpo config`: show a profile with all its values."""

from __future__ import annotations

from typing import Annotated

import typer

from dpo_cli.commands.group import HelpGroup
from dpo_cli.commands.help import HelpCommand
from dpo_cli.commands.options import ProfileArgument, SetOption
from dpo_cli.printable import escape_toml
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.resolved import to_toml
from dpo_cli.profile.source import scan_lines
from dpo_cli.ui.terminal.console import echo

config = typer.Typer(name="config", cls=HelpGroup, no_args_is_help=True, add_completion=False)


@config.callback()
def about() -> None:
    """Show a profile with everything it extends and with --set.

    Example: `dpo config show my.toml --origins`
    """


@config.command(cls=HelpCommand)
def show(
    profile: ProfileArgument,
    settings: SetOption = None,
    origins: Annotated[
        bool, typer.Option("--origins", help="Show where each value is set.")
    ] = False,
) -> None:
    """Print the resolved profile as TOML: all keys that have a value, and absolute paths.

    Example: `dpo config show dense --set train.epochs=1 --origins`
    """
    loaded = load_profile(profile, settings or ())
    text = to_toml(loaded.profile)
    if origins:
        # A key of an inline table, as in data.columns, has the origin of its table.
        where = {
            line: loaded.origins[".".join(key.split(".")[:2])]
            for key, line in scan_lines(text).items()
            if "." in key
        }
        lines = text.splitlines()
        width = max(len(lines[number - 1]) for number in where)
        for number, origin in where.items():
            lines[number - 1] = f"{lines[number - 1]:<{width}}  # {origin}"
        text = "\n".join(lines) + "\n"
    echo(escape_toml(text), end="")

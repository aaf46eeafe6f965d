"""The whole command line, to compare pages and snapshots with."""

from __future__ import annotations

from typing import Any

import typer.main

from dpo_cli import app
from dpo_cli.commands.group import load_command


def command_tree() -> Any:
    """The `dpo` group with every command imported."""
    group = typer.main.get_command(app.app)
    group.commands = {  # type: ignore[attr-defined]
        name: load_command(name, module) for name, module in app.CommandGroup.modules.items()
    }
    return group

"""Complete command line, for comparisons with pages and snapshots."""

from __future__ import annotations

from typing import Any

import typer.main

from dpo_cli import app
from dpo_cli.commands.group import load_command


def command_tree() -> Any:
    """Return the `dpo` group with all commands imported."""
    group = typer.main.get_command(app.app)
    group.commands = {  # type: ignore[attr-defined]
        name: load_command(name, module) for name, module in app.CommandGroup.modules.items()
    }
    return group

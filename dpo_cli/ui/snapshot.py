"""Panel of a run at one moment: read from the run directory, printed, or as HTML for a notebook."""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.thinning import ThinnedHistory
from dpo_cli.run.view import RunView
from dpo_cli.ui.terminal.capture import recording_console
from dpo_cli.ui.terminal.console import SafeConsole
from dpo_cli.ui.terminal.dashboard import Dashboard
from dpo_cli.ui.terminal.panel import disk_usage, terminal_size

WIDTH, HEIGHT = 100, 30
_HTML = '<pre style="line-height:1.2;overflow-x:auto;font-family:monospace">{code}</pre>'


def read_panel(run: RunDirectory, step: int | None = None) -> Dashboard:
    """Return the panel of a run as it is now, or as it was after a step."""
    is_held = run.holder() is not None
    view = RunView.of(ThinnedHistory(run.events_path, step))
    return Dashboard(
        view,
        run.designation,
        run.path,
        now=time.time() if step is None else view.time,
        is_alive=step is not None or is_held,
        disk=disk_usage(run) if step is None else None,
    )


def print_panel(panel: Dashboard, width: int | None = None, height: int | None = None) -> None:
    """Print a panel as plain lines; by default as large as the terminal without its last line.

    The terminal's prompt needs that line.
    """
    columns, lines = WIDTH, HEIGHT
    if sys.stdout.isatty():
        columns, lines = terminal_size()
        lines -= 1
    console = SafeConsole(width=width or columns, height=height or lines)
    console.print(panel, end="")


def panel_html(panel: Dashboard) -> str:
    """Return a panel as an HTML fragment with inline styles."""
    console = recording_console(WIDTH, HEIGHT)
    console.print(panel, end="")
    return console.export_html(inline_styles=True, code_format=_HTML)


def panel_text(panel: Dashboard) -> str:
    """Return a panel as plain text."""
    console = recording_console(WIDTH, HEIGHT)
    console.print(panel, end="")
    return console.export_text()


def notebook_display() -> Any:
    """Return IPython's `display` function in a notebook, else None.

    IPython in a terminal has no kernel and cannot show HTML.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if getattr(shell, "kernel", None) is None:
        return None
    return importlib.import_module("IPython.display").display

"""Process that shows the live panel of a run directory."""

from __future__ import annotations

PANEL = """
import signal, sys
from pathlib import Path
from dpo_cli.ui.terminal.console import line_console
from dpo_cli.run.events import EventReader
from dpo_cli.run.directory import RunDirectory
from dpo_cli.ui.terminal.panel import Panel
run = RunDirectory(Path(sys.argv[1]))
panel = Panel(run, line_console(), EventReader(run.events_path).read_new)
signal.signal(signal.SIGINT, lambda *_: panel.show_stopping())
is_over = panel.show(lambda: run.is_completed)
print("the run is over" if is_over else "the user left")
"""

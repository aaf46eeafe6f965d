"""`dpo convert`: write preference pairs of any source to one JSONL file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpo_cli.commands.options import SetOption
from dpo_cli.data.convert import Converted, convert_source, destination
from dpo_cli.data.row_writers import Layout
from dpo_cli.data.sources import Source
from dpo_cli.errors import UsageError
from dpo_cli.files import expanded
from dpo_cli.formatting import format_count
from dpo_cli.hub.download import is_on_hub
from dpo_cli.profile.inputs import check_pairs
from dpo_cli.profile.load import profile_from_values
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.text import show_path, show_value
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.ui.terminal.console import SafeConsole, line_console
from dpo_cli.ui.terminal.progress import PhaseBar

_KEYS = ("data.format", "data.columns")
_MOST_COLUMNS = 8


def convert(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA...",
            help="Preference pairs: a file, a folder, or hf:ORG/NAME[@REVISION][:CONFIG/SPLIT]. "
            "Several are joined in this order.",
            show_default=False,
        ),
    ],
    to: Annotated[Path, typer.Option(metavar="FILE", help="Write to this .jsonl file.")],
    format: Annotated[
        Layout,
        typer.Option(
            metavar="|".join(Layout),
            help="Write rows as TRL and most tools read them (messages in prompt, chosen and "
            "rejected), MiniMind (whole conversations), or LLaMA-Factory (ShareGPT).",
        ),
    ] = Layout.TRL,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    settings: SetOption = None,
) -> None:
    """Convert preference pairs of any format to one JSONL file.

    Every row is read back before it is written, so the pairs keep their tokens. Rows that are no
    pairs go to FILE.skipped, each with its reason. The file appears when it is complete: after a
    kill, run the command again; it starts over, and downloads nothing twice. --set data.format and
    --set data.columns say how the rows are read.

    Example: `dpo convert hf:ORG/NAME --to pairs.jsonl --format sharegpt`
    """
    profile = _profile(data, settings or [])
    check_pairs("DATA", profile.data.paths)
    source = Source(profile.data.paths, profile.data.format, profile.data.columns or {})
    path = destination(to, source, force=force)
    with explain_disk_errors(path.parent), PhaseBar(SafeConsole(stderr=True)) as bar:
        converted = convert_source(source, path, format, bar)
    _print(converted, format)


def _profile(data: list[Path], settings: list[str]) -> Profile:
    """Return a profile that names the data and how it is read.

    Raises:
        UsageError: a setting is none of the reading.
    """
    for setting in settings:
        if not setting.startswith(_KEYS):
            raise UsageError(
                f"--set {setting}: not used in a conversion", f"Set {' or '.join(_KEYS)}."
            )
    paths = [path if is_on_hub(path) else expanded(path).absolute() for path in data]
    return profile_from_values({"data.data_path": paths}, settings)


def _print(converted: Converted, layout: Layout) -> None:
    console = line_console()
    skipped = sum(converted.skipped.values())
    console.print(
        f"wrote {show_path(converted.path)}: {format_count(converted.pairs, 'pair')} in the format"
        f" {layout}, read as {converted.description}"
    )
    if skipped:
        problems = ", ".join(f"{count:,} {name}" for name, count in converted.skipped.items())
        console.print(
            f"skipped {format_count(skipped, 'row')} ({problems}); the reasons are in"
            f" {show_path(converted.skipped_path)}"
        )
    if converted.unread:
        columns = list(converted.unread.items())
        shown = [f"{name!r} ({format_count(rows, 'row')})" for name, rows in columns]
        more = f", and {len(shown) - _MOST_COLUMNS} more" if len(shown) > _MOST_COLUMNS else ""
        console.print(f"columns not written: {', '.join(shown[:_MOST_COLUMNS])}{more}")
    if converted.settings:
        values = ", ".join(f"{key} = {show_value(v)}" for key, v in converted.settings.items())
        console.print(f"to train as on the original rows: {values}")

"""First look at the pairs of a new profile: format, number and lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from dpo_cli.commands.questions import ask_columns, is_interactive
from dpo_cli.data.formats import UnknownColumnsError
from dpo_cli.data.preview import preview
from dpo_cli.data.token_estimate import estimate_tokens, token_counter
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.formatting import format_count
from dpo_cli.hub.download import is_on_hub
from dpo_cli.profile.pairs import COLUMNS
from dpo_cli.profile.recipe import Inputs
from dpo_cli.ui.terminal.console import SafeConsole
from dpo_cli.ui.terminal.progress import PhaseBar


def parse_columns(text: str) -> dict[str, str]:
    """Convert the value of --columns, for example "prompt=question,chosen=best".

    Raises:
        UsageError: it has another form, or a name that no format uses.
    """
    columns = {}
    for part in text.split(","):
        name, _, column = (each.strip() for each in part.partition("="))
        if not column:
            raise UsageError(
                f"--columns: {part.strip()!r} is not NAME=COLUMN",
                "Write --columns prompt=COLUMN,chosen=COLUMN,rejected=COLUMN.",
            )
        if name not in COLUMNS:
            raise UsageError(
                f"--columns: no format has a column {name!r}", f"Choose from {', '.join(COLUMNS)}."
            )
        columns[name] = column
    return columns


def look_at_pairs(
    inputs: Inputs, columns: Mapping[str, str], tokenizer: Path | None, console: Console
) -> Inputs:
    """Read the first pairs, print format and number, and return the inputs with these facts.

    Of a data set on the Hub the first file is downloaded. The profile names a local file even if it
    cannot be read. A terminal asks for the columns if their names are unknown.

    Args:
        inputs: with the pairs.
        columns: column names of the files, by those of the formats.
        tokenizer: directory of the tokenizer; None if there is none on this machine.
        console: where to print.

    Raises:
        DpoError: a data set on the Hub cannot be read.
    """
    pairs = inputs.pairs
    if pairs is None:
        return replace(inputs, columns=columns)
    try:
        with PhaseBar(SafeConsole(stderr=True)) as bar:
            found = preview(pairs, "auto", columns, lambda rows: bar("counting rows", rows, 0, ""))
    except DpoError as error:
        remedy = error.remedy
        if isinstance(error, UnknownColumnsError):
            if is_interactive():
                console.print(f"  {error.message}")
                columns = {**columns, **ask_columns(error.lacking, error.names)}
                return look_at_pairs(inputs, columns, tokenizer, console)
            names = ",".join(f"{name}=COLUMN" for name in (*columns, *error.lacking))
            remedy = f"Name the columns: --columns {names}. {remedy}"
        if is_on_hub(pairs):
            raise DpoError(error.message, remedy, error.details) from error
        console.print(f"  the pairs cannot be read: {error.message}")
        console.print(f"  {remedy}")
        return replace(inputs, columns=columns)
    about = "about " if found.is_estimate else ""
    console.print(f"  {about}{format_count(found.rows, 'row')}, read as {found.description}")
    count = token_counter(tokenizer)
    return replace(
        inputs,
        rows=found.rows,
        counted=" (estimated from the sizes of the files)" if found.is_estimate else "",
        lengths=found.lengths(count),
        measured="estimated from characters" if count is estimate_tokens else "by its tokenizer",
        format=found.format if is_on_hub(pairs) else "",
        columns=columns,
    )

"""`dpo data`: look at the pairs, one after another."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from dpo_cli.commands.options import ProfileArgument, SetOption, check_row
from dpo_cli.errors import UsageError
from dpo_cli.findings import PairIssue
from dpo_cli.profile.inputs import check_inputs
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.source import find_profile
from dpo_cli.ui.terminal.pager import page
from dpo_cli.ui.terminal.pairs import legend, pair_page, row_page
from dpo_cli.ui.terminal.progress import PhaseBar


def data(
    profile: ProfileArgument,
    settings: SetOption = None,
    line: Annotated[
        str | None,
        typer.Option(
            metavar="LINE",
            callback=check_row,
            help="Only the row of this line; FILE:LINE where there are several files.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[PairIssue] | None,
        typer.Option(
            help="Only pairs that have this about them; may be repeated.", show_default=False
        ),
    ] = None,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="The rows that are set aside, and why.")
    ] = False,
) -> None:
    """Look at the pairs as training sees them, the tokens that carry loss in colour.

    On a terminal in your pager (PAGER, else less: space turns the page, / searches, q leaves);
    elsewhere as plain text, with ⟦marks⟧ in the place of colour. What each pair has about it
    stands beside its line.

    Example: `dpo data my.toml --only truncated --only near-identical`
    """
    from dpo_cli.checks.data_browser import DataBrowser

    if rejected and only:
        raise UsageError("--rejected shows rows that are set aside; --only chooses among pairs")
    loaded = load_profile(find_profile(profile, str(profile)), settings or ())
    check_inputs(loaded, ("data", "tokenizer"))
    with PhaseBar(Console(stderr=True)) as bar:
        pages = DataBrowser.open(loaded.profile, bar)
    console = Console(highlight=False, markup=False, emoji=False)
    marks = console.color_system is None or console.no_color
    rows = pages.rows
    title = (
        f"{len(rows.kept):,} of {rows.total:,} rows are kept; {len(rows.skipped_rows):,} set aside"
    )
    if rejected:
        shown = (row_page(r.place, r.problem, r.reason, r.text) for r in pages.skipped(line))
        page(console, title, shown)
    else:
        pairs = pages.pairs(line, only or ())
        shown = (pair_page(pair, issues, marks=marks) for pair, issues in pairs)
        page(console, f"{title}\n{legend(marks)}\n", shown)

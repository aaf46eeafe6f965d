"""`dpo data`: read the pairs as training sees them."""

from __future__ import annotations

from typing import Annotated

import typer

from dpo_cli.commands.options import ProfileArgument, SetOption, check_row
from dpo_cli.errors import UsageError
from dpo_cli.findings import PairIssue
from dpo_cli.profile.inputs import check_inputs
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.source import find_profile
from dpo_cli.ui.terminal.console import SafeConsole
from dpo_cli.ui.terminal.pager import page, pages_with_less
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
            help="Show only the row of this line, or FILE:LINE with several files.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[PairIssue] | None,
        typer.Option(
            metavar="ISSUE",
            help=f"Show only pairs with this issue: {', '.join(PairIssue)}. Repeat for more.",
            show_default=False,
        ),
    ] = None,
    skipped: Annotated[
        bool, typer.Option("--skipped", help="Show the skipped rows, each with its reason.")
    ] = False,
) -> None:
    """Show the pairs as training sees them, with the tokens that carry loss in color.

    A terminal shows the pairs in your pager (PAGER, else less: space turns the page, / searches, q
    leaves). Elsewhere they are plain text, with ⟦marks⟧ instead of color. Issues such as
    "truncated" are shown beside the line number of each pair.

    Example: `dpo data my.toml --only truncated --only near-identical`
    """
    from dpo_cli.checks.data_browser import DataBrowser  # loads torch

    if skipped and only:
        raise UsageError(
            "--skipped and --only: skipped rows have no issues", "Leave one of them out."
        )
    loaded = load_profile(find_profile(profile, str(profile)), settings or ())
    check_inputs(loaded, ("data", "tokenizer"))
    with PhaseBar(SafeConsole(stderr=True)) as bar:
        pages = DataBrowser.open(loaded.profile, bar)
    console = SafeConsole(highlight=False, markup=False, emoji=False)
    marks = console.color_system is None or console.no_color
    rows = pages.rows
    title = f"{len(rows.kept):,} of {rows.total:,} rows kept, {len(rows.skipped_rows):,} skipped"
    keys = ["space: next page, /: search, q: quit"] if pages_with_less(console) else []
    title = "\n".join([title, *pages.remarks(), *keys])
    if skipped:
        shown = (row_page(r.place, r.problem, r.reason, r.text) for r in pages.skipped(line))
        page(console, title, shown)
    else:
        pairs = pages.pairs(line, only or ())
        shown = (pair_page(pair, issues, marks=marks) for pair, issues in pairs)
        page(console, f"{title}\n{legend(marks)}\n", shown)

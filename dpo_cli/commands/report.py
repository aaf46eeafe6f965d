"""`dpo report`: write runs as one HTML file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dpo_cli.commands.compared_runs import compared_run, named_runs
from dpo_cli.commands.console import print_json, write_output
from dpo_cli.commands.options import JsonOption, RunsArgument, RunsDirOption
from dpo_cli.errors import UsageError
from dpo_cli.files import open_regular
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.protected import inputs_of_run, require_free_of_inputs
from dpo_cli.run.thinning import ThinnedHistory
from dpo_cli.ui.html.page import page
from dpo_cli.ui.html.run_section import ReportRun, StepTotals
from dpo_cli.ui.terminal.console import echo

_MAX_STEM_BYTES = 160
"""Longest name of a comparison that lists all runs; file systems allow 255 bytes."""


def report(
    run_names: RunsArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write to this file. Default: the runs' names with .html.",
            show_default=False,
        ),
    ] = None,
    findings: Annotated[
        Path | None,
        typer.Option(
            "--check",
            metavar="FILE",
            help="Include the findings in this file, made by `dpo check PROFILE --json`.",
            show_default=False,
        ),
    ] = None,
    redact: Annotated[
        bool, typer.Option("--redact", help="Leave out paths, host names and texts of pairs.")
    ] = False,
    json: JsonOption = False,
    runs_dir: RunsDirOption = None,
) -> None:
    """Write an HTML report with curves, metrics, data, plan and profile of runs.

    Several runs are compared. The file needs no network and can be printed.

    Example: `dpo report dense --out dense.html`
    """
    check_findings = _read_findings(findings) if findings else []
    runs = named_runs(run_names, runs_dir)
    sections = [_report_run(letter, run) for letter, run in runs.items()]
    path = out or default_path([section.run.name for section in sections])
    for run in runs.values():
        require_free_of_inputs(path, inputs_of_run(run), "--out")
    text = page(sections, check_findings, redact=redact, hosts=[socket.gethostname()])
    is_file = write_output(path, text.encode())
    if json:
        names = [section.run.name for section in sections]
        print_json({"path": path, "size_bytes": len(text.encode()), "runs": names})
    elif is_file:
        echo(f"wrote {path}; open it in a web browser")


def default_path(names: Sequence[str]) -> Path:
    """Return a name that the report of one run, or of other runs, does not have."""
    stem = "-vs-".join(names)
    if len(names) > 1 and len(stem.encode()) > _MAX_STEM_BYTES:
        digest = hashlib.sha256(stem.encode()).hexdigest()[:8]
        stem = f"{names[0]}-vs-{len(names) - 1}-runs-{digest}"
    return Path(f"{stem}.html")


def _report_run(letter: str, run: RunDirectory) -> ReportRun:
    history = ThinnedHistory(run.events_path)
    events = list(history)
    totals = StepTotals(history.pairs, history.tokens, history.padding_tokens)
    compared = compared_run(letter, run, events)
    return ReportRun(compared, events, totals, _skipped_rows(run.skipped_rows_path))


def _skipped_rows(path: Path) -> list[Mapping[str, Any]]:
    """Read a run's `skipped_rows.jsonl`; damaged lines end the list."""
    rows = []
    with contextlib.suppress(OSError, ValueError, RecursionError), open_regular(path) as lines:
        for line in lines:
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def _read_findings(path: Path) -> list[Mapping[str, Any]]:
    """Read the findings that `dpo check --json` printed.

    Raises:
        UsageError: the file holds no findings.
    """
    try:
        values = json.loads(path.read_bytes())["findings"]
        if all(isinstance(finding, dict) for finding in values):
            return list(values)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        pass
    raise UsageError(
        f"{path} holds no findings", f"Make the file: dpo check PROFILE --json > {path}"
    )

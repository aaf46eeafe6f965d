"""`dpo report`: runs as one HTML file."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Mapping
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from dpo_cli.commands.compared_runs import compared_run, named_runs
from dpo_cli.commands.console import write_output
from dpo_cli.commands.options import JsonOption, RunsArgument, RunsDirOption
from dpo_cli.errors import UsageError
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import history
from dpo_cli.ui.html.page import page
from dpo_cli.ui.html.run_section import ReportRun


def report(
    run_names: RunsArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Where to write; else the first run's name with .html, here.",
            show_default=False,
        ),
    ] = None,
    findings: Annotated[
        Path | None,
        typer.Option(
            "--check",
            metavar="FILE",
            help="Include the findings that `dpo check PROFILE --json` printed into this file.",
            show_default=False,
        ),
    ] = None,
    redact: Annotated[
        bool, typer.Option("--redact", help="Leave out paths, host names and texts.")
    ] = False,
    json: JsonOption = False,
    runs_dir: RunsDirOption = None,
) -> None:
    """Write a report: curves, figures, data, plan and profile, in one file that opens anywhere.

    Of several runs it is a comparison. The file needs no network and prints well.

    Example: `dpo report dense --out dense.html`
    """
    found = _read_findings(findings) if findings else []
    runs = named_runs(run_names, runs_dir)
    dossiers = [_report_run(letter, run) for letter, run in runs.items()]
    path = out or Path(f"{dossiers[0].run.name}.html")
    text = page(dossiers, found, redact=redact, hosts=[socket.gethostname()])
    write_output(path, text.encode())
    if json:
        names = [dossier.run.name for dossier in dossiers]
        told = {"path": str(path), "size_bytes": len(text.encode()), "runs": names}
        typer.echo(dumps(told, indent=2, ensure_ascii=False))
    else:
        typer.echo(f"wrote {path}")


def _report_run(letter: str, run: RunDirectory) -> ReportRun:
    events = list(history(run.events_path))
    return ReportRun(
        compared_run(letter, run, events), events, _skipped_rows(run.skipped_rows_path)
    )


def _skipped_rows(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a run's `skipped_rows.jsonl`, as far as they can be read."""
    rows = []
    with contextlib.suppress(OSError, ValueError), path.open("rb") as lines:
        for line in lines:
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def _read_findings(path: Path) -> list[Mapping[str, Any]]:
    """What `dpo check --json` printed.

    Raises:
        UsageError: it did not print this.
    """
    try:
        found = json.loads(path.read_bytes())["findings"]
        if all(isinstance(finding, dict) for finding in found):
            return list(found)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        pass
    raise UsageError(f"{path} holds no findings", f"make it: dpo check PROFILE --json > {path}")

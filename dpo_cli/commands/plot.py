"""`dpo plot`: the curves of runs as a picture."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from dpo_cli.commands.compared_runs import read_runs
from dpo_cli.commands.console import write_output
from dpo_cli.commands.options import JsonOption, RunsArgument, RunsDirOption
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.ui.html.svg import sheet

_FORMATS = (".svg", ".png")
_PNG_SCALE = 2


def plot(
    run_names: RunsArgument,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", help="Where to write: FILE.svg or FILE.png."),
    ],
    json: JsonOption = False,
    runs_dir: RunsDirOption = None,
) -> None:
    """Draw every curve of a run into a picture, or of several runs, one over the other.

    An SVG needs nothing else; a PNG needs the extra `png` (`pip install '.[png]'` in a clone).

    Example: `dpo plot dense --out dense.svg`
    """
    if out.suffix not in _FORMATS:
        raise UsageError(f"--out {out}: the name must end in {' or '.join(_FORMATS)}")
    runs = read_runs(run_names, runs_dir)
    if not any(run.view.step for run in runs):
        raise DpoError(f"there is nothing to draw: no step of {runs[0].name} is done yet")
    picture = sheet(runs).encode()
    content = _png(picture) if out.suffix == ".png" else picture
    write_output(out, content)
    if json:
        told = {"path": str(out), "size_bytes": len(content), "runs": [run.name for run in runs]}
        typer.echo(dumps(told, indent=2, ensure_ascii=False))
    else:
        typer.echo(f"wrote {out}")


def _png(picture: bytes) -> bytes:
    """The same in dots, twice as fine as the SVG states it."""
    try:
        import cairosvg
    except (ImportError, OSError) as error:  # OSError: the system has no cairo
        raise DpoError(
            f"a PNG cannot be made here: {error}",
            "Run pip install '.[png]' in a clone (and the system's libcairo2); or write an SVG",
        ) from error
    png: bytes = cairosvg.svg2png(bytestring=picture, scale=_PNG_SCALE, unsafe=False)
    return png

"""`dpo plot`: draw the curves of runs as an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpo_cli.commands.compared_runs import read_runs
from dpo_cli.commands.console import print_json, write_output
from dpo_cli.commands.options import JsonOption, RunsArgument, RunsDirOption
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.extras import install_extra
from dpo_cli.ui.html.svg import sheet
from dpo_cli.ui.terminal.console import echo

_FORMATS = (".svg", ".png")
_PNG_SCALE = 2


def plot(
    run_names: RunsArgument,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", help="Write to FILE.svg or FILE.png."),
    ],
    json: JsonOption = False,
    runs_dir: RunsDirOption = None,
) -> None:
    """Draw all curves of a run as an image; curves of several runs share the charts.

    PNG needs the package `cairosvg`, the extra `png`. SVG needs nothing.

    Example: `dpo plot dense --out dense.svg`
    """
    if out.suffix not in _FORMATS:
        raise UsageError(f"--out {out}: the name must end in {' or '.join(_FORMATS)}")
    runs = read_runs(run_names, runs_dir)
    if not any(run.view.step for run in runs):
        raise DpoError(f"nothing to draw: {runs[0].name} has no step yet")
    picture = sheet(runs).encode()
    content = _png(picture) if out.suffix == ".png" else picture
    is_file = write_output(out, content)
    if json:
        names = [run.name for run in runs]
        print_json({"path": out, "size_bytes": len(content), "runs": names})
    elif is_file:
        echo(f"wrote {out}")


def _png(picture: bytes) -> bytes:
    """Render an SVG as PNG at twice the resolution."""
    try:
        import cairosvg
    except (ImportError, OSError) as error:  # OSError: the system library cairo is missing
        raise DpoError(
            f"cannot write PNG: {error}",
            f"{install_extra('png')} It needs the system library libcairo2. Or write an SVG.",
        ) from error
    png: bytes = cairosvg.svg2png(bytestring=picture, scale=_PNG_SCALE, unsafe=False)
    return png

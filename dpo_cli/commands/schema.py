"""`dpo schema`: write the JSON Schema of profiles for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpo_cli.commands.console import write_output
from dpo_cli.profile.template import schema_text
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.ui.terminal.console import echo


def schema(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write to this file. Default: standard output.", show_default=False
        ),
    ] = None,
) -> None:
    """Write the JSON Schema (Draft 4) of profiles.

    Editors with a TOML language server (taplo, Even Better TOML) complete and check a profile whose
    first line names the schema: `#:schema dpo.schema.json`.

    Example: `dpo schema --out profiles/dpo.schema.json`
    """
    if out is None:
        echo(schema_text(), end="")
        return
    with explain_disk_errors(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    if write_output(out, schema_text().encode()):
        echo(f"wrote {out}")

"""`dpo export`: the trained weights as the file that MiniMind's own scripts load."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dpo_cli.commands.options import RunArgument, RunsDirOption, SetOption


class Dtype(StrEnum):
    """The precisions a file can have."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


def export(
    run_name: RunArgument = None,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where to write; else into the profile's model.out_dir, where MiniMind looks.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            metavar="|".join(Dtype),
            help="The file's precision; else the profile's.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over a file that is not this run's.")
    ] = False,
    best: Annotated[
        bool,
        typer.Option("--best", help="The state with the lowest held-out loss, not the newest."),
    ] = False,
    settings: SetOption = None,
    runs_dir: RunsDirOption = None,
) -> None:
    """Write a run's newest weights for MiniMind, and check them.

    The file is loaded back, and its log-probs are compared with the training state's on real
    pairs: what half precision costs is printed. Without RUN it is the newest.

    Example: `dpo export dense --to rlhf_512.pth`
    """
    from dpo_cli.commands.session import plain_console
    from dpo_cli.run.store import find_run, runs_root
    from dpo_cli.ui.report import count, size

    console = plain_console()
    run = find_run(runs_root(runs_dir), run_name)
    with console.status(f"exporting {run.designation}"):
        from dpo_cli.training.export import export_run  # imports torch: seconds

        report = export_run(run, to, dtype, force, settings or (), best=best)
    console.print(
        f"wrote {report.path}: {size(report.size_bytes)}, {report.dtype}, "
        f"{count(report.tensors, 'tensor')}, after optimizer step {report.optimizer_step}"
    )
    console.print(
        f"log-probs against the training state, over {count(report.pairs_compared, 'pair')}: "
        f"{report.mean_logp_difference:.2g} nats per token apart in the mean, "
        f"{report.max_logp_difference:.2g} at most"
    )
    if report.try_command:
        console.print(f"try it: {report.try_command}")

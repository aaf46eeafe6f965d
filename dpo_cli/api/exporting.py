"""Dispatch of `Run.export` to the writer of a format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dpo_cli.api.arguments import Settings, as_overrides, require_choice
from dpo_cli.errors import UsageError
from dpo_cli.export.gguf.quantizations import parse_quantizations
from dpo_cli.files import expanded
from dpo_cli.run.directory import RunDirectory

if TYPE_CHECKING:
    from dpo_cli.export.export import ExportReport
    from dpo_cli.export.gguf.export import GgufReport


def export_as(
    run: RunDirectory,
    to: str | Path | None,
    *,
    format: Literal["pth", "hf", "peft", "gguf"] | None,
    quantization: Sequence[str] | None,
    dtype: str | None,
    rounding: Literal["nearest", "stochastic"] | None,
    seed: int | None,
    best: bool,
    force: bool,
    settings: Settings | None,
) -> ExportReport | GgufReport:
    """Write the weights of a run; see `Run.export` for the arguments.

    Raises:
        UsageError: an argument is not one of its choices, or has no effect on the format.
    """
    require_choice("format", format, ("pth", "hf", "peft", "gguf"))
    require_choice("dtype", dtype, ("float16", "bfloat16", "float32"))
    require_choice("rounding", rounding, ("nearest", "stochastic"))
    path = None if to is None else expanded(to)
    overrides = as_overrides(settings)
    if format == "gguf":
        formats = parse_quantizations(quantization)
        _require_unset("gguf", dtype=dtype, rounding=rounding, seed=seed)
        from dpo_cli.export.gguf.export import export_gguf  # loads torch

        return export_gguf(run, path, formats, force=force, best=best, overrides=overrides)
    _require_unset(format or "pth", quantization=quantization)
    from dpo_cli.export.export import export_run  # loads torch

    return export_run(
        run, path, dtype, force, overrides, rounding, seed, best=best, export_format=format
    )


def _require_unset(format: str, **arguments: object) -> None:
    """Refuse arguments that have no effect on a format.

    Raises:
        UsageError: names the argument.
    """
    for name, value in arguments.items():
        if value is not None:
            raise UsageError(
                f"{name} = {value!r} has no effect on format = {format!r}", "Leave it out."
            )

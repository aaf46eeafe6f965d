"""Terminal output of `dpo export`: the file, and how much of the training update it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from dpo_cli.formatting import format_count, format_number, format_percent, format_size
from dpo_cli.run.events import ACCURACY, Alert
from dpo_cli.ui.significance import comparison_note
from dpo_cli.ui.terminal.plain import alert_lines

if TYPE_CHECKING:
    from dpo_cli.export.export import ExportReport
    from dpo_cli.export.try_command import TryCommand
    from dpo_cli.export.update_retention import UpdateRetention
    from dpo_cli.inference.evaluate import Evaluation

LOST_SHARE = 0.5
"""Error, relative to the update, above which a warning is shown."""

_NEGLIGIBLE = 0.05
"""Difference of the update retention from 1 that needs no explanation."""


def export_lines(report: ExportReport) -> list[Text]:
    """Return lines about the file, its rounding and the effect on the update."""
    rounded = ""
    if report.dtype != "float32":
        rounded = " rounded to nearest" if report.seed is None else ""
        rounded = rounded or f" rounded stochastically with seed {report.seed}"
    return [
        Text(
            f"wrote {report.path}: {format_size(report.size_bytes)}, {report.dtype}{rounded}, "
            f"{format_count(report.tensors, 'tensor')}, "
            f"{after_step(report.optimizer_step, report.unfinished_of)}"
        ),
        *_unfinished_lines(report),
        *_retention_lines(report),
        Text(
            f"log-probs, file vs. training state ({format_count(report.pairs_compared, 'pair')}): "
            f"mean difference {report.mean_logp_difference:.2g} nats per token, "
            f"largest {report.max_logp_difference:.2g}"
        ),
        *_quantization_lines(report),
        *_stop_lines(report),
    ]


def after_step(step: int, unfinished_of: int | None) -> str:
    """Return the step of an export; `unfinished_of` as in `ExportReport`."""
    if unfinished_of is None:
        return f"after step {step}"
    return f"after step {step} of {unfinished_of}; the run is not finished"


def held_out_lines(evaluation: Evaluation) -> list[Text]:
    """Return the held-out metrics of the float32 training state and of the file, in this order."""
    in_state, in_file = (model.groups["all"] for model in evaluation.models)

    def both(metric: str, form: str) -> str:
        return " vs. ".join(format_number(each.get(metric), form) for each in (in_file, in_state))

    line = Text(
        f"held-out ({format_count(int(in_file['pairs']), 'pair')}), file vs. training state: "
        f"accuracy {both(ACCURACY, '.3f')}, "
        f"margin/token {both('margin_per_token', '+.3g')} nats, "
        f"loss {both('loss', '.4f')}"
    )
    [comparison] = evaluation.comparisons
    return [line, Text(comparison_note("file", "training state", comparison.result))]


def try_lines(command: TryCommand) -> list[Text]:
    """Return the command that chats with the weights, and what it needs."""
    lines = [Text(f"try it: {command.text}")]
    if command.is_minimind_script:
        lines.append(Text("        in MiniMind's own environment; its scripts need transformers 4"))
    return lines


def _unfinished_lines(report: ExportReport) -> list[Text]:
    if report.unfinished_of is None:
        return []
    message = (
        f"the run is not finished: the file has the weights after step {report.optimizer_step}"
        f" of {report.unfinished_of}"
    )
    remedy = "Train on with dpo resume, and export again."
    return alert_lines(Alert(code="unfinished", message=message, remedy=remedy))


def _quantization_lines(report: ExportReport) -> list[Text]:
    if report.logp_difference_from_quantized is None:
        return []
    return [
        Text(
            f"the adapter was trained beside {report.quantization} weights, and the file has the"
            " full ones: mean difference from the model as it was trained"
            f" {report.logp_difference_from_quantized:.2g} nats per token"
        )
    ]


def _stop_lines(report: ExportReport) -> list[Text]:
    if not report.stop_warning:
        return []
    remedy = (
        "Add the token that ends an answer to eos_token_id in the generation_config.json of the"
        " starting weights, or of the export."
    )
    return alert_lines(Alert(code="stops", message=report.stop_warning, remedy=remedy))


def _retention_lines(report: ExportReport) -> list[Text]:
    retention = report.retention
    if report.not_compared:
        return [Text(f"not compared with the starting weights: {report.not_compared}")]
    if retention is None:
        return [Text("no weight differs from the starting weights, not even in float32")]
    is_whole = abs(retention.kept - 1) <= _NEGLIGIBLE and retention.relative_error <= LOST_SHARE
    if is_whole and not retention.start_error:
        kept = f"{format_percent(retention.kept)} of what training changed"
        return [Text(f"the {report.dtype} file keeps the training ({kept})")]
    # If the dtype cannot even hold the starting weights, the kept share is dominated by noise.
    is_meaningful = retention.start_error <= LOST_SHARE
    noise = f"rounding errors are {_times(retention.relative_error)} times as large as that change"
    kept = ""
    if is_meaningful:
        kept = f"the file has {format_percent(retention.kept)} of what training changed; "
    differ = f"{format_percent(retention.changed)} of the weights differ from the starting weights"
    lines = [Text(f"{differ}; {kept}{noise}")]
    if is_meaningful:
        lines.append(Text(f"   {_meaning(report)}", "dim"))
    return [*lines, *_rounding_lines(report, retention)]


def _meaning(report: ExportReport) -> str:
    """Explain the share that is kept, which may exceed 100 %, and the rounding errors."""
    if report.rounding == "stochastic":
        return (
            "About 100 %: nothing is lost on average. These errors are random and mostly cancel"
            " out, even if they are larger than the change."
        )
    return (
        "100 %: nothing is lost. Less: small changes were rounded away. More: some were rounded up."
    )


def _rounding_lines(report: ExportReport, retention: UpdateRetention) -> list[Text]:
    """Return lines about the error of dtype and rounding; a warning if it is large."""
    lines = []
    if retention.start_error:
        message = (
            f"the starting weights are {retention.source_dtype}, which {report.dtype} cannot"
            f" represent: rounding alone changes them {_times(retention.start_error)} times as much"
            " as the training"
        )
        if retention.start_error > LOST_SHARE:
            remedy = f"Use --dtype {retention.source_dtype} to keep them exactly."
            return alert_lines(Alert(code="source-dtype", message=message, remedy=remedy))
        lines.append(Text(message))
    if report.rounding == "nearest" and retention.relative_error > LOST_SHARE:
        lines += alert_lines(
            Alert(
                code="update-lost",
                message=f"rounding to the nearest {report.dtype} has an error of more than"
                f" {format_percent(LOST_SHARE)} of the update",
                remedy="Use --rounding stochastic to preserve it on average, or --dtype float32"
                " to preserve it exactly.",
            )
        )
    return lines


def _times(factor: float) -> str:
    return f"{factor:.3g}" if factor < 1000 else f"{factor:,.0f}"

"""What `dpo export` shows: the file, what it has of the training, and what it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.text import Text

from dpo_cli.formatting import format_count, format_percent, format_size
from dpo_cli.run.events import Alert
from dpo_cli.ui.terminal.plain import alert_lines

if TYPE_CHECKING:
    from dpo_cli.export.export import ExportReport
    from dpo_cli.export.update_retention import UpdateRetention

LOST_SHARE = 0.5
"""An error of more than this, by the size of the update, is warned of."""


def export_lines(report: ExportReport) -> list[Text]:
    """What was written, how it was rounded, and what that made of the update."""
    rounded = ""
    if report.dtype != "float32":
        rounded = " rounded to nearest" if report.seed is None else ""
        rounded = rounded or f" rounded stochastically with seed {report.seed}"
    return [
        Text(
            f"wrote {report.path}: {format_size(report.size_bytes)}, {report.dtype}{rounded}, "
            f"{format_count(report.tensors, 'tensor')}, "
            f"after optimizer step {report.optimizer_step}"
        ),
        *_retention_lines(report),
        Text(
            f"log-probs against the training state, over "
            f"{format_count(report.pairs_compared, 'pair')}: "
            f"{report.mean_logp_difference:.2g} nats per token apart in the mean, "
            f"{report.max_logp_difference:.2g} at most"
        ),
    ]


def held_out_line(in_file: Mapping[str, float], in_state: Mapping[str, float]) -> Text:
    """Both on the held-out pairs (means, and "pairs"), the float32 state in brackets."""

    def both(metric: str, form: str) -> str:
        return f"{in_file[metric]:{form}} ({in_state[metric]:{form}})"

    return Text(
        f"held out, {format_count(int(in_file['pairs']), 'pair')}, the file and "
        f"(the training state): accuracy {both('rewards/accuracies', '.3f')}, "
        f"gap {both('margin_per_token', '+.3g')} nats per token, "
        f"loss {both('loss', '.4f')}"
    )


def _retention_lines(report: ExportReport) -> list[Text]:
    retention = report.retention
    if report.not_compared:
        return [Text(f"not compared with the weights of the start: {report.not_compared}")]
    if retention is None:
        return [Text("no weight differs from the start's, in float32 either")]
    error = f"relative error of {_times(retention.relative_error)}"
    # Beside a large cost of the format itself, the part that is kept would be chance.
    is_told = retention.start_error <= LOST_SHARE
    kept = (
        f"{format_percent(retention.kept)} of the update is kept, with"
        if is_told
        else "the update has"
    )
    line = (
        f"{format_percent(retention.changed)} of the weights are not the start's; {kept} a {error}"
    )
    return [Text(line), *_cost_lines(report, retention)]


def _cost_lines(report: ExportReport, retention: UpdateRetention) -> list[Text]:
    """What format and rounding cost; a warning where it is much, with what to do about it."""
    lines = []
    if retention.start_error:
        message = (
            f"the weights were born {retention.source_dtype}, which {report.dtype} does not hold:"
            f" rounding them alone changes them {_times(retention.start_error)} times as much as"
            " the training did"
        )
        if retention.start_error > LOST_SHARE:
            remedy = f"--dtype {retention.source_dtype} holds them"
            return alert_lines(Alert(code="source-dtype", message=message, remedy=remedy))
        lines.append(Text(message))
    if report.rounding == "nearest" and retention.relative_error > LOST_SHARE:
        lines += alert_lines(
            Alert(
                code="update-lost",
                message=f"rounding to the nearest {report.dtype} is off by more than"
                f" {format_percent(LOST_SHARE)} of the update",
                remedy="--rounding stochastic keeps it in the mean, --dtype float32 as it is",
            )
        )
    return lines


def _times(factor: float) -> str:
    return f"{factor:.3g}" if factor < 1000 else f"{factor:,.0f}"

"""Terminal output of `dpo export --format gguf`: files, proof, retention, and what to use."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from dpo_cli.export.usage import gguf_commands
from dpo_cli.formatting import format_count, format_number, format_percent, format_size
from dpo_cli.run.events import ACCURACY, Alert
from dpo_cli.ui.terminal.export import after_step
from dpo_cli.ui.terminal.plain import alert_lines

if TYPE_CHECKING:
    from dpo_cli.export.gguf.export import GgufFile, GgufReport
    from dpo_cli.export.gguf.proof import Proof
    from dpo_cli.export.gguf.recommendation import Recommendation
    from dpo_cli.inference.evaluate import Evaluation


def gguf_lines(report: GgufReport) -> list[Text]:
    """Return lines about the directory and its proof, with warnings."""
    lines = [
        Text(
            f"wrote {report.path}: {format_count(len(report.files), 'GGUF file')} and a Modelfile,"
            f" {after_step(report.optimizer_step, report.unfinished_of)}"
        )
    ]
    if report.proof is None:
        lines.append(Text(f"not proven in llama.cpp: {report.not_proven}"))
    else:
        lines += _proof_lines(report.proof)
    if report.not_compared:
        lines.append(Text(f"not compared with the starting weights: {report.not_compared}"))
    for message in report.warnings:
        lines += alert_lines(Alert(code="gguf", message=message, remedy=""))
    return lines


def file_table(report: GgufReport, evaluation: Evaluation | None) -> Table:
    """Return a table with a row per file, and one for the float32 training state.

    Args:
        report: the export.
        evaluation: metrics of the files in their order, then of the training state; None if the
            held-out pairs were not evaluated.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    titles = ["format", "size", "kept", "error/update"]
    if report.proof is not None:
        titles.append("answers")
    if evaluation is not None:
        titles += ["accuracy", "margin/token"]
    for title in titles:
        justify: JustifyMethod = "left" if title == "format" else "right"
        table.add_column(title, justify=justify, no_wrap=True)
    groups = [model.groups["all"] for model in evaluation.models] if evaluation else []
    for number, file in enumerate(report.files):
        table.add_row(*_row(report, file, groups[number] if groups else None))
    if groups:
        blanks = [""] * (len(titles) - 3)
        table.add_row("training state", *blanks, *_metrics(groups[-1]))
    return table


def recommendation_line(found: Recommendation | None) -> Text:
    """Return one line that says which file to use."""
    if found is None:
        return Text("the training state has no margin on the held-out pairs that a file could keep")
    shares = ", ".join(f"{name} {format_percent(share)}" for name, share in found.kept.items())
    line = f"kept of the learned margin: {shares}; "
    if found.best is None:
        return Text(line + "no file keeps 95 %: add q8_0 or f16 to --quantization")
    return Text(line + f"use {found.best}, the smallest file that keeps 95 %")


def gguf_try_lines(report: GgufReport) -> list[Text]:
    """Return the commands that chat with a file in llama.cpp and in Ollama."""
    served = next((each for each in report.files if each.quantization != "f32"), report.files[0])
    commands = gguf_commands(os.path.relpath(report.path), served.path.name)
    first, *others = commands.values()
    return [Text(f"try it: {first}"), *(Text(f"        {each}") for each in others)]


def _proof_lines(proof: Proof) -> list[Text]:
    exact = proof.answers["f32"]
    equal = f"{exact.equal:,} of {exact.tokens:,} tokens of greedy answers equal transformers'"
    ties = f", {format_count(exact.ties, 'answer')} compared up to a tie" if exact.ties else ""
    prompts = proof.prompts - proof.different_prompts
    lines = [
        Text(
            f"proven in llama.cpp: token ids of {format_count(proof.texts, 'text')} equal,"
            f" {prompts} of {proof.prompts} prompts rendered as in training"
        ),
        Text(f"float32 weights in llama.cpp: {equal}{ties}"),
    ]
    if proof.extra_stops:
        # By their texts, whatever a file says: no export can change that.
        names = ", ".join(map(repr, proof.extra_stops))
        lines.append(Text(f"llama.cpp also stops at {names}, where transformers goes on"))
    return lines


def _row(report: GgufReport, file: GgufFile, metrics: Mapping[str, float] | None) -> Sequence[str]:
    kept = file.retention
    row = [file.quantization, format_size(file.size_bytes)]
    row += [format_percent(kept.kept), f"{kept.relative_error:.3g}"] if kept else ["", ""]
    if report.proof is not None:
        answers = report.proof.answers[file.quantization]
        row.append(f"{answers.equal}/{answers.tokens}")
    return row + (_metrics(metrics) if metrics is not None else [])


def _metrics(metrics: Mapping[str, float]) -> list[str]:
    return [
        format_number(metrics.get(ACCURACY), ".3f"),
        format_number(metrics.get("margin_per_token"), "+.3g"),
    ]

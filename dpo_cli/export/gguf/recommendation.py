"""Choice among the files of an export to GGUF, by what they keep of the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dpo_cli.export.gguf.export import GgufReport
from dpo_cli.export.gguf.quantizations import Quantization

ENOUGH = 0.95
"""Share of the learned margin that a recommended file keeps."""
_MARGIN = "margin_per_token"


@dataclass(frozen=True)
class Recommendation:
    """Files by what they keep of the training.

    Attributes:
        kept: share of the margin per token on held-out pairs that the float32 weights have learned,
            in each file. The margin is 0 before training, because it is relative to the reference.
        best: the smallest file that keeps at least `ENOUGH`; None if none does.
    """

    kept: Mapping[Quantization, float]
    best: Quantization | None


def recommend(
    report: GgufReport, files: Sequence[Mapping[str, float]], state: Mapping[str, float]
) -> Recommendation | None:
    """Compare the margins of the files with that of the float32 training state.

    Args:
        report: the export.
        files: metrics of each file on the held-out pairs, in the order of `report.files`.
        state: metrics of the training state on the same pairs.

    Returns:
        None if the training state has no positive margin, so that there is nothing to keep.
    """
    learned = state.get(_MARGIN, 0.0)
    if learned <= 0:
        return None
    kept = {
        file.quantization: metrics[_MARGIN] / learned
        for file, metrics in zip(report.files, files, strict=True)
    }
    enough = [file for file in report.files if kept[file.quantization] >= ENOUGH]
    smallest = min(enough, key=lambda file: file.size_bytes, default=None)
    return Recommendation(kept, smallest.quantization if smallest else None)

"""Tests of the output of `dpo export` about the update, from given reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpo_cli.export.export import ExportReport
from dpo_cli.export.update_retention import UpdateRetention
from dpo_cli.ui.terminal.export import export_lines


def lines_of(
    *,
    dtype: str = "float16",
    seed: int | None = None,
    not_compared: str = "",
    unfinished_of: int | None = None,
    **retention: Any,
) -> list[str]:
    """Return the lines between the file and the log-probs."""
    measured = {"changed": 0.0312, "kept": 0.9, "relative_error": 0.2, "start_error": 0.0}
    report = ExportReport(
        path=Path("rlhf_512.pth"),
        dtype=dtype,
        rounding="nearest" if seed is None else "stochastic",
        seed=seed,
        size_bytes=10,
        tensors=75,
        optimizer_step=3,
        unfinished_of=unfinished_of,
        pairs_compared=4,
        mean_logp_difference=0.0,
        max_logp_difference=0.0,
        quantization=None,
        logp_difference_from_quantized=None,
        retention=UpdateRetention(**(measured | {"source_dtype": "float16"} | retention))
        if retention
        else None,
        not_compared=not_compared,
        stop_warning="",
        try_command=None,
        state={},
        exported={},
    )
    first, *lines, last = [line.plain for line in export_lines(report)]
    assert first.startswith("wrote rlhf_512.pth: 10 B, ")
    assert first.endswith("after step 3 of 33; the run is not finished") == bool(unfinished_of)
    assert last.startswith("log-probs")
    return lines


def test_most_of_the_update_is_kept() -> None:
    assert lines_of(changed=0.0312) == [
        "3.12 % of the weights differ from the starting weights; the file has 90 % of what training"
        " changed; rounding errors are 0.2 times as large as that change",
        "   100 %: nothing is lost. Less: small changes were rounded away. More: some were rounded"
        " up.",
    ]


def test_rounding_to_nearest_loses_most_of_the_update() -> None:
    lines = lines_of(changed=2e-4, kept=0.0031, relative_error=0.9992)
    assert lines == [
        "0.02 % of the weights differ from the starting weights; the file has 0.31 % of what"
        " training changed; rounding errors are 0.999 times as large as that change",
        "   100 %: nothing is lost. Less: small changes were rounded away. More: some were rounded"
        " up.",
        "warning: rounding to the nearest float16 has an error of more than 50 % of the update",
        "   help: Use --rounding stochastic to preserve it on average, or --dtype float32 to"
        " preserve it exactly.",
    ]
    # Stochastic rounding adds noise on purpose.
    figures, meaning = lines_of(seed=5, kept=1.01, relative_error=13.2)
    assert "the file has 101 % of what training changed" in figures
    assert meaning.startswith("   About 100 %: nothing is lost on average.")


def test_a_file_that_keeps_the_training_needs_one_line() -> None:
    assert lines_of(kept=0.998, relative_error=0.01, unfinished_of=33) == [
        "warning: the run is not finished: the file has the weights after step 3 of 33",
        "   help: Train on with dpo resume, and export again.",
        "the float16 file keeps the training (99.8 % of what training changed)",
    ]
    assert lines_of(dtype="float32", kept=1.0, relative_error=0.0) == [
        "the float32 file keeps the training (100 % of what training changed)"
    ]
    assert len(lines_of(kept=0.94, relative_error=0.1)) == 2


@pytest.mark.parametrize("seed", [None, 5])
def test_a_dtype_that_cannot_hold_the_weights_is_a_warning(seed: int | None) -> None:
    lines = lines_of(
        dtype="bfloat16", seed=seed, start_error=12345.6, relative_error=9870.0, kept=-3.0
    )
    assert lines == [
        "3.12 % of the weights differ from the starting weights; rounding errors are 9,870 times"
        " as large as that change",
        "warning: the starting weights are float16, which bfloat16 cannot represent: rounding alone"
        " changes them 12,346 times as much as the training",
        "   help: Use --dtype float16 to keep them exactly.",
    ]


def test_a_small_error_of_the_dtype_is_no_warning() -> None:
    lines = lines_of(source_dtype="float32", start_error=0.01)
    assert lines[2:] == [
        "the starting weights are float32, which float16 cannot represent: rounding alone changes"
        " them 0.01 times as much as the training"
    ]
    lost = lines_of(source_dtype="float32", start_error=0.4, relative_error=0.6)
    assert lost[3].startswith("warning: rounding to the nearest float16")


def test_nothing_to_compare() -> None:
    assert lines_of() == ["no weight differs from the starting weights, not even in float32"]
    assert lines_of(not_compared="x.pth is gone") == [
        "not compared with the starting weights: x.pth is gone"
    ]

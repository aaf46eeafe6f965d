"""What `dpo export` says of the update, from a report as it was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpo_cli.export.export import ExportReport
from dpo_cli.export.update_retention import UpdateRetention
from dpo_cli.ui.terminal.export import export_lines


def said(
    *, dtype: str = "float16", seed: int | None = None, not_compared: str = "", **retention: Any
) -> list[str]:
    """The lines between what was written and the log-probs."""
    measured = {"changed": 0.0312, "kept": 0.9, "relative_error": 0.2, "start_error": 0.0}
    report = ExportReport(
        path=Path("rlhf_512.pth"),
        dtype=dtype,
        rounding="nearest" if seed is None else "stochastic",
        seed=seed,
        size_bytes=10,
        tensors=75,
        optimizer_step=3,
        pairs_compared=4,
        mean_logp_difference=0.0,
        max_logp_difference=0.0,
        retention=UpdateRetention(**(measured | {"source_dtype": "float16"} | retention))
        if retention
        else None,
        not_compared=not_compared,
        try_command=None,
        state={},
        exported={},
    )
    first, *lines, last = [line.plain for line in export_lines(report)]
    assert first.startswith("wrote rlhf_512.pth: 10 B, ")
    assert last.startswith("log-probs")
    return lines


def test_much_of_it_is_kept() -> None:
    assert said(changed=0.0312) == [
        "3.12 % of the weights are not the start's; 90 % of the update is kept, with a relative"
        " error of 0.2"
    ]


def test_nearest_loses_most_of_it() -> None:
    lines = said(changed=2e-4, kept=0.0031, relative_error=0.9992)
    assert lines == [
        "0.02 % of the weights are not the start's; 0.31 % of the update is kept, with a relative"
        " error of 0.999",
        "warning: rounding to the nearest float16 is off by more than 50 % of the update",
        "   help: --rounding stochastic keeps it in the mean, --dtype float32 as it is",
    ]
    # Its noise is what was asked for.
    assert len(said(seed=5, kept=1.01, relative_error=13.2)) == 1


@pytest.mark.parametrize("seed", [None, 5])
def test_never_silently_a_format_that_the_weights_were_not_born_in(seed: int | None) -> None:
    lines = said(dtype="bfloat16", seed=seed, start_error=12345.6, relative_error=9870.0, kept=-3.0)
    assert lines == [
        "3.12 % of the weights are not the start's; the update has a relative error of 9,870",
        "warning: the weights were born float16, which bfloat16 does not hold: rounding them alone"
        " changes them 12,346 times as much as the training did",
        "   help: --dtype float16 holds them",
    ]


def test_a_format_that_costs_little_is_told_and_not_warned_of() -> None:
    lines = said(source_dtype="float32", start_error=0.01)
    assert lines[1:] == [
        "the weights were born float32, which float16 does not hold: rounding them alone changes"
        " them 0.01 times as much as the training did"
    ]
    lost = said(source_dtype="float32", start_error=0.4, relative_error=0.6)
    assert lost[2].startswith("warning: rounding to the nearest float16")


def test_nothing_to_compare() -> None:
    assert said() == ["no weight differs from the start's, in float32 either"]
    assert said(not_compared="x.pth is gone") == [
        "not compared with the weights of the start: x.pth is gone"
    ]

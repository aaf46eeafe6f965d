"""Tests of the plan of a run."""

from __future__ import annotations

import dataclasses

from dpo_cli.run.plan import Plan, PlannedPairs
from tests.support import story

PAIRS = PlannedPairs(kept=800, skipped_rows=0, held_out=40, held_out_skipped_rows=0)


def test_truncation_and_known_prompts_are_caveats() -> None:
    assert PAIRS.caveats() == []  # not recorded
    clean = dataclasses.replace(PAIRS, truncated=0, held_out_truncated=0, held_out_known=2)
    assert clean.caveats() == []  # 5 % are tolerated
    leak, cut = dataclasses.replace(
        PAIRS, truncated=80, held_out_truncated=0, held_out_known=3
    ).caveats()
    assert leak.startswith("3 of 40 (8 %) held-out pairs have a prompt that is also trained on")
    assert cut.startswith("80 of 800 (10 %) pairs to train on and 0 of 40 (0 %) held-out pairs are")


def test_a_plan_without_these_figures_still_loads() -> None:
    values = story.PLAN.to_dict()
    for name in ("truncated", "held_out_truncated", "held_out_known"):
        del values["pairs"][name]
    assert Plan.from_dict(values) == story.PLAN

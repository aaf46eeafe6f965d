"""Tests of the check of the device."""

from __future__ import annotations

import pytest

from dpo_cli.checks.reporter import Reporter
from dpo_cli.checks.resources import check_device
from dpo_cli.profile.schema import Data, Model, Profile, Train


def profile(**settings: object) -> Profile:
    model = Model.model_construct(tokenizer="tokenizer")
    data = Data.model_construct(data_path="pairs.jsonl")
    return Profile.model_construct(
        model=model, data=data, train=Train.model_validate({"device": "cpu", **settings})
    )


@pytest.mark.parametrize(
    ("dtype", "is_slow"), [("auto", False), ("float32", False), ("bfloat16", True)]
)
def test_half_precision_on_a_cpu_is_named(dtype: str, is_slow: bool) -> None:
    reporter = Reporter()
    check_device(reporter, profile(dtype=dtype))
    slow = [each for each in reporter.findings if each.code == "dtype-slow"]
    assert bool(slow) is is_slow
    assert all('Set train.dtype = "auto"' in each.remedy for each in slow)

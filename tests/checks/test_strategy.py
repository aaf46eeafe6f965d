"""Tests of the comparison of replicas and shards in `dpo check`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import pytest
import torch

from dpo_cli.checks import strategy
from dpo_cli.checks.reporter import Reporter
from dpo_cli.checks.strategy import check_strategy, forwards_of_a_step, needs_shards
from dpo_cli.compute.device import Device
from dpo_cli.findings import Finding, Level
from dpo_cli.training.inputs import RunInputs
from tests.support.two_layouts import Recorder, make_trainer, minimind_scorer

GPU = Device(torch.device("cuda", 0), torch.float32)


@pytest.fixture(scope="module")
def inputs() -> RunInputs:
    scorer = partial(minimind_scorer, "minimind3")
    trainer = make_trainer(scorer, "packed", Recorder(), dtype=torch.float32)
    return replace(trainer.inputs, device=GPU)


def check(
    inputs: RunInputs,
    own: Literal["replicate", "shard"],
    free: int,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Finding, dict[str, dict[str, int]]]:
    monkeypatch.setattr(strategy, "free_memory", lambda device: free)
    launch = inputs.profile.launch.model_copy(update={"strategy": own})
    profile = inputs.profile.model_copy(update={"launch": launch})
    reporter = Reporter()
    facts = check_strategy(reporter, replace(inputs, profile=profile), 4)
    [finding] = reporter.findings
    assert needs_shards(replace(inputs, profile=profile)) == (
        own == "shard" and facts["bytes"]["replicate"] - 4 * inputs.trainable.parameters >= free
    )
    return finding, facts


def test_bytes_follow_from_the_weights(inputs: RunInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    _, facts = check(inputs, "replicate", 1 << 40, monkeypatch)
    weights = 4 * inputs.trainable.parameters
    assert facts["bytes_sent"]["replicate"] == round(2 * 3 / 4 * weights)
    forwards = forwards_of_a_step(inputs, 4)
    assert facts["bytes_sent"]["shard"] == round(3 * 3 / 4 * weights * forwards)
    # Replicas hold weights, gradients, two moments, the flat tensor and the reference.
    assert facts["bytes"]["replicate"] > 6 * weights


def test_the_strategy_that_fits_is_named(
    inputs: RunInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, facts = check(inputs, "replicate", 1 << 40, monkeypatch)
    replicas, shards = facts["bytes"]["replicate"], facts["bytes"]["shard"]
    assert shards < replicas
    between = (replicas + shards) // 2

    finding, _ = check(inputs, "replicate", between, monkeypatch)
    assert (finding.level, finding.remedy) == (Level.WARN, 'Set launch.strategy = "shard".')
    finding, _ = check(inputs, "shard", between, monkeypatch)
    assert (finding.level, finding.remedy) == (Level.OK, "")
    finding, _ = check(inputs, "shard", replicas, monkeypatch)
    assert (finding.level, "both fit" in finding.message) == (Level.WARN, True)
    assert finding.remedy == 'Set launch.strategy = "replicate", which sends less.'
    finding, _ = check(inputs, "replicate", replicas, monkeypatch)
    assert finding.level is Level.OK
    finding, _ = check(inputs, "shard", 1000, monkeypatch)
    assert (finding.level, "neither fits" in finding.message) == (Level.WARN, True)

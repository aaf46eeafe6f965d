"""Tests of the default of train.max_tokens_per_forward."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from dpo_cli.compute.device import Device
from dpo_cli.models import forward_size
from dpo_cli.models.forward_size import default_max_tokens_per_forward
from dpo_cli.models.loading import ModelWeights
from dpo_cli.profile.schema import Profile
from dpo_cli.training.plan import make_plan, saved_max_tokens_per_forward
from dpo_cli.training.resume_checks import environment_changes
from tests.support.fake_runs import minimind_26m
from tests.support.golden_inputs import golden_inputs

GPU = Device(torch.device("cuda"), torch.bfloat16)
PROFILE = Profile.model_validate(
    {"model": {"tokenizer": "unused"}, "data": {"data_path": "unused"}}
)


def limit(free: float, shape: object = None, profile: Profile = PROFILE) -> int:
    """Return the default with this many free GB."""
    weights = ModelWeights(
        shape or minimind_26m(),  # type: ignore[arg-type]
        {"all": torch.empty(26_000_000, device="meta")},
        torch.float16,
        "",
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(forward_size, "free_memory", lambda device: int(free * 2**30))
        return default_max_tokens_per_forward(GPU, weights, weights, profile)


def test_the_limit_follows_the_free_memory() -> None:
    assert [limit(free) for free in (0, 1, 3, 8, 15, 24, 80)] == [
        *(1024, 1024, 4096, 16384, 32768, 32768, 65536)
    ]


def test_larger_models_get_smaller_forwards() -> None:
    large = dataclasses.replace(
        minimind_26m(28), hidden_size=1024, num_attention_heads=16, intermediate_size=3072
    )
    assert limit(24, large) < limit(24)
    checkpointed = PROFILE.model_copy(
        update={"train": PROFILE.train.model_copy(update={"activation_checkpointing": True})}
    )
    assert limit(24, large, checkpointed) > limit(24, large)


def test_a_cpu_has_a_constant() -> None:
    weights = ModelWeights(minimind_26m(), {}, torch.float16, "")
    device = Device(torch.device("cpu"), torch.float32)
    assert default_max_tokens_per_forward(device, weights, weights, PROFILE) == 2048


class OnGpu(Device):
    """Device that pretends to be a GPU."""

    @property
    def versions(self) -> dict[str, str]:
        return {"gpu": self.name, "cuda": "13.0", "cudnn": "91900"}

    name = "NVIDIA A100 sm_80"


def test_a_resume_keeps_the_limit_and_notices_another_gpu(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = dataclasses.replace(
        golden_inputs(shared),
        device=OnGpu(torch.device("cuda", 0), torch.bfloat16),
        max_tokens_per_forward=16384,
    )
    plan = make_plan(inputs)
    assert saved_max_tokens_per_forward(plan) == 16384
    assert environment_changes(plan, make_plan(inputs)) == []
    monkeypatch.setattr(OnGpu, "name", "NVIDIA GeForce RTX 4090 sm_89")
    assert environment_changes(plan, make_plan(inputs)) == [
        "gpu NVIDIA A100 sm_80 -> NVIDIA GeForce RTX 4090 sm_89"
    ]


def test_a_stated_limit_is_no_part_of_the_environment(shared: Path) -> None:
    stated = golden_inputs(shared, **{"train.max_tokens_per_forward": 4096})
    on_gpu = dataclasses.replace(stated, device=OnGpu(torch.device("cuda", 0), torch.bfloat16))
    assert saved_max_tokens_per_forward(make_plan(on_gpu)) is None
    assert saved_max_tokens_per_forward(make_plan(golden_inputs(shared))) is None


def test_a_gpu_evaluates_more_pairs_at_once_than_it_trains(shared: Path) -> None:
    on_cpu = golden_inputs(shared, **{"eval.fraction": 0.5, "train.max_tokens_per_forward": 2000})
    on_gpu = dataclasses.replace(on_cpu, device=GPU)

    def sizes(batches: list[tuple[int, ...]]) -> list[int]:
        return [int(on_cpu.held_out.computed_tokens[list(each)].sum()) for each in batches]

    few, many = on_gpu.batches.held_out_batches, on_cpu.batches.held_out_batches
    assert max(sizes(many)) <= 2000 < max(sizes(few)) <= 8000
    assert sorted(sum(few, ())) == sorted(sum(many, ())) == list(range(len(on_cpu.held_out)))
    assert on_gpu.batches.reference_batches == on_cpu.batches.reference_batches

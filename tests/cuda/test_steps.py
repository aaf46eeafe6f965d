"""Tests of real optimizer steps, evaluations and reference passes on a GPU that only counts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_cli.run.events import Evaluated
from dpo_cli.training.reference import CachedReference
from dpo_cli.training.trainer import Trainer
from tests.support.fake_gpu import Record, Recorder, fake_gpu
from tests.support.fake_runs import architecture, fake_trainer, minimind_26m

MODELS = ["minimind2", "minimind2-moe", "minimind3", "minimind3-moe", "llama", "gemma3"]
"""Architectures; the last one is computed sequence by sequence."""
SMALL = 13, (9, 14)
BF16, FP16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
PRODUCTS = "mm", "bmm", "addmm", "_grouped_mm"


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPO_CACHE_DIR", str(tmp_path / "cache"))
    # A log line reads the number of moved weights, which another test covers.
    monkeypatch.setattr(Trainer, "is_logged", lambda *_: False)


def steps(trainer: Trainer, gpu: Recorder) -> Iterator[Record]:
    """Take the steps of a run; yield the record of each step."""
    for global_batch, forwards in trainer.inputs.batches.forwards(
        trainer.inputs.order.global_batches()
    ):
        gpu.record = Record()
        done = trainer.take_step(global_batch, forwards)
        assert not done.is_skipped
        yield gpu.record


def assert_runs_freely(record: Record, waits: int = 1) -> None:
    """Require one wait, for the figures of the step."""
    assert sum(record.waits.values()) == waits, record.waits
    assert all("training/step_metrics.py" in place for place in record.waits)
    assert not record.mixes, record.mixes


@pytest.mark.parametrize("model", MODELS)
def test_a_step_waits_once_and_computes_in_half_precision(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_gpu(monkeypatch) as gpu:
        trainer = fake_trainer(
            architecture(model), tmp_path, pairs=2, batch_size=2, lengths=SMALL, epochs=2
        )
        assert (trainer.policy.fallback_reason is None) == (model != "gemma3")
        first, second = steps(trainer, gpu)
    for record in (first, second):
        assert_runs_freely(record)
        # One buffer of tensors for each forward, the positions of the reference's values, and small
        # buffers for experts and for models that are computed sequence by sequence.
        assert sum(record.copies.values()) <= 6
        for name in PRODUCTS[:1] + PRODUCTS[3:]:
            for factor, other, *rest in record.dtypes.get(name, Counter()):
                assert factor == other == BF16
                assert rest[-1] in (BF16, F32)
        [weights] = record.dtypes["_fused_adamw_"]
        assert set(weights) == {F32}
    # The reference computes in the first epoch only.
    assert first.launches > second.launches
    if model != "gemma3":
        assert first.kernels["_flash_attention_forward"] == 4
        assert second.kernels["_flash_attention_forward"] == 2
        assert second.kernels["_flash_attention_backward"] == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dtype": FP16, "capability": (7, 5)}, {"_efficient_attention_forward": {FP16}}),
        ({"dtype": F32}, {"_efficient_attention_forward": {F32}, "mm": {F32}}),
        ({"layout": "padded"}, {"mm": {BF16}}),
        (
            {
                "kahan_summation": True,
                "activation_checkpointing": True,
                "dpo__ld_alpha": 0.5,
                "dpo__reduction": "sum",
            },
            {"_flash_attention_forward": {BF16}},
        ),
        ({"model__dropout": 0.1}, {"mm": {BF16}}),
        ({"dpo__use_weighting": True, "dpo__reduction": "sum"}, {"mm": {BF16}}),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_options_do_not_wait_either(
    changes: dict[str, Any],
    expected: dict[str, set[torch.dtype]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = dict(changes)
    with fake_gpu(monkeypatch, changes.pop("capability", (9, 0))) as gpu:
        trainer = fake_trainer(
            architecture("minimind2"), tmp_path, pairs=2, batch_size=2, lengths=SMALL, **changes
        )
        [record] = steps(trainer, gpu)
    assert_runs_freely(record)
    for name, dtypes in expected.items():
        assert {found[0] for found in record.dtypes[name]} == dtypes


def test_products_of_the_head_are_float32_and_losses_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_gpu(monkeypatch) as gpu:
        trainer = fake_trainer(
            architecture("minimind2"), tmp_path, pairs=2, batch_size=2, lengths=SMALL
        )
        [record] = steps(trainer, gpu)
    widened = [found for found in record.dtypes["mm"].elements() if found[-1] == F32]
    assert widened == [(BF16, BF16, F32)] * 4  # reference, policy, and both gradients
    assert record.dtypes["log_sigmoid_forward"].keys() == {(F64, F64, F64)}


@pytest.mark.parametrize(
    ("model", "layout"), [("minimind2", "packed"), ("minimind2", "padded"), ("gemma3", "packed")]
)
def test_an_evaluation_waits_once(
    model: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds before the first step, when policy and reference are equal, and later."""
    with fake_gpu(monkeypatch) as gpu:
        trainer = fake_trainer(
            architecture(model),
            tmp_path,
            pairs=2,
            batch_size=2,
            held_out=6,
            layout=layout,
            lengths=SMALL,
        )
        for _ in range(2):
            gpu.record = Record()
            trainer.evaluate()
            assert sum(gpu.record.waits.values()) == 1, gpu.record.waits
            assert not gpu.record.mixes
            trainer.optimizer_step = 1  # policy and reference differ
    assert all(isinstance(event, Evaluated) for event in trainer.hooks.events)


def test_the_reference_pass_is_kept_on_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_gpu(monkeypatch) as gpu:
        trainer = fake_trainer(
            architecture("minimind2"), tmp_path, pairs=4, batch_size=4, lengths=SMALL
        )
        reference = trainer.reference
        assert isinstance(reference, CachedReference)
        batch = trainer.inputs.batches.make_batch(trainer.inputs.pairs, range(4))
        passes = []
        for _ in range(2):
            gpu.record = Record()
            logps = reference.token_logps(range(4), batch)
            passes.append(gpu.record)
        assert logps.device == batch.mask.device
        assert logps.shape == batch.mask.shape
    assert not any(record.waits for record in passes)
    assert passes[0].launches > 50
    # Known values: one kernel gathers them, however many pairs there are.
    assert passes[1].launches <= 2


def test_a_log_line_reads_the_moved_weights_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_gpu(monkeypatch) as gpu:
        trainer = fake_trainer(
            architecture("minimind2"), tmp_path, pairs=2, batch_size=2, lengths=SMALL
        )
        monkeypatch.setattr(Trainer, "is_logged", lambda *_: True)
        [record] = steps(trainer, gpu)
    assert_runs_freely(record, waits=2)


@pytest.mark.parametrize(
    ("model", "dtype"), [("minimind2", F32), ("minimind2", BF16), ("minimind3-moe", BF16)]
)
def test_a_device_without_float64_leaves_it_to_the_cpu(
    model: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On devices like Apple's GPUs, losses and metrics are float64 too."""
    with fake_gpu(monkeypatch, like="mps") as gpu:
        trainer = fake_trainer(
            architecture(model),
            tmp_path,
            dtype=dtype,
            pairs=2,
            batch_size=2,
            held_out=2,
            lengths=SMALL,
        )
        trainer.evaluate()
        [record] = steps(trainer, gpu)
    assert not record.mixes
    assert "_flash_attention_forward" not in record.kernels
    assert record.dtypes["mm"].keys() == {(dtype,) * 3} | ({(F32,) * 3} if dtype == BF16 else set())


@pytest.mark.parametrize(
    ("pairs", "accumulation_steps", "most"), [(4, 1, 1300), (32, 8, 1500)], ids=["4", "4 x 8"]
)
def test_operations_of_an_update(
    pairs: int,
    accumulation_steps: int,
    most: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MiniMind of 26M weights, about 850 tokens per pair, with a cached reference.

    Before micro-batches were merged, 32 pairs took 11,500 operations.
    """
    with fake_gpu(monkeypatch) as gpu:
        trainer = fake_trainer(
            minimind_26m(),
            tmp_path,
            pairs=pairs,
            batch_size=4,
            accumulation_steps=accumulation_steps,
            epochs=2,
        )
        [_, record] = itertools.islice(steps(trainer, gpu), 2)
    assert_runs_freely(record)
    assert record.kernels["_flash_attention_forward"] == 8
    assert record.launches <= most

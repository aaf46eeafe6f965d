from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dpo_cli.compute.device import resolve
from dpo_cli.errors import DpoError
from dpo_cli.models.minimind import MiniMind
from dpo_cli.run.plan import Plan, PlannedSteps
from dpo_cli.training.plan import make_plan
from dpo_cli.training.resume_checks import require_same_inputs
from tests.support.golden_inputs import golden_inputs, twice_asked


def test_a_plan_counts_its_steps(shared: Path) -> None:
    plan = make_plan(golden_inputs(shared, **{"train.global_batch_size": 8}))
    assert plan.steps == PlannedSteps(
        micro_batches=14, micro_batches_per_epoch=7, optimizer_steps=8, accumulation_steps=2
    )
    assert plan.setting("train.epochs") == 2
    assert plan.pairs.kept == 27
    assert plan.model.weights_file == "rlhf_64.pth"
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_pairs_are_held_out_of_training(shared: Path) -> None:
    whole, split = golden_inputs(shared), golden_inputs(shared, **{"eval.fraction": 0.25})
    lines = [pair.line for pair in (*split.pairs, *split.held_out)]
    assert len(split.held_out) == 7
    assert sorted(lines) == [pair.line for pair in whole.pairs]


def test_pairs_of_a_prompt_are_held_out_together(shared: Path, tmp_path: Path) -> None:
    data = twice_asked(shared, tmp_path)
    inputs = golden_inputs(shared, **{"data.data_path": data, "eval.fraction": 0.26})
    plan = make_plan(inputs)
    assert (len(inputs.held_out), plan.pairs.held_out_known) == (14, 0)
    assert plan.pairs.whole_prompts


def test_a_file_of_held_out_pairs(shared: Path) -> None:
    both = golden_inputs(shared, **{"eval.path": shared / "golden/data/tok24.jsonl"})
    assert len(both.pairs) == 27
    assert len(both.held_out) + len(both.held_out_skipped_rows) == 24
    assert len(both.held_out) == 22  # two answers lie beyond max_seq_len
    assert "held_out" in both.fingerprints


def test_the_wrong_architecture_is_refused(shared: Path) -> None:
    with pytest.raises(DpoError, match="contradicts the weights") as caught:
        golden_inputs(shared, profile="moe")
    assert "model.use_moe = True in the profile, False in the weights" in caught.value.details


def test_inputs_are_compared_by_content(shared: Path, tmp_path: Path) -> None:
    data = (shared / "golden/data/train27.jsonl").read_bytes()
    copy = tmp_path / "moved.jsonl"
    copy.write_bytes(data)
    saved_plan = golden_inputs(shared).fingerprints
    require_same_inputs(saved_plan, golden_inputs(shared, **{"data.data_path": copy}).fingerprints)
    copy.write_bytes(data.replace(b"the", b"teh", 1))
    with pytest.raises(DpoError) as caught:
        require_same_inputs(
            saved_plan, golden_inputs(shared, **{"data.data_path": copy}).fingerprints
        )
    assert caught.value.details == ("data.data_path: the content is not what the run began with",)


def test_reference_with_another_vocabulary_is_refused(shared: Path) -> None:
    other = shared / "golden/arch/seed/full_sft_64.pth"
    with pytest.raises(DpoError, match="has 320 entries"):
        golden_inputs(shared, **{"model.reference": other})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
class TestDevice:
    def test_auto_is_the_cpu_in_float32(self) -> None:
        device = resolve("auto", "auto")
        assert (str(device.torch_device), device.dtype_name) == ("cpu", "float32")

    def test_cuda_is_never_silently_the_cpu(self) -> None:
        with pytest.raises(DpoError, match=r"train\.device 'cuda:1'") as caught:
            resolve("cuda:1", "auto")
        assert torch.__version__ in caught.value.message
        assert 'train.device = "cpu"' in caught.value.remedy

    def test_a_card_that_torch_cannot_use_is_an_error(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dpo_cli.compute.device._has_nvidia_card", lambda: True)
        with pytest.raises(DpoError, match=r"train\.device 'cuda'"):
            resolve("auto", "auto")


def test_sequences_beyond_the_models_positions_are_refused(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that no sequence reaches is allowed, except in the padded layout."""
    huge = {"data.max_seq_len": 100_000}
    assert golden_inputs(shared, **huge).pairs
    with pytest.raises(DpoError, match="pads every sequence to that length") as caught:
        golden_inputs(shared, **huge, **{"train.layout": "padded"})
    assert caught.value.remedy == "Set data.max_seq_len to 32768 or less."

    monkeypatch.setattr(MiniMind, "max_positions", 100)
    assert golden_inputs(shared, **{"data.max_seq_len": 100}).pairs
    with pytest.raises(DpoError, match="the model has 100 positions: lines ") as caught:
        golden_inputs(shared, **huge)
    assert "train27.jsonl" in caught.value.message
    with pytest.raises(DpoError, match=r"tok24\.jsonl: .* the model has 100 positions"):
        golden_inputs(
            shared,
            **{"data.max_seq_len": 200, "data.data_path": shared / "golden/data/tok24.jsonl"},
        )


def test_mixture_weights_of_several_sources(shared: Path) -> None:
    """Repeated pairs are part of the order; held-out pairs are never repeated."""
    paths = [shared / "golden/data/train27.jsonl", shared / "golden/data/tok24.jsonl"]
    stated = f'["{paths[0]}", "{paths[1]}"]'
    both = golden_inputs(shared, **{"data.data_path": stated})
    weighted = golden_inputs(
        shared,
        **{"data.data_path": stated, "data.mixture_weights": "[2.0, 0.5]", "eval.fraction": 0.2},
    )
    held_out, trained = weighted.held_out.lines.tolist(), weighted.pairs.lines.tolist()
    own = sorted(set(both.pairs.lines.tolist()) - set(held_out))
    first, second = ([line for line in own if (line > 27) == is_second] for is_second in (0, 1))
    assert trained[: 2 * len(first)] == first * 2
    assert len(trained[2 * len(first) :]) == round(0.5 * len(second))
    assert set(trained[2 * len(first) :]) < set(second)
    assert weighted.order.pairs == len(trained)
    assert both.pairs.places.name(28) == "line 1 of tok24.jsonl"


def test_directory_is_compared_by_all_its_files(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    lines = (shared / "golden/data/train27.jsonl").read_text().splitlines(keepends=True)
    (folder / "1.jsonl").write_text("".join(lines[:9]))
    (folder / "2.jsonl").write_text("".join(lines[9:]))
    saved_plan = golden_inputs(shared, **{"data.data_path": folder}).fingerprints
    paths = f'["{folder}/1.jsonl", "{folder}/2.jsonl"]'
    require_same_inputs(saved_plan, golden_inputs(shared, **{"data.data_path": paths}).fingerprints)
    (folder / "3.jsonl").write_text(lines[0])
    with pytest.raises(DpoError, match="its inputs have changed"):
        require_same_inputs(
            saved_plan, golden_inputs(shared, **{"data.data_path": folder}).fingerprints
        )


def test_mixture_weights_depend_on_the_source_of_each_file(shared: Path, tmp_path: Path) -> None:
    """Same files in the same order, but another source is repeated."""
    lines = (shared / "golden/data/train27.jsonl").read_text().splitlines(keepends=True)
    plans = []
    for name, firsts in (("a", 2), ("b", 1)):
        folders = [tmp_path / name / part for part in "12"]
        for number in range(3):
            folder = folders[number >= firsts]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.jsonl").write_text("".join(lines[9 * number : 9 * number + 9]))
        stated = {"data.data_path": f'["{folders[0]}", "{folders[1]}"]'}
        plans.append(
            golden_inputs(shared, **stated, **{"data.mixture_weights": "[2.0, 1.0]"}).fingerprints
        )
    with pytest.raises(DpoError, match="its inputs have changed"):
        require_same_inputs(*plans)


def test_mixture_weights_that_leave_no_pair(shared: Path) -> None:
    with pytest.raises(DpoError, match=r"mixture_weights = \[0.0\]: no pair is left to train on"):
        golden_inputs(shared, **{"data.mixture_weights": "[0.0]"})

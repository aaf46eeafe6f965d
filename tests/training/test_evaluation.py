"""Tests that both layouts, several ranks, and a plain computation give the same metrics."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dpo_cli.data.batching import Batch, Layout
from dpo_cli.data.chat import ChatTokenizer, Tokenized, TokenizedPair
from dpo_cli.models.loading import build_model
from dpo_cli.models.scoring import ResponseScorer, Scores
from dpo_cli.objective.held_out import HELD_OUT_METRICS
from dpo_cli.profile.load import load_profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Evaluated, Sampled
from dpo_cli.training import samples
from dpo_cli.training.checkpointing import load_weights
from dpo_cli.training.evaluation import score_held_out
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.samples import prompt_of
from tests.support import ranks, workers
from tests.support.cli import Run
from tests.support.small_runs import golden_run
from tests.support.two_layouts import (
    Float64,
    Recorder,
    family_scorer,
    make_trainer,
    minimind_scorer,
    odd_pairs,
)
from tests.support.worker_faults import own_cache

SCORERS = {
    "minimind2": partial(minimind_scorer, "minimind2"),
    "minimind3-moe": partial(minimind_scorer, "minimind3-moe"),
    "unpacked": partial(family_scorer, "mistral-window"),
    "softcap": partial(family_scorer, "gemma2"),
}


FEW_TOKENS = 12


def few_tokens() -> None:
    """Generate short answers in a test."""
    samples.MAX_TOKENS = FEW_TOKENS


def shaken(scorer: ResponseScorer) -> ResponseScorer:
    """Return a policy that differs from its reference."""
    generator = torch.Generator().manual_seed(2)
    for weight in scorer.parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        weight.data = weight.data * (1 + 0.05 * noise)
    return scorer


def plain_entropy(scorer: ResponseScorer, side: Tokenized) -> float:
    """Compute one sequence at a time with all logits."""
    logits = scorer.model(input_ids=side.ids[:-1].unsqueeze(0), use_cache=False).logits[0]
    p = logits.softmax(dim=-1)[side.response[1:]]
    return -(p * p.log()).sum(dim=-1).mean().item()


@torch.no_grad()
@pytest.mark.parametrize("name", SCORERS)
def test_layouts_agree_with_each_other_and_with_a_plain_forward(name: str) -> None:
    tables: dict[Layout, Tensor] = {}
    done: list[int] = []
    layouts: tuple[Layout, ...] = ("packed", "padded")
    with Float64():
        for layout in layouts:
            trainer = make_trainer(SCORERS[name], layout, Recorder())
            policy, inputs = shaken(trainer.policy), trainer.inputs
            tables[layout] = score_held_out(
                policy,
                trainer.reference,
                inputs.order.micro_batches_of(0),
                partial(inputs.batches.make_batch, inputs.pairs),
                dpo=inputs.profile.dpo,
                device=inputs.device,
                on_progress=done.append,
            )
        expected = [
            (plain_entropy(policy, pair.chosen) + plain_entropy(policy, pair.rejected)) / 2
            for pair in odd_pairs()
        ]
    assert (tables["packed"] - tables["padded"]).abs().max() < 1e-8
    entropies = tables["packed"][:, HELD_OUT_METRICS.index("entropy")]
    assert entropies.tolist() == pytest.approx(expected, abs=1e-10)
    assert done == [3, 6, 9, 10] * 2
    assert min(expected) > 0.1


@pytest.fixture(scope="module")
def alone(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = workers.new_run(tmp_path_factory.mktemp("alone"), arguments(shared))
    assert workers.work(run) == 0
    return run


def arguments(shared: Path) -> list[str]:
    changes = {
        "eval.fraction": 0.4,
        "train.batch_size": 2,
        "train.global_batch_size": 6,
        "train.epochs": 1,
        "eval.interval": 2,
    }
    return golden_run(shared, "seed", False, **changes)


def evaluations(run: RunDirectory) -> list[Evaluated]:
    return [event for event in Run(run).events if isinstance(event, Evaluated)]


def test_three_ranks_evaluate_as_one(shared: Path, tmp_path: Path, alone: RunDirectory) -> None:
    run = workers.new_run(tmp_path, arguments(shared))
    assert ranks.work(run, 3) == [0] * 3
    ours, expected = evaluations(run), evaluations(alone)
    assert [(event.step, event.pairs) for event in ours] == [(e.step, e.pairs) for e in expected]
    assert ours[0].metrics == expected[0].metrics
    assert ours[0].groups == expected[0].groups
    # Gradients are summed in another order, so after the first step the last bits differ.
    assert ours[-1].metrics == pytest.approx(expected[-1].metrics, abs=1e-6)


def test_evaluation_reports_every_group(alone: RunDirectory) -> None:
    start, *_, end = evaluations(alone)
    assert set(start.metrics) == set(HELD_OUT_METRICS) - {"rewards/accuracies"}
    assert set(end.metrics) == set(HELD_OUT_METRICS)
    for event in (start, end):
        assert event.groups["all"]["pairs"] == event.pairs
        assert {name: event.groups["all"][name] for name in event.metrics} == event.metrics
        for kind in ("language/", "length/"):
            of_kind = [metrics for name, metrics in event.groups.items() if name.startswith(kind)]
            assert sum(metrics["pairs"] for metrics in of_kind) == event.pairs
            loss = sum(metrics["pairs"] * metrics["loss"] for metrics in of_kind) / event.pairs
            assert loss == pytest.approx(event.metrics["loss"], rel=1e-12)
    assert start.metrics["loss"] == pytest.approx(math.log(2), rel=1e-12)
    assert start.metrics["logps/accuracies"] == start.metrics["ref_logps/accuracies"]
    assert end.metrics["ref_logps/accuracies"] == start.metrics["ref_logps/accuracies"]
    assert 0 < end.metrics["entropy"] < math.log(6400)
    assert end.metrics["entropy"] != start.metrics["entropy"]
    assert end.metrics["token_logps/chosen"] == pytest.approx(end.metrics["logps/chosen"])


def ask_the_policy(cache: Path) -> None:
    """Run the policy at step 0 too, with an empty cache."""
    own_cache(cache)
    RunInputs.policy_starts_as_reference = False  # type: ignore[assignment]


def note_modes(cache: Path, file: Path) -> None:
    """Record for every forward if it is in training mode."""
    own_cache(cache)
    forward = ResponseScorer.forward

    def noted(self: ResponseScorer, batch: Batch, with_entropies: bool = False) -> Scores:
        with file.open("a") as lines:
            lines.write("training\n" if self.training else "evaluation\n")
        return forward(self, batch, with_entropies)

    ResponseScorer.forward = noted  # type: ignore[method-assign]


@pytest.mark.parametrize("version", ["seed", "head"])
@pytest.mark.parametrize("moe", [False, True])
def test_step_0_evaluation_uses_the_cached_reference(
    shared: Path, tmp_path: Path, version: str, moe: bool
) -> None:
    """The run is bit-identical to the end; no forward runs if the values are cached."""
    runs, modes = [], []
    for number, arm in enumerate((ask_the_policy, note_modes, note_modes)):
        arguments = golden_run(shared, version, moe, **{"train.epochs": 1})
        runs.append(workers.new_run(tmp_path / str(number), arguments))
        file = tmp_path / f"modes-{number}"
        cache = tmp_path / f"cache-{min(number, 1)}"
        assert workers.work(runs[-1], partial(arm, cache, *[file][: arm is note_modes])) == 0
        modes.append(file.read_text().split() if file.exists() else [])
        workers.assert_equal(runs[-1], runs[0])
        assert [(e.metrics, e.groups) for e in evaluations(runs[-1])] == [
            (e.metrics, e.groups) for e in evaluations(runs[0])
        ]
    steps, held_out = modes[2].count("training"), modes[2].count("evaluation")
    assert modes[2] == ["training"] * steps + ["evaluation"] * held_out
    # The reference computes each row of the epoch, and each held-out row, once.
    assert modes[1].count("evaluation") == steps + 2 * held_out


@pytest.mark.parametrize("version", ["seed", "head"])
@pytest.mark.parametrize("moe", [False, True])
def test_samples_change_no_bit_and_are_what_greedy_decoding_gives(
    shared: Path, tmp_path: Path, version: str, moe: bool
) -> None:
    """The KV cache under our attention gives the same values as a whole forward."""
    changes = {"model.dropout": 0.1, "train.epochs": 1, "eval.interval": 3}
    runs = []
    for count in (0, 2):
        arguments = golden_run(shared, version, moe, **changes, **{"eval.num_samples": count})
        runs.append(workers.new_run(tmp_path / str(count), arguments))
        assert workers.work(runs[-1], few_tokens) == 0
    workers.assert_equal(runs[1], runs[0])
    assert not [event for event in Run(runs[0]).events if isinstance(event, Sampled)]
    sampled = [event for event in Run(runs[1]).events if isinstance(event, Sampled)]
    assert [event.step for event in sampled] == [event.step for event in evaluations(runs[1])]
    start, *_, end = sampled
    assert len(start.samples) == 2
    for before, after in zip(start.samples, end.samples, strict=True):
        assert before["policy"] == before["reference"] == after["reference"]
    last = runs[1].read_newest(load_weights)
    assert last is not None
    profile = load_profile(runs[1].profile_path).profile
    tokenizer = ChatTokenizer(profile.model.tokenizer)
    model = build_model(Run(runs[1]).architecture, last[1]).eval()
    for sample in end.samples:
        ids = torch.tensor([tokenizer._tokenizer.encode(sample["prompt"])])
        prompt = ids.shape[1]
        with torch.no_grad():
            while ids.shape[1] < prompt + FEW_TOKENS:
                following = model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
                if following == tokenizer.end_id:
                    break
                ids = torch.cat([ids, following.view(1, 1)], dim=1)
        assert tokenizer.decode(ids[0, prompt:]) == sample["policy"]


def test_prompt_ends_at_the_last_answer() -> None:
    ids = torch.arange(10)
    response = torch.tensor([0, 0, 1, 1, 0, 0, 0, 1, 1, 1]).bool()
    pair = TokenizedPair(1, Tokenized(ids, response), Tokenized(ids, response))
    assert prompt_of(pair).tolist() == [0, 1, 2, 3, 4, 5, 6]

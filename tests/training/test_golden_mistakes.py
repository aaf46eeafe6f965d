"""Golden runs with the recorded mistakes put back: the numbers then agree more closely.

`dpo` neither rounds experts to float16 silently nor draws a separate random number for each side of
a pair. The worker runs in this process, with the mistake injected.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from dpo_cli.data.chat import ChatTokenizer, Tokenized, TokenizedPair
from dpo_cli.data.encoding import encode_pairs
from dpo_cli.data.pairs import PreferencePair, read_pairs
from dpo_cli.data.sampler import BatchSampler
from dpo_cli.data.tokens import Rows
from dpo_cli.errors import ExitCode
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.resolved import to_toml
from dpo_cli.run.directory import RunDirectory
from dpo_cli.training import inputs, session, setup
from tests.support.cli import Run
from tests.support.columns import in_columns
from tests.support.golden_runs import (
    DENSE_LOSS,
    MOE_LOSS,
    PROFILES,
    assert_grad_norms,
    assert_steps,
    settings,
    update_error,
)

FINAL_WEIGHTS_ROUNDED = 5e-3


class NeverStopped:
    stop: str | None = None


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train_here(
    shared: Path, root: Path, version: str, name: str, **changes: Any
) -> tuple[Run, dict[str, Any]]:
    recorded = json.loads((shared / "golden/train" / version / f"{name}.json").read_text())
    keys = settings(shared, version, recorded) | changes
    profile = load_profile(
        Path(PROFILES[version, recorded["args"]["use_moe"]]),
        [f"{key}={value}" for key, value in keys.items()],
    ).profile
    directory = RunDirectory.create(root, "golden", to_toml(profile))
    assert session.train_run(directory.path, NeverStopped()) is ExitCode.DONE
    return Run(directory), recorded


def experts_rounded_to_float16(
    self: nn.Module, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Round each routed expert's output to float16, as MiniMind version 2 does in training."""
    output = torch.zeros_like(hidden)
    for expert in range(self.num_experts):
        token, slot = torch.where(top_k_index == expert)
        gate, up = F.linear(hidden[token], self.gate_up_proj[expert]).chunk(2, dim=-1)
        result = F.linear(self.act_fn(gate) * up, self.down_proj[expert])
        rounded = result.half() if self.training else result
        output = output.index_add(0, token, rounded * top_k_weights[token, slot, None])
    return output


def test_seed_moe_with_the_float16_rounding(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """golden/train/seed/moe_lr1e-4_acc1.json.

    In the padded layout, as recorded: the rounding also applies to gradients, and a shared prompt
    would add them up before it instead of after.
    """
    ALL_EXPERTS_FUNCTIONS.register("rounded_to_float16", experts_rounded_to_float16)
    monkeypatch.setattr(
        setup,
        "use_experts_for",
        lambda model, **_: model.set_experts_implementation("rounded_to_float16"),
    )
    name = "moe_lr1e-4_acc1"
    run, recorded = train_here(shared, tmp_path, "seed", name, **{"train.layout": "padded"})
    assert_steps(run, recorded, loss=MOE_LOSS, steps=len(recorded["steps"]))
    assert_grad_norms(run, recorded, updates=recorded["optimizer_updates"])
    error = update_error(shared, "seed", name, run, recorded["start_checkpoint"])
    assert error < FINAL_WEIGHTS_ROUNDED


def test_head_dense_with_a_random_decision_per_side(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """golden/train/head/dense_lr1e-4_acc1_coin.json.

    Texts differ between epochs and between the two sides of a pair, by the recorded random numbers.
    """
    name = "dense_lr1e-4_acc1_coin"
    recorded = json.loads((shared / f"golden/train/head/{name}.json").read_text())
    coins = iter(recorded["coins"])
    unequal = 0

    def encode_as_tossed(_: Any, path: Path, tokenizer: ChatTokenizer, *__: Any) -> Rows:
        """Return the pairs of the first epoch, followed by those of the second."""
        nonlocal unequal
        pairs = [row for row in read_pairs(path) if isinstance(row, PreferencePair)]
        tossed: list[TokenizedPair] = []
        for order in recorded["order"]:
            epoch: dict[int, TokenizedPair] = {}
            for index in order["indices"]:
                sides, removed = [], []
                for messages in (pairs[index].chosen, pairs[index].rejected):
                    (rendered,) = tokenizer.render(messages)
                    rendered = rendered.with_think_in_answers()
                    removed.append(next(coins) > 0.2)
                    sides.append(rendered.without_empty_think() if removed[-1] else rendered)
                unequal += removed[0] != removed[1]
                whole = [side.tokenized() for side in tokenizer.encode(sides)]
                cut = [Tokenized(side.ids[:256], side.response[:256]) for side in whole]
                epoch[index] = TokenizedPair(index + 1, *cut)
            tossed += [epoch[index] for index in range(len(pairs))]
        return Rows(in_columns(tossed), [])

    class TossedOrder(BatchSampler):
        """An epoch has 27 pairs; the pairs of the second epoch follow those of the first."""

        def __init__(self, pairs: int, **fields: Any) -> None:
            super().__init__(pairs=pairs // 2, **fields)

        def epoch_order(self, epoch: int) -> list[int]:
            return [index + epoch * self.pairs for index in super().epoch_order(epoch)]

    monkeypatch.setattr(inputs, "usable_rows", encode_as_tossed)
    monkeypatch.setattr(inputs, "BatchSampler", TossedOrder)
    run, _ = train_here(shared, tmp_path, "head", name, **{"train.layout": "padded"})
    assert next(coins, None) is None
    assert unequal == 20
    assert_steps(run, recorded, loss=DENSE_LOSS, steps=len(recorded["steps"]))
    assert_grad_norms(run, recorded, updates=recorded["optimizer_updates"])
    error = update_error(shared, "head", name, run, recorded["start_checkpoint"])
    assert error < 1e-3


def test_the_same_decision_on_both_sides(shared: Path) -> None:
    """`dpo` makes one random decision per pair instead."""
    tokenizer = ChatTokenizer(shared / "tokenizer" / "minimind3")
    rows = list(read_pairs(shared / "golden/data/train27.jsonl"))

    def encode(ratio: float) -> Sequence[TokenizedPair]:
        return encode_pairs(rows, tokenizer, max_seq_len=4096, empty_think_ratio=ratio, seed=42)[0]

    think = tokenizer.encode(tokenizer.render([*rows[0].chosen]))[0].ids  # type: ignore[union-attr]
    assert 25 in think  # <think>
    kept = [[25 in side.ids for side in (pair.chosen, pair.rejected)] for pair in encode(0.5)]
    assert all(chosen == rejected for chosen, rejected in kept)
    assert 3 < sum(chosen for chosen, _ in kept) < 24
    assert not any(25 in pair.chosen.ids for pair in encode(0.0))
    assert all(25 in pair.rejected.ids for pair in encode(1.0))

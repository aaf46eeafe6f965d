"""Trainers of real models on the fake GPU, with made-up pairs of given lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpo_cli.compute.device import Device
from dpo_cli.data.chat import Tokenized, TokenizedPair
from dpo_cli.data.tokens import TokenizedPairs
from dpo_cli.distributed.process_group import SINGLE_PROCESS
from dpo_cli.models.forward_size import default_max_tokens_per_forward
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.loading import ModelWeights, to_disk_names
from dpo_cli.models.minimind import MiniMind
from dpo_cli.models.spec import Architecture
from dpo_cli.paired import ModelScores
from dpo_cli.profile.schema import Profile
from dpo_cli.run.events import Event
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.setup import build_trainer
from dpo_cli.training.trainer import Trainer
from tests.support import fake_gpu, families, two_layouts
from tests.support.columns import in_columns

PROMPT, ANSWERS = 250, (340, 260)
"""Tokens of the prompt and of both responses: about 850 per pair, as in real data."""


def minimind_26m(layers: int = 8) -> MiniMind:
    """Return MiniMind version 2 with 26 million weights."""
    return MiniMind(
        version=2,
        hidden_size=512,
        num_hidden_layers=layers,
        vocab_size=6400,
        intermediate_size=1408,
        num_experts=0,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        rope_theta=1e6,
        rms_norm_eps=1e-5,
    )


def architecture(name: str) -> Architecture:
    """Return one of the small MiniMind variants, or a family of transformers."""
    if name in two_layouts.ARCHITECTURES:
        # A head size that kernels support, as in all real models.
        return dataclasses.replace(two_layouts.ARCHITECTURES[name], head_dim=16)
    return HuggingFace(families.build(name).config.to_dict(), {})


class Hooks:
    """Trainer hooks that keep the events, and fail on a loss that is not finite."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def keep_scores(self, optimizer_step: int, scores: ModelScores) -> None:
        pass

    def requests(self) -> set[str]:
        return set()

    def progress(self, phase: str, done: int, total: int, unit: str) -> None:
        pass

    def on_not_finite(self, *_: Any) -> None:
        raise AssertionError("not finite")


def fake_trainer(
    shape: Architecture,
    directory: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: Device | None = None,
    pairs: int = 8,
    held_out: int = 0,
    lengths: tuple[int, tuple[int, int]] = (PROMPT, ANSWERS),
    **train: Any,
) -> Trainer:
    """Build a trainer on the fake GPU, by `build_trainer`; call it within `fake_gpu`.

    Args:
        shape: architecture; the weights are random.
        directory: directory of the run.
        dtype: of the forward and backward pass on the fake GPU.
        device: device to use instead.
        pairs, held_out: number of pairs.
        lengths: tokens of the prompt, and of both answers.
        train: keys of [train]; with the prefixes `model__` and `dpo__` those of other tables.
    """
    tables: dict[str, dict[str, Any]] = {"train": {"epochs": 1}, "model": {}, "dpo": {}}
    for key, value in train.items():
        table, _, name = key.rpartition("__")
        tables[table or "train"][name] = value
    profile = Profile.model_validate(
        {
            "data": {"data_path": "unused", "max_seq_len": 1024},
            **tables,
            "model": {"tokenizer": "unused", **tables["model"]},
        }
    )
    weights = ModelWeights(shape, _state(shape), torch.float32, "weights")
    device = device or Device(fake_gpu.device(), dtype)
    everything = _pairs(pairs + held_out, *lengths, shape.vocab_size)
    inputs = RunInputs(
        profile=profile,
        device=device,
        weights=weights,
        reference_weights=weights,
        tokenizer=Path(),
        pad_id=0,
        pairs=everything[:pairs],
        held_out=everything[pairs:],
        skipped_rows=[],
        fingerprints={"reference": "weights"},
        accumulation_steps=profile.train.accumulation_on(1),
        max_tokens_per_forward=default_max_tokens_per_forward(device, weights, weights, profile),
    )
    return build_trainer(inputs, None, directory, Hooks(), lambda trainer: None, SINGLE_PROCESS)


def _state(shape: Architecture) -> dict[str, Tensor]:
    """Return zero weights if nothing computes with them, and random ones for a trial on the CPU."""
    if isinstance(shape, MiniMind):
        return two_layouts.empty_state(shape)
    model = families.build(shape.name.removesuffix("_text"))
    return dict(to_disk_names(model, model.state_dict()))


def _pairs(count: int, prompt: int, answers: tuple[int, int], vocabulary: int) -> TokenizedPairs:
    """Make pairs whose responses differ from the first token, with slightly different lengths."""
    generator = torch.Generator().manual_seed(0)

    def sides(number: int) -> Iterator[Tokenized]:
        beginning = torch.randint(1, vocabulary, (prompt,), generator=generator)
        for side, length in enumerate(answers):
            answer = torch.randint(1, vocabulary, (length + number % 5,), generator=generator)
            answer[0] = side + 1
            ids = torch.cat([beginning, answer])
            yield Tokenized(ids, torch.arange(len(ids)) >= prompt)

    return in_columns([TokenizedPair(n + 1, *sides(n)) for n in range(count)])

"""Adapters: the trainer's packed layout is peft in the plain padded loop, in float64 to 1e-10."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpo_cli.compute.device import Device
from dpo_cli.data.batching import make_batch
from dpo_cli.models.adapted import build_adapted
from dpo_cli.models.adapter import adapter_state
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.loading import ModelWeights, build_model
from dpo_cli.models.support import scorer_for
from dpo_cli.profile.schema import Profile
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.optimizer import make_optimizer
from dpo_cli.training.reference import CachedReference
from dpo_cli.training.setup import frozen_reference
from dpo_cli.training.trainer import Trainer
from tests.support import families
from tests.support.columns import in_columns
from tests.support.two_layouts import (
    ARCHITECTURES,
    MAX_SEQ_LEN,
    Float64,
    Recorder,
    empty_state,
    odd_pairs,
    random_weights,
)

BOUND = 1e-10
BETA = 0.3
RATE = 1e-2
MODELS = ("llama", "qwen3", "minimind2", "minimind3")
PAIRS = odd_pairs()


def start_weights(name: str) -> ModelWeights:
    """Random weights of a family, or of a MiniMind version."""
    if name in ARCHITECTURES:
        architecture: Any = ARCHITECTURES[name]
        model = build_model(architecture, empty_state(architecture))
        random_weights(model)
    else:
        model = families.build(name)
        architecture = HuggingFace(model.config.to_dict(), {})
    state = {
        key: tensor.detach().float()
        for key, tensor in model.state_dict().items()
        if key not in model.all_tied_weights_keys
    }
    return ModelWeights(architecture, state, torch.float32, name)


def profile_of(lora: dict[str, Any], **train: Any) -> Profile:
    return Profile.model_validate(
        {
            "model": {"tokenizer": "unused"},
            "data": {"data_path": "unused", "max_seq_len": MAX_SEQ_LEN, "shuffle": True},
            "dpo": {"reduction": "sum", "beta": BETA},
            "lora": {"rank": 4, **lora},
            "train": {
                "max_tokens_per_forward": 90,
                "save_min_seconds": 1e9,
                "batch_size": 3,
                "epochs": 5,
                "seed": 3,
                "schedule": "minimind2",
                "learning_rate": RATE,
                **train,
            },
        }
    )


def make_trainer(name: str, hooks: Recorder, lora: dict[str, Any]) -> Trainer:
    """A trainer for 20 steps in float64, whose reference is the policy without its adapter."""
    weights = start_weights(name)
    device = Device(torch.device("cpu"), torch.float64)
    pairs = in_columns(PAIRS)
    inputs = RunInputs(
        profile=profile_of(lora),
        device=device,
        weights=weights,
        reference_weights=weights,
        tokenizer=Path(),
        pad_id=0,
        pairs=pairs,
        held_out=pairs[:0],
        skipped_rows=[],
        fingerprints={},
    )
    model = build_adapted(inputs.trainable.start).double()
    policy = scorer_for(model, MAX_SEQ_LEN)
    assert policy.fallback_reason is None
    reference = CachedReference(
        pairs,
        inputs.batches.reference_batches,
        device,
        partial(frozen_reference, inputs, policy),
        can_reuse_batches=True,
    )
    optimizer = make_optimizer(inputs.trainable.optimized(model).values())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Trainer(
        inputs, policy, reference, reference, optimizer, scaler, hooks, save=lambda _: None
    )


def plain_losses(trainer: Trainer, lora: dict[str, Any]) -> tuple[list[float], nn.Module]:
    """The loop of a tutorial: peft, all logits, padding, the reference by `disable_adapter`."""
    inputs = trainer.inputs
    base = build_model(inputs.weights.architecture, inputs.weights.state)
    base.set_attn_implementation("eager")
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    with torch.random.fork_rng():
        torch.manual_seed(inputs.profile.train.seed)
        model = peft.get_peft_model(base, peft.LoraConfig(**{**settings, **lora}))
    model = model.double()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)

    def response_logps(batch: Any) -> Tensor:
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
        logps = logits.log_softmax(-1).gather(-1, batch.labels.unsqueeze(-1)).squeeze(-1)
        chosen, rejected = (logps * batch.mask).sum(-1).chunk(2)
        difference: Tensor = chosen - rejected
        return difference

    losses = []
    for global_batch in inputs.order.global_batches():
        [indices] = global_batch.micro_batches
        batch = make_batch([PAIRS[i] for i in indices], "padded", max_seq_len=MAX_SEQ_LEN, pad_id=0)
        with torch.no_grad(), model.disable_adapter():
            reference = response_logps(batch)
        loss = -F.logsigmoid(BETA * (response_logps(batch) - reference)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), inputs.profile.train.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = inputs.learning_rate.at(global_batch.last_step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        *((name, {}) for name in MODELS),
        ("llama", {"use_dora": True}),
        ("qwen3", {"use_rslora": True, "target_modules": ["q_proj", "v_proj"]}),
    ],
    ids=str,
)
def test_20_steps_are_those_of_peft_in_the_plain_loop(name: str, lora: dict[str, Any]) -> None:
    hooks = Recorder()
    with Float64():
        trainer = make_trainer(name, hooks, lora)
        assert trainer.train() is None
        expected, plain = plain_losses(trainer, lora)
    losses = [step.losses[0] for step in hooks.steps]
    assert len(losses) == 20
    assert losses[0] == pytest.approx(torch.tensor(2.0).double().log().item(), abs=1e-15)
    assert losses == pytest.approx(expected, abs=BOUND, rel=0)
    assert max(losses) - min(losses) > 0.1
    theirs = peft.get_peft_model_state_dict(plain, save_embedding_layers=False)
    ours = adapter_state(trainer.policy.model)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert (tensor - theirs[key]).abs().max() < BOUND, key

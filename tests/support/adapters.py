"""Small models with adapters, and runs that train them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.loading import ModelWeights, build_model
from dpo_cli.models.trainable import LoraTraining, trainable_of
from dpo_cli.profile.schema import Profile
from dpo_cli.run.events import Evaluated, Event, StepDone
from tests.support import families
from tests.support.small_runs import golden_run
from tests.support.two_layouts import ARCHITECTURES, MAX_SEQ_LEN, empty_state, random_weights

BETA = 0.3
RATE = 1e-2
MODELS = ("llama", "qwen3", "minimind2", "minimind3")
IDS = torch.randint(families.VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(2))


def start_weights(name: str) -> ModelWeights:
    """Return random weights of a family, or of a MiniMind version."""
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


def trained_weights(name: str, **lora: Any) -> ModelWeights:
    """Return weights with a changed adapter: both of its factors are random."""
    weights = start_weights(name)
    trainable = trainable_of(profile_of(lora), weights)
    assert isinstance(trainable, LoraTraining)
    generator = torch.Generator().manual_seed(8)
    state = {
        key: 0.1 * torch.randn(shape, generator=generator) + ("magnitude" in key)
        for key, shape in trainable.adapter.shapes.items()
    }
    return trainable.at(state)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(IDS, use_cache=False).logits
    return found


def lora_run(shared: Path, **changes: Any) -> list[str]:
    """Return `dpo train` of a small MiniMind model with an adapter: 12 steps."""
    settings = {"lora.rank": 4, "train.learning_rate": 1e-2, "train.epochs": 2, **changes}
    return golden_run(shared, "seed", False, **settings)


def assert_starts_at_ln_2(events: Sequence[Event]) -> list[StepDone]:
    """Check that a run began with policy and reference equal, and learned; return its steps."""
    steps = [event for event in events if isinstance(event, StepDone)]
    assert steps[0].losses == (math.log(2),)
    assert steps[0].metrics["rewards/margins"] == 0.0
    evaluations = [event for event in events if isinstance(event, Evaluated)]
    assert evaluations[0].metrics["loss"] == math.log(2)
    assert evaluations[-1].metrics["loss"] != math.log(2)
    return steps

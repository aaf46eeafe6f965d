from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpo_cli.models.loading import ModelWeights, build_model, load_model_weights
from dpo_cli.models.trainable import FullTraining
from dpo_cli.profile.train import Train
from dpo_cli.training.checkpointing import (
    load_weights,
    restore_state,
    save_state,
    state_bytes,
)
from dpo_cli.training.optimizer import make_optimizer, set_learning_rate


@pytest.fixture(params=["seed/full_sft_64", "seed/full_sft_64_moe", "head/full_sft_64_moe"])
def model_weights(golden: Path, request: pytest.FixtureRequest) -> ModelWeights:
    return load_model_weights(golden / "arch" / f"{request.param}.pth", {})


def no_scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=False)


def take_steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        ids = torch.randint(256, (2, 12))
        logits = model(ids).logits
        logits.square().mean().backward()
        set_learning_rate(optimizer, 1e-3)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    "train",
    [
        Train(),
        Train(kahan_summation=True),
        Train(decay_norms_and_biases=False),
        *(Train(optimizer=name) for name in ("adamw8bit", "adafactor", "sgd", "muon")),
    ],
    ids=["adamw", "kahan_summation", "two groups", "adamw8bit", "adafactor", "sgd", "muon"],
)
def test_restored_state_continues_bit_for_bit(
    model_weights: ModelWeights, tmp_path: Path, train: Train
) -> None:
    """Weights, optimizer state and random numbers return: the next steps are bit-identical."""
    if train.optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    torch.manual_seed(3)
    model = build_model(model_weights.architecture, model_weights.state)
    optimizer = make_optimizer(model.parameters(), train, model)
    take_steps(model, optimizer, 3)
    save_state(
        tmp_path,
        trainable=FullTraining(model_weights),
        model=model,
        optimizer=optimizer,
        scaler=no_scaler(),
        optimizer_step=3,
    )
    # Small tensors have larger factors with adafactor, and no 8-bit state with adamw8bit.
    if train.optimizer not in ("adafactor", "adamw8bit"):
        saved = sum(
            tensor.numel() * tensor.element_size()
            for path in tmp_path.glob("*.safetensors")
            if path.stem != "rng"
            for tensor in load_file(path).values()
        )
        # Muon updates its matrices only.
        assert saved == state_bytes(model_weights.parameters, train) or (
            train.optimizer == "muon" and saved < state_bytes(model_weights.parameters, train)
        )
    take_steps(model, optimizer, 2)

    torch.manual_seed(99)
    other = build_model(model_weights.architecture, load_weights(tmp_path))
    other_optimizer = make_optimizer(other.parameters(), train, other)
    done = restore_state(
        tmp_path,
        trainable=FullTraining(model_weights),
        model=other,
        optimizer=other_optimizer,
        scaler=no_scaler(),
    )
    assert done == 3
    take_steps(other, other_optimizer, 2)
    for name, parameter in model.named_parameters():
        other_parameter = other.get_parameter(name)
        assert torch.equal(parameter, other_parameter), name
        kept, restored = optimizer.state[parameter], other_optimizer.state[other_parameter]
        assert bool(kept) == (train.optimizer != "sgd")
        assert set(kept) == set(restored)
        tensors = [(torch.as_tensor(kept[key]), torch.as_tensor(restored[key])) for key in kept]
        assert all(torch.equal(*pair) for pair in tensors), name


@pytest.mark.parametrize(
    "file",
    [f"{name}.safetensors" for name in ("exp_avg", "exp_avg_sq", "weights", "compensation")],
)
def test_every_part_of_the_state_matters(
    model_weights: ModelWeights, tmp_path: Path, file: str
) -> None:
    """Negative control: with one file of an earlier step, the next weights differ."""
    torch.manual_seed(3)
    early, late = tmp_path / "early", tmp_path / "late"
    model = build_model(model_weights.architecture, model_weights.state)
    optimizer = make_optimizer(model.parameters(), Train(kahan_summation=True))
    for directory in (early, late):
        directory.mkdir()
        take_steps(model, optimizer, 1)
        save_state(
            directory,
            trainable=FullTraining(model_weights),
            model=model,
            optimizer=optimizer,
            scaler=no_scaler(),
            optimizer_step=1,
        )
    results = []
    for replaced in (False, True):
        if replaced:
            (late / file).write_bytes((early / file).read_bytes())
        other = build_model(model_weights.architecture, load_weights(late))
        other_optimizer = make_optimizer(other.parameters(), Train(kahan_summation=True))
        restore_state(
            late,
            trainable=FullTraining(model_weights),
            model=other,
            optimizer=other_optimizer,
            scaler=no_scaler(),
        )
        take_steps(other, other_optimizer, 1)
        results.append(torch.cat([p.detach().flatten() for p in other.parameters()]))
    assert not torch.equal(*results)


def test_names_on_disk_are_those_of_the_hugging_face_layout(
    model_weights: ModelWeights, tmp_path: Path
) -> None:
    """Names on disk are stable; names in memory differ between versions of transformers."""
    model = build_model(model_weights.architecture, model_weights.state)
    optimizer = make_optimizer(model.parameters(), Train(kahan_summation=True))
    take_steps(model, optimizer, 1)
    save_state(
        tmp_path,
        trainable=FullTraining(model_weights),
        model=model,
        optimizer=optimizer,
        scaler=no_scaler(),
        optimizer_step=1,
    )
    from safetensors.torch import load_file

    for name in ("weights", "exp_avg", "exp_avg_sq", "compensation"):
        assert set(load_file(tmp_path / f"{name}.safetensors")) == set(model_weights.state)
    kinds = {path.suffix for path in tmp_path.iterdir()}
    assert kinds == {".safetensors", ".json"}  # nothing pickled

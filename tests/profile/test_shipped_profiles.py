"""Tests that the shipped profiles have the values of MiniMind's own scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_cli.profile.load import load_profile
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.source import shipped_profiles

Tables = dict[str, dict[str, object]]

SEED: Tables = {
    "data": {"max_seq_len": 1024, "shuffle": False},
    "dpo": {"beta": 0.1, "reduction": "mean"},
    "train": {
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 1e-8,
        "schedule": "minimind2",
        "warmup_iters": 0,
        "grad_clip": 1.0,
        "seed": 1337,
        "device": "auto",
        "dtype": "auto",
        "router_aux_loss_coef": None,
        "layout": "packed",
        "log_interval": 100,
        "save_interval": 100,
    },
    "export": {"prefix": "rlhf", "dtype": "auto"},  # auto is float16
}
HEAD: Tables = {
    "data": {"max_seq_len": 1024, "shuffle": True, "empty_think_ratio": 0.2},
    "dpo": {"beta": 0.15, "reduction": "sum"},
    "train": {
        "epochs": 1,
        "batch_size": 4,
        "learning_rate": 4e-8,
        "schedule": "minimind3",
        "grad_clip": 1.0,
        "seed": 42,
        "log_interval": 100,
        "save_interval": 100,
    },
    "export": {"prefix": "dpo"},
}
BETWEEN: Tables = {
    "data": {"max_seq_len": 1024, "shuffle": True},
    "dpo": {"beta": 0.1, "reduction": "mean"},
    "train": {
        "epochs": 1,
        "batch_size": 4,
        "learning_rate": 4e-8,
        "schedule": "minimind3",
        "router_aux_loss_coef": 0.1,
        "seed": 42,
    },
    "export": {"prefix": "dpo"},
}
SHIPPED: dict[str, Tables] = {
    "dense": {**SEED, "model": {"use_moe": False}},
    "moe": {**SEED, "model": {"use_moe": True}},
    "minimind3": {**HEAD, "model": {"use_moe": False}},
    "minimind3-moe": {**HEAD, "model": {"use_moe": True}},
    "minimind2-2510": {**BETWEEN, "model": {"use_moe": False}},
}


def shipped(name: str) -> Profile:
    return load_profile(Path(name)).profile


@pytest.mark.parametrize("name", SHIPPED)
def test_values(name: str) -> None:
    profile = shipped(name)
    for table, expected in SHIPPED[name].items():
        values = getattr(profile, table).model_dump()
        assert {field: values[field] for field in expected} == expected
    assert profile.model.weights is None
    assert profile.train.accumulation_on(devices=1) == 1


@pytest.mark.parametrize("name", SHIPPED)
def test_paths_are_those_of_minimind(name: str) -> None:
    profile, root = shipped(name), shipped_profiles()[name].parents[1]
    assert profile.model.out_dir == root / "out"
    assert profile.model.tokenizer == root / "model"
    assert profile.data.data_path == root / "dataset/dpo.jsonl"
    assert profile.eval.path is None


SHAPES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("num_experts_per_tok", "norm_topk_prob", "rope_theta", "rms_norm_eps"),
)


@pytest.mark.parametrize("name", shipped_profiles())
def test_no_shipped_profile_states_a_shape(name: str) -> None:
    """A shape would contradict weights of another size, in a file that the user does not own."""
    model = shipped(name).model
    assert all(getattr(model, key) is None for key in SHAPES)


def test_the_aux_loss_of_version_3_is_added() -> None:
    assert shipped("minimind3-moe").train.router_aux_loss_coef == 5e-4


def test_hugging_face_profile() -> None:
    profile = shipped("hf")
    assert (profile.dpo.reduction, profile.dpo.beta) == ("sum", 0.1)
    assert profile.train.learning_rate == 1e-6
    assert profile.data.empty_think_ratio == 1.0
    assert profile.model.tokenizer is None


def test_every_shipped_profile_loads_by_its_name() -> None:
    assert shipped_profiles().keys() >= SHIPPED.keys()
    for name, path in shipped_profiles().items():
        assert load_profile(Path(name)).path == path


@pytest.mark.parametrize("name", SHIPPED)
def test_a_profile_can_build_on_it(name: str, folder: Path) -> None:
    mine = folder / "mine.toml"
    mine.write_text(f'extends = "{name}"\n[train]\nglobal_batch_size = 32\n')
    assert load_profile(mine).profile.train.accumulation_on(devices=1) == 8

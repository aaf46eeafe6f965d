"""Tests of weights and settings that describe more than they contain: refused in bounded memory."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpo_cli.errors import DpoError
from dpo_cli.models.loading import load_model_weights
from dpo_cli.models.minimind import MiniMind
from tests.support import memory
from tests.support.families import build

LAYER = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.layers.0.self_attn.q_norm.weight"
SMALL = {"version": 3, "hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 32,
         "intermediate_size": 24, "num_experts": 0, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 8, "num_experts_per_tok": 1,
         "norm_topk_prob": True, "rope_theta": 1e6, "rms_norm_eps": 1e-6}  # fmt: skip


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """Assert that a test takes at most a quarter of a gigabyte."""
    with memory.at_most(250_000_000):
        yield


def state(**changes: Any) -> dict[Any, Tensor]:
    shapes = MiniMind(**{**SMALL, **changes}).expected_shapes()
    return {name: torch.zeros(shape) for name, shape in shapes.items() if "lm_head" not in name}


def refused(path: Path, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(DpoError) as caught:
        load_model_weights(path, overrides or {})
    assert caught.value.remedy
    assert str(path) in caught.value.message
    assert len(caught.value.message) < 1000
    return caught.value.message


def renamed(old: str, new: Any) -> Callable[[dict[Any, Tensor]], None]:
    def change(weights: dict[Any, Tensor]) -> None:
        weights[new] = weights.pop(old)

    return change


def replaced(name: Any, tensor: Tensor) -> Callable[[dict[Any, Tensor]], None]:
    return lambda weights: weights.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (replaced("model.layers.999999999.x", torch.zeros(1)), "none of layer 2"),
        (replaced("model.layers." + "9" * 5000 + ".x", torch.zeros(1)), "not a complete"),
        (replaced("model.layers.²³.x", torch.zeros(1)), "not a complete"),
        (replaced(7, torch.zeros(1)), "no text"),
        (replaced(b"a\xff", torch.zeros(1)), "no text"),
        (replaced((1, 2), torch.zeros(1)), "no text"),
        (replaced(LAYER, torch.zeros(1).expand(16, 1 << 40)), "repeats its memory"),
        (replaced(LAYER, torch.zeros(1).as_strided((1 << 20, 1 << 20), (0, 0))), "repeats"),
        (replaced(LAYER, torch.zeros(0, 16)), "no elements"),
        (replaced("model.embed_tokens.weight", torch.zeros(1 << 40, 0)), "no elements"),
        (replaced(LAYER, torch.zeros(16, 16).to_sparse()), "no plain tensor"),
        (replaced(LAYER, torch.zeros(16, 16, device="meta")), "no plain tensor"),
        (
            replaced("model.layers.0.self_attn.q_norm.weight", torch.tensor(1.0)),
            "norm of the heads",
        ),
        (replaced("model.layers.0.mlp.gate_proj.weight", torch.tensor(1.0)), "not a complete"),
    ],
)
def test_a_hostile_pth(
    change: Callable[[dict[Any, Tensor]], None], why: str, tmp_path: Path
) -> None:
    weights = state()
    change(weights)
    torch.save(weights, tmp_path / "w.pth")
    assert why in refused(tmp_path / "w.pth")


def test_names_that_share_one_tensor(tmp_path: Path) -> None:
    shared = torch.zeros(1 << 20)
    torch.save({f"w{n}": shared for n in range(10_000)}, tmp_path / "w.pth")
    assert "share memory" in refused(tmp_path / "w.pth")


def test_a_compressed_archive(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1 << 22)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert "compressed" in refused(tmp_path / "w.pth")


def test_layers_times_experts(tmp_path: Path) -> None:
    weights = {"model.embed_tokens.weight": torch.zeros(2, 2)}
    for layer in range(1500):
        weights[f"model.layers.{layer}.x"] = torch.zeros(1)
    for expert in range(1500):
        name = f"model.layers.0.mlp.experts.{expert}.gate_proj.weight"
        weights[name] = torch.zeros(1, 1)
    for name in "qk":
        weights[f"model.layers.0.self_attn.{name}_proj.weight"] = torch.zeros(8, 2)
    save_file(weights, tmp_path / "w.safetensors")
    message = refused(tmp_path / "w.safetensors", {"num_key_value_heads": 8})
    assert "2250000 feed-forward blocks" in message


def test_the_header_of_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 25) + b"{" + b" " * (1 << 25))
    assert "32 MiB" in refused(path)
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    assert "cut off" in refused(path)


@pytest.fixture
def minimind(tmp_path: Path) -> Path:
    save_file(state(), tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    "settings",
    [
        {key: value}
        for key in ("num_attention_heads", "num_key_value_heads", "num_experts_per_tok")
        for value in (0, -8, "8", 2.5, [8], True, 10**30)
    ]
    + [
        {key: value}
        for key in ("rope_theta", "rms_norm_eps")
        for value in ("x", -1, 0, float("nan"), float("inf"), {}, 10**400, True)
    ]
    + [{"norm_topk_prob": "yes"}, {"norm_topk_prob": 1}],
    ids=lambda settings: f"{settings}"[:40],
)
def test_settings_of_a_minimind_directory(minimind: Path, settings: dict[str, Any]) -> None:
    text = json.dumps({"model_type": "minimind", **settings})
    (minimind / "config.json").write_text(text)
    [key] = settings
    assert f"config.json sets {key} =" in refused(minimind)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"num_hidden_layers": 10**9}),
        ("qwen3", {"num_hidden_layers": 10**9}),
        ("qwen3", {"layer_types": ["full_attention"] * 10_000}),
        ("gpt2", {"n_layer": 10**8}),
        ("gpt2", {"n_positions": 10**6}),
        ("llama", {"vocab_size": 10**9}),
        ("llama", {"vocab_size": 10**30}),
        ("llama", {"hidden_size": 2**31}),
        ("llama", {"intermediate_size": 10**9}),
        ("llama", {"num_attention_heads": 0}),
        ("llama", {"num_attention_heads": -4}),
        ("llama", {"num_hidden_layers": -1}),
        ("llama", {"hidden_size": "64"}),
        ("llama", {"rope_parameters": [[]]}),
        ("llama", {"model_type": []}),
        ("llama", {"model_type": {"a": 1}}),
        ("qwen3-moe", {"num_experts": 10**7, "num_local_experts": 10**7}),
        ("qwen3-moe", {"num_experts": 0, "num_local_experts": 0}),
    ],
    ids=str,
)
def test_settings_of_a_huggingface_directory(
    family: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    build(family).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | settings))
    refused(tmp_path)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, '{"x": NaN}', "\xff", "[]", "{}"]
)
def test_a_config_json_that_is_none(minimind: Path, content: str) -> None:
    (minimind / "config.json").write_text(content, encoding="latin-1")
    refused(minimind)


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "../x", ".", "\ud800", "很" * 100, 7, ""])
def test_names_in_an_index(minimind: Path, name: object) -> None:
    (minimind / "config.json").write_text('{"model_type": "minimind"}')
    weights = load_file(minimind / "model.safetensors")
    (minimind / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(weights, name)}
    (minimind / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(minimind)

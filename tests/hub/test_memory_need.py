"""`dpo check --quick` foretells the memory of a model on the Hub without downloading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import dpo_cli
from dpo_cli.findings import Diagnosis, Finding, Level
from tests.support.hub import Hub

NAME = "them/Qwen3-8B"
CONFIG = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
}


def check(shared: Path, **settings: Any) -> tuple[Diagnosis, Finding]:
    values = {
        "model.weights": f"hf:{NAME}",
        "model.tokenizer": str(shared / "tokenizer/minimind2"),
        "data.data_path": str(shared / "golden/data/train27.jsonl"),
        "train.device": "cpu",
        **settings,
    }
    found = dpo_cli.check("dense", values, quick=True)
    [finding] = [each for each in found.findings if each.code == "memory-need"]
    return found, finding


def push(hub: Hub) -> None:
    files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": b"far too large"}
    hub.push(NAME, files, kind="models")


def test_the_configuration_is_all_that_is_downloaded(
    hub: Hub, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(hub)
    quantized = {
        "lora.rank": 16,
        "model.quantization": "nf4",
        "train.activation_checkpointing": True,
        "train.max_tokens_per_forward": 1024,
    }
    found, finding = check(shared, **quantized)
    assert finding.message.startswith("Qwen3-8B, nf4, rank 16, 1,024 tokens per forward: ")
    need = found.facts["memory_need"]
    assert need["weights"] == 8_737_566_720
    assert need["optimizer"] == 12 * 43_646_976
    assert need["reference"] == 0
    assert need["process"] > 2 * 8_190_735_360
    assert {name for name in hub.bodies if "model" in name} == set()
    assert "config.json" in hub.bodies
    codes = {each.code: each.level for each in found.findings}
    assert codes["files"] is codes["weights"] is codes["plan"] is Level.SKIP

    # A device that is too small: the settings that are not made yet are named.
    monkeypatch.setattr("dpo_cli.checks.memory_need.free_memory", lambda device: 20 * 10**9)
    _, plain = check(shared)
    assert plain.level is Level.WARN
    assert plain.message.startswith("Qwen3-8B, float32, 2,048 tokens per forward: ")
    assert "reference" in plain.message
    assert plain.remedy.startswith('Set lora.rank = 16, model.quantization = "nf4", train.act')
    assert check(shared, **quantized)[1].level is Level.OK


def test_a_model_that_does_not_exist_is_one_error(hub: Hub, shared: Path) -> None:
    values = {
        "model.weights": "hf:them/none",
        "model.tokenizer": str(shared / "tokenizer/minimind2"),
        "data.data_path": str(shared / "golden/data/train27.jsonl"),
    }
    found = dpo_cli.check("dense", values, quick=True)
    errors = [each for each in found.findings if each.level is Level.ERROR]
    assert [each.code for each in errors] == ["weights-unusable"], errors
    [error] = errors
    assert error.code == "weights-unusable"
    assert "them/none does not exist on the Hub" in error.message

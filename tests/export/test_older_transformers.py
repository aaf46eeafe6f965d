"""Tests that exported directories compute the same model in transformers 4, by recorded numbers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import transformers

from dpo_cli.models.huggingface import with_older_names
from dpo_cli.models.loading import load_model_weights
from dpo_cli.models.saving import write_folder
from tests.support.cli import REPOSITORY
from tests.support.families import build

SCRIPT = REPOSITORY / "benchmarks/older_transformers.py"
RECORDED = json.loads(SCRIPT.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("older_transformers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_logps_equal_those_of_transformers_4(script: ModuleType, tmp_path: Path) -> None:
    """The comparison covers the demo's weights and all four architectures, at 900 tokens."""
    assert RECORDED["older"].startswith("4.57")
    compared = []
    for name, path in script.write_exports(tmp_path):
        older = RECORDED["models"][name]
        newer = script.summary(script.token_logps(path))
        assert newer["mean"] == pytest.approx(older["mean"], abs=1e-5)
        assert newer["logps"] == pytest.approx(older["logps"], abs=1e-4)
        assert older["max_difference"] < 1e-5
        assert json.loads((path / "config.json").read_text())["rope_theta"] == 1e6
        compared.append(name)
    assert len(compared) == len(RECORDED["models"]) == 5


def test_base_of_transformers_4_alone_would_change_them(script: ModuleType, tmp_path: Path) -> None:
    """Without the older name, transformers 4 takes a base of 10,000."""
    _, path = next(script.write_exports(tmp_path))
    config = json.loads((path / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = config["rope_theta"] = 1e4
    (path / "config.json").write_text(json.dumps(config))
    mean = script.summary(script.token_logps(path))["mean"]
    assert abs(mean - RECORDED["models"]["demo"]["mean"]) > 0.01


def test_number_of_experts_has_both_names() -> None:
    """transformers 4 reads `num_experts` for Qwen3's experts, newer versions write another name."""
    settings = json.loads(transformers.Qwen3MoeConfig(num_experts=4).to_json_string())
    assert with_older_names(settings)["num_experts"] == 4
    assert "num_experts" not in with_older_names({"model_type": "llama", "num_local_experts": 4})


@pytest.mark.parametrize(
    ("rope", "older"),
    [
        ({"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5}),
        (
            {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
        (
            {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
            {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        ({"full_attention": {"rope_type": "default", "rope_theta": 1e6}}, {}),
    ],
)
def test_older_names_of_rotary_settings(rope: dict[str, Any], older: dict[str, Any]) -> None:
    settings = {"model_type": "llama", "rope_parameters": rope}
    assert with_older_names(settings) == {**settings, **older}
    # An author's own value at the top level is kept.
    assert with_older_names({**settings, "rope_theta": 7.0})["rope_theta"] == 7.0


@pytest.mark.parametrize("family", ["llama", "qwen3-moe", "phi-head-bias", "gpt2", "mamba"])
def test_settings_with_older_names_describe_the_same_model(family: str, tmp_path: Path) -> None:
    build(family).save_pretrained(tmp_path / "first")
    first = load_model_weights(tmp_path / "first", {})
    write_folder(tmp_path / "second", first.state, first.architecture, "float32", tmp_path)  # type: ignore[arg-type]
    second = load_model_weights(tmp_path / "second", {})
    assert second.architecture.config().to_dict() == first.architecture.config().to_dict()

"""Tests of docs/recipes.md: published recipes are profiles with the values of their sources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dpo_cli.learning_rate import LearningRate
from dpo_cli.profile.load import load_profile
from tests.support.cli import REPOSITORY

PAGE = (REPOSITORY / "docs/recipes.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## Published recipes\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```toml\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
SOURCES = re.findall(r"\(https://github\.com/[\w./-]+/blob/[0-9a-f]{40}/[\w./-]+\)", SECTION)

PUBLISHED = (
    {
        "model.weights": "hf:allenai/Llama-3.1-Tulu-3-8B-SFT",
        "dpo.loss": "sigmoid_norm",
        "dpo.beta": 5.0,
        "train.learning_rate": 5e-7,
        "train.schedule": "linear",
        "train.epochs": 1,
    },
    {
        "model.weights": "hf:alignment-handbook/zephyr-7b-sft-full",
        "dpo.loss": "sigmoid",
        "dpo.beta": 0.01,
        "train.learning_rate": 5e-7,
        "train.schedule": "cosine",
        "train.epochs": 1,
    },
    {
        "model.weights": "hf:loubnabnl/smollm2-1.7B-sft",
        "dpo.loss": "sigmoid",
        "dpo.beta": 0.5,
        "train.learning_rate": 1e-6,
        "train.schedule": "cosine",
        "train.epochs": 3,
    },
)


def test_each_block_has_a_source() -> None:
    assert len(BLOCKS) == len(SOURCES) == len(PUBLISHED)


@pytest.mark.parametrize("number", range(len(PUBLISHED)))
def test_a_recipe_is_a_profile(number: int, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(BLOCKS[number], encoding="utf-8")
    profile = load_profile(path).profile
    for key, value in PUBLISHED[number].items():
        table, name = key.split(".")
        assert getattr(getattr(profile, table), name) == value, key
    train = profile.train
    assert (train.warmup_ratio, train.weight_decay) == (0.1, 0.0)
    # Eight devices: a step has 128 pairs.
    assert train.batch_size * train.accumulation_on(8) * 8 == 128
    rate = LearningRate.of(train.model_dump(), 100, 1, 1)
    assert [rate.at(0), rate.at(10)] == [0.0, train.learning_rate]

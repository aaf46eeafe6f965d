"""Tests of the models and data sets that `dpo init` offers."""

from __future__ import annotations

import re

from dpo_cli.profile.known import DATA, MODELS, fitting_models, parameters_of
from tests.support.cli import REPOSITORY


def test_models_fit_into_memory() -> None:
    assert fitting_models(0) == [MODELS[0]]
    assert fitting_models(1 << 40) == [*MODELS]
    sizes = [model.parameters for model in MODELS]
    assert sizes == sorted(sizes)
    for count, model in enumerate(MODELS, start=1):
        assert fitting_models(model.needed_bytes) == [*MODELS[:count]]


def test_a_known_model_has_its_size_at_any_revision() -> None:
    assert parameters_of(f"{MODELS[0].name}@main") == MODELS[0].parameters
    assert parameters_of("hf:ORG/NAME") is None


def test_the_documentation_has_the_same_facts() -> None:
    page = (REPOSITORY / "docs/models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(hf:\S+)` \| ([\d,]+)M \| ([^|]+) \| (.+) \|$", page, re.MULTILINE)
    assert rows == [
        (model.name, f"{round(model.parameters / 1e6):,}", model.license, model.about)
        for model in MODELS
    ]
    assert len({each.name for each in (*MODELS, *DATA)}) == len(MODELS) + len(DATA)

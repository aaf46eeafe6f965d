"""Tests with a short run of the fuzzer with a fixed seed, and with each input found before."""

from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path

import pytest

from tests.fuzz.engine import check, corpus, inputs
from tests.fuzz.targets import TARGETS, assert_handled

INPUTS = {"profiles": 60, "rows": 150, "tables": 150, "checkpoints": 60, "configs": 40,
          "templates": 10, "tokenizers": 10, "runs": 12, "caches": 8, "commands": 60}  # fmt: skip
"""Inputs of each kind: about three seconds of processor time."""
FOUND = [path for target in TARGETS.values() for path in corpus(target)]


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_are_handled(name: str) -> None:
    for content in islice(inputs(TARGETS[name], seed=1), INPUTS[name]):
        check(TARGETS[name], content)


def test_a_fault_would_be_found() -> None:
    """Negative control: a check that fails is reported as a fault."""
    broken = dataclasses.replace(TARGETS["rows"], check=lambda content, folder: 1 / 0)  # type: ignore[arg-type,return-value]
    with pytest.raises(ZeroDivisionError):
        check(broken, b"")
    for words in (["config", "show", "\x1b.toml"], ["x"]):
        with pytest.raises(AssertionError):
            assert_handled(words, Path.cwd(), codes=(0,))


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_inputs_found_before_are_handled(path: Path) -> None:
    check(TARGETS[path.parent.name], path.read_bytes())

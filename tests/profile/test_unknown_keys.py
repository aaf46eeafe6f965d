"""Tests of unknown keys: names of other tools, and typing errors."""

from __future__ import annotations

import pytest

from dpo_cli.profile.renames import RENAMED_KEYS
from dpo_cli.profile.schema import KEYS, TABLES
from dpo_cli.profile.unknown_keys import (
    EQUIVALENT,
    UNSUPPORTED,
    explain_unknown_key,
    key_for_option,
)

FIELDS = {key.split(".")[1] for key in KEYS}


def test_every_equivalent_is_a_key_and_no_name_is_ours() -> None:
    assert set(EQUIVALENT.values()) <= set(KEYS)
    assert not (EQUIVALENT.keys() | UNSUPPORTED.keys()) & FIELDS
    assert not EQUIVALENT.keys() & UNSUPPORTED.keys()
    assert not UNSUPPORTED.keys() & set(TABLES)
    # An explanation may name keys; each key must exist.
    for name in (*EQUIVALENT, *UNSUPPORTED):
        for word in explain_unknown_key(name).replace(",", " ").replace(";", " ").split():
            if word.split(".")[0] in TABLES and "." in word:
                assert word in KEYS, (name, word)


@pytest.mark.parametrize(
    ("key", "explanation"),
    [
        ("num_train_epochs", "unknown key; set train.epochs"),
        ("train.lr", "unknown key; set train.learning_rate"),
        ("train.per_device_train_batch_size", "unknown key; set train.batch_size"),
        ("train.max_grad_norm", "unknown key; set train.grad_clip"),
        ("train.bf16", 'unknown key; set train.dtype to "bfloat16"'),
        ("cutoff_len", "unknown key; set data.max_seq_len"),
        ("dpo.pref_beta", "unknown key; set dpo.beta"),
        (
            "train.report_to",
            "unknown key; set track.use_wandb to true, or the key of another tracker in [track]",
        ),
        ("train.max_steps", "the length of a run is train.epochs"),
        ("eval.val_size", "unknown key; set eval.fraction"),
        ("model.base_model", "unknown key; set model.weights"),
        ("train.lora_r", "unknown key; set lora.rank"),
        ("lora.r", "unknown key; set lora.rank"),
        ("wandb.project", "unknown key; set track.wandb_project"),
        ("project", "name the run with --name (name= in Python)"),
        ("packing", 'batches are packed without padding, unless train.layout is "padded"'),
        (
            "warmup_steps",
            "unknown key; set train.warmup_iters to warmup_steps x train.accumulation_steps,"
            " as it counts micro-batches",
        ),
        # Similar names are suggested only if they are really similar.
        ("train.learning_rat", "unknown key; did you mean train.learning_rate?"),
        ("dpo.epochs", "unknown key; did you mean train.epochs?"),
    ],
)
def test_a_foreign_name_names_ours(key: str, explanation: str) -> None:
    assert explain_unknown_key(key) == explanation


def test_a_name_that_is_near_nothing_gets_no_guess() -> None:
    assert explain_unknown_key("dpo.frobnicate").startswith("unknown key; [dpo] has loss, ")
    assert explain_unknown_key("frobnicate").startswith("unknown key; the tables are model, ")
    assert "did you mean" not in explain_unknown_key("train.step_ratio")


def test_a_renamed_key_names_the_new_one() -> None:
    for old, new in RENAMED_KEYS.items():
        assert explain_unknown_key(old) == f"{old} is now {new}; rename it"


@pytest.mark.parametrize(
    ("option", "found"),
    [
        ("--epochs", ("train.epochs", "")),
        ("--learning-rate", ("train.learning_rate", "")),
        ("--train.beta", ("dpo.beta", "")),
        ("--cutoff_len=3", ("data.max_seq_len", "")),
        ("--load-in-4bit", ("", UNSUPPORTED["load_in_4bit"])),
        ("--zzz", ("", "")),
    ],
)
def test_an_option_that_is_a_key(option: str, found: tuple[str, str]) -> None:
    assert key_for_option(option) == found

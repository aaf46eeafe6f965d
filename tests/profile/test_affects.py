"""Tests of the keys that each intermediate result depends on."""

from __future__ import annotations

from dpo_cli.profile.schema import KEYS, keys_affecting
from dpo_cli.profile.table import Affects

DATA = {"data.data_path", "data.format", "data.columns"}


def test_tokens() -> None:
    expected = DATA | {"data.empty_think_ratio", "model.tokenizer", "train.seed"}
    expected |= {"data.scored_turns", "data.truncation"}
    assert set(keys_affecting(Affects.TOKENS)) == expected


def test_split_and_held_out_pairs() -> None:
    split = {"data.data_path", "train.seed", "eval.fraction"}
    held_out = {"eval.path", "data.max_seq_len", "data.empty_think_ratio", "model.tokenizer"}
    held_out |= {"data.scored_turns", "data.truncation", "data.max_prompt_len"}
    assert set(keys_affecting(Affects.SPLIT)) == split
    assert set(keys_affecting(Affects.HELD_OUT)) == held_out
    paths = {"data.data_path", "model.tokenizer", "eval.path"}
    both = keys_affecting(Affects.SPLIT | Affects.HELD_OUT, plain=True)
    assert set(both) == (split | held_out) - paths


def test_loss() -> None:
    assert set(keys_affecting(Affects.LOSS)) == {key for key in KEYS if key.startswith("dpo.")}


def test_reference() -> None:
    """All other keys change bits of a reference log-prob, or decide which pairs have one."""
    independent = {
        *(key for key in KEYS if key.startswith(("dpo.", "export.", "launch.", "track."))),
        *("train.epochs", "train.learning_rate", "train.schedule", "train.warmup_iters"),
        *("train.warmup_ratio", "train.min_lr_ratio", "train.decay_iters", "train.decay_ratio"),
        *("train.optimizer", "train.adam_betas", "train.adam_epsilon", "train.weight_decay"),
        *("train.decay_norms_and_biases", "train.kahan_summation"),
        *("train.grad_clip", "train.nan_policy"),
        *("train.activation_checkpointing", "train.router_aux_loss_coef"),
        *("train.log_interval", "train.save_interval", "train.save_min_seconds"),
        *("eval.interval", "eval.keep_best", "eval.num_samples", "eval.patience"),
        "data.num_workers",
        *(key for key in KEYS if key.startswith("lora.")),
    } - {"lora.dropout", "lora.continue_adapter"}
    assert KEYS.keys() - set(keys_affecting(Affects.REFERENCE)) == independent


def test_order_is_that_of_the_schema() -> None:
    keys = keys_affecting(Affects.REFERENCE | Affects.LOSS)
    assert list(keys) == [key for key in KEYS if key in keys]

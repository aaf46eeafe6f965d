"""Keys and values of a profile that were renamed.

An old name is an error that gives the new one; nothing reads a profile under its old names.
"""

from __future__ import annotations

from collections.abc import Mapping

RENAMED_KEYS: Mapping[str, str] = {
    "model.checkpoint": "model.weights",
    "data.path_weights": "data.mixture_weights",
    "train.compensated": "train.kahan_summation",
    "train.on_non_finite": "train.nan_policy",
    "train.tokens_per_forward": "train.max_tokens_per_forward",
    "train.aux_tokens": "train.aux_loss_tokens",
    "eval.samples": "eval.num_samples",
}
"""New name of each renamed key."""

RENAMED_VALUES: Mapping[tuple[str, str], str] = {("train.layout", "reference"): "padded"}
"""New value by key and old value."""

"""Checks of weights and tokenizer, and of whether they fit each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dpo_cli.alerts.learning import CHANCE_SHARE
from dpo_cli.checks.reporter import Reporter
from dpo_cli.data.batching import make_batch
from dpo_cli.data.chat import ChatTokenizer, TokenizedPair
from dpo_cli.data.tokens import TokenizedPairs
from dpo_cli.models.frozen import Frozen
from dpo_cli.models.loading import ModelWeights
from dpo_cli.models.trainable import trainable_of
from dpo_cli.profile.inputs import resolve_tokenizer, resolve_weights
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.text import show_model
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.reference import LiveReference
from dpo_cli.training.setup import make_scorer
from dpo_cli.training.sources import OnProgress
from dpo_cli.training.weights import RUN_PREFIX, read_model_weights

SAMPLE_PAIRS = 16
SAMPLE_TOKENS = 4096


def check_weights(
    reporter: Reporter, profile: Profile, which: Literal["weights", "reference"], runs_root: Path
) -> ModelWeights | None:
    """Read the weights and describe them."""
    source = resolve_weights(profile, which)
    subject = source if source.startswith(RUN_PREFIX) else show_model(Path(source))
    with reporter.errors_as(f"{which}-unusable", subject, source):
        model_weights = read_model_weights(profile, which, runs_root)
        dtype = model_weights.dtype_name
        trained = ""
        if which == "weights" and profile.lora.is_on:
            count = trainable_of(profile, model_weights).parameters
            trained = f"; an adapter of {count:,} parameters is trained"
        reporter.ok(
            which,
            subject,
            f"{model_weights.description}; {model_weights.parameters:,} parameters in {dtype};"
            f" plain tensors, all finite{trained}",
        )
        return model_weights
    return None


def check_tokenizer(reporter: Reporter, profile: Profile) -> ChatTokenizer | None:
    """Read the tokenizer."""
    folder = resolve_tokenizer(profile)
    subject = show_model(folder)
    with reporter.errors_as("tokenizer-unusable", subject, folder):
        tokenizer = ChatTokenizer(folder)
        reporter.ok("tokenizer", subject, f"{tokenizer.vocab_size:,} entries, with a chat template")
        return tokenizer
    return None


def check_fit(reporter: Reporter, inputs: RunInputs, on_progress: OnProgress) -> None:
    """Check that the loss of the responses is below that of random guessing.

    A wrong tokenizer can have a vocabulary of the right size. With such a tokenizer the model
    scores no better than random guessing over V tokens, ln V nats per token.
    """
    models = {"model.weights": inputs.weights}
    if inputs.reference_weights is not inputs.weights:
        models["model.reference"] = inputs.reference_weights
    pairs = sample_pairs(inputs.pairs)
    for key, model_weights in models.items():
        logps = response_logps(inputs, model_weights, pairs, on_progress)
        nats = -logps.mean().item()
        vocab_size = model_weights.architecture.vocab_size
        chance = math.log(vocab_size)
        measured = (
            f"{nats:.2f} nats per response token over {len(logps):,} tokens;"
            f" random guessing would score ln {vocab_size:,} = {chance:.2f}"
        )
        if nats < CHANCE_SHARE * chance:
            reporter.ok("tokenizer-fit", key, measured)
            continue
        folder = show_model(inputs.tokenizer)
        reporter.error(
            "tokenizer-mismatch",
            "model.tokenizer",
            f"{measured}. {key} does not fit the tokenizer {folder}, or is no language model",
            "Set model.tokenizer to the tokenizer with which these weights were trained"
            f" ({model_weights.architecture.tokenizer_hint}).",
        )


def response_logps(
    inputs: RunInputs,
    model_weights: ModelWeights,
    pairs: Sequence[TokenizedPair],
    on_progress: OnProgress,
) -> Tensor:
    """Return the log-probs of the response tokens of pairs, (N,), float64 on the CPU."""
    scorer = make_scorer(inputs, model_weights).requires_grad_(False)
    model = LiveReference(Frozen(scorer), inputs.device)
    parts = []
    for index, pair in enumerate(pairs):
        batch = make_batch([pair], "packed", max_seq_len=0).to(inputs.device.torch_device)
        parts.append(model.token_logps((index,), batch)[batch.mask].cpu().double())
        on_progress("reading responses", index + 1, len(pairs), "pairs")
    return torch.cat(parts)


def sample_pairs(pairs: TokenizedPairs) -> Sequence[TokenizedPair]:
    """Select pairs of the shorter half, spread over the file, so that scoring them is fast."""
    by_length = pairs.computed_tokens.argsort(stable=True)
    short = by_length[: math.ceil(len(pairs) / 2)].sort().values
    spread = short[:: math.ceil(len(short) / SAMPLE_PAIRS)]
    while len(spread) > 1 and pairs.computed_tokens[spread].sum() > SAMPLE_TOKENS:
        spread = spread[::2]
    return list(pairs.select(spread.tolist()))

"""Which models compute packed rows, and the nearest exact way for those that do not.

What a model's code does with `segments` nobody can read off its name. So what is known to go wrong
is asked of its configuration, and the rest is tried: two random pairs, scored in each way, against
the model's own plain forward of each sequence alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from dpo_cli.data.batching import PackedBatch, make_batch
from dpo_cli.data.chat import Tokenized, TokenizedPair
from dpo_cli.errors import DpoError
from dpo_cli.models import attention
from dpo_cli.models.per_sequence import split_sequences
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.objective.logps import gather_logps

_PLAIN = "eager"
"""transformers' attention that every model has, and that leaves nothing out."""
_OWN = ("sdpa", _PLAIN)
_TOLERANCE = 1e-3
"""Of log-probs, by how much they differ among themselves: rounding in float32 stays far below."""

_FULL = "full_attention"
_ATTENDING = (_FULL, "sliding_attention", "chunked_attention")
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")


def scorer_for(model: PreTrainedModel, longest: int, **options: Any) -> ResponseScorer:
    """The fastest exact scorer of any causal language model.

    Args:
        model: on the CPU, in float32 or float64; built with `attention.NAME`, or with "eager" if
            its class refuses that.
        longest: tokens of the longest sequence it will be given.
        options: of `ResponseScorer`.

    Returns:
        One that computes packed rows; or one that unpacks them, whose `fallback_reason` says why.

    Raises:
        DpoError: no way gives what the model itself says.
    """
    reason = why_not_packed(model, longest)
    if reason is not None:
        _set_attention(model, _own_attention(model, longest))
    return ResponseScorer(model, fallback_reason=reason, **options)


def why_not_packed(model: PreTrainedModel, longest: int) -> str | None:
    """Why a model's packed rows would not be its sequences; None where they are.

    Its attention is left as it was found.

    Args:
        model, longest: see `scorer_for`.
    """
    if (known := _known_reason(model.config.get_text_config(), longest)) is not None:
        return known
    return _what_is_wrong(model, attention.NAME, None, longest)


def use_eager_attention(model: PreTrainedModel) -> None:
    """Let a model attend as transformers' own code does, slowly and whatever its attention is."""
    _set_attention(model, _PLAIN)


def _own_attention(model: PreTrainedModel, longest: int) -> str:
    """transformers' fast attention where that is exact, else the plain one."""
    for name in _OWN:
        wrong = _what_is_wrong(model, name, "", longest)
        if wrong is None:
            return name
    raise DpoError(
        f"{type(model).__name__} cannot be trained: its responses cannot be scored ({wrong})",
        "choose another model",
    )


def _known_reason(config: PreTrainedConfig, longest: int) -> str | None:
    """What a configuration says that no trial need find out."""
    kinds = getattr(config, "layer_types", None) or []
    if others := sorted({*kinds} - {*_ATTENDING}):
        return f"it has layers of the type {', '.join(others)}"
    if kinds and {*kinds} == {_FULL}:
        return None
    for name in _WINDOWS:
        window = getattr(config, name, None)
        is_used = getattr(config, f"use_{name}", True)
        if isinstance(window, int) and is_used and window < longest:
            return f"{name} = {window} is shorter than sequences of {longest} tokens"
    return None


def _positions(config: PreTrainedConfig) -> int | None:
    """Tokens that a model has positions for, where there is such a limit."""
    return getattr(config, "max_position_embeddings", None)


def _what_is_wrong(
    model: PreTrainedModel, name: str, fallback_reason: str | None, longest: int
) -> str | None:
    """What a trial of one way came to, in words; None where it gives what the model says itself."""
    was, was_training = model.config._attn_implementation, model.training
    config = model.config.get_text_config()
    batch = _trial(min(longest, _positions(config) or longest), config.vocab_size)
    model.eval()
    try:
        _set_attention(model, _PLAIN)
        expected = _plain_logps(model, batch)
        _set_attention(model, name)
        with torch.no_grad():
            scores = ResponseScorer(model, fallback_reason=fallback_reason)(batch)
    except Exception as failure:  # whatever a model's code meets on a way it was not written for
        return (str(failure) or type(failure).__name__).splitlines()[0]
    finally:
        _set_attention(model, was)
        model.train(was_training)
    error = (scores.token_logps[scores.mask] - expected).abs().max() / expected.std()
    if not error < _TOLERANCE:
        return f"a trial gives other log-probs: {error:.1e} of their spread"
    return None


def _set_attention(model: PreTrainedModel, name: str) -> None:
    """Choose a model's attention, also where its code is older than the choice and has only one.

    Such code takes its mask by the name in the configuration all the same.
    """
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        model.config._attn_implementation = name


@torch.no_grad()
def _plain_logps(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """(R,): the model as it is, one sequence at a time, without padding."""
    rows = split_sequences(batch)
    logps = torch.zeros_like(rows.input_ids, dtype=torch.float64)
    labels = torch.zeros_like(rows.input_ids)
    labels[rows.rows, rows.times] = rows.labels
    for row, length in enumerate(rows.lengths.tolist()):
        logits = model(input_ids=rows.input_ids[row : row + 1, :length], use_cache=False).logits
        logps[row, :length] = gather_logps(logits[0], labels[row, :length]).double()
    return logps[rows.rows, rows.times]


def _trial(longest: int, vocab_size: int) -> PackedBatch:
    """Two pairs with a prompt in common, one side as long as it gets."""
    generator = torch.Generator().manual_seed(1)

    def draw(tokens: int) -> Tensor:
        return torch.randint(vocab_size, (tokens,), generator=generator)

    def side(prompt: Tensor, tokens: int) -> Tokenized:
        ids = torch.cat([prompt, draw(tokens)])
        return Tokenized(ids, torch.arange(len(ids)) >= len(prompt))

    prompt, answer = max(1, longest // 3), max(2, longest - longest // 3)
    pairs = []
    for line, sizes in enumerate(((answer, max(2, answer // 2)), (2, 3)), start=1):
        start = draw(prompt)
        pairs.append(TokenizedPair(line, side(start, sizes[0]), side(start, sizes[1])))
    batch = make_batch(pairs, "packed", max_seq_len=0)
    assert isinstance(batch, PackedBatch)
    return batch

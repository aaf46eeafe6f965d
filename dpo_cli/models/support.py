"""Decide whether a model can compute packed rows, and choose the fastest exact way to score it.

`segment_attention` gives packed rows to any model that passes its keyword arguments through to
attention and has nothing else that mixes tokens (convolutions, recurrent states, position biases
inside the model's own code). Neither can be read from a model's name or class. So configurations
that are known to fail are rejected first, and every other model is tried: it scores two random
pairs, and the log-probs are compared with those of its own plain forward, one sequence at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from dpo_cli.data.batching import PackedBatch, make_batch
from dpo_cli.data.chat import Tokenized, TokenizedPair
from dpo_cli.errors import DpoError, first_line
from dpo_cli.models import attention
from dpo_cli.models.per_sequence import split_sequences
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.objective.logps import gather_logps

_EAGER = "eager"
"""Attention of transformers that every model has and that implements all of its features."""
_OWN_ATTENTIONS = ("sdpa", _EAGER)
"""Attentions of transformers to try for models that cannot compute packed rows, fastest first."""
_TOLERANCE = 1e-3
"""Largest error of a log-prob, relative to the standard deviation of the log-probs.

Rounding in float32 stays far below. A wrong mask is far above: it causes errors of the order of 1.
"""

_FULL = "full_attention"
_ATTENTION_LAYERS = (_FULL, "sliding_attention", "chunked_attention")
_WINDOW_SETTINGS = ("sliding_window", "attention_chunk_size", "window_size")


def scorer_for(
    model: PreTrainedModel, longest: int, *, is_known: bool = False, **options: Any
) -> ResponseScorer:
    """Return the fastest exact scorer of a causal language model.

    Args:
        model: on the CPU in float32 or float64; built with `attention.NAME`, or with "eager" if its
            class does not accept that.
        longest: length in tokens of the longest sequence that it will score.
        is_known: packed rows are known to be exact for this architecture; skips the trial.
        options: of `ResponseScorer`.

    Returns:
        A scorer that computes packed rows, or one whose `fallback_reason` says why it cannot.

    Raises:
        DpoError: no way of scoring agrees with the model's own plain forward.
    """
    reason = None if is_known else why_not_packed(model, longest)
    if reason is not None:
        _set_attention(model, _exact_own_attention(model, longest))
    return ResponseScorer(model, fallback_reason=reason, **options)


def scorer_like(
    model: PreTrainedModel, attention_name: str, fallback_reason: str | None, **options: Any
) -> ResponseScorer:
    """Return a scorer with the choices that `scorer_for` has made for another copy of the model.

    Args:
        model: needs no values.
        attention_name: attention of the other copy.
        fallback_reason: of the other scorer.
        options: of `ResponseScorer`.
    """
    if fallback_reason is not None:
        _set_attention(model, attention_name)
    return ResponseScorer(model, fallback_reason=fallback_reason, **options)


def why_not_packed(model: PreTrainedModel, longest: int) -> str | None:
    """Return why a model cannot compute packed rows, or None if it can.

    The model's attention, training mode and gradients are left unchanged.

    Args:
        model, longest: see `scorer_for`.
    """
    if (reason := _reason_in_config(model.config.get_text_config(), longest)) is not None:
        return reason
    return _try_attention(model, attention.NAME, None, longest)


def use_eager_attention(model: PreTrainedModel) -> None:
    """Switch a model to the attention of transformers that is slow but implements every feature."""
    _set_attention(model, _EAGER)


def _exact_own_attention(model: PreTrainedModel, longest: int) -> str:
    for name in _OWN_ATTENTIONS:
        problem = _try_attention(model, name, "", longest)
        if problem is None:
            return name
    raise DpoError(
        f"{type(model).__name__} cannot be trained: its responses cannot be scored ({problem})",
        "Choose another model.",
    )


def _reason_in_config(config: PreTrainedConfig, longest: int) -> str | None:
    """Return the reason that a configuration gives against packed rows, if there is one."""
    kinds = getattr(config, "layer_types", None) or []
    if others := sorted({*kinds} - {*_ATTENTION_LAYERS}):
        return f"it has layers of the type {', '.join(others)}"
    # Some configurations name a window although all of their layers use full attention.
    if kinds and {*kinds} == {_FULL}:
        return None
    for name in _WINDOW_SETTINGS:
        window = getattr(config, name, None)
        is_used = getattr(config, f"use_{name}", True)
        # A window that every sequence fits into hides nothing.
        if isinstance(window, int) and is_used and window < longest:
            return f"{name} = {window} is shorter than sequences of {longest} tokens"
    return None


def _try_attention(
    model: PreTrainedModel, name: str, fallback_reason: str | None, longest: int
) -> str | None:
    """Score a trial batch and return what is wrong with the result, or None if it is exact."""
    was, was_training = model.config._attn_implementation, model.training
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or longest
    batch = _trial_batch(min(longest, positions), config.vocab_size)
    model.eval()
    try:
        _set_attention(model, _EAGER)
        expected = _plain_logps(model, batch)
        _set_attention(model, name)
        with torch.no_grad():
            scores = ResponseScorer(model, fallback_reason=fallback_reason)(batch)
    except Exception as failure:  # model code raises anything when it meets unexpected arguments
        return first_line(failure)
    finally:
        _set_attention(model, was)
        model.train(was_training)
    error = (scores.token_logps[scores.mask] - expected).abs().max() / expected.std()
    # Not `error >= _TOLERANCE`, which is false for NaN.
    if not error < _TOLERANCE:
        return f"a trial gives other log-probs, with an error of {error:.1e} standard deviations"
    return None


def _set_attention(model: PreTrainedModel, name: str) -> None:
    """Set a model's attention by name.

    Older model code has only one attention and ignores the setting, but builds its mask by the name
    in the configuration. So the name is set there in any case.
    """
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        model.config._attn_implementation = name


@torch.no_grad()
def _plain_logps(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Return the model's own log-probs of the responses, (R,), one unpadded sequence at a time."""
    sequences = split_sequences(batch)
    logps = torch.zeros_like(sequences.input_ids, dtype=torch.float64)
    labels = torch.zeros_like(sequences.input_ids)
    labels[sequences.rows, sequences.times] = sequences.labels
    for row, length in enumerate(sequences.lengths.tolist()):
        input_ids = sequences.input_ids[row : row + 1, :length]
        logits = model(input_ids=input_ids, use_cache=False).logits
        logps[row, :length] = gather_logps(logits[0], labels[row, :length]).double()
    return logps[sequences.rows, sequences.times]


def _trial_batch(longest: int, vocab_size: int) -> PackedBatch:
    """Return two random pairs with shared prompts, one response as long as possible.

    Two pairs, because a model that ignores `segments` may still score the first sequence correctly;
    full length, because windows and position limits show only there.
    """
    # A generator of its own: a trial must not change the random numbers of a run.
    generator = torch.Generator().manual_seed(1)

    def draw(tokens: int) -> Tensor:
        return torch.randint(vocab_size, (tokens,), generator=generator)

    def side(prompt: Tensor, tokens: int) -> Tokenized:
        ids = torch.cat([prompt, draw(tokens)])
        return Tokenized(ids, torch.arange(len(ids)) >= len(prompt))

    prompt_length, response_length = max(1, longest // 3), max(2, longest - longest // 3)
    pairs = []
    sizes = ((response_length, max(2, response_length // 2)), (2, 3))
    for line, (chosen_length, rejected_length) in enumerate(sizes, start=1):
        prompt = draw(prompt_length)
        pairs.append(
            TokenizedPair(line, side(prompt, chosen_length), side(prompt, rejected_length))
        )
    batch = make_batch(pairs, "packed", max_seq_len=0)
    assert isinstance(batch, PackedBatch)
    return batch

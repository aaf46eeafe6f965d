"""Generate text token by token, with the model's cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from dpo_cli.compute.device import Device
from dpo_cli.models.spec import Architecture

_CACHE_ARGUMENTS = ("past_key_values", "cache_params")
"""Names under which models return their cache and accept it again; the second one is Mamba's."""

Sampler = Callable[[Tensor], int]
"""Function from logits, (V,), to the id of the next token."""


@dataclass(frozen=True)
class Decoding:
    """Settings of sampling.

    Attributes:
        max_new_tokens: maximum length of an answer.
        temperature: divisor of the logits; 0 selects the most likely token and draws no random
            number.
        top_p: samples from the smallest set of most likely tokens with at least this probability.
        seed: of the random numbers.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def token_sampler(self, question: int) -> Sampler:
        """Return a new sampler for the answers to one question.

        Each model that answers the question gets a new sampler with the same random numbers, so two
        models with equal logits give equal answers.

        Args:
            question: index of the question; added to the seed.
        """
        if not self.temperature:
            return most_likely
        # On the CPU, so that every device uses the same random numbers.
        generator = torch.Generator().manual_seed(self.seed + question)
        warpers = [TemperatureLogitsWarper(self.temperature), TopPLogitsWarper(self.top_p)]

        def sample(logits: Tensor) -> int:
            scores = logits.float().cpu().unsqueeze(0)
            for warper in warpers:
                scores = warper(None, scores)
            return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=generator))

        return sample


def generate(
    model: Callable[..., Any],
    prompt: Tensor,
    *,
    device: Device,
    stop_ids: Collection[int],
    max_new_tokens: int,
    sample: Sampler | None = None,
) -> Iterator[int]:
    """Yield the token ids of an answer one by one, the token that ends it included.

    Args:
        model: a causal language model of transformers in evaluation mode, or its
            `ResponseScorer.next_logits`.
        prompt: (T,) int64, up to and including the header of the answer.
        device: device of the model.
        stop_ids: tokens that end an answer; see `stop_ids_of`.
        max_new_tokens: length at which the answer is truncated.
        sample: selects the next token; by default the most likely one.
    """
    sample = sample or most_likely
    input_ids = prompt.to(device.torch_device).unsqueeze(0)
    cache: dict[str, Any] = {}
    with _kept_casts():
        for _ in range(max_new_tokens):
            # Eager, because torch.compile would compile anew for each length of the cache.
            with torch.no_grad(), device.autocast(), torch.compiler.set_stance("force_eager"):
                output = model(input_ids=input_ids, use_cache=True, logits_to_keep=1, **cache)
                token_id = sample(output.logits[0, -1])
            yield token_id
            if token_id in stop_ids:
                return
            input_ids = torch.tensor([[token_id]], device=device.torch_device)
            cache = {name: output[name] for name in _CACHE_ARGUMENTS if name in output}


@contextmanager
def _kept_casts() -> Iterator[None]:
    """Let autocast cast each weight once per answer, not once per token.

    Autocast keeps its casts until its outermost context ends. This context only raises the nesting
    level, so the code of the caller between two tokens is not affected.
    """
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()


def stop_ids_of(architecture: Architecture, end_id: int | None) -> frozenset[int]:
    """Return every token that ends an answer: the model's, and the tokenizer's `end_id`."""
    return architecture.stop_ids | ({end_id} if end_id is not None else set())


def free_positions(architecture: Architecture, prompt: Tensor) -> int | None:
    """Return the number of positions left after a prompt, (T,); None without a limit."""
    positions = architecture.max_positions
    return None if positions is None else positions - len(prompt)


def most_likely(logits: Tensor) -> int:
    """Return the id of the most likely token."""
    return int(logits.argmax())

"""The tokens of an answer, one by one, with a model's cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TemperatureLogitsWarper, TopPLogitsWarper

from dpo_cli.compute.device import Device
from dpo_cli.models.spec import Architecture

_CACHES = ("past_key_values", "cache_params")
"""What models call what they keep of the tokens before."""

Sample = Callable[[Tensor], int]
"""From logits (V,) to the id of the next token."""


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: of an answer.
        temperature: divides the logits; 0 takes the likeliest token and draws no random number.
        top_p: draws among the likeliest tokens that have at least this probability together.
        seed: of what is drawn.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def token_sampler(self, question: int) -> Sample:
        """For the answers to one question: two models that agree draw the same tokens.

        Args:
            question: its number, so that each has random numbers of its own.
        """
        if not self.temperature:
            return _likeliest
        # On the CPU, for the same random numbers on every device.
        generator = torch.Generator().manual_seed(self.seed + question)
        warpers = [TemperatureLogitsWarper(self.temperature), TopPLogitsWarper(self.top_p)]

        def draw(logits: Tensor) -> int:
            scores = logits.float().cpu().unsqueeze(0)
            for warper in warpers:
                scores = warper(None, scores)
            return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=generator))

        return draw


def generate(
    model: PreTrainedModel,
    prompt: Tensor,
    *,
    device: Device,
    end_id: int | None,
    max_new_tokens: int,
    sample: Sample | None = None,
) -> Iterator[int]:
    """The ids of an answer, each as soon as it is chosen; the one that ends it is the last.

    Args:
        model: in evaluation mode; whatever transformers computes with a cache.
        prompt: (T,), the answer's header included.
        device: where the model is.
        end_id: ends an answer; None where nothing does.
        max_new_tokens: after so many the answer is cut.
        sample: else the likeliest.
    """
    sample = sample or _likeliest
    fed = prompt.to(device.torch_device).unsqueeze(0)
    kept: dict[str, Any] = {}
    for _ in range(max_new_tokens):
        # A compiled block would be compiled anew for each length of what is cached.
        with torch.no_grad(), device.autocast(), torch.compiler.set_stance("force_eager"):
            output = model(input_ids=fed, use_cache=True, logits_to_keep=1, **kept)
            number = sample(output.logits[0, -1])
        yield number
        if number == end_id:
            return
        fed = torch.tensor([[number]], device=device.torch_device)
        kept = {name: output[name] for name in _CACHES if name in output}


def free_positions(architecture: Architecture, prompt: Tensor) -> int | None:
    """Tokens that a model has positions for after a prompt (T,); None where there is no limit."""
    positions = architecture.max_positions
    return None if positions is None else positions - len(prompt)


def _likeliest(logits: Tensor) -> int:
    return int(logits.argmax())

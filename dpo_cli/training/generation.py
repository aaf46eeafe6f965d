"""Answers of a language model, token by token, with its cache of keys and values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TemperatureLogitsWarper, TopPLogitsWarper

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.pairs import Message
from dpo_cli.data.text_stream import TextStream
from dpo_cli.errors import DpoError
from dpo_cli.training.device import Compute

_CACHES = ("past_key_values", "cache_params")
"""What models call what they keep of the tokens before."""

Choose = Callable[[Tensor], int]
"""From logits (V,) to the id of the next token."""


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen.

    Attributes:
        most_tokens: of an answer.
        temperature: divides the logits; 0 takes the likeliest token and draws no random number.
        top_p: draws among the likeliest tokens that have at least this probability together.
        seed: of what is drawn.
    """

    most_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def chooser(self, question: int) -> Choose:
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
    compute: Compute,
    end_id: int | None,
    most_tokens: int,
    choose: Choose | None = None,
) -> Iterator[int]:
    """The ids of an answer, each as soon as it is chosen; the one that ends it is the last.

    Args:
        model: in evaluation mode; whatever transformers computes with a cache.
        prompt: (T,), the answer's header included.
        compute: where the model is.
        end_id: ends an answer; None where nothing does.
        most_tokens: after so many the answer is cut.
        choose: else the likeliest.
    """
    choose = choose or _likeliest
    fed = prompt.to(compute.device).unsqueeze(0)
    kept: dict[str, Any] = {}
    for _ in range(most_tokens):
        # A compiled block would be compiled anew for each length of what is cached.
        with torch.no_grad(), compute.autocast(), torch.compiler.set_stance("force_eager"):
            output = model(input_ids=fed, use_cache=True, logits_to_keep=1, **kept)
            number = choose(output.logits[0, -1])
        yield number
        if number == end_id:
            return
        fed = torch.tensor([[number]], device=compute.device)
        kept = {name: output[name] for name in _CACHES if name in output}


def room_for_answer(model: PreTrainedModel, prompt: Tensor) -> int | None:
    """Tokens that a model has positions for after a prompt (T,); None where there is no limit."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return None if positions is None else positions - len(prompt)


class Answer(Iterator[str]):
    """An answer, in pieces that are whole characters, "" where a token completes none.

    Attributes:
        text: what has been said so far, without the token that ends it.
        tokens: that were chosen.
        seconds: that choosing them took.
        is_cut: whether it has reached the most tokens there may be, and not its end.
    """

    def __init__(self, ids: Iterator[int], tokenizer: ChatTokenizer) -> None:
        self.text, self.tokens, self.seconds, self.is_cut = "", 0, 0.0, False
        self._ids, self._end_id = ids, tokenizer.end_id
        self._stream: TextStream | None = TextStream(tokenizer.decode)

    def __next__(self) -> str:
        if self._stream is None:
            raise StopIteration
        before = time.perf_counter()
        number = next(self._ids, None)
        self.seconds += time.perf_counter() - before
        if number is not None:
            self.tokens += 1
        if number is None or number == self._end_id:
            self.is_cut = number is None
            piece, self._stream = self._stream.rest(), None
        else:
            piece = self._stream.add(number)
        self.text += piece
        return piece


class Speaker:
    """A model that answers.

    Args:
        model: see `generate`.
        tokenizer: of the model.
        compute: where it is.
        decoding: how it answers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: ChatTokenizer,
        compute: Compute,
        decoding: Decoding,
    ) -> None:
        self._model, self._tokenizer = model.eval(), tokenizer
        self._compute, self._decoding = compute, decoding

    def answer(self, messages: Sequence[Message], question: int) -> Answer:
        """The answer to a conversation.

        Args:
            messages: its turns; the last is not the model's.
            question: see `Decoding.chooser`.

        Raises:
            DpoError: the chat template refuses the conversation, or it is too long.
        """
        try:
            prompt = self._tokenizer.prompt(messages)
        except ValueError as error:
            raise DpoError(str(error)) from error
        most_tokens, room = self._decoding.most_tokens, room_for_answer(self._model, prompt)
        if room is not None and room < 1:
            raise DpoError(
                f"the conversation has {len(prompt):,} tokens, and the model"
                f" {len(prompt) + room:,} positions"
            )
        ids = generate(
            self._model,
            prompt,
            compute=self._compute,
            end_id=self._tokenizer.end_id,
            most_tokens=min(most_tokens, room or most_tokens),
            choose=self._decoding.chooser(question),
        )
        return Answer(ids, self._tokenizer)


class Conversation:
    """What a user and one model have said, turn by turn.

    Args:
        speaker: the model.
        system: what it is told before anything else, if anything.
    """

    def __init__(self, speaker: Speaker, system: str | None = None) -> None:
        self._speaker, self._system = speaker, system
        self._turns: list[tuple[str, Answer]] = []

    @property
    def messages(self) -> list[Message]:
        """Everything so far; an answer as far as it has come."""
        messages = [] if self._system is None else [_message("system", self._system)]
        for question, answer in self._turns:
            messages += _message("user", question), _message("assistant", answer.text)
        return messages

    def ask(self, question: str) -> Answer:
        """The answer to a question, which is kept as far as it will have come.

        Raises:
            DpoError: see `Speaker.answer`; nothing is kept.
        """
        turns = [*self.messages, _message("user", question)]
        answer = self._speaker.answer(turns, len(self._turns))
        self._turns.append((question, answer))
        return answer

    def take_back(self) -> None:
        """Forget the last question and its answer."""
        self._turns.pop()

    def forget(self) -> None:
        """Begin anew."""
        self._turns.clear()


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _likeliest(logits: Tensor) -> int:
    return int(logits.argmax())

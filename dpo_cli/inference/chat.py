"""Who answers, and what has been said: answers as text while they come, and conversations."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from dpo_cli.compute.device import Device, resolve
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.formats import Message
from dpo_cli.data.text_stream import TextStream
from dpo_cli.errors import DpoError
from dpo_cli.inference.open_model import OpenedModel, open_model, open_reference
from dpo_cli.models.generation import Decoding, free_positions, generate
from dpo_cli.models.loading import build_model, use_experts_for
from dpo_cli.models.support import use_eager_attention
from dpo_cli.profile.load import load_profile, profile_from_values
from dpo_cli.run.models import NamedModel, tokenizer_of
from dpo_cli.training.sources import require_same_vocabulary


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


class Responder:
    """A model that answers.

    Args:
        opened: its weights.
        tokenizer: of the model.
        device: where it is to be.
        decoding: how it answers.
    """

    def __init__(
        self,
        opened: OpenedModel,
        tokenizer: ChatTokenizer,
        device: Device,
        decoding: Decoding,
    ) -> None:
        model_weights = opened.model_weights
        model = build_model(model_weights.architecture, model_weights.state).eval()
        if not model_weights.architecture.supports_packing:
            use_eager_attention(model)
        if model_weights.architecture.use_moe:
            use_experts_for(model, float32=device.dtype == torch.float32)
        self._model, self._architecture = model.to(device.torch_device), model_weights.architecture
        self._tokenizer, self._device, self._decoding = tokenizer, device, decoding
        self.title = opened.title
        """What to call it on the screen."""
        if opened.optimizer_step is not None:
            self.title += f" after optimizer step {opened.optimizer_step:,}"

    def answer(self, messages: Sequence[Message], question: int) -> Answer:
        """The answer to a conversation.

        Args:
            messages: its turns; the last is not the model's.
            question: see `Decoding.token_sampler`.

        Raises:
            DpoError: the chat template refuses the conversation, or it is too long.
        """
        try:
            prompt = self._tokenizer.prompt(messages)
        except ValueError as error:
            raise DpoError(str(error)) from error
        max_new_tokens, room = (
            self._decoding.max_new_tokens,
            free_positions(self._architecture, prompt),
        )
        if room is not None and room < 1:
            raise DpoError(
                f"the conversation has {len(prompt):,} tokens, and the model"
                f" {len(prompt) + room:,} positions"
            )
        ids = generate(
            self._model,
            prompt,
            device=self._device,
            end_id=self._tokenizer.end_id,
            max_new_tokens=min(max_new_tokens, room or max_new_tokens),
            sample=self._decoding.token_sampler(question),
        )
        return Answer(ids, self._tokenizer)


class Conversation:
    """What a user and one model have said, turn by turn.

    Args:
        speaker: the model.
        system: what it is told before anything else, if anything.
    """

    def __init__(self, speaker: Responder, system: str | None = None) -> None:
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
            DpoError: see `Responder.answer`; nothing is kept.
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


def open_responders(
    policy: NamedModel,
    reference: NamedModel | None,
    decoding: Decoding,
    *,
    runs_root: Path,
    tokenizer: Path | None = None,
    settings: Sequence[str] = (),
    best: bool = False,
) -> list[Responder]:
    """The policy, and beside it the reference, if there is one; on one device.

    Args:
        policy: who is asked.
        reference: who is asked beside it; None for a run's own.
        decoding: how they answer.
        runs_root: where runs lie.
        tokenizer: a folder; None for that which one of them comes with.
        settings: keys of the profile that are others here, such as the device.
        best: of a run, take the best state.

    Raises:
        DpoError: something of this is missing or damaged, or does not fit the rest.
    """
    named = [each for each in (policy, reference) if each is not None]
    folder = tokenizer_of(named, tokenizer, settings)
    if policy.run is not None:
        profile = load_profile(policy.run.profile_path, settings).profile
    else:
        stated = {"model.tokenizer": folder.absolute(), "data.data_path": Path(os.devnull)}
        profile = profile_from_values(stated, settings)
    device = resolve(profile.train.device, profile.train.dtype)
    untold = profile.model.model_dump()
    opened = [open_model(policy, untold, best=best)]
    if reference is not None:
        opened.append(open_model(reference, untold))
    elif policy.run is not None:
        opened.append(open_reference(profile, runs_root, policy.run))
    its_tokenizer = ChatTokenizer(folder)
    require_same_vocabulary(its_tokenizer, opened[0].model_weights, opened[-1].model_weights)
    return [Responder(each, its_tokenizer, device, decoding) for each in opened]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}

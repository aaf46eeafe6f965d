"""Chat with models: streamed answers, and conversations."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch

from dpo_cli.compute.device import Device, resolve
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.messages import Message
from dpo_cli.data.text_stream import TextStream
from dpo_cli.errors import DpoError
from dpo_cli.inference.open_model import OpenedModel, open_model, open_reference
from dpo_cli.models.adapted import build_adapted
from dpo_cli.models.generation import Decoding, free_positions, generate, stop_ids_of
from dpo_cli.models.options import use_experts_for
from dpo_cli.models.quantized import set_compute_dtype
from dpo_cli.models.support import use_eager_attention
from dpo_cli.profile.load import load_profile, profile_from_values
from dpo_cli.run.models import NamedModel, tokenizer_of
from dpo_cli.training.sources import require_same_vocabulary


class Answer(Iterator[str]):
    """Streamed answer: an iterator over pieces of text, one per token.

    A piece has whole characters only; it is "" for a token that completes none.

    Attributes:
        text: text so far, without the end token.
        tokens: number of generated tokens.
        seconds: time that generating them took.
        is_cut: True if the answer reached the maximum number of tokens before its end.
    """

    def __init__(
        self, ids: Iterator[int], tokenizer: ChatTokenizer, stop_ids: Collection[int]
    ) -> None:
        self.text, self.tokens, self.seconds, self.is_cut = "", 0, 0.0, False
        self._ids, self._stop_ids = ids, stop_ids
        self._stream: TextStream | None = TextStream(tokenizer.decode)

    def __next__(self) -> str:
        if self._stream is None:
            raise StopIteration
        before = time.perf_counter()
        token_id = next(self._ids, None)
        self.seconds += time.perf_counter() - before
        if token_id is not None:
            self.tokens += 1
        if token_id is None or token_id in self._stop_ids:
            self.is_cut = token_id is None
            piece, self._stream = self._stream.rest(), None
        else:
            piece = self._stream.add(token_id)
        self.text += piece
        return piece


class Responder:
    """Model that answers conversations.

    Args:
        opened: model and title.
        tokenizer: tokenizer of the model.
        device: device to run on.
        decoding: sampling settings.
    """

    def __init__(
        self,
        opened: OpenedModel,
        tokenizer: ChatTokenizer,
        device: Device,
        decoding: Decoding,
    ) -> None:
        model_weights = opened.model_weights
        model = build_adapted(model_weights).eval()
        set_compute_dtype(model, device.dtype)
        if not model_weights.architecture.supports_packing:
            use_eager_attention(model)
        if model_weights.architecture.use_moe:
            use_experts_for(
                model,
                float32=device.dtype == torch.float32,
                is_on_cpu=device.type == "cpu",
            )
        self._model, self._architecture = model.to(device.torch_device), model_weights.architecture
        self._tokenizer, self._device, self._decoding = tokenizer, device, decoding
        self.title = opened.title
        """Name on the screen."""
        if opened.optimizer_step is not None:
            self.title += f" after step {opened.optimizer_step:,}"

    @property
    def template_folder(self) -> Path:
        """Folder of the chat template that renders the conversation."""
        return self._tokenizer.folder

    def answer(self, messages: Sequence[Message], question: int) -> Answer:
        """Start an answer to a conversation.

        Args:
            messages: turns of the conversation; the last one is the user's.
            question: number of the question, see `Decoding.token_sampler`.

        Raises:
            DpoError: the chat template refuses the conversation, or it is too long.
        """
        try:
            prompt = self._tokenizer.prompt(messages)
        except ValueError as error:
            raise DpoError(str(error)) from error
        max_new_tokens = self._decoding.max_new_tokens
        room = free_positions(self._architecture, prompt)
        if room is not None and room < 1:
            raise DpoError(
                f"the conversation has {len(prompt):,} tokens, and the model only"
                f" {len(prompt) + room:,} positions",
                "Begin a new conversation.",
            )
        stop_ids = stop_ids_of(self._architecture, self._tokenizer.end_id)
        ids = generate(
            self._model,
            prompt,
            device=self._device,
            stop_ids=stop_ids,
            max_new_tokens=min(max_new_tokens, room or max_new_tokens),
            sample=self._decoding.token_sampler(question),
        )
        return Answer(ids, self._tokenizer, stop_ids)


class Conversation:
    """Conversation of a user with one model.

    Args:
        responder: the model.
        system: system prompt.
    """

    def __init__(self, responder: Responder, system: str | None = None) -> None:
        self._responder, self._system = responder, system
        self._turns: list[tuple[str, Answer]] = []

    @property
    def messages(self) -> list[Message]:
        """All turns so far; the last answer may be incomplete."""
        messages = [] if self._system is None else [_message("system", self._system)]
        for question, answer in self._turns:
            messages += _message("user", question), _message("assistant", answer.text)
        return messages

    def ask(self, question: str) -> Answer:
        """Add a question, and start the answer to it.

        Raises:
            DpoError: see `Responder.answer`; the question is not added.
        """
        turns = [*self.messages, _message("user", question)]
        answer = self._responder.answer(turns, len(self._turns))
        self._turns.append((question, answer))
        return answer

    def undo(self) -> None:
        """Remove the last question and its answer."""
        self._turns.pop()

    def clear(self) -> None:
        """Remove all turns except the system prompt."""
        self._turns.clear()


def open_responders(
    policy: NamedModel,
    reference: NamedModel | None,
    decoding: Decoding,
    *,
    runs_root: Path,
    tokenizer: Path | None = None,
    overrides: Sequence[str] = (),
    best: bool = False,
) -> list[Responder]:
    """Open the policy and, if there is one, the reference, on one device.

    Args:
        policy: first model.
        reference: second model; None for the run's own reference, if `policy` is a run.
        decoding: sampling settings.
        runs_root: directory of runs.
        tokenizer: folder of the tokenizer; None for that of the first model that has one.
        overrides: `KEY=VALUE` for keys of the profile, for example the device.
        best: use the best checkpoint of a run.

    Raises:
        DpoError: a file is missing or damaged, or the models and the tokenizer do not fit.
    """
    models = [model for model in (policy, reference) if model is not None]
    folder = tokenizer_of(models, tokenizer, runs_root, overrides)
    if policy.run is not None:
        profile = load_profile(policy.run.profile_path, overrides).profile
    else:
        values = {"model.tokenizer": folder.absolute(), "data.data_path": Path(os.devnull)}
        profile = profile_from_values(values, overrides)
    device = resolve(profile.train.device, profile.train.dtype)
    settings = profile.model.model_dump()
    opened = [open_model(policy, settings, best=best)]
    if reference is not None:
        opened.append(open_model(reference, settings))
    elif policy.run is not None:
        opened.append(open_reference(profile, runs_root, policy.run))
    chat_tokenizer = ChatTokenizer(folder)
    require_same_vocabulary(chat_tokenizer, opened[0].model_weights, opened[-1].model_weights)
    return [Responder(model, chat_tokenizer, device, decoding) for model in opened]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}

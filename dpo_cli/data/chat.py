"""Chat templates: conversations to token ids and response masks.

An answer begins where the tokens of its prompt end, rendered with the header of an answer, as a
model sees it when it generates. The mask never scans ids for a marker, because a user may write
`<|im_start|>assistant`. A token in which the end of a header and the beginning of an answer merge
belongs to the answer: no prompt ends with it.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpo_cli.data.encoders import as_tensor, make_encoder, with_true_offsets
from dpo_cli.data.messages import Message, shared_turns
from dpo_cli.data.rendered import (
    Answer,
    Rendered,
    RewrittenError,
    common_length,
    common_tokens,
)
from dpo_cli.data.rendering import TemplateRenderer
from dpo_cli.data.template import ChatTemplate
from dpo_cli.data.tokenizer_limits import check_files, check_ids
from dpo_cli.data.tools import Tool, with_arguments
from dpo_cli.errors import DpoError, first_line

REWRITES_TURNS = "the chat template rewrites earlier turns"
_Key = tuple[int, int, bool]
"""Conversation, number of its first turns, and True to render them as a prompt."""


@dataclass(frozen=True)
class Tokenized:
    """Token ids (T,) int64 of one conversation, and the response mask (T,) bool."""

    ids: Tensor
    response: Tensor

    @property
    def response_tokens(self) -> int:
        """Number of response tokens that can be predicted, all but the first token of a text."""
        return int(self.response[1:].sum())


@dataclass(frozen=True)
class TokenizedPair:
    """Both sides of a pair, with the line of the pair in its file."""

    line: int
    chosen: Tokenized
    rejected: Tokenized


@dataclass(frozen=True)
class Encoded:
    """Stored form of one conversation: ids, and the [first, end) token span of each answer.

    The spans ascend, are not empty and do not touch.
    prompt_differs: the ids of a prompt are not the first ids of the whole.
    cuts: token indices, see `Rendered.cuts`.
    """

    ids: array[int]
    answers: tuple[tuple[int, int], ...]
    prompt_differs: bool = False
    cuts: tuple[int, ...] = ()

    def tokenized(self) -> Tokenized:
        """Convert to tensors."""
        response = torch.zeros(len(self.ids), dtype=torch.bool)
        for first, end in self.answers:
            response[first:end] = True
        return Tokenized(as_tensor(self.ids).to(torch.int64), response)


class ChatTokenizer:
    """Tokenizer with its chat template, loaded from a folder."""

    def __init__(self, folder: Path) -> None:
        """Load `tokenizer.json` and `tokenizer_config.json` without executing any code.

        Raises:
            DpoError: the folder contains no tokenizer with a chat template.
        """
        from transformers import AutoTokenizer

        check_files(folder)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except BaseException as error:  # whatever a broken file raises, also a panic in Rust
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise DpoError(
                f"{folder}: the tokenizer cannot be read ({first_line(error)})",
                "Set model.tokenizer to the folder with tokenizer.json and tokenizer_config.json,"
                " for example MiniMind's model/.",
            ) from error
        if not self._tokenizer.chat_template:
            raise DpoError(
                f"{folder}: the tokenizer has no chat template",
                "Use the tokenizer that the weights were fine-tuned with. For a base model, use the"
                " instruct version (often called -Instruct or -Chat), or put the chat template to"
                " train with into chat_template.jinja beside tokenizer.json.",
            )
        self._backend = with_true_offsets(self._tokenizer.backend_tokenizer)
        check_ids(self._backend, folder)
        self._encoder = make_encoder(self._backend)
        self._renderer = TemplateRenderer(
            self._tokenizer, lambda text: len(self._backend.encode(text)), folder
        )
        self.folder = folder

    @property
    def vocab_size(self) -> int:
        """Largest id plus one."""
        ids: dict[str, int] = self._tokenizer.get_vocab()
        return max(ids.values()) + 1

    @property
    def pad_id(self) -> int:
        """Padding id; any id works, because causal attention hides padding from responses."""
        return int(self._tokenizer.pad_token_id or 0)

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids of BOS, EOS and padding by the names of model configurations."""
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        ids = {name: getattr(self._tokenizer, name) for name in names}
        return {name: id for name, id in ids.items() if id is not None}

    @property
    def end_id(self) -> int | None:
        """Id that ends an answer; None if the tokenizer defines none."""
        end: int | None = self._tokenizer.eos_token_id
        return end

    @property
    def definition(self) -> str:
        """Content of `tokenizer.json` as loaded, with added tokens from other files."""
        text: str = self._backend.to_str()
        return text

    @property
    def chat_template(self) -> str | list[dict[str, str]]:
        """Source of the chat template; of several, a list of "name" and "template"."""
        template = self._tokenizer.chat_template
        if isinstance(template, dict):
            return [{"name": name, "template": text} for name, text in template.items()]
        return str(template)

    def fingerprint(self) -> str:
        """Hash everything that decides the ids: vocabulary, merges, special tokens and template."""
        digest = hashlib.sha256(self.definition.encode())
        digest.update(json.dumps(self._tokenizer.chat_template, sort_keys=True).encode())
        return digest.hexdigest()

    @property
    def special_tokens(self) -> dict[str, str]:
        """Special tokens by the names that a chat template uses."""
        tokens: dict[str, str] = self._tokenizer.special_tokens_map
        return tokens

    @cached_property
    def template(self) -> ChatTemplate:
        """Measured properties of the chat template."""
        return ChatTemplate(lambda messages, **options: self._apply([messages], **options)[0])

    @property
    def control_tokens(self) -> dict[str, int]:
        """Special tokens and their ids; the tokenizer splits every text at them."""
        added = self._tokenizer.added_tokens_decoder.items()
        return {token.content: number for number, token in added if token.special}

    @property
    def depends_on_date(self) -> bool:
        """True if the chat template can write the date, so its output must not be cached."""
        return "strftime_now" in json.dumps(self._tokenizer.chat_template)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """Decode token ids (T,) to text, with special tokens."""
        numbers = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        text: str = self._backend.decode(numbers, skip_special_tokens=False)
        return text

    def prompt(self, messages: Sequence[Message]) -> Tensor:
        """Encode a conversation followed by the header of an answer.

        Returns:
            Token ids (T,) int64.

        Raises:
            ValueError: the template fails.
        """
        [encoded] = self.encode([Rendered(self.prompt_text(messages))])
        return as_tensor(encoded.ids).to(torch.int64)

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """Render a conversation followed by the header of an answer; raises as `prompt`."""
        [text] = self._apply([list(messages)], add_generation_prompt=True)
        return text

    def render(
        self,
        *conversations: Sequence[Message],
        tools: Sequence[Tool] = (),
        first: int = 0,
        as_one: bool = False,
    ) -> list[Rendered]:
        """Render conversations with the chat template, and locate the scored answers in the texts.

        An answer ends where the rendering of all turns up to and including it ends.

        Args:
            conversations: conversations; common first turns are rendered once.
            tools: definitions of tools for the template.
            first: index of the first message that is scored if it is an answer.
            as_one: score everything from the first scored answer to the end of the text, for
                templates that render these turns differently once others follow.

        Raises:
            ValueError: the template fails, or rewrites earlier turns, so the spans are undefined.
        """
        shared = shared_turns(*conversations)
        conversations = tuple(self._prepared(messages) for messages in conversations)
        wanted: dict[_Key, list[Message]] = {}

        def want(side: int, turns: int, is_prompt: bool) -> _Key:
            """Request the first turns of a conversation, as a prompt or as they are."""
            key = (side if turns > shared else 0, turns, is_prompt)
            wanted.setdefault(key, [*conversations[side][:turns]])
            return key

        sides = []
        for side, messages in enumerate(conversations):
            whole = want(side, len(messages), False)
            turns = [
                turn
                for turn, message in enumerate(messages)
                if turn >= first and message["role"] == "assistant"
            ]
            if as_one:
                spans = [(want(side, turns[0], True), whole)]
            else:
                spans = [(want(side, turn, True), want(side, turn + 1, False)) for turn in turns]
            sides.append((whole, spans))
        texts = self._render_all(wanted, tools)
        rendered = []
        for whole, spans in sides:
            text, answers, is_rewritten = texts[whole], [], False
            for before, end in spans:
                if not text.startswith(texts[end]):
                    raise RewrittenError(REWRITES_TURNS)
                prompt = texts[before]
                if common_length(prompt, text) < len(prompt) - self.template.header_length:
                    prompt, is_rewritten = self._header(wanted[before], tools), True
                    if not text.startswith(prompt):
                        raise RewrittenError(REWRITES_TURNS)
                answers.append(Answer(prompt, len(texts[end])))
            rendered.append(Rendered(text, tuple(answers), is_rewritten=is_rewritten))
        return rendered

    def _render_all(
        self, wanted: Mapping[_Key, list[Message]], tools: Sequence[Tool]
    ) -> dict[_Key, str]:
        """Render all requested turns, in one call for the prompts and one for the others."""
        options: dict[str, Any] = {"tools": list(tools)} if tools else {}
        texts: dict[_Key, str] = {}
        for is_prompt in (True, False):
            keys = [key for key in wanted if key[2] is is_prompt and key[1]]
            if keys:
                conversations = [wanted[key] for key in keys]
                rendered = self._apply(conversations, add_generation_prompt=is_prompt, **options)
                texts |= zip(keys, rendered, strict=True)
        for key in wanted:
            if not key[1]:  # most templates fail without a message
                texts[key] = self._header([], tools)
        return texts

    def _header(self, turns: Sequence[Message], tools: Sequence[Tool]) -> str:
        """Return the text before an answer to turns, as the template renders it with an answer."""
        options: dict[str, Any] = {"tools": list(tools)} if tools else {}
        probes = [[*turns, {"role": "assistant", "content": probe}] for probe in ("a", "b")]
        first, second = self._apply(probes, **options)
        return first[: common_length(first, second)]

    def _prepared(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Convert the arguments of tool calls to the form that the template writes as JSON once."""
        if not any(message.get("tool_calls") for message in messages):
            return messages
        return [with_arguments(message, self.template.arguments) for message in messages]

    def prompt_pieces(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[str]:
        """Return the template's texts before, between and after the user texts of a prompt.

        Returns:
            One piece more than there are user turns; empty if the template fails, or does not
            write each text once and in order.
        """
        marks = {
            turn: f"aXb{turn}Yc" for turn, each in enumerate(messages) if each["role"] == "user"
        }
        marked = [
            {**message, "content": marks[turn]} if turn in marks else message
            for turn, message in enumerate(self._prepared(messages))
        ]
        try:
            [text] = self._render_all({(0, 1, True): marked}, tools).values()
        except ValueError:
            return []
        pieces = []
        for mark in marks.values():
            piece, found, text = text.partition(mark)
            if not found or mark in text:
                return []
            pieces.append(piece)
        return [*pieces, text]

    def encode(self, texts: Sequence[Rendered], *, sides: int = 1) -> list[Encoded]:
        """Encode texts and find the tokens of their answers.

        An answer begins after the longest common beginning of the ids of its prompt and of the
        whole text. It ends with the last token that starts before its end.

        Args:
            texts: rendered conversations.
            sides: number of consecutive texts that belong together. Their answers to the same
                prompt begin at the same token, the earliest of all.
        """
        # Character positions whose tokens are counted, by text.
        positions: dict[str, list[int]] = {}
        for text in texts:
            ends = [answer.end for answer in text.answers]
            positions.setdefault(text.text, []).extend([*text.cut_positions, *ends])
            for answer in text.answers:
                positions.setdefault(answer.prompt, [])
        placed = self._encoder.encode(list(positions), list(positions.values()))
        found = dict(zip(positions, placed, strict=True))
        before, ended = {}, {}
        for whole, each in found.items():
            before[whole] = dict(zip(positions[whole], each.tokens_before, strict=True))
            ended[whole] = dict(zip(positions[whole], each.tokens_ended, strict=True))
        encoded = []
        for start in range(0, len(texts), sides):
            group = texts[start : start + sides]
            begins: dict[tuple[int, str], int] = {}
            for text in group:
                for number, (prompt, _) in enumerate(text.answers):
                    common = common_tokens(found[prompt].ids, found[text.text].ids)
                    begins[number, prompt] = min(common, begins.get((number, prompt), common))
            for text in group:
                spans = [
                    (begins[number, prompt], before[text.text][end])
                    for number, (prompt, end) in enumerate(text.answers)
                ]
                differs = any(
                    len(found[prompt].ids) > begins[number, prompt]
                    for number, (prompt, _) in enumerate(text.answers)
                )
                cuts = text.aligned_cuts(before[text.text], ended[text.text])
                encoded.append(Encoded(found[text.text].ids, _joined(spans), differs, cuts))
        return encoded

    def _apply(self, conversations: list[list[Message]], **options: Any) -> list[str]:
        return self._renderer(conversations, **options)


def _joined(answers: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Sort spans, merge those that touch or overlap, and drop empty ones."""
    joined: list[tuple[int, int]] = []
    for first, end in sorted(answers):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        elif first < end:
            joined.append((first, end))
    return tuple(joined)

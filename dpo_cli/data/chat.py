"""Chat templates: conversations to token ids and response masks.

The mask follows the structure of the rendered turns, in characters. It never scans ids for a
marker, because a user may write `<|im_start|>assistant`, and an answer may start with spaces that
merge with the newline of the header into one token.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import AnyStr

import torch
from torch import Tensor

from dpo_cli.data.encoders import as_tensor, make_encoder, with_true_offsets
from dpo_cli.data.formats import Message
from dpo_cli.data.rendering import TemplateRenderer
from dpo_cli.data.tokenizer_limits import check_files, check_ids
from dpo_cli.errors import DpoError, first_line

EMPTY_THINK_BLOCK = "<think>\n\n</think>\n\n"
REWRITES_TURNS = "the chat template rewrites earlier turns"
_PROBES = ("a", "b")
_MARK = "aXbYc"
_FIRST_SYSTEM = "the system turn"
_LATER_SYSTEM = "later system turns"
_TOOL = "tool turns"
_TOOL_CALLS = "tool calls"


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
    """

    ids: array[int]
    answers: tuple[tuple[int, int], ...]

    def tokenized(self) -> Tokenized:
        """Convert to tensors."""
        response = torch.zeros(len(self.ids), dtype=torch.bool)
        for first, end in self.answers:
            response[first:end] = True
        return Tokenized(as_tensor(self.ids).to(torch.int64), response)


@dataclass(frozen=True)
class Rendered:
    """Conversation as text, with the [start, end) character span of each answer."""

    text: str
    answers: tuple[tuple[int, int], ...]

    def without_empty_think(self) -> Rendered:
        """Remove empty think blocks, and shift the answer spans accordingly."""
        pieces: list[str] = []
        answers: list[tuple[int, int]] = []
        position = length = 0
        for start, end in self.answers:
            before = self.text[position:start].replace(EMPTY_THINK_BLOCK, "")
            answer = self.text[start:end].replace(EMPTY_THINK_BLOCK, "")
            pieces += before, answer
            answers.append((length + len(before), length + len(before) + len(answer)))
            length += len(before) + len(answer)
            position = end
        pieces.append(self.text[position:].replace(EMPTY_THINK_BLOCK, ""))
        return Rendered("".join(pieces), tuple(answers))


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

    def fingerprint(self) -> str:
        """Hash everything that decides the ids: vocabulary, merges, special tokens and template."""
        digest = hashlib.sha256(self._backend.to_str().encode())
        digest.update(json.dumps(self._tokenizer.chat_template, sort_keys=True).encode())
        return digest.hexdigest()

    @property
    def special_tokens(self) -> dict[str, str]:
        """Special tokens by the names that a chat template uses."""
        tokens: dict[str, str] = self._tokenizer.special_tokens_map
        return tokens

    @cached_property
    def _dropped_kinds(self) -> frozenset[str]:
        """Kinds of turns that the chat template silently drops, found by rendering a marker."""
        ask: Message = {"role": "user", "content": "a"}
        answer: Message = {"role": "assistant", "content": "a"}
        later: Message = {"role": "system", "content": _MARK}
        called = {"type": "function", "function": {"name": _MARK, "arguments": {}}}
        tried: dict[str, list[Message]] = {
            _FIRST_SYSTEM: [later, ask, answer],
            _LATER_SYSTEM: [ask, answer, later, ask, answer],
            _TOOL: [ask, answer, {"role": "tool", "content": _MARK}, answer],
            _TOOL_CALLS: [ask, {"role": "assistant", "content": "", "tool_calls": [called]}],
        }
        return frozenset(kind for kind, turns in tried.items() if not self._writes_mark(turns))

    def _writes_mark(self, turns: list[Message]) -> bool:
        try:
            return _MARK in self._apply([turns])[0]
        except ValueError:  # the template refuses such turns with an error of its own
            return True

    def dropped_turn(self, messages: Sequence[Message]) -> str:
        """Describe the first turn that the chat template silently drops; "" if there is none."""
        for number, message in enumerate(messages):
            kind = ""
            if message["role"] == "system":
                kind = _LATER_SYSTEM if number else _FIRST_SYSTEM
            elif message["role"] == "tool":
                kind = _TOOL
            elif message.get("tool_calls"):
                kind = _TOOL_CALLS
            if kind and kind in self._dropped_kinds:
                return f"the chat template leaves out {kind} (message {number + 1})"
        return ""

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
        [text] = self._apply([list(messages)], add_generation_prompt=True)
        [encoded] = self.encode([Rendered(text, ())])
        return as_tensor(encoded.ids).to(torch.int64)

    def render(self, *conversations: Sequence[Message]) -> list[Rendered]:
        """Render conversations with the chat template and locate every answer.

        To find the start of an answer, the turns before it are rendered twice, followed by two
        different probe answers; the answer starts where the two texts first differ. An empty think
        block there belongs to the answer. The answer ends where the rendering of all turns up to
        and including it ends.

        Args:
            conversations: conversations; common first turns are rendered once.

        Raises:
            ValueError: the template fails, or rewrites earlier turns, so the spans are undefined.
        """
        shared = _shared_turns(conversations)
        wanted: dict[tuple[int, int, str], list[Message]] = {}

        def want(side: int, turns: int, probe: str = "") -> tuple[int, int, str]:
            """Request the first turns of a conversation, with a probe as the answer."""
            key = (side if turns > shared else 0, turns, probe)
            if key not in wanted:
                answer = [{"role": "assistant", "content": probe}] if probe else []
                wanted[key] = [*conversations[side][:turns], *answer]
            return key

        keys = [
            (
                want(side, len(messages)),
                [
                    ([want(side, turn, probe) for probe in _PROBES], want(side, turn + 1))
                    for turn, message in enumerate(messages)
                    if message["role"] == "assistant"
                ],
            )
            for side, messages in enumerate(conversations)
        ]
        texts = dict(zip(wanted, self._apply(list(wanted.values())), strict=True))
        rendered = []
        for whole, ends in keys:
            answers = []
            for probes, end in ends:
                first, second = (texts[probe] for probe in probes)
                header = first[: common_length(first, second)].removesuffix(EMPTY_THINK_BLOCK)
                if not (texts[whole].startswith(texts[end]) and texts[end].startswith(header)):
                    raise ValueError(REWRITES_TURNS)
                answers.append((len(header), len(texts[end])))
            rendered.append(Rendered(texts[whole], tuple(answers)))
        return rendered

    def encode(self, texts: Sequence[Rendered]) -> list[Encoded]:
        """Encode texts, and map the answer spans to tokens that start inside an answer.

        A token that straddles a header and its answer belongs to the header.
        """
        places = [[place for answer in text.answers for place in answer] for text in texts]
        return [
            Encoded(ids, _joined(list(zip(before[::2], before[1::2], strict=True))))
            for ids, before in self._encoder.encode([text.text for text in texts], places)
        ]

    def _apply(self, conversations: list[list[Message]], **options: bool) -> list[str]:
        return self._renderer(conversations, **options)


def common_length(first: AnyStr, second: AnyStr) -> int:
    """Return the length of the common prefix of two strings or byte strings."""
    same, limit = 0, min(len(first), len(second))
    while same < limit:  # binary search: comparing slices runs at memory speed
        middle = (same + limit + 1) // 2
        if first[same:middle] == second[same:middle]:
            same = middle
        else:
            limit = middle - 1
    return same


def _shared_turns(conversations: Sequence[Sequence[Message]]) -> int:
    """Count the first messages that all conversations share."""
    shared = 0
    for messages in zip(*conversations, strict=False):
        try:
            if any(message != messages[0] for message in messages):
                break
        except RecursionError:  # nested so deeply that a comparison fails
            break
        shared += 1
    return shared


def _joined(answers: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Sort spans, merge those that touch or overlap, and drop empty ones."""
    joined: list[tuple[int, int]] = []
    for first, end in sorted(answers):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        elif first < end:
            joined.append((first, end))
    return tuple(joined)

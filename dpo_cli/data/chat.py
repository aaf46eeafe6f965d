"""From conversations to token ids and the mask of the response.

The mask follows the structure of the rendered turns, character by character, never a scan of the
ids for a marker: a user may write `<|im_start|>assistant`, and an answer may begin with spaces
that merge with the header's newline into one token.
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
from dpo_cli.errors import DpoError

EMPTY_THINK_BLOCK = "<think>\n\n</think>\n\n"
REWRITES_TURNS = "the chat template rewrites earlier turns"
_PROBES = ("a", "b")
_MARK = "aXbYc"
_FIRST_SYSTEM = "the system's turn"
_LATER_SYSTEM = "turns of the system behind the first"
_TOOL = "turns of the role tool"
_TOOL_CALLS = "calls of tools"


@dataclass(frozen=True)
class Tokenized:
    """One conversation: ids (T,) int64, and response (T,) bool, true at the tokens of answers."""

    ids: Tensor
    response: Tensor

    @property
    def response_tokens(self) -> int:
        """Response tokens that can be predicted: the very first token of a text cannot."""
        return int(self.response[1:].sum())


@dataclass(frozen=True)
class TokenizedPair:
    """Both sides of a pair, and the line of the file that it came from."""

    line: int
    chosen: Tokenized
    rejected: Tokenized


@dataclass(frozen=True)
class Encoded:
    """One conversation as it is stored: ids, and the [first, end) tokens of its answers.

    The answers ascend, are not empty and do not touch: between two of them is another token.
    """

    ids: array[int]
    answers: tuple[tuple[int, int], ...]

    def tokenized(self) -> Tokenized:
        """The same as tensors."""
        response = torch.zeros(len(self.ids), dtype=torch.bool)
        for first, end in self.answers:
            response[first:end] = True
        return Tokenized(as_tensor(self.ids).to(torch.int64), response)


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, with the [start, end) of each answer in characters."""

    text: str
    answers: tuple[tuple[int, int], ...]

    def without_empty_think(self) -> Rendered:
        """The same without the think blocks in which nothing is thought."""
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
    """A tokenizer folder: chat template, encoding, and where in the text each token lies."""

    def __init__(self, folder: Path) -> None:
        """Load `tokenizer.json` and `tokenizer_config.json`; nothing in the folder is executed.

        Raises:
            DpoError: the folder holds no tokenizer with a chat template.
        """
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever a broken file makes the library raise
            raise DpoError(
                f"{folder}: not a tokenizer that can be read ({_first_line(error)})",
                "set model.tokenizer to the folder with tokenizer.json and tokenizer_config.json,"
                " such as MiniMind's model/",
            ) from error
        if not self._tokenizer.chat_template:
            raise DpoError(
                f"{folder}: the tokenizer has no chat template",
                "use the tokenizer that the checkpoint was fine-tuned with. A base model knows no"
                " turns: take its fine-tuned sister (often called -Instruct or -Chat), or put the"
                " template that it is to learn into chat_template.jinja beside tokenizer.json",
            )
        self._backend = with_true_offsets(self._tokenizer.backend_tokenizer)
        self._encoder = make_encoder(self._backend)
        self.folder = folder

    @property
    def vocab_size(self) -> int:
        """One more than the largest id that can come out."""
        ids: dict[str, int] = self._tokenizer.get_vocab()
        return max(ids.values()) + 1

    @property
    def pad_id(self) -> int:
        """The id that fills up padded rows; any will do, since no response can see it."""
        return int(self._tokenizer.pad_token_id or 0)

    @property
    def special_ids(self) -> dict[str, int]:
        """Of where a text begins, where it ends, and padding, as model configurations name them."""
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        found = {name: getattr(self._tokenizer, name) for name in names}
        return {name: its for name, its in found.items() if its is not None}

    @property
    def end_id(self) -> int | None:
        """The id that ends an answer; None where the tokenizer names none."""
        end: int | None = self._tokenizer.eos_token_id
        return end

    def fingerprint(self) -> str:
        """SHA-256 over what decides the ids: vocabulary, merges, special tokens and template."""
        digest = hashlib.sha256(self._backend.to_str().encode())
        digest.update(json.dumps(self._tokenizer.chat_template, sort_keys=True).encode())
        return digest.hexdigest()

    @property
    def special_tokens(self) -> dict[str, str]:
        """The names that the chat template may write special tokens by."""
        tokens: dict[str, str] = self._tokenizer.special_tokens_map
        return tokens

    @cached_property
    def _left_out(self) -> frozenset[str]:
        """What the chat template passes over in silence, by trial."""
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
        return frozenset(what for what, turns in tried.items() if not self._writes_mark(turns))

    def _writes_mark(self, turns: list[Message]) -> bool:
        try:
            return _MARK in self._apply([turns])[0]
        except ValueError:  # the template refuses it aloud, and will again
            return True

    def passes_over(self, messages: Sequence[Message]) -> str:
        """The first turn of a conversation that the chat template leaves out in silence, in words.

        "" if it writes them all.
        """
        for number, message in enumerate(messages):
            what = ""
            if message["role"] == "system":
                what = _LATER_SYSTEM if number else _FIRST_SYSTEM
            elif message["role"] == "tool":
                what = _TOOL
            elif message.get("tool_calls"):
                what = _TOOL_CALLS
            if what and what in self._left_out:
                return f"the chat template leaves out {what} (message {number + 1})"
        return ""

    @property
    def control_tokens(self) -> dict[str, int]:
        """The special tokens, which a text is cut at wherever they stand in it, and their ids."""
        added = self._tokenizer.added_tokens_decoder.items()
        return {token.content: number for number, token in added if token.special}

    @property
    def tells_the_time(self) -> bool:
        """Whether the chat template can write a date: what it renders is another text tomorrow."""
        return "strftime_now" in json.dumps(self._tokenizer.chat_template)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of token ids (T,), special tokens included."""
        numbers = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        text: str = self._backend.decode(numbers, skip_special_tokens=False)
        return text

    def prompt(self, messages: Sequence[Message]) -> Tensor:
        """(T,), the ids of a conversation and of the header of an answer to it.

        Raises:
            ValueError: the template fails.
        """
        [text] = self._apply([list(messages)], add_generation_prompt=True)
        [encoded] = self.encode([Rendered(text, ())])
        return as_tensor(encoded.ids).to(torch.int64)

    def render(self, *conversations: Sequence[Message]) -> list[Rendered]:
        """Each conversation as the chat template writes it, with the span of every answer.

        An answer begins where renderings of the turns before it, followed by two different
        answers, begin to differ (an empty think block at that place belongs to the answer), and
        ends where the rendering up to and with it ends.

        Args:
            conversations: what their first turns have in common is rendered once.

        Raises:
            ValueError: the template fails, or rewrites earlier turns, so that spans are unknown.
        """
        shared = _shared_turns(conversations)
        wanted: dict[tuple[int, int, str], list[Message]] = {}

        def want(side: int, turns: int, probe: str = "") -> tuple[int, int, str]:
            """The first turns of a conversation, with an answer that is a probe."""
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
        """Token ids of each text, and which tokens begin inside an answer.

        A token that straddles a header and its answer belongs to the header.
        """
        places = [[place for answer in text.answers for place in answer] for text in texts]
        return [
            Encoded(ids, _joined(list(zip(before[::2], before[1::2], strict=True))))
            for ids, before in self._encoder.encode([text.text for text in texts], places)
        ]

    def _apply(self, conversations: list[list[Message]], **options: bool) -> list[str]:
        try:
            # One call for all of them: each costs a look at everything that a tokenizer may have.
            rendered = self._tokenizer.apply_chat_template(conversations, tokenize=False, **options)
        except Exception as error:  # Jinja runs the template's own code: it may raise anything
            raise ValueError(f"the chat template refuses it: {_first_line(error)}") from error
        assert isinstance(rendered, list)
        return rendered


def common_length(first: AnyStr, second: AnyStr) -> int:
    """How much of their beginning two texts, or two strings of bytes, have in common."""
    same, limit = 0, min(len(first), len(second))
    while same < limit:  # by halves: texts are long, and slices are compared at memory speed
        middle = (same + limit + 1) // 2
        if first[same:middle] == second[same:middle]:
            same = middle
        else:
            limit = middle - 1
    return same


def _shared_turns(conversations: Sequence[Sequence[Message]]) -> int:
    """How many of their first messages all conversations have in common."""
    shared = 0
    for messages in zip(*conversations, strict=False):
        try:
            if any(message != messages[0] for message in messages):
                break
        except RecursionError:  # nested as deep as JSON may be read, and no deeper
            break
        shared += 1
    return shared


def _joined(answers: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Spans in ascending order, those that touch or overlap made one, without empty ones."""
    joined: list[tuple[int, int]] = []
    for first, end in sorted(answers):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        elif first < end:
            joined.append((first, end))
    return tuple(joined)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

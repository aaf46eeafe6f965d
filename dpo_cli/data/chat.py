"""From conversations to token ids and the mask of the response.

The mask follows the structure of the rendered turns, character by character, never a scan of the
ids for a marker: a user may write `<|im_start|>assistant`, and an answer may begin with spaces
that merge with the header's newline into one token.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dpo_cli.data.pairs import Message, PreferencePair, SetAside
from dpo_cli.errors import DpoError

EMPTY_THINK_BLOCK = "<think>\n\n</think>\n\n"
REWRITES_TURNS = "the chat template rewrites earlier turns"
_ROWS_PER_CHUNK = 256
_PROBES = ("a", "b")

_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Tokenized:
    """One conversation: ids (T,) int64, and response (T,) bool, true at the tokens of answers."""

    ids: Tensor
    response: Tensor

    def truncated(self, max_seq_len: int) -> Tokenized:
        """The first `max_seq_len` tokens."""
        if len(self.ids) <= max_seq_len:
            return self
        # Copies, since a slice would keep what is cut off in memory for the whole run.
        return Tokenized(self.ids[:max_seq_len].clone(), self.response[:max_seq_len].clone())

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
                "use the tokenizer that the checkpoint was fine-tuned with",
            )
        self._backend = _with_true_offsets(self._tokenizer.backend_tokenizer)
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

    def fingerprint(self) -> str:
        """SHA-256 over what decides the ids: vocabulary, merges, special tokens and template."""
        digest = hashlib.sha256(self._backend.to_str().encode())
        digest.update(json.dumps(self._tokenizer.chat_template, sort_keys=True).encode())
        return digest.hexdigest()

    def decode(self, ids: Tensor) -> str:
        """The text of token ids (T,), special tokens included."""
        text: str = self._backend.decode(ids.tolist(), skip_special_tokens=False)
        return text

    def render(self, messages: Sequence[Message]) -> Rendered:
        """The conversation as the chat template writes it, with the span of every answer.

        An answer begins where renderings of the turns before it, followed by two different
        answers, begin to differ (an empty think block at that place belongs to the answer), and
        ends where the rendering up to and with it ends.

        Raises:
            ValueError: the template fails, or rewrites earlier turns, so that spans are unknown.
        """
        text = self._apply(messages)
        answers = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            probes = [
                self._apply([*messages[:number], {"role": "assistant", "content": probe}])
                for probe in _PROBES
            ]
            header = _common_prefix(*probes).removesuffix(EMPTY_THINK_BLOCK)
            ended = self._apply(messages[: number + 1])
            if not (text.startswith(ended) and ended.startswith(header)):
                raise ValueError(REWRITES_TURNS)
            answers.append((len(header), len(ended)))
        return Rendered(text, tuple(answers))

    def encode(self, texts: Sequence[Rendered]) -> list[Tokenized]:
        """Token ids of each text, and which tokens begin inside an answer.

        A token that straddles a header and its answer belongs to the header.
        """
        encodings = self._backend.encode_batch(
            [rendered.text for rendered in texts], add_special_tokens=False
        )
        return [
            Tokenized(
                torch.tensor(encoding.ids, dtype=torch.int64),
                _response_mask([start for start, _ in encoding.offsets], rendered.answers),
            )
            for encoding, rendered in zip(encodings, texts, strict=True)
        ]

    def _apply(self, messages: Sequence[Message]) -> str:
        try:
            rendered = self._tokenizer.apply_chat_template(list(messages), tokenize=False)
        except Exception as error:  # Jinja runs the template's own code: it may raise anything
            raise ValueError(f"the chat template refuses it: {_first_line(error)}") from error
        assert isinstance(rendered, str)
        return rendered


def encode_pairs(
    rows: Iterable[PreferencePair | SetAside],
    tokenizer: ChatTokenizer,
    *,
    max_seq_len: int,
    empty_think_ratio: float,
    seed: int,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> tuple[list[TokenizedPair], list[SetAside]]:
    """Encode and verify every row.

    Args:
        rows: from `dpo_cli.data.pairs.read_pairs`.
        tokenizer: renders and encodes.
        max_seq_len: tokens of a sequence that are kept.
        empty_think_ratio: share of the pairs that keep their empty think blocks.
        seed: of that decision, which is the same on both sides of a pair.
        on_progress: called with the number of rows done so far.

    Returns:
        The pairs that can be trained on, in the order of the file, and the rows set aside.
    """
    kept: list[TokenizedPair] = []
    set_aside: list[SetAside] = []
    done = 0
    for chunk in _chunks(rows, _ROWS_PER_CHUNK):
        rendered: list[tuple[PreferencePair, Rendered, Rendered]] = []
        for row in chunk:
            if isinstance(row, SetAside):
                set_aside.append(row)
                continue
            keep_think = _keeps_empty_think(seed, row.line, empty_think_ratio)
            try:
                chosen, rejected = tokenizer.render(row.chosen), tokenizer.render(row.rejected)
            except ValueError as error:
                set_aside.append(SetAside(row.line, "malformed", str(error)))
                continue
            if not keep_think:
                chosen, rejected = chosen.without_empty_think(), rejected.without_empty_think()
            rendered.append((row, chosen, rejected))
        sides = tokenizer.encode([side for _, *both in rendered for side in both])
        for (row, *_), chosen_ids, rejected_ids in zip(
            rendered, sides[::2], sides[1::2], strict=True
        ):
            pair = truncate(TokenizedPair(row.line, chosen_ids, rejected_ids), max_seq_len)
            if isinstance(pair, TokenizedPair):
                kept.append(pair)
            else:
                set_aside.append(pair)
        done += len(chunk)
        on_progress(done)
    set_aside.sort(key=lambda row: row.line)
    return kept, set_aside


def truncate(pair: TokenizedPair, max_seq_len: int) -> TokenizedPair | SetAside:
    """The pair with `max_seq_len` tokens of each side, or why that would teach nothing."""
    if torch.equal(pair.chosen.ids, pair.rejected.ids):
        return SetAside(pair.line, "identical", "both sides are the same")
    cut = TokenizedPair(
        pair.line, pair.chosen.truncated(max_seq_len), pair.rejected.truncated(max_seq_len)
    )
    for name, full, side in (
        ("chosen", pair.chosen, cut.chosen),
        ("rejected", pair.rejected, cut.rejected),
    ):
        if not side.response_tokens:
            return SetAside(
                pair.line,
                "truncated",
                f"no response token of {name!r} left at max_seq_len {max_seq_len}"
                f" ({len(full.ids)} tokens)",
            )
    if torch.equal(cut.chosen.ids, cut.rejected.ids):
        return SetAside(
            pair.line, "identical", f"both sides are the same up to max_seq_len {max_seq_len}"
        )
    return cut


def _response_mask(token_starts: Sequence[int], answers: Sequence[tuple[int, int]]) -> Tensor:
    """(T,) bool: tokens whose first character lies in an answer; both sequences ascend."""
    mask = torch.zeros(len(token_starts), dtype=torch.bool)
    starts = torch.tensor(token_starts, dtype=torch.int64)
    for start, end in answers:
        first, last = torch.searchsorted(starts, torch.tensor([start, end])).tolist()
        mask[first:last] = True
    return mask


def _keeps_empty_think(seed: int, line: int, ratio: float) -> bool:
    digest = hashlib.sha256(f"{seed}:{line}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < ratio


def _with_true_offsets(backend: Any) -> Any:
    """A copy whose offsets begin where a token begins.

    The byte-level post-processor moves offsets past leading spaces, which would hide that a token
    straddles a header; it changes no id.
    """
    specification = json.loads(backend.to_str())
    pending = [specification.get("post_processor")]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            pending += part.get("processors", [])
            if part.get("type") == "ByteLevel":
                part["trim_offsets"] = False
    specification["truncation"] = specification["padding"] = None
    return type(backend).from_str(json.dumps(specification))


def _chunks(items: Iterable[_Row], size: int) -> Iterator[list[_Row]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _common_prefix(first: str, second: str) -> str:
    same, limit = 0, min(len(first), len(second))
    while same < limit:  # by halves: texts are long, and slices are compared at memory speed
        middle = (same + limit + 1) // 2
        if first[same:middle] == second[same:middle]:
            same = middle
        else:
            limit = middle - 1
    return first[:same]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

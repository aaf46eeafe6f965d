"""Proof of GGUF files: llama.cpp computes the ids, prompts and answers of the training's model."""

from __future__ import annotations

import os
import unicodedata
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dpo_cli.compute.device import Device
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.pairs import PreferencePair
from dpo_cli.data.rendered import Rendered, common_tokens
from dpo_cli.errors import DpoError
from dpo_cli.export.gguf.llama_cpp import GreedyAnswer, Questions, Replies, ask_llama_cpp
from dpo_cli.export.gguf.quantizations import Quantization
from dpo_cli.models.convert import StateDict
from dpo_cli.models.generation import generate
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.loading import build_model
from dpo_cli.models.support import use_eager_attention

TIE_NATS = 1e-3
"""Two tokens whose log-probs differ by less may change places by rounding: the two programs add the
same float32 products in different orders."""
_CONVERSATIONS = 16
_PROMPTS = 4
_ANSWER_TOKENS = 32
_PROMPT_TOKENS = 512
_PROBED = 64
_SAMPLE = (
    "The year 2024, 3.14159 and 1,000,000; don't, I'LL we've  two blanks\n\n\ttab \r\n"
    "中文，日本語。한국어 Ünïcödé naïve 😀👍🏽 x=y+1; if (a != b) { return None; }   "
)
"""Text with the cases in which pre-tokenizers differ: digits, contractions, blanks, scripts."""


@dataclass(frozen=True)
class AnswerComparison:
    """Greedy answers of llama.cpp compared with those of transformers, token by token.

    Attributes:
        tokens: tokens of transformers' answers that were compared.
        equal: those that llama.cpp generated, too.
        ties: answers whose comparison ended early at two tokens that differ by less than
            `TIE_NATS`.
        max_logp_difference: largest difference of the log-prob of an equal token, nats.
    """

    tokens: int
    equal: int
    ties: int
    max_logp_difference: float


@dataclass(frozen=True)
class Proof:
    """Result of loading all files of an export in llama.cpp.

    Attributes:
        texts: texts of which llama.cpp computes the same ids.
        prompts: conversations that llama.cpp rendered.
        different_prompts: those that it rendered differently.
        extra_stops: tokens at which llama.cpp stops, and the training's model does not.
        answers: comparison of the answers of each file.
    """

    texts: int
    prompts: int
    different_prompts: int
    extra_stops: Sequence[str]
    answers: Mapping[Quantization, AnswerComparison]


class Prover:
    """Conversations of the training, and transformers' greedy answers to them."""

    def __init__(
        self,
        architecture: HuggingFace,
        tokenizer: ChatTokenizer,
        pairs: Sequence[PreferencePair],
        stop_ids: Collection[int],
    ) -> None:
        self._architecture, self._tokenizer, self._stop_ids = architecture, tokenizer, stop_ids
        conversations = [list(pair.chosen) for pair in pairs if not pair.tools][:_CONVERSATIONS]
        self._texts = [_SAMPLE]
        for messages in conversations:
            # llama.cpp does not normalize; the vocabulary's notes say so.
            [rendered] = tokenizer.render(messages)
            if unicodedata.is_normalized("NFC", rendered.text):
                self._texts.append(rendered.text)
        self._conversations = [
            messages[:-1] for messages in conversations if messages[-1]["role"] == "assistant"
        ]
        positions = architecture.max_positions or _PROMPT_TOKENS + _ANSWER_TOKENS
        room = max(1, min(_PROMPT_TOKENS, positions - _ANSWER_TOKENS))
        prompts = [tokenizer.prompt(messages) for messages in self._conversations[:_PROMPTS]]
        if not prompts:  # every conversation has tools, or ends with a question
            [sample] = tokenizer.encode([Rendered(_SAMPLE)])
            prompts = [torch.tensor(list(sample.ids))]
        self._prompts = [prompt[-room:] for prompt in prompts]

    def prove(self, files: Mapping[Quantization, tuple[Path, StateDict]]) -> Proof:
        """Compare each file with a model of transformers that has the file's weights.

        Args:
            files: path, and weights in the Hugging Face layout, of each quantization.

        Raises:
            DpoError: llama.cpp cannot load a file, encodes a text differently, does not stop where
                the training's model does, or computes other answers with the float32 weights.
        """
        control = list(self._tokenizer.control_tokens.values())
        probed = [*self._stop_ids, *(id for id in control if id not in self._stop_ids)]
        longest = max(map(len, self._prompts))
        questions = Questions(
            files=[str(path) for path, _ in files.values()],
            texts=self._texts,
            conversations=self._conversations,
            prompts=[prompt.tolist() for prompt in self._prompts],
            length=_ANSWER_TOKENS,
            probed=probed[: len(self._stop_ids) + _PROBED],
            context=longest + _ANSWER_TOKENS + 1,
            threads=min(torch.get_num_threads(), os.cpu_count() or 1),
        )
        answers = {}
        for (kind, (path, weights)), replies in zip(
            files.items(), ask_llama_cpp(questions), strict=True
        ):
            self._require_same_ids(path, replies)
            self._require_stops(path, replies)
            answers[kind] = self._compare_answers(weights, replies)
            if kind == "f32" and answers[kind].equal < answers[kind].tokens:
                raise DpoError(
                    f"{path.name}: llama.cpp's greedy answers differ from transformers':"
                    f" {answers[kind].equal} of {answers[kind].tokens} tokens are equal",
                    "Nothing was written. Export with --format hf, and report this.",
                )
        expected = [self._tokenizer.prompt_text(each) for each in self._conversations]
        rendered = [pair for pair in zip(replies.prompts, expected, strict=True) if pair[0]]
        return Proof(
            texts=len(self._texts),
            prompts=len(rendered),
            different_prompts=sum(found != wanted for found, wanted in rendered),
            extra_stops=[
                self._tokenizer.decode([id]) for id in replies.stop_ids if id not in self._stop_ids
            ],
            answers=answers,
        )

    def _require_same_ids(self, path: Path, replies: Replies) -> None:
        encoded = self._tokenizer.encode([Rendered(text) for text in self._texts])
        for text, wanted, found in zip(self._texts, encoded, replies.ids, strict=True):
            if list(wanted.ids) == list(found):
                continue
            equal = common_tokens(wanted.ids, array(wanted.ids.typecode, found))
            after = self._tokenizer.decode(list(wanted.ids)[equal : equal + 4])
            raise DpoError(
                f"{path.name}: llama.cpp encodes a text differently from token {equal} ({after!r})",
                "Nothing was written. Export with --format hf, and report this.",
                [f"text: {text[:200]!r}"],
            )

    def _require_stops(self, path: Path, replies: Replies) -> None:
        for id in self._stop_ids:
            if id not in replies.stop_ids:
                raise DpoError(
                    f"{path.name}: llama.cpp does not stop at {self._tokenizer.decode([id])!r}, as"
                    " the training's model does",
                    "Nothing was written. Export with --format hf, and report this.",
                )

    def _compare_answers(self, weights: StateDict, replies: Replies) -> AnswerComparison:
        model = build_model(self._architecture, weights).eval()
        use_eager_attention(model)  # transformers' own code, without this project's attention
        device = Device(torch.device("cpu"), torch.float32)
        tokens = equal = ties = 0
        largest = 0.0
        for prompt, answered in zip(self._prompts, replies.answers, strict=True):
            logps: list[Tensor] = []

            def most_likely(logits: Tensor, logps: list[Tensor] = logps) -> int:
                logps.append(logits.float().log_softmax(dim=-1))
                return int(logits.argmax())

            expected = list(
                generate(
                    model,
                    prompt,
                    device=device,
                    stop_ids=self._stop_ids,
                    max_new_tokens=_ANSWER_TOKENS,
                    sample=most_likely,
                )
            )
            found = _compare(expected, logps, answered)
            tokens, equal, ties = tokens + found.tokens, equal + found.equal, ties + found.ties
            largest = max(largest, found.max_logp_difference)
        return AnswerComparison(tokens, equal, ties, largest)


def _compare(
    expected: Sequence[int], logps: Sequence[Tensor], answered: GreedyAnswer
) -> AnswerComparison:
    """Compare two greedy answers to one prompt.

    Args:
        expected: ids of transformers' answer.
        logps: log-probs of all tokens, (V,), at each position of it.
        answered: llama.cpp's answer.
    """
    largest = 0.0
    for position, (id, row) in enumerate(zip(expected, logps, strict=True)):
        if position >= len(answered.ids):
            return AnswerComparison(len(expected), position, 0, largest)
        other = answered.ids[position]
        if other != id:
            if float(row[id] - row[other]) < TIE_NATS:
                return AnswerComparison(position, position, 1, largest)
            return AnswerComparison(len(expected), position, 0, largest)
        if position < len(answered.logps):
            largest = max(largest, abs(float(row[id]) - answered.logps[position]))
    return AnswerComparison(len(expected), len(expected), 0, largest)

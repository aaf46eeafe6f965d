"""Tests of truncation of long prompts, with many templates and tokenizers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from dpo_cli.data.chat import ChatTokenizer, TokenizedPair
from dpo_cli.data.encoding import encode_pairs, encode_rows
from dpo_cli.data.pairs import PreferencePair, SkippedRow, read_pairs
from dpo_cli.data.tokens import EncodedRows
from dpo_cli.profile.pairs import Data
from tests.support.chat_families import TEMPLATES, write_tokenizer

WORDS = ["sea", "salt", "sky", "blue", "egg", "water", "Yes", "No", "light", "air", "city"]


def words(count: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def turns(*texts: str, system: str = "") -> list[dict[str, Any]]:
    roles = ("user", "assistant") * len(texts)
    first = [{"role": "system", "content": system}] if system else []
    said = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return first + said


def pair_of(prompt: list[dict[str, Any]], chosen: str = "Yes.", rejected: str = "No.") -> Any:
    sides = ([*prompt, {"role": "assistant", "content": text}] for text in (chosen, rejected))
    return PreferencePair(1, *sides, prompt_turns=len(prompt))


def cut(
    tokenizer: ChatTokenizer, pairs: Sequence[PreferencePair | SkippedRow], limit: int, **how: Any
) -> tuple[Sequence[TokenizedPair], Sequence[SkippedRow]]:
    return encode_pairs(pairs, tokenizer, max_seq_len=limit, empty_think_ratio=1.0, seed=1, **how)


@pytest.mark.parametrize("kind", ["byte_bpe", "sentencepiece", "unigram"])
@pytest.mark.parametrize("template", sorted({*TEMPLATES} - {"gemma", "mistral", "mistral_v3"}))
def test_earlier_turns_go_first_and_the_rest_is_rendered_as_if_they_had_never_been(
    tmp_path: Path, template: str, kind: str
) -> None:
    tokenizer = ChatTokenizer(write_tokenizer(tmp_path, template, kind))
    system, last = "You are a helpful assistant.", "Why is the sky blue?"
    earlier = [words(30, seed) for seed in range(4)]
    whole = pair_of(turns(*earlier, last, system=system))
    ((short,), _) = cut(tokenizer, [pair_of(turns(last, system=system))], 1000)
    ((later,), _) = cut(tokenizer, [pair_of(turns(*earlier[2:], last, system=system))], 1000)
    length = max(len(side.ids) for side in (short.chosen, short.rejected))
    kept, skipped = cut(tokenizer, [whole], length + 9)
    assert not skipped
    for ours, expected in zip(
        (kept[0].chosen, kept[0].rejected), (short.chosen, short.rejected), strict=True
    ):
        assert ours.ids.tolist() == expected.ids.tolist()
        assert ours.response.tolist() == expected.response.tolist()
    # As many turns as fit.
    length = max(len(side.ids) for side in (later.chosen, later.rejected))
    ((kept_later,), _) = cut(tokenizer, [whole], length + 1)
    if template == "llama2":
        # The system turn becomes part of the first user turn, so blanks before the text differ.
        texts = [tokenizer.decode(pair.chosen.ids).split() for pair in (kept_later, later)]
        assert texts[0] == texts[1]
    else:
        assert kept_later.chosen.ids.tolist() == later.chosen.ids.tolist()


@pytest.mark.parametrize("template", ["llama2", "chatml", "zephyr", "glm", "qwen3"])
def test_a_question_loses_its_beginning_and_keeps_the_template(
    tmp_path: Path, template: str
) -> None:
    tokenizer = ChatTokenizer(write_tokenizer(tmp_path, template, "byte_bpe"))
    question = words(200, 5)
    prompt = turns(question, system="You are helpful.")
    (kept, _) = cut(tokenizer, [pair_of(prompt)], 64)
    text = tokenizer.decode(kept[0].chosen.ids)
    ((full,), _) = cut(tokenizer, [pair_of(prompt)], 10_000, truncation="end")
    before, behind = tokenizer.decode(full.chosen.ids).split(question)
    assert text.startswith(before)
    assert text.endswith(behind)
    rest = text.removeprefix(before).removesuffix(behind)
    assert question.endswith(rest)
    assert 20 < len(rest) < len(question)
    assert max(len(kept[0].chosen.ids), len(kept[0].rejected.ids)) <= 64
    assert kept[0].chosen.response.sum() == full.chosen.response.sum()


def test_a_long_answer_leaves_half_to_the_prompt(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(write_tokenizer(tmp_path, "chatml", "byte_bpe"))
    row = pair_of(turns(words(300, 1)), words(300, 2), words(300, 3))
    (kept, _) = cut(tokenizer, [row], 100)
    assert int((~kept[0].chosen.response).sum()) == 50
    (kept, _) = cut(tokenizer, [row], 100, max_prompt_len=30)
    assert int((~kept[0].chosen.response).sum()) == 30
    # A limit for prompts also applies where both sides fit.
    short = pair_of(turns(words(40, 1)))
    (kept, _) = cut(tokenizer, [short], 1000, max_prompt_len=30)
    assert int((~kept[0].rejected.response).sum()) == 30


def test_whole_conversations_are_cut_at_their_end_by_default(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(write_tokenizer(tmp_path, "chatml", "byte_bpe"))
    explicit = pair_of(turns(words(100, 1)))
    whole = PreferencePair(1, explicit.chosen, explicit.rejected)
    kept, skipped = cut(tokenizer, [whole], 64)
    assert not kept
    assert [row.problem for row in skipped] == ["truncated"]
    assert len(cut(tokenizer, [whole], 64, truncation="prompt_start")[0]) == 1
    assert len(cut(tokenizer, [explicit], 64)[0]) == 1
    assert not cut(tokenizer, [explicit], 64, truncation="end")[0]


def test_pairs_that_are_too_long_are_dropped(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(write_tokenizer(tmp_path, "chatml", "byte_bpe"))
    rows = [
        pair_of(turns("Why?")),
        pair_of(turns("Why?"), words(60, 2)),
        pair_of(turns(words(60, 1))),
    ]
    kept, skipped = cut(tokenizer, rows, 60, truncation="drop")
    assert (len(kept), [row.problem for row in skipped]) == (1, ["truncated"] * 2)
    kept, skipped = cut(tokenizer, rows, 1000, truncation="drop", max_prompt_len=30)
    assert (len(kept), len(skipped)) == (2, 1)
    assert "in the prompt: too long" in skipped[0].reason


def test_columns_of_shortened_rows_say_what_their_pairs_say(tmp_path: Path) -> None:
    """Answers in the removed part are not scored; all counts are those of the pairs."""
    tokenizer = ChatTokenizer(write_tokenizer(tmp_path, "chatml", "byte_bpe"))
    rows = [
        PreferencePair(line, *(
            turns(*(words(length, line) for length in lengths), last)
            for last in ("Yes.", "No way.")
        ))
        for line, lengths in enumerate([(30,), (9, 40, 9), (50, 30, 40, 20, 60), (3, 3, 3)])
    ]  # fmt: skip
    encoded = EncodedRows.joined(
        encode_rows(rows, tokenizer, empty_think_ratio=1.0, seed=1, truncation="prompt_start")
    )
    for limit in (40, 70, 100):
        kept = encoded.cut(limit, "prompt_start").kept
        assert len(kept) == 4
        sides = [[pair.chosen, pair.rejected] for pair in kept]
        assert kept.lengths.tolist() == [[len(side.ids) for side in pair] for pair in sides]
        assert kept.response_tokens.tolist() == [
            [s.response_tokens for s in pair] for pair in sides
        ]
        assert int(kept.lengths.max()) <= limit
        expected = [
            len(a.ids) + len(b.ids) - 2
            - min(int((a.ids[:n] == b.ids[:n]).long().cumprod(0).sum()), n - 1)
            for a, b in sides
            for n in [min(len(a.ids), len(b.ids))]
        ]  # fmt: skip
        assert kept.computed_tokens.tolist() == expected
        assert kept.shortened.any()
    assert encoded.cut(40, "end").kept.fingerprint() != encoded.cut(40).kept.fingerprint()


def test_real_pairs_are_kept(shared: Path) -> None:
    tokenizer = ChatTokenizer(shared / "tokenizer/minimind2")
    rows = list(read_pairs(shared / "data/dpo_en_zh_400.jsonl"))
    encoded = EncodedRows.joined(
        encode_rows(rows, tokenizer, empty_think_ratio=0.2, seed=1, truncation="prompt_start")
    )
    assert len(encoded.cut(448, "end").kept) == 292
    kept = encoded.cut(448, "prompt_start").kept
    assert len(kept) >= 392
    assert int(kept.lengths.max()) == 448
    for pair in kept:
        assert tokenizer.decode(pair.chosen.ids).startswith("<|im_start|>system\n")
        assert torch.equal(pair.chosen.ids[:1], pair.rejected.ids[:1])


def test_a_limit_for_prompts_needs_a_way_to_cut_them() -> None:
    path = {"data_path": "pairs.jsonl"}
    assert (
        Data.model_validate({**path, "max_prompt_len": 30}).effective_truncation == "prompt_start"
    )
    assert (
        Data.model_validate(
            {**path, "truncation": "drop", "max_prompt_len": 30}
        ).effective_truncation
        == "drop"
    )
    for wrong in ({"truncation": "end", "max_prompt_len": 30}, {"max_prompt_len": 1024}):
        with pytest.raises(ValidationError, match=r"data\.(truncation|max_seq_len)"):
            Data.model_validate({**path, **wrong})

"""Tests of ids and masks of many chat templates and tokenizers against TRL's recorded ones."""

from __future__ import annotations

import json
import zlib
from array import array
from pathlib import Path

import pytest

from dpo_cli.data.chat import ChatTokenizer, TokenizedPair
from dpo_cli.data.encoding import encode_pairs
from dpo_cli.data.formats import FORMATS
from dpo_cli.data.pairs import PreferencePair, read_pairs, to_pair
from tests.support.chat_families import ROWS, TEMPLATES, TOKENIZERS, write_tokenizer

# TRL trains on these rows, or refuses them with the template. We skip them, because the template
# leaves out the messages that matter.
CALLS = {"tool call", "two tool calls", "tool turns"}
DEFINITIONS = {"tool definitions", "tool definitions and system"}
LEFT_OUT = {
    **dict.fromkeys(TEMPLATES, CALLS | DEFINITIONS),
    **dict.fromkeys(("qwen25", "qwen3", "qwen3_not_thinking"), frozenset()),
    "glm": DEFINITIONS,
    "mistral_v3": {"system", "system with blanks", "tool definitions and system"},
}


RECORDED = json.loads(Path(__file__).with_name("trl_masks.json").read_text())


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict[str, list[int] | None]]:
    families: dict[str, dict[str, list[int] | None]] = RECORDED["families"]
    assert set(families) == {f"{name} {kind}" for name in TEMPLATES for kind in TOKENIZERS}
    return families


def numbers(pair: TokenizedPair) -> list[int]:
    """Return the numbers of benchmarks/trl_masks.py, which scores all tokens after the prompt."""
    prompts = set()
    found = []
    for side in (pair.chosen, pair.rejected):
        first = int(side.response.nonzero()[0])
        assert side.response[first:].all()
        prompts.add(first)
        found += [len(side.ids), zlib.crc32(array("i", side.ids.tolist()).tobytes())]
    (prompt,) = prompts
    return [prompt, *found]


@pytest.mark.parametrize("model", ["llama2", "mistral", "qwen3", "r1"])
def test_real_pairs_are_those_of_trl(shared: Path, model: str) -> None:
    """TRL scores the tokens after the prompt. There are 77 real pairs, some with several turns."""
    tokenizer = ChatTokenizer(shared / "cases/models" / model)
    pairs = list(read_pairs(shared / "data/dpo_en_zh_400.jsonl"))
    chosen = [
        pair
        for pair in pairs
        if isinstance(pair, PreferencePair) and pair.chosen[0]["role"] != "system"
    ]
    kept, skipped = encode_pairs(
        chosen[::4],
        tokenizer,
        max_seq_len=100_000,
        empty_think_ratio=1.0,
        seed=1,
        scored_turns="last",
    )
    assert not skipped
    found = [numbers(pair) for pair in kept]
    assert zlib.crc32(json.dumps(found).encode()) == RECORDED["real"][model]


@pytest.mark.parametrize("template", TEMPLATES)
def test_ids_and_masks_are_those_of_trl(
    recorded: dict[str, dict[str, list[int] | None]], template: str, tmp_path: Path
) -> None:
    for kind in TOKENIZERS:
        tokenizer = ChatTokenizer(write_tokenizer(tmp_path, template, kind))
        expected = recorded[f"{template} {kind}"]
        pairs = [
            to_pair(line, row, FORMATS["conversational"], {})
            for line, row in enumerate(ROWS.values())
        ]
        kept, skipped = encode_pairs(
            pairs, tokenizer, max_seq_len=10_000, empty_think_ratio=1.0, seed=1
        )
        names = list(ROWS)
        for pair in kept:
            name = names[pair.line]
            assert numbers(pair) == expected[name], (kind, name)
        left_out = {names[row.line] for row in skipped if row.problem == "left-out"}
        assert left_out == LEFT_OUT[template], kind
        for row in skipped:
            name = names[row.line]
            of_trl = expected[name]
            if row.problem == "malformed":
                assert of_trl is None, (kind, name, row.reason)
            elif row.problem == "identical":
                assert of_trl is not None, (kind, name)
                assert of_trl[1:3] == of_trl[3:5], (kind, name)

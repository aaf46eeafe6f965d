"""Tests of the findings about a chat template, from probes and from the pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.checks.reporter import Reporter
from dpo_cli.checks.template import (
    check_ending,
    check_headers,
    check_scored_words,
    describe_scored_turns,
)
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.encoding import Flag, encode_rows
from dpo_cli.data.pairs import PreferencePair, read_pairs
from dpo_cli.data.tokens import EncodedRows, Rows
from dpo_cli.models.loading import load_model_weights
from tests.support.chat_families import TEMPLATES, write_tokenizer

HEADER_BEHIND = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
NO_HEADER = HEADER_BEHIND.removesuffix("<|im_start|>assistant\n")


def tokenizer_with(template: str, folder: Path) -> ChatTokenizer:
    path = write_tokenizer(folder, "chatml", "byte_bpe")
    (path / "chat_template.jinja").write_text(template)
    return ChatTokenizer(path)


def rows_of(tokenizer: ChatTokenizer, *answers: Any, path: Path | None = None) -> Rows:
    """Return pairs with one prompt and these answers, or the pairs of a file, encoded."""
    ask = {"role": "user", "content": "Why?"}
    said = [a if isinstance(a, dict) else {"role": "assistant", "content": a} for a in answers]
    pairs: list[Any] = [
        PreferencePair(line, [ask, answer], [ask, {"role": "assistant", "content": "No."}], 1)
        for line, answer in enumerate(said, start=1)
    ]
    if path is not None:
        pairs = list(read_pairs(path))
    encoded = encode_rows(pairs, tokenizer, empty_think_ratio=1.0, seed=1)
    return EncodedRows.joined(encoded).cut(10_000)


def headers(tokenizer: ChatTokenizer) -> list[tuple[str, str]]:
    reporter = Reporter()
    check_headers(reporter, tokenizer)
    return [(finding.code, finding.message) for finding in reporter.findings]


def test_templates_of_families_write_headers_where_they_should(
    shared: Path, tmp_path: Path
) -> None:
    for name in TEMPLATES:
        found = headers(ChatTokenizer(write_tokenizer(tmp_path, name, "byte_bpe")))
        expected = ["template-prompt"] if name == "deepseek" else []
        assert [code for code, _ in found] == expected, name
    for name in ("minimind2", "minimind3"):
        assert not headers(ChatTokenizer(shared / "tokenizer" / name))


def test_a_header_behind_every_answer_is_named(shared: Path, tmp_path: Path) -> None:
    for tokenizer, header in (
        (ChatTokenizer(shared / "cases/models/llama3first"), "<|start_header_id|>assistant"),
        (tokenizer_with(HEADER_BEHIND, tmp_path / "a"), "<|im_start|>assistant"),
        (tokenizer_with(TEMPLATES["vicuna"].replace("add_generation_prompt", "true"),
                        tmp_path / "b"), "ASSISTANT:"),
    ):  # fmt: skip
        ((code, message),) = headers(tokenizer)
        assert code == "template-header"
        assert "after every answer" in message
        assert header in message
        assert "with and without add_generation_prompt" in message
    path = shared / "cases/32-header-always-written/multi.jsonl"
    rows = rows_of(ChatTokenizer(shared / "cases/models/llama3first"), path=path)
    assert (len(rows.kept), len(rows.skipped_rows)) == (10, 0)


def test_a_header_that_no_prompt_ends_with_is_named(tmp_path: Path) -> None:
    ((code, message),) = headers(tokenizer_with(NO_HEADER, tmp_path))
    assert code == "template-header"
    assert "ignores add_generation_prompt" in message
    assert "assistant" in message


def test_a_prompt_that_ends_with_what_no_answer_begins_with_is_named(shared: Path) -> None:
    ((code, message),) = headers(ChatTokenizer(shared / "cases/models/r1"))
    assert code == "template-prompt"
    assert r"'<think>\n'" in message


THOUGHT = "<think>\nI go.\n</think>\n\nYes."


@pytest.mark.parametrize(
    ("template", "answer", "why"),
    [
        (TEMPLATES["deepseek"], THOUGHT, ": it leaves out thoughts (<think>)"),
        (TEMPLATES["chatml"], {"role": "assistant", "content": "Yes.",
                               "reasoning_content": "I go."}, "thoughts (reasoning_content)"),
        (TEMPLATES["chatml"].replace("m.content", "m.content.replace('s', 'z')"), "Yes.", "1 of 3"),
        (TEMPLATES["chatml"].replace("m.content", "m.content[:9]"), "Yes, and so on.", "1 of 3"),
        (TEMPLATES["chatml"].replace("m.content", "m.content | e"), "1 < 2", "1 of 3"),
    ],
)  # fmt: skip
def test_words_that_a_template_loses_are_named(
    tmp_path: Path, template: str, answer: Any, why: str
) -> None:
    tokenizer = tokenizer_with(template, tmp_path)
    reporter = Reporter()
    check_scored_words(reporter, tokenizer, rows_of(tokenizer, "Fine.", answer, "Fine!"))
    (finding,) = [each for each in reporter.findings if each.code == "template-words"]
    assert "(line 2)" in finding.message
    assert why in finding.message


def test_words_that_only_lose_blanks_are_not(tmp_path: Path) -> None:
    for name in ("qwen3", "glm", "llama3", "mistral_v3"):
        tokenizer = ChatTokenizer(write_tokenizer(tmp_path, name, "byte_bpe"))
        rows = rows_of(tokenizer, THOUGHT, " Yes \n", "<think>\n\n</think>\n\nYes", "\n\na  b\n")
        reporter = Reporter()
        check_scored_words(reporter, tokenizer, rows)
        assert len(rows.kept) == 4
        assert "template-words" not in {each.code for each in reporter.findings}, name


def test_thoughts_thrown_away(shared: Path) -> None:
    tokenizer = ChatTokenizer(shared / "cases/models/r1")
    rows = rows_of(tokenizer, path=shared / "cases/31-thoughts-thrown-away/different.jsonl")
    reporter = Reporter()
    check_scored_words(reporter, tokenizer, rows)
    (finding,) = reporter.findings
    assert "10 of 10 pairs" in finding.message
    assert "it leaves out thoughts (<think>)" in finding.message


def test_tokens_that_change_where_prompt_and_answer_meet_are_named(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(write_tokenizer(tmp_path, "chatml", "byte_bpe"))
    reporter = Reporter()
    check_scored_words(reporter, tokenizer, rows_of(tokenizer, "Yes", "\nYes"))
    (finding,) = reporter.findings
    assert finding.code == "prompt-differs"
    assert "1 of 2 pairs (line 2)" in finding.message
    assert "from the beginning of these answers" in finding.remedy


@pytest.mark.parametrize("kind", ["sentencepiece", "byte_bpe"])
def test_a_prompt_that_ends_with_a_blank_is_named(tmp_path: Path, kind: str) -> None:
    path = write_tokenizer(tmp_path, "llama2", kind)
    template = TEMPLATES["llama2"].replace("' [/INST]' }}", "' [/INST] ' }}")
    (path / "chat_template.jinja").write_text(template.replace("' ' + content", "content"))
    tokenizer = ChatTokenizer(path)
    reporter = Reporter()
    check_scored_words(reporter, tokenizer, rows_of(tokenizer, "Yes", "No"))
    (finding,) = reporter.findings
    assert finding.code == "prompt-differs"
    assert "Remove the blank from the end of the prompt in the chat template" in finding.remedy


@pytest.mark.parametrize("name", ["bos_token", "pad_token"])
def test_a_token_that_a_template_lacks_is_named(tmp_path: Path, name: str) -> None:
    path = write_tokenizer(tmp_path, "chatml", "byte_bpe")
    template = path / "chat_template.jinja"
    template.write_text("{{ " + name + " + 'x' }}" + template.read_text())
    config = json.loads((path / "tokenizer_config.json").read_text())
    config.pop(name, None)
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"chat template fails: the tokenizer has no {name}"):
        ChatTokenizer(path).render([{"role": "user", "content": "Is it?"}])


def test_an_answer_without_an_end_is_named(shared: Path, tmp_path: Path) -> None:
    weights = load_model_weights(shared / "cases/models/turn-end", {})
    for tokenizer, ends in (
        (ChatTokenizer(shared / "cases/models/turn-end"), True),
        (ChatTokenizer(write_tokenizer(tmp_path, "llama2", "byte_bpe")), True),
        (ChatTokenizer(write_tokenizer(tmp_path, "nemotron", "byte_bpe")), False),
        (ChatTokenizer(write_tokenizer(tmp_path, "glm", "byte_bpe")), False),
    ):
        reporter = Reporter()
        check_ending(reporter, tokenizer, weights)
        assert [each.code for each in reporter.findings] == ([] if ends else ["template-end"])


def test_earlier_turns_that_are_rendered_differently(shared: Path) -> None:
    """With Qwen3's template only the last answer can be scored, and every pair is read."""
    tokenizer = ChatTokenizer(shared / "cases/models/qwen3")
    path = shared / "cases/33-several-turns/pairs.jsonl"
    explicit = rows_of(tokenizer, path=path)
    assert len(explicit.kept) == 10
    assert describe_scored_turns(explicit).startswith('; data.scored_turns = "last"')
    for pair in explicit.kept:
        text = tokenizer.decode(pair.chosen.ids[~pair.chosen.response])
        assert "ask me anything you like.<|im_end|>" in text
        assert "<think>" not in text
    whole = rows_of(tokenizer, path=shared / "data/dpo_en_zh_400.jsonl")
    assert (len(whole.kept), len(whole.skipped_rows)) == (400, 0)
    assert int(((whole.kept.flags & Flag.LAST_ONLY) > 0).sum()) == 69
    assert int(whole.kept.answers.max()) == 1

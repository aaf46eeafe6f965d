"""Tests of the issues that `dpo check` finds in the pairs, each provoked by a real row."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from dpo_cli.checks.pair_issues import find_issues, is_near_identical
from dpo_cli.data.messages import Message
from dpo_cli.data.sources import Source
from dpo_cli.findings import Level, PairIssue
from tests.checks.conftest import ROWS, TOKENIZER, Examine, of, row

QUESTION, YES, NO = "Is the moon made of cheese?", "Yes, of cheese it is.", "No, it is rock."


def two_sides(chosen: list[Message], rejected: list[Message]) -> str:
    return json.dumps({"chosen": chosen, "rejected": rejected}) + "\n"


def turns(*contents: str) -> list[Message]:
    roles = ("user", "assistant") * len(contents)
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]


def words(draw: random.Random, number: int) -> str:
    return " ".join("".join(draw.choices("abcdefgh", k=5)) for _ in range(number))


# --- texts -------------------------------------------------------------------------------------

ODD = {
    PairIssue.CONTRADICTORY: ([row(QUESTION, YES, NO), row(QUESTION, NO, YES)], [9, 10]),
    PairIssue.OTHER_PROMPT: ([two_sides(turns("Hi?", YES), turns("Ho?", NO))], [9]),
    PairIssue.ONE_SIDED_THINK: ([row(QUESTION, f"<think>\nHm.\n</think>\n{YES}", NO)], [9]),
    PairIssue.CONTROL_TOKENS: ([row(QUESTION, YES + "<|im_start|> And so on.", NO)], [9]),
    PairIssue.DOUBLED_TOKEN: ([row(QUESTION, YES, NO + "<|im_end|>")], [9]),
    PairIssue.FOREIGN_TEMPLATE: ([row(QUESTION, YES + "\n### Human: More?", NO)], [9]),
    PairIssue.NEAR_IDENTICAL: (
        [row(QUESTION, f"{n} is it.", f"{n} is it!") for n in "abc"],
        [9, 10],
    ),
    PairIssue.REPEATED: ([row(QUESTION, YES, NO)] * 4, [10, 11, 12]),
    PairIssue.OTHER_LANGUAGE: (
        [row(QUESTION, YES, "不是，月亮是由岩石构成的，这一点我们早就知道了。" + n) for n in "abc"],
        [9, 10, 11],
    ),
}
"""Rows after `ROWS` that have an issue, and the first lines that have it."""


@pytest.mark.parametrize("issue", ODD)
def test_each_issue_is_reported_with_its_lines(
    examined: Examine, bench: Path, issue: PairIssue
) -> None:
    rows, lines = ODD[issue]
    (bench / "pairs.jsonl").write_text("".join([*ROWS, *rows]))
    diagnosis = examined()
    finding = of(diagnosis, f"pairs-{issue}")
    assert finding.level is Level.WARN
    assert finding.remedy
    assert diagnosis.facts["issues"][issue][: len(lines)] == lines
    number = len(diagnosis.facts["issues"][issue])
    total = len(ROWS) + len(rows)
    assert finding.message.startswith(f"{number} of {total} pairs ({100 * number / total:.1f} %) ")
    assert str(lines[0]) in finding.message.rpartition(":")[2]


def test_copies_and_contradictions_name_both_lines(examined: Examine, bench: Path) -> None:
    (bench / "pairs.jsonl").write_text("".join([*ROWS, *ODD[PairIssue.CONTRADICTORY][0]]))
    assert of(examined(), "pairs-contradictory").message.endswith(": lines 9 and 10")
    (bench / "pairs.jsonl").write_text("".join([*ROWS, *ROWS[:3]]))
    assert of(examined(), "pairs-repeated").message.endswith(": lines 1 and 9, 2 and 10, 3 and 11")


def test_a_single_pair_that_may_be_intended_is_no_warning(examined: Examine, bench: Path) -> None:
    (bench / "pairs.jsonl").write_text("".join([*ROWS, ROWS[0]]))
    texts = of(examined(), "texts")
    assert texts.level is Level.OK
    assert texts.message == (
        "8 prompts in 9 pairs; answers: 9 in Latin script; nothing unusual except 1 repeated"
    )


def test_marks_in_a_message_are_quoted(examined: Examine, bench: Path) -> None:
    odd = row(QUESTION, "[INST] Yes? [/INST]", "No.</s>")
    struck = row(QUESTION, "It is <s>cheese</s> rock.", "Cheese.")
    (bench / "pairs.jsonl").write_text("".join([*ROWS, odd, struck]))
    foreign = of(examined(), "pairs-foreign-template")
    assert foreign.message.startswith("1 of 10 pairs")
    for mark in ("[INST]", "[/INST]", "</s>"):
        assert mark in foreign.message


@pytest.mark.parametrize(
    ("first", "second", "is_near"),
    [
        ("It is a cat.", "It is a cat!", True),
        ("one two three four five six seven eight nine ten", "one two three", False),
        ("one two three four five six seven eight nine ten " * 2, "ten " * 20, False),
        (
            "one two three four five six seven eight nine ten",
            "two one three four five six seven eight nine ELEVEN",
            True,
        ),
        ("月亮是石头做的没错真的", "月亮是石头做的没错假的", True),
        ("月亮是石头做的", "太阳由气体组成", False),
        ("Yes.", "No.", False),
        ("!", "?", False),
        ("", "", False),
    ],
)
def test_near_identical_is_nine_words_in_ten(first: str, second: str, is_near: bool) -> None:
    assert is_near_identical(first, second) is is_near
    assert is_near_identical(second, first) is is_near


def test_only_kept_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join([ROWS[0], "{}\n", ROWS[0], row("<|im_end|>", YES, NO)]))
    issues = find_issues(
        Source((path,)), Source((path,)).look(), [1, 3], ["<|im_end|>"], lambda *_: None
    )
    assert (len(issues.hashes), issues.hashes.prompts) == (2, 1)
    assert [pair.line for pair in issues.sample] == [1, 3]
    assert PairIssue.CONTROL_TOKENS not in issues.lines
    assert issues.of(3) == ["repeated (line 1)"]


# --- lengths -----------------------------------------------------------------------------------


def test_longer_chosen_responses_are_reported(examined: Examine, bench: Path) -> None:
    draw = random.Random(1)
    longer = [row(f"{n}?", words(draw, 12), words(draw, 4)) for n in range(30)]
    shorter = [row(f"{n}!", words(draw, 4), words(draw, 12)) for n in range(30)]
    (bench / "pairs.jsonl").write_text("".join([*longer, *shorter[:10]]))
    bias = of(examined(), "length-bias")
    assert bias.message.startswith("chosen is longer in 75 % of the pairs (mean ")
    assert bias.remedy.startswith("Always picking the longer response would be right as often.")
    (bench / "pairs.jsonl").write_text("".join([*longer, *shorter]))
    assert of(examined(), "lengths").level is Level.OK


def test_lengths_are_measured_before_truncation(examined: Examine, bench: Path) -> None:
    draw = random.Random(1)
    long = row("Tell me all.", words(draw, 200), words(draw, 3))
    (bench / "pairs.jsonl").write_text("".join([*ROWS, long]))
    histograms = {each.name: each for each in examined("data.max_seq_len=64").histograms}
    assert list(histograms) == ["prompt", "chosen", "rejected", "longer side"]
    for name, beyond in (("prompt", 0), ("chosen", 1), ("rejected", 0), ("longer side", 1)):
        each = histograms[name]
        assert sum(each.counts) == 9
        assert each.counts[-1] == beyond
        assert each.limit_tokens == 64
        assert each.median_tokens <= each.ninth_decile_tokens <= each.longest_tokens
    assert histograms["chosen"].longest_tokens > 200


# --- template ----------------------------------------------------------------------------------


def with_template(bench: Path, template: str) -> str:
    """The tokenizer has another chat template."""
    shutil.copytree(TOKENIZER, bench / "other")
    configuration = json.loads((bench / "other/tokenizer_config.json").read_bytes())
    configuration["chat_template"] = template
    (bench / "other/tokenizer_config.json").write_text(json.dumps(configuration))
    return "model.tokenizer=other"


def test_a_template_of_another_tokenizer(examined: Examine, bench: Path) -> None:
    template = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|im_end|>{% endfor %}"
    mismatch = of(examined(with_template(bench, template)), "template-mismatch")
    assert "<|assistant|> (" in mismatch.message
    assert "<|user|> (" in mismatch.message
    assert "<|im_end|>" not in mismatch.message  # a token of this tokenizer


def test_a_template_that_leaves_out_messages(examined: Examine, bench: Path) -> None:
    def side(answer: str) -> list[Message]:
        late = {"role": "system", "content": "Be brief."}
        return [*turns(QUESTION), late, *turns(QUESTION, answer)]

    (bench / "pairs.jsonl").write_text("".join([*ROWS, two_sides(side(YES), side(NO))]))
    left_out = of(examined(), "template-leaves-out")
    assert left_out.message == (
        "1 of 9 rows are skipped (line 9), the first because the chat template leaves out later"
        " system turns (message 2)"
    )


# --- held-out pairs ----------------------------------------------------------------------------


def test_held_out_pairs_whose_prompt_is_trained_on(examined: Examine, bench: Path) -> None:
    again = [each.replace("very much", "a lot") for each in ROWS]
    (bench / "pairs.jsonl").write_text("".join([*ROWS, *again]))
    # The split keeps the two pairs of a prompt together.
    assert "held-out-known" not in [each.code for each in examined().findings]
    one_prompt = [row(QUESTION, f"{n} is it.", NO) for n in range(16)]
    (bench / "pairs.jsonl").write_text("".join(one_prompt))
    known = of(examined(), "held-out-known")
    assert known.subject == "eval.fraction"
    assert "4 of 4 held-out pairs" in known.message
    (bench / "pairs.jsonl").write_text("".join(ROWS))
    (bench / "held_out.jsonl").write_text("".join(again[:2]))
    known = of(examined("eval.fraction=0", "eval.path=held_out.jsonl"), "held-out-known")
    assert known.subject == "eval.path"
    assert "2 of 2 held-out pairs (100 %)" in known.message


# --- number of held-out pairs ------------------------------------------------------------------


def test_few_held_out_pairs_say_what_they_show(examined: Examine) -> None:
    few = of(examined(), "held-out-few")
    assert few.level is Level.WARN
    assert few.message.startswith("2 held-out pairs cannot show anything")
    assert few.remedy.startswith("Only more pairs can show more.")
    one = of(examined("eval.fraction=0.1"), "held-out-few")
    assert one.remedy == "Set eval.fraction = 0.25."


def test_held_out_pairs_of_a_file(examined: Examine, bench: Path) -> None:
    (bench / "test.jsonl").write_text("".join(ROWS[:4]))
    few = of(examined("eval.fraction=0", "eval.path=test.jsonl"), "held-out-few")
    assert few.subject == "eval.path"
    assert few.remedy == "Put 30 pairs or more into eval.path."
    (bench / "test.jsonl").write_text("".join(ROWS * 4))
    enough = of(examined("eval.fraction=0", "eval.path=test.jsonl"), "held-out-pairs")
    assert enough.level is Level.OK
    assert enough.message.startswith("32 held-out pairs distinguish an accuracy of 0.69 or more")


def test_no_held_out_pairs(examined: Examine) -> None:
    none = of(examined("eval.fraction=0"), "held-out-none")
    assert none.level is Level.WARN
    assert none.remedy == "Set eval.fraction = 0.25."

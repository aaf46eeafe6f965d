"""Tests of rows as public datasets write them, and of the conversations they contain."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.checks.conversations import issues_of
from dpo_cli.data.formats import FORMATS
from dpo_cli.data.pairs import PreferencePair, SkippedRow, read_pairs
from dpo_cli.data.prompts import read_prompts
from dpo_cli.data.sources import Source
from dpo_cli.errors import DpoError
from dpo_cli.findings import PairIssue
from tests.support.written import CONTAINERS, Row, jsonl

SIDES = ("chosen", "rejected")
USER, YES, NO = (
    {"role": role, "content": text}
    for role, text in (("user", "Is it?"), ("assistant", "Yes."), ("assistant", "No."))
)
SYSTEM = {"role": "system", "content": "Be brief."}
HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def write(path: Path, *rows: Row) -> Path:
    path.write_bytes(CONTAINERS[path.name](rows) if path.name in CONTAINERS else jsonl(rows))
    return path


def one(path: Path, **options: Any) -> PreferencePair | SkippedRow:
    (found,) = read_pairs(Source((path,), **options))
    return found


ROWS: dict[str, tuple[str, Row, list[dict[str, str]]]] = {
    "LLaMA-Factory's alpaca": (
        "alpaca",
        {
            "instruction": "Answer:",
            "input": "Is it?",
            "chosen": "Yes.",
            "rejected": "No.",
            "system": "Be brief.",
            "history": [["Hi", "Hello"]],
        },
        [SYSTEM, *HI, {"role": "user", "content": "Answer:\nIs it?"}],
    ),
    "LLaMA-Factory's older alpaca": (
        "alpaca",
        {"instruction": "Is it?", "input": "", "output": ["Yes.", "No."]},
        [USER],
    ),
    "argilla's orca pairs": (
        "alpaca",
        {
            "system": "Be brief.",
            "input": "Is it?",
            "chosen": "Yes.",
            "rejected": "No.",
            "generations": ["No.", "Yes."],
            "rating": [3.0, 9.0],
            "status": "swapped",
        },
        [SYSTEM, USER],
    ),
    "LLaMA-Factory's ShareGPT": (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": "Is it?"}],
            "chosen": {"from": "gpt", "value": "Yes."},
            "rejected": {"from": "gpt", "value": "No."},
            "system": "Be brief.",
        },
        [SYSTEM, USER],
    ),
    "LLaMA-Factory's OpenAI messages": (
        "messages",
        {"messages": [SYSTEM, USER], "chosen": YES, "rejected": NO},
        [SYSTEM, USER],
    ),
    "messages and texts": (
        "messages",
        {"messages": [USER], "chosen": "Yes.", "rejected": "No."},
        [USER],
    ),
    "messages and whole sides": (
        "messages",
        {"messages": [USER], "chosen": [USER, YES], "rejected": [USER, NO]},
        [USER],
    ),
    "messages that repeat chosen": (
        "messages",
        {
            "messages": [SYSTEM, USER, YES],
            "chosen": [SYSTEM, USER, YES],
            "rejected": [SYSTEM, USER, NO],
        },
        [SYSTEM, USER],
    ),
    "OpenAI's preferences": (
        "openai",
        {
            "input": {"messages": [{**SYSTEM, "role": "developer"}, USER], "tools": []},
            "preferred_output": [YES],
            "non_preferred_output": [NO],
        },
        [SYSTEM, USER],
    ),
    "ms-swift's": (
        "swift",
        {"messages": [SYSTEM, *HI, USER, YES], "rejected_response": "No."},
        [SYSTEM, *HI, USER],
    ),
    "ms-swift's rejected messages": (
        "swift",
        {"messages": [*HI, USER, YES], "rejected_messages": [*HI, USER, NO]},
        [*HI, USER],
    ),
    "ms-swift's older": (
        "swift",
        {
            "system": "Be brief.",
            "query": "Is it?",
            "response": "Yes.",
            "rejected_response": "No.",
            "history": [["Hi", "Hello"]],
        },
        [SYSTEM, *HI, USER],
    ),
    "argilla's UltraFeedback": (
        "swift",
        {
            "source": "evol_instruct",
            "instruction": "Is it?",
            "chosen_response": "Yes.",
            "rejected_response": "No.",
            "chosen_avg_rating": 5.0,
        },
        [USER],
    ),
    "distilabel's": (
        "generations",
        {
            "system_prompt": "Be brief.",
            "instruction": "Is it?",
            "generations": ["Well.", None, "Yes.", "No.", "Yes, yes."],
            "ratings": [3, 5, 4.5, 1, None],
            "generation_models": ["a", "b", "c", "d", "e"],
        },
        [SYSTEM, USER],
    ),
    "HelpSteer2's": (
        "helpsteer",
        {"prompt": "Is it?", "response_1": "No.", "response_2": "Yes.", "preference_strength": 2},
        [USER],
    ),
    "HelpSteer3's": (
        "helpsteer",
        {
            "domain": "general",
            "context": [*HI, USER],
            "response1": "Yes.",
            "response2": "No.",
            "overall_preference": -1,
        },
        [*HI, USER],
    ),
    "a prompt text and messages": (
        "ultrafeedback",
        {"prompt": "Is it?", "chosen": [YES], "rejected": [NO], "system_prompt": "Be brief."},
        [SYSTEM, USER],
    ),
    "prompt messages and texts": (
        "conversational",
        {"prompt": [SYSTEM, USER], "chosen": "Yes.", "rejected": "No."},
        [SYSTEM, USER],
    ),
    "a prompt that both sides repeat": (
        "conversational",
        {"prompt": [*HI, USER], "chosen": [*HI, USER, YES], "rejected": [*HI, USER, NO]},
        [*HI, USER],
    ),
    "a prompt whose last turn both sides repeat": (
        "conversational",
        {"prompt": [SYSTEM, *HI, USER], "chosen": [USER, YES], "rejected": [USER, NO]},
        [SYSTEM, *HI, USER],
    ),
    "a prompt text that is the first of several turns": (
        "ultrafeedback",
        {"prompt": "Hi", "chosen": [*HI, USER, YES], "rejected": [*HI, USER, NO]},
        [*HI, USER],
    ),
    "sides that begin with a system turn before the prompt": (
        "ultrafeedback",
        {"prompt": "Is it? ", "chosen": [SYSTEM, USER, YES], "rejected": [SYSTEM, USER, NO]},
        [SYSTEM, USER],
    ),
    "a system column beside prompt messages": (
        "conversational",
        {"system": "Be brief.", "prompt": [USER], "chosen": [YES], "rejected": [NO]},
        [SYSTEM, USER],
    ),
    "texts with a history": (
        "plain",
        {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No.", "history": [["Hi", "Hello"]]},
        [*HI, USER],
    ),
    "a list of content parts in each message": (
        "conversational",
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": "Is it?"}]}],
            "chosen": [{"role": "model", "content": [{"type": "text", "text": "Yes."}]}],
            "rejected": [{"role": "model", "content": [{"type": "text", "text": "No."}]}],
        },
        [USER],
    ),
}
"""Rows, each with its format and its prompt; chosen is "Yes.", rejected "No."."""


@pytest.mark.parametrize("container", ["pairs.jsonl", "texts.jsonl", "pairs.csv", "pairs.parquet"])
@pytest.mark.parametrize("name", ROWS)
def test_rows_of_public_datasets(tmp_path: Path, name: str, container: str) -> None:
    if container == "pairs.parquet":
        pytest.importorskip("pyarrow")
    format, row, prompt = ROWS[name]
    path = write(tmp_path / container, row)
    assert Source((path,)).look().parts[0].format == format
    expected = PreferencePair(1, [*prompt, YES], [*prompt, NO], prompt_turns=len(prompt))
    assert one(path) == expected
    assert one(path, format=format) == expected


def test_a_system_column_begins_whole_conversations(tmp_path: Path) -> None:
    row = {"system": "Be brief.", "chosen": [USER, YES], "rejected": [USER, NO]}
    expected = PreferencePair(1, [SYSTEM, USER, YES], [SYSTEM, USER, NO])
    assert one(write(tmp_path / "pairs.jsonl", row)) == expected
    own = {side: [SYSTEM, *row[side]] for side in SIDES}
    pair = one(write(tmp_path / "pairs.jsonl", {**row, **own}))
    assert pair == expected
    assert isinstance(pair, PreferencePair)
    assert pair.unread == {}
    pair = one(write(tmp_path / "pairs.jsonl", {**row, **own, "system": "Be kind."}))
    assert pair == expected
    assert isinstance(pair, PreferencePair)
    assert pair.unread == {"system": "Be kind."}


TOOLS = [{"type": "function", "function": {"name": "weather"}}]


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(
    ("columns", "prompt"),
    [
        (("chosen", "rejected"), {}),
        (("chosen",), {}),
        (("prompt",), {"prompt": {"messages": [USER]}}),
        (("input",), {"input": {"messages": [USER]}}),
    ],
)
def test_tools_and_other_keys_beside_messages(
    tmp_path: Path, columns: tuple[str, ...], prompt: Row, as_text: bool
) -> None:
    whole = [] if prompt else [USER]
    names = SIDES if "input" not in prompt else ("preferred_output", "non_preferred_output")
    answers = zip(names, (YES, NO), strict=True)
    row = {**prompt, **{name: {"messages": [*whole, answer]} for name, answer in answers}}
    for name in columns:
        row[name] = {**row[name], "tools": TOOLS, "source": "s"}
    if as_text:
        row = {name: json.dumps(value) for name, value in row.items()}
    pair = one(write(tmp_path / "pairs.jsonl", row))
    assert isinstance(pair, PreferencePair)
    assert (pair.chosen, pair.rejected) == ([USER, YES], [USER, NO])
    assert pair.tools == tuple(TOOLS)
    assert pair.unread == {f"{name}.source": "s" for name in columns}


def test_sides_with_different_tools(tmp_path: Path) -> None:
    row = {"chosen": {"messages": [USER, YES], "tools": TOOLS},
           "rejected": {"messages": [USER, NO], "tools": [{"name": "other"}]}}  # fmt: skip
    found = one(write(tmp_path / "pairs.jsonl", row))
    assert isinstance(found, SkippedRow)
    assert found.reason == "'chosen' and 'rejected' have different tools"


def test_whole_sides_about_something_else_than_their_prompt(tmp_path: Path) -> None:
    row = {"prompt": "What?", "chosen": [USER, YES], "rejected": [USER, NO]}
    pair = one(write(tmp_path / "pairs.jsonl", row))
    assert pair == PreferencePair(1, [USER, YES], [USER, NO], prompt_turns=1)
    assert isinstance(pair, PreferencePair)
    assert pair.unread == {"prompt": "What?"}


@pytest.mark.parametrize(
    ("row", "problem", "reason"),
    [
        ({"generations": ["a", "b"], "ratings": [3, 3]}, "tie", "no generation is rated higher"),
        ({"generations": ["a", "b"], "ratings": [3, None]}, "tie", "no generation is rated higher"),
        ({"generations": ["a"], "ratings": [3, 4]}, "malformed", "has 1 entries, 'ratings' has 2"),
        (
            {"generations": ["a", "b"], "ratings": [3, "good"]},
            "malformed",
            "'ratings', entry 2 is a text, expected a number",
        ),
        (
            {"response1": "a", "response2": "b", "overall_preference": 0},
            "tie",
            "neither response is preferred",
        ),
        (
            {"response1": "a", "response2": "b", "overall_preference": "nan"},
            "malformed",
            "'overall_preference' is a text, expected a number",
        ),
        (
            {"chosen": "a", "rejected": "b", "history": [["Hi"]]},
            "malformed",
            "'history', entry 1: expected a question and its answer",
        ),
    ],
)
def test_rows_without_a_better_answer(tmp_path: Path, row: Row, problem: str, reason: str) -> None:
    found = one(write(tmp_path / "pairs.jsonl", {"prompt": "Is it?", **row}))
    assert isinstance(found, SkippedRow)
    assert found.problem == problem
    assert reason in found.reason


def test_columns_that_are_not_read(tmp_path: Path) -> None:
    """Keys of objects and replaced columns count as well; null, "" and [] do not."""
    plain = {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."}
    row = {**plain, "id": 0, "context": "It is.", "empty": "", "none": None, "list": []}
    pair = one(write(tmp_path / "pairs.jsonl", row))
    assert isinstance(pair, PreferencePair)
    assert pair.unread == {"id": 0, "context": "It is."}
    row = {**plain, "question": "Is that?"}
    pair = one(write(tmp_path / "pairs.jsonl", row), columns={"prompt": "question"})
    assert isinstance(pair, PreferencePair)
    assert pair.unread == {"prompt": "Is it?"}
    openai = {
        "input": {"messages": [USER], "parallel_tool_calls": True},
        "preferred_output": [YES],
        "non_preferred_output": [NO],
    }
    pair = one(write(tmp_path / "pairs.jsonl", openai))
    assert isinstance(pair, PreferencePair)
    assert pair.unread == {"input.parallel_tool_calls": True}


@pytest.mark.parametrize(
    ("format", "columns", "row", "words"),
    [
        (
            "auto",
            {"history": "turns"},
            {"chosen": [USER, YES], "rejected": [USER, NO], "turns": [["a", "b"]]},
            "the format minimind does not read 'turns', which data.columns.history names",
        ),
        (
            "auto",
            {"messages": "context"},
            {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No.", "context": [USER]},
            "the format plain does not read 'context', which data.columns.messages names",
        ),
        (
            "minimind",
            {"prompt": "q"},
            {"q": "Is it?", "chosen": [USER, YES], "rejected": [USER, NO]},
            "the format minimind does not read 'q', which data.columns.prompt names",
        ),
        (
            "auto",
            {"prompt": "id"},
            {"id": 7, "question": "Is it?", "chosen": "Yes.", "rejected": "No."},
            "line 1: 'id' is a number (7), expected a text or messages",
        ),
        (
            "auto",
            {"chosen": "score"},
            {"prompt": "Is it?", "score": 4, "rejected": "No."},
            "line 1: 'score' is a number (4), expected a text or messages",
        ),
        (
            "auto",
            {},
            {"prompt": "What is 2 + 2?", "chosen": 4, "rejected": 5},
            "line 1: 'chosen' is a number (4), expected a text or messages",
        ),
        (
            "auto",
            {},
            {"prompt": "Is it?", "chosen": None, "rejected": "No."},
            "line 1: 'chosen' is null, expected a text or messages",
        ),
        (
            "auto",
            {},
            {"prompt": ["Is it?"], "chosen": "Yes.", "rejected": "No."},
            "line 1: 'prompt' is a list of texts, expected one text or messages",
        ),
        (
            "auto",
            {},
            {"prompt": "Is it?", "generations": ["Yes.", "No."]},
            "line 1: no 'ratings'",
        ),
    ],
)
def test_columns_that_cannot_be_read_are_an_error(
    tmp_path: Path, format: str, columns: dict[str, str], row: Row, words: str
) -> None:
    path = write(tmp_path / "pairs.jsonl", row)
    with pytest.raises(DpoError) as caught:
        one(path, format=format, columns=columns)
    assert caught.value.message == f"{path}: {words}"
    assert "Map the columns" not in caught.value.remedy


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "Is it?", "output": ["a", "b", "c"]}, "'output' is a list of answers"),
        (
            {
                "context": [USER],
                "completions": [
                    {"rank": 1, "completion": [NO]},
                    {"rank": 0, "completion": [YES]},
                ],
            },
            "'completions' is a list of answers",
        ),
        ({"prompt": "Is it?", "responses": ["a"]}, "'responses' is a list of answers"),
        (
            {"messages": [USER, YES], "rejected_response": ["No.", "Maybe."]},
            "'rejected_response' is a list of texts, expected one text or messages",
        ),
        (
            {"prompt": "Is it?", "chosen": ["Yes."], "rejected": ["No."]},
            "'chosen' is a list of texts, expected one text or messages",
        ),
    ],
)
def test_several_answers_are_named(tmp_path: Path, row: Row, words: str) -> None:
    with pytest.raises(DpoError) as error:
        Source((write(tmp_path / "pairs.jsonl", row),)).look()
    assert f"line 1: {words}" in error.value.message


def test_a_hint_that_was_followed_is_not_given_again(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", {"question": "Is it?", "good": "Yes.", "bad": "No."})
    with pytest.raises(DpoError) as caught:
        one(path)
    assert '{ prompt = "question", chosen = "...", rejected = "..." }' in caught.value.remedy
    with pytest.raises(DpoError) as caught:
        one(path, columns={"prompt": "question", "chosen": "good"})
    assert '{ rejected = "..." }' in caught.value.remedy


def test_the_columns_of_a_profile_are_those_that_formats_read() -> None:
    from dpo_cli.data import row_readers
    from dpo_cli.profile.pairs import COLUMNS

    read = {name for format in FORMATS.values() for name in format.needs}
    for names in ("SYSTEM", "OUTPUTS", "FIRST", "SECOND", "PREFERENCES", "RATINGS", "REJECTED"):
        read.update(getattr(row_readers, names))
    read.update(row_readers.ANSWERS)
    assert read <= set(COLUMNS)


CASES = {
    "01-alpaca-ranking/pairs.jsonl": ("system", "user", "assistant", "user"),
    "02-json-in-strings/two.jsonl": ("user",),
    "02-json-in-strings/three.jsonl": ("user",),
    "03-context-in-messages/list.jsonl": ("user",),
    "04-prompt-repeated/pairs.jsonl": ("user",),
    "05-system-column/conversational.jsonl": ("system", "user"),
    "05-system-column/minimind.jsonl": ("system", "user"),
}


@pytest.mark.parametrize("case", CASES)
def test_questions_are_before_their_answers(shared: Path, case: str) -> None:
    pairs = list(read_pairs(shared / "cases" / case))
    assert all(isinstance(pair, PreferencePair) and pair.unread == {} for pair in pairs)
    assert len(pairs) == 10
    base = [json.loads(line) for line in (shared / "cases/base.jsonl").read_text().splitlines()]
    for pair, row in zip(pairs, base, strict=True):
        assert isinstance(pair, PreferencePair)
        for side in SIDES:
            messages = getattr(pair, side)
            assert tuple(turn["role"] for turn in messages[:-1]) == CASES[case]
            assert messages[-1]["content"] == row[side][-1]["content"]
            assert messages[-2]["content"].endswith(row["prompt"][-1]["content"])


def test_numbers_as_answers_are_named(shared: Path) -> None:
    path = shared / "cases/19-nulls-numbers-empties/numbers.jsonl"
    with pytest.raises(DpoError) as caught:
        one(path)
    reason = "line 1: 'chosen' is a number (0), expected a text or messages"
    assert caught.value.message == f"{path}: {reason}"


def nested(key: str, depth: int = 900) -> Any:
    value: Any = [USER]
    for _ in range(depth):
        value = {key: value}
    return value


@pytest.mark.parametrize("depth", [10, 900])
def test_objects_within_objects_are_no_traceback(tmp_path: Path, depth: int) -> None:
    """If every row is like this, no format is detected, which is an error with details."""
    deep = nested("messages", depth)
    odd = {"prompt": deep, "chosen": [YES], "rejected": [NO]}
    good = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
    path = write(tmp_path / "pairs.jsonl", good, good, odd)
    first, second, third = read_pairs(path)
    assert isinstance(first, PreferencePair)
    assert isinstance(second, PreferencePair)
    assert isinstance(third, SkippedRow)
    assert third.problem == "malformed"
    assert "nested too deeply" in third.reason or "expected a list of messages" in third.reason
    path = write(tmp_path / "pairs.jsonl", odd)
    with contextlib.suppress(DpoError):
        assert isinstance(one(path), SkippedRow)
    with pytest.raises(DpoError) as caught:
        read_prompts(path)
    assert caught.value.details


def test_long_rows_are_read_in_one_pass(tmp_path: Path) -> None:
    """A search that starts again at each place would not finish on these texts and turns."""
    many = [USER] * 5_000
    prompt, side = [*many, YES, USER], [*many, *many, NO]
    row = {"prompt": prompt, "chosen": side, "rejected": [YES]}
    assert isinstance(one(write(tmp_path / "pairs.jsonl", row)), PreferencePair)
    blanks, parts = " " * 300_000, ("{'role': 1", "Human: ", "\nAssistant: ", "[", "'content': ")
    for text in (blanks + "x", f"({blanks})", "[{" + blanks, *(part * 30_000 for part in parts)):
        row = {"prompt": "Is it?" + text, "chosen": text, "rejected": "No."}
        pair = one(write(tmp_path / "pairs.jsonl", row))
        assert isinstance(pair, PreferencePair)
        assert issues_of(pair).keys() <= {PairIssue.SPEAKERS}

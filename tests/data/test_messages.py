"""Tests of messages in the forms in which datasets store them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dpo_cli.data.messages import decoded, is_turns, text_or_turns, turns
from dpo_cli.data.rows import MalformedError

WHY, SO = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *((name, "user") for name in ("user", "human", "Human", "USER", " human ", "prompter")),
        *((name, "assistant") for name in ("gpt", "model", "Assistant", "bot")),
        *((name, "system") for name in ("developer", "System")),
        *((name, "tool") for name in ("function", "ipython", "observation", "tool_response")),
    ],
)
@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value"), ("from", "content")])
def test_names_of_speakers(name: str, role: str, keys: tuple[str, str]) -> None:
    role_key, text_key = keys
    assert turns([{role_key: name, text_key: "x"}], "'chosen'") == [{"role": role, "content": "x"}]


@pytest.mark.parametrize(
    "value",
    [
        [WHY, SO],
        {"messages": [WHY, SO]},
        {"role": ["user", "assistant"], "content": ["Why?", "So."]},
        {"from": ["human", "gpt"], "value": ["Why?", "So."]},
        [{**WHY, "name": None, "tool_calls": None}, {**SO, "content": ["So", "."]}],
        [WHY, {"role": "assistant", "content": [{"type": "text", "text": "So."}]}],
        [
            {"role": "user", "content": [{"type": "input_text", "text": "Why?"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "So."}]},
        ],
        [
            {"role": "user", "content": [{"type": "text", "text": "Wh"}, {"text": "y?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": {"value": "So."}}]},
        ],
        [{"role": "user", "parts": [{"text": "Why?"}]}, {"role": "model", "parts": ["So."]}],
        [
            {"role": "user", "content": json.dumps([{"type": "text", "text": "Why?"}])},
            {"role": "assistant", "content": {"type": "text", "text": "So.", "image_url": None}},
        ],
        [json.dumps(WHY), json.dumps(SO)],
    ],
)
@pytest.mark.parametrize("times", [0, 1, 2])
def test_forms_of_the_same_messages(value: Any, times: int) -> None:
    """Messages may be objects, JSON text, or JSON text of JSON text."""
    for _ in range(times):
        value = json.dumps(value, ensure_ascii=False)
    assert is_turns(value)
    assert turns(value, "'chosen'") == [WHY, SO]


@pytest.mark.parametrize(
    "text",
    [
        "So.",
        '{"answer": 4}',
        "[1, 2]",
        '[{"not": "messages"}]',
        '{"role": "admin", "name": "x"}',
        '[{"role": "villain", "content": "x"}]',
        '[{"role": "user", "content": ',
        "[]",
        '"So."',
        "{'role': 'x'",
    ],
)
def test_an_answer_that_is_json_stays_a_text(text: str) -> None:
    assert decoded(text) == text
    assert not is_turns(text)
    assert text_or_turns(text, "'chosen'", "assistant") == [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (4, "'x' is a number (4), expected a text or messages"),
        (2.5, "'x' is a number (2.5), expected a text or messages"),
        (True, "'x' is a boolean (true), expected a text or messages"),
        (None, "'x' is null, expected a text or messages"),
        ([], "'x' is an empty list, expected a list of messages"),
        ({}, "'x' is an object, expected a list of messages"),
        ([WHY, 3], "'x', message 2: expected an object, got a number (3)"),
        ([{"role": "alien", "content": "x"}], "message 1: role 'alien' is not one of system, user"),
        ([{"role": 3, "content": "x"}], "message 1: role 3 is not one of"),
        ([{"role": "user"}], "message 1: 'content' is null, expected a text"),
        ([{"role": "user", "content": 7}], "'content' is a number (7), expected a text"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
            "message 1: 'content', part 2 is 'image', expected a text",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": 3}]}],
            "part 1 is a number (3), expected a text",
        ),
        (str([WHY, SO]), "'x' is messages in Python syntax; write them with json.dumps"),
        (json.dumps([WHY]).replace("Why", "\\ud800"), "an unpaired surrogate"),
    ],
)
def test_errors_name_the_wrong_part(value: Any, why: str) -> None:
    with pytest.raises(MalformedError) as caught:
        text_or_turns(value, "'x'", "assistant")
    assert why in str(caught.value)


def test_tool_calls_in_either_form() -> None:
    function = {"name": "weather", "arguments": {"city": "Rome"}}
    call = {"type": "function", "function": function}
    for calls in (json.dumps([function]), json.dumps([call])):
        [message] = turns([{"role": "assistant", "content": None, "tool_calls": calls}], "'x'")
        assert message == {"role": "assistant", "content": "", "tool_calls": [call]}

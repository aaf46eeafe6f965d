"""Conversion of a row to two conversations, for each format.

A reader takes the `Columns` of a row and returns `Sides`. The same pair becomes the same messages
from every format.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpo_cli.data.columns import Columns, is_blank, number
from dpo_cli.data.messages import Message, is_turns, parsed_json, shared_turns, text_or_turns
from dpo_cli.data.rendered import common_length
from dpo_cli.data.rows import MalformedError

SIDES = ("chosen", "rejected")
SYSTEM = ("system", "system_prompt")
"""Columns of a system text, which begins a conversation without a system turn."""
OUTPUTS = ("preferred_output", "non_preferred_output")
FIRST, SECOND = ("response1", "response_1"), ("response2", "response_2")
PREFERENCES = ("overall_preference", "preference_strength")
RATINGS = ("ratings", "rating")
REJECTED = ("rejected_response", "rejected_messages")
ANSWERS = ("response", "chosen_response")

_MOST_TURNS_BEFORE = 2
"""Most turns of a side, for example a system turn, before a repeated prompt."""
_MOST_REPEATED = 16
"""Most turns at the end of a prompt that a side may repeat."""
_EXCHANGE_TEXTS = 2
"""Texts of an entry of `history`: a question and its answer."""
_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_WORD = re.compile(r"[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
_LAST_WORD = re.compile(f"{_WORD.pattern}+\\Z")
"""Last word of a text, in scripts that separate words."""


@dataclass(frozen=True)
class Sides:
    """Two whole conversations.

    Attributes:
        chosen, rejected: messages.
        prompt_turns: number of first messages that are the prompt, in formats that write it apart
            from the answers; None for whole conversations.
        tools: definitions of tools as they are in the row, see `dpo_cli.data.tools`.
    """

    chosen: list[Message]
    rejected: list[Message]
    prompt_turns: int | None = None
    tools: Any = None


class UnrankedError(MalformedError):
    """Reason why a row has no better answer: neither of two is preferred."""


def read_whole_conversations(row: Columns) -> Sides:
    """Read `chosen` and `rejected`, each a conversation with its prompt."""
    row.require(*SIDES)
    chosen, rejected = (_with_system(row, _answered(row.turns(side), side)) for side in SIDES)
    return Sides(chosen, rejected, None, row.tools())


def read_prompt_and_sides(row: Columns) -> Sides:
    """Read a prompt, a text or messages, and two answers or whole conversations."""
    row.require("prompt", *SIDES)
    if is_turns(row.peek("prompt")) or not isinstance(row.peek("prompt"), str):
        return _joined(row, row.text_or_turns("prompt", "user"), _sides(row))
    prompt, sides = _question(row, "prompt"), _sides(row)
    if not any(_with_prompt(prompt, side) for side in sides):
        # The sides are whole conversations about something else than the prompt.
        row.mark("prompt", is_read=False)
        return _whole_sides(row, sides)
    return _joined(row, prompt, sides)


def read_texts(row: Columns) -> Sides:
    """Read a prompt, in `prompt` or `question`, and two answers that are texts."""
    prompt = "question" if row.first("question") and not row.has("prompt") else "prompt"
    row.require(prompt, *SIDES)
    return _joined(row, _question(row, prompt), [_answer(row.text(side)) for side in SIDES])


def read_texts_with_prompt(row: Columns) -> Sides:
    """Split two texts into a common prompt and two answers; HH-RLHF's texts name the speakers."""
    row.require(*SIDES)
    chosen, rejected = (row.text(side) for side in SIDES)
    if chosen.startswith(_HUMAN) and rejected.startswith(_HUMAN):
        return _whole_sides(
            row, [_split_speakers(chosen, "chosen"), _split_speakers(rejected, "rejected")]
        )
    common = chosen[: common_length(chosen, rejected)]
    rests = chosen[len(common) :], rejected[len(common) :]
    if not all(rests) or any(map(_WORD.match, rests)):  # do not split a word
        common = _LAST_WORD.sub("", common)
    prompt = common.rstrip()
    endings = [text[len(common) :].lstrip() for text in (chosen, rejected)]
    if not prompt.strip() or not all(endings):
        raise MalformedError("'chosen' and 'rejected' need a common beginning and two endings")
    question = [{"role": "user", "content": prompt}]
    return _joined(row, question, [_answer(ending) for ending in endings])


def read_conversations(row: Columns) -> Sides:
    """Read `conversations`, the prompt, and two answers."""
    row.require("conversations", *SIDES)
    return _joined(row, row.turns("conversations"), _sides(row))


def read_messages(row: Columns) -> Sides:
    """Read `messages`, the prompt, and two answers."""
    row.require("messages", *SIDES)
    return _joined(row, row.turns("messages"), _sides(row))


def read_alpaca(row: Columns) -> Sides:
    """Read `instruction` and `input`, which form the question, and two answers.

    Older files have both answers in the list `output`.
    """
    if row.has("chosen") or not row.has("output"):
        row.require(*SIDES)
        return _joined(row, _instruction(row), _sides(row))
    answers, where = row.list_of("output"), row.shown("output")
    if len(answers) != len(SIDES):
        raise MalformedError(f"{where} has {len(answers)} answers, expected 2")
    sides = [text_or_turns(answer, where, "assistant") for answer in answers]
    return _joined(row, _instruction(row), sides)


def read_openai(row: Columns) -> Sides:
    """Read OpenAI's preference format: `input.messages` and two outputs."""
    row.require("input", *OUTPUTS)
    sides = [_answered(row.text_or_turns(output, "assistant"), output) for output in OUTPUTS]
    return _joined(row, row.turns("input"), sides)


def read_swift(row: Columns) -> Sides:
    """Read ms-swift's format: a conversation with its answer, and another answer to it."""
    rejected = row.first(*REJECTED) or REJECTED[0]
    answer = row.first(*ANSWERS)
    row.require(rejected)
    if row.first("messages"):
        prompt = row.turns("messages")
        chosen = row.text_or_turns(answer, "assistant") if answer else prompt[-1:]
        prompt = prompt if answer else prompt[:-1]
    else:
        row.require(answer or ANSWERS[0])
        prompt = _question(row, "query") if row.first("query") else _instruction(row)
        chosen = row.text_or_turns(answer or ANSWERS[0], "assistant")
    sides = chosen, row.text_or_turns(rejected, "assistant")
    return _joined(row, prompt, [_answered(*each) for each in zip(sides, SIDES, strict=True)])


def read_generations(row: Columns) -> Sides:
    """Read rated answers, as argilla and distilabel write them: the best and the worst are a pair.

    Among answers with the same rating the first counts.
    """
    rated = row.first(*RATINGS) or RATINGS[0]
    row.require("generations", rated)
    answers, ratings = row.list_of("generations"), row.list_of(rated)
    where = row.shown("generations")
    if len(answers) != len(ratings):
        counts = f"{len(answers)} entries, {row.shown(rated)} has {len(ratings)}"
        raise MalformedError(f"{where} has {counts}")
    scores = {
        place: number(rating, f"{row.shown(rated)}, entry {place + 1}")
        for place, (answer, rating) in enumerate(zip(answers, ratings, strict=True))
        if not is_blank(answer) and not is_blank(rating)
    }
    if len({*scores.values()}) < len(SIDES):
        raise UnrankedError("no generation is rated higher than another")
    places = max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__)
    sides = [text_or_turns(answers[n], f"{where}, entry {n + 1}", "assistant") for n in places]
    return _joined(row, _prompt(row), sides)


def read_two_responses(row: Columns) -> Sides:
    """Read HelpSteer's format: two responses, and a score below 0 if the first one is better."""
    names = row.first(*FIRST) or FIRST[0], row.first(*SECOND) or SECOND[0]
    scored = row.first(*PREFERENCES) or PREFERENCES[0]
    row.require(*names, scored)
    sides = [_answered(row.text_or_turns(name, "assistant"), name) for name in names]
    preference = row.number(scored)
    if not preference:
        raise UnrankedError("neither response is preferred")
    return _joined(row, _prompt(row), sides if preference < 0 else sides[::-1])


def read_prompt(row: Columns) -> list[Message]:
    """Read the prompt of a row without answers, under any column name of the formats."""
    return _with_system(row, _prompt(row))


def _joined(row: Columns, prompt: list[Message], sides: list[list[Message]]) -> Sides:
    """Put a prompt before both sides, except before a side that repeats the prompt."""
    if prompt in sides:  # `messages` is the whole chosen conversation
        prompt = prompt[:-1]
    wholes = [_with_prompt(prompt, side) or [*prompt, *side] for side in sides]
    if any(side[0]["role"] != "assistant" for side in sides):
        return _whole_sides(row, wholes)
    chosen, rejected = (_with_system(row, whole) for whole in wholes)
    prompt_turns = len(prompt) + len(chosen) - len(wholes[0])
    return Sides(chosen, rejected, prompt_turns, row.tools())


def _whole_sides(row: Columns, sides: list[list[Message]]) -> Sides:
    """Take what two whole conversations have in common as their prompt."""
    chosen, rejected = (_with_system(row, side) for side in sides)
    most = min(len(chosen), len(rejected)) - 1
    return Sides(chosen, rejected, min(shared_turns(chosen, rejected), most), row.tools())


def _with_prompt(prompt: list[Message], side: list[Message]) -> list[Message] | None:
    """Join a prompt and a side that may repeat it; None if the side is about something else."""
    if side[0]["role"] == "assistant":
        return [*prompt, *side]
    # A long prompt is sought at the beginning only: a row may have a million turns.
    starts = len(side) - len(prompt)
    for start in range(starts if len(prompt) == 1 else min(starts, _MOST_TURNS_BEFORE)):
        if _are_same(side[start : start + len(prompt)], prompt):
            return side
    for shared in range(min(len(prompt) - 1, len(side) - 1, _MOST_REPEATED), 0, -1):
        if _are_same(prompt[-shared:], side[:shared]):
            return [*prompt, *side[shared:]]
    return None


def _are_same(some: Sequence[Message], others: Sequence[Message]) -> bool:
    return all(
        one["role"] == other["role"] and one["content"].strip() == other["content"].strip()
        for one, other in zip(some, others, strict=True)
    )


def _with_system(row: Columns, messages: list[Message]) -> list[Message]:
    """Begin a conversation with the system text of the row, unless it has a system turn."""
    name = row.first(*SYSTEM)
    if name is None:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": row.text(name)}, *messages]
    if row.peek(name) == messages[0]["content"]:
        row.mark(name)
    return messages


def _prompt(row: Columns) -> list[Message]:
    """Read the prompt of a format whose datasets use several names for its column."""
    name = row.first("prompt", "context", "messages", "conversations")
    if name is None and row.first("instruction", "input"):
        return _instruction(row)
    row.require(name or "prompt")
    name = name or "prompt"
    return _question(row, name) if isinstance(row.peek(name), str) else row.turns(name)


def _instruction(row: Columns) -> list[Message]:
    if not row.first("instruction", "input"):
        row.require("instruction")
    return _question(row, "instruction", "input")


def _question(row: Columns, *names: str) -> list[Message]:
    """Read the earlier turns of a row, then texts that form one question, a line each."""
    texts = [row.text(name) for name in names if len(names) == 1 or row.first(name)]
    return [*_history(row), {"role": "user", "content": "\n".join(texts)}]


def _history(row: Columns) -> list[Message]:
    """Read a list of questions with their answers, or of messages."""
    value = parsed_json(row.peek("history"))
    if is_turns(value):
        return row.turns("history")
    if not isinstance(value, list):  # some datasets have an unrelated text under this name
        return []
    messages, where = [], row.shown("history")
    for place, exchange in enumerate(row.list_of("history"), start=1):
        if not isinstance(exchange, list) or len(exchange) != _EXCHANGE_TEXTS:
            raise MalformedError(f"{where}, entry {place}: expected a question and its answer")
        messages += text_or_turns(exchange[0], where, "user") + text_or_turns(
            exchange[1], where, "assistant"
        )
    return messages


def _sides(row: Columns) -> list[list[Message]]:
    return [_answered(row.text_or_turns(side, "assistant"), side) for side in SIDES]


def _answer(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def _answered(messages: list[Message], side: str) -> list[Message]:
    if all(message["role"] != "assistant" for message in messages):
        raise MalformedError(f"{side!r} has no assistant message")
    return messages


def _split_speakers(text: str, side: str) -> list[Message]:
    """Split a text at the paragraphs "Human:" and "Assistant:"."""
    messages: list[Message] = []
    for part in text.split(_HUMAN)[1:]:
        question, *answers = part.split(_ASSISTANT)
        messages.append({"role": "user", "content": question.strip()})
        messages += ({"role": "assistant", "content": answer.strip()} for answer in answers)
    if messages[-1]["role"] != "assistant":
        raise MalformedError(f"{side!r} does not end with an assistant message")
    return messages

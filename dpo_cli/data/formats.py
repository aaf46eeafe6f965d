"""Formats of preference pairs: their names, their detection, and the errors about other rows."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_cli.data import row_readers as readers
from dpo_cli.data.columns import PROMPTS, QUESTIONS, Columns, Row
from dpo_cli.data.messages import is_turns, parsed_json
from dpo_cli.data.row_readers import SIDES, Sides
from dpo_cli.data.rows import MalformedError
from dpo_cli.errors import DpoError

_ANSWERS = ("completions", "output", "outputs", "responses", "answers", "candidates")
"""Column names of lists that are probably several answers to a prompt."""


class UnknownColumnsError(DpoError):
    """Rows whose columns match no format.

    Args:
        message, remedy: see `DpoError`.
        names: columns of the rows.
        lacking: columns of the most similar format that the rows lack.
    """

    def __init__(
        self, message: str, remedy: str, names: Sequence[str], lacking: Sequence[str]
    ) -> None:
        super().__init__(message, remedy)
        self.names = tuple(names)
        self.lacking = tuple(lacking)


@dataclass(frozen=True)
class Format:
    """Format of preference pairs.

    Attributes:
        name: value of `data.format`.
        title: description for users.
        needs: columns without which a row has another format.
        fits: returns True if a row looks like this format.
        read: returns both conversations of a row; raises `MalformedError`.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    fits: Callable[[Columns], bool]
    read: Callable[[Columns], Sides]


def format_of(row: Columns) -> str | None:
    """Return the name of the format that a row looks like."""
    return next((name for name, format in FORMATS.items() if format.fits(row)), None)


def unknown_format(
    path: object, rows: Sequence[tuple[str, Row]], columns: Mapping[str, str]
) -> DpoError:
    """Build the error for a file whose rows match no format.

    Args:
        path: the file.
        rows: its first rows, each with its name for users.
        columns: `data.columns`.
    """
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    shown = ", ".join(reprlib.repr(name) for name in names[:20]) or "none"
    for name, column in columns.items():
        if column not in names:
            return DpoError(
                f"{path}: no column {column!r}, which data.columns.{name} names",
                f"Set data.columns.{name} to one of the columns: {shown}.",
            )
    if reason := _reason(rows, columns):
        mapped = ", ".join(f"data.columns.{name}" for name in columns)
        check = f"Correct {mapped}: " if mapped else "Correct the rows: "
        return DpoError(f"{path}: {reason}", f"{check}docs/data.md shows a row of each format.")
    if {"completion", "label"} <= {*names}:
        return DpoError(
            f"{path}: the rows have one answer each, with a label (KTO's format), and are no pairs",
            "Write a good and a bad answer to the same prompt into one row.",
        )
    for place, row in rows:
        for name in _ANSWERS:
            answers = parsed_json(row.get(name))
            if isinstance(answers, list) and not is_turns(answers):
                return DpoError(
                    f"{path}: {place}: {name!r} is a list of answers, expected one pair",
                    "Write the best and the worst of them into columns 'chosen' and 'rejected'.",
                )
    has = {name for name, column in columns.items() if column in names} | {*names}
    prompt = next((name for name in names if name in QUESTIONS), "question")
    wanted = {"prompt": prompt, "chosen": "...", "rejected": "..."}
    if has & {"messages", "conversations"}:
        del wanted["prompt"]
    lacking = {name: column for name, column in wanted.items() if name not in has}
    example = ", ".join(f'{name} = "{column}"' for name, column in lacking.items())
    also = f", with data.columns {', '.join(columns)}" if columns else ""
    return UnknownColumnsError(
        f"{path}: the columns match no known format{also}: {shown}{_lacking(lacking)}",
        f"Map the columns, for example data.columns = {{ {example} }}, or set data.format.",
        names,
        tuple(lacking),
    )


def _lacking(names: Mapping[str, str]) -> str:
    """Return which columns are missing, if only some are."""
    if not 0 < len(names) < len(SIDES) + 1:
        return ""
    return f"; there is no {' and no '.join(map(repr, names))}"


def _reason(rows: Sequence[tuple[str, Row]], columns: Mapping[str, str]) -> str:
    """Return why the first row with the columns of a format cannot be read; "" if all can."""
    for place, row in rows:
        try:
            found = Columns(row, columns)
            if all(found.has(side) for side in SIDES):
                for side in SIDES:
                    found.text_or_turns(side, "assistant")
            for format in FORMATS.values():
                is_specific = format.needs != SIDES
                if is_specific and all(found.has(name) for name in format.needs):
                    format.read(found)
        except MalformedError as error:
            return f"{place}: {error}"
        except RecursionError:
            return f"{place}: nested too deeply"
    return ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_turns(value: Any) -> bool:
    return _is_text(value) or is_turns(value)


def _have(row: Columns, is_kind: Callable[[Any], bool], *names: str) -> bool:
    """Return True if the first of the names that has a value has one of this kind."""
    return is_kind(row.peek(*names))


def _has_sides(row: Columns, is_kind: Callable[[Any], bool]) -> bool:
    return all(is_kind(row.peek(side)) for side in SIDES)


def _prompt_is(row: Columns, name: str | None, is_kind: Callable[[Any], bool]) -> bool:
    """Return True if the prompt column is `name`, with a value of this kind; None: no column."""
    own = row.first(*PROMPTS)
    return own == name and (name is None or is_kind(row.peek(name)))


def _looks_like_texts(row: Columns) -> bool:
    return _asks_in_text(row) and _has_sides(row, _is_text)


def _asks_in_text(row: Columns) -> bool:
    """Return True if the prompt is a text in `prompt`, or in `question` as in Orca's pairs."""
    if _prompt_is(row, "prompt", _is_text):
        return True
    is_other = row.first("instruction", "input") or not _prompt_is(row, None, _is_text)
    return not is_other and _have(row, _is_text, "question")


def _looks_like_ultrafeedback(row: Columns) -> bool:
    return _prompt_is(row, "prompt", _is_text) and _has_sides(row, _is_text_or_turns)


def _looks_like_conversational(row: Columns) -> bool:
    return _prompt_is(row, "prompt", is_turns) and _has_sides(row, _is_text_or_turns)


def _looks_like_sharegpt(row: Columns) -> bool:
    return is_turns(row.peek("conversations")) and _has_sides(row, _is_text_or_turns)


def _looks_like_messages(row: Columns) -> bool:
    return _prompt_is(row, "messages", is_turns) and _has_sides(row, _is_text_or_turns)


def _looks_like_alpaca(row: Columns) -> bool:
    output = parsed_json(row.peek("output"))
    is_list = (
        isinstance(output, list)
        and len(output) == len(SIDES)
        and all(map(_is_text_or_turns, output))
    )
    is_answered = _has_sides(row, _is_text_or_turns) or (is_list and not row.first(*SIDES))
    is_asked = _have(row, _is_text, "instruction", "input")
    return _prompt_is(row, None, _is_text) and is_asked and is_answered


def _looks_like_minimind(row: Columns) -> bool:
    return _prompt_is(row, None, _is_text) and _has_sides(row, is_turns)


def _looks_like_whole_texts(row: Columns) -> bool:
    """Return True for two texts with a common beginning and no other column for the prompt."""
    has_prompt = row.first(*PROMPTS, *QUESTIONS)
    return has_prompt is None and _has_sides(row, _is_text)


def _looks_like_openai(row: Columns) -> bool:
    return all(_is_text_or_turns(row.peek(name)) for name in readers.OUTPUTS)


def _looks_like_swift(row: Columns) -> bool:
    is_answered = is_turns(row.peek("messages")) or _have(row, _is_text_or_turns, *readers.ANSWERS)
    return _have(row, _is_text_or_turns, *readers.REJECTED) and is_answered


def _looks_like_generations(row: Columns) -> bool:
    values = [parsed_json(row.peek(*names)) for names in (("generations",), readers.RATINGS)]
    return all(isinstance(value, list) for value in values) and not row.first(*SIDES)


def _looks_like_two_responses(row: Columns) -> bool:
    responses = (readers.FIRST, readers.SECOND)
    return all(_have(row, _is_text_or_turns, *names) for names in responses) and bool(
        row.first(*readers.PREFERENCES)
    )


FORMATS: Mapping[str, Format] = {
    format.name: format
    for format in (
        Format(
            "minimind",
            "MiniMind (TRL's conversational, implicit prompt)",
            SIDES,
            _looks_like_minimind,
            readers.read_whole_conversations,
        ),
        Format(
            "conversational",
            "conversational (TRL's, explicit prompt)",
            ("prompt", *SIDES),
            _looks_like_conversational,
            readers.read_prompt_and_sides,
        ),
        Format(
            "plain",
            "plain (TRL's standard, explicit prompt)",
            ("prompt", *SIDES),
            _looks_like_texts,
            readers.read_texts,
        ),
        Format(
            "implicit",
            "implicit (TRL's standard, implicit prompt)",
            SIDES,
            _looks_like_whole_texts,
            readers.read_texts_with_prompt,
        ),
        Format(
            "ultrafeedback",
            "UltraFeedback-binarized",
            ("prompt", *SIDES),
            _looks_like_ultrafeedback,
            readers.read_prompt_and_sides,
        ),
        Format(
            "sharegpt",
            "ShareGPT",
            ("conversations", *SIDES),
            _looks_like_sharegpt,
            readers.read_conversations,
        ),
        Format(
            "messages",
            "messages and two answers",
            ("messages", *SIDES),
            _looks_like_messages,
            readers.read_messages,
        ),
        Format(
            "alpaca",
            "Alpaca ranking",
            ("instruction", *SIDES),
            _looks_like_alpaca,
            readers.read_alpaca,
        ),
        Format(
            "openai",
            "OpenAI preference",
            ("input", *readers.OUTPUTS),
            _looks_like_openai,
            readers.read_openai,
        ),
        Format(
            "swift",
            "ms-swift",
            ("rejected_response",),
            _looks_like_swift,
            readers.read_swift,
        ),
        Format(
            "generations",
            "rated generations (argilla, distilabel)",
            ("generations",),
            _looks_like_generations,
            readers.read_generations,
        ),
        Format(
            "helpsteer",
            "HelpSteer preference (two responses and a score)",
            ("response1", "response2"),
            _looks_like_two_responses,
            readers.read_two_responses,
        ),
    )
}
"""Formats by name; the first that a row looks like is the row's."""

"""Files with the same pairs in each format, container and compression."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dpo_cli.data import formats
from dpo_cli.data.pairs import PreferencePair, SkippedRow, to_pair
from dpo_cli.data.rows import MalformedError, parse_line

Row = dict[str, Any]

_SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def prompt_of(row: Row) -> list[dict[str, str]]:
    """Return the common part of both sides: all messages but the last answer."""
    messages: list[dict[str, str]] = row["chosen"][:-1]
    assert messages == row["rejected"][:-1]
    return messages


def minimind(row: Row) -> Row:
    return {side: row[side] for side in ("chosen", "rejected")}


def conversational(row: Row) -> Row:
    return {
        "prompt": prompt_of(row),
        "chosen": row["chosen"][-1:],
        "rejected": row["rejected"][-1:],
    }


def plain(row: Row) -> Row:
    texts = {side: row[side][-1]["content"] for side in ("chosen", "rejected")}
    return {"prompt": prompt_of(row)[-1]["content"], **texts}


def implicit(row: Row) -> Row:
    """Return the row without a prompt of its own, as in Anthropic's data."""

    def text(side: list[dict[str, str]]) -> str:
        names = {"user": "Human", "assistant": "Assistant"}
        return "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in side)

    return {side: text(row[side]) for side in ("chosen", "rejected")}


def ultrafeedback(row: Row) -> Row:
    prompt = prompt_of(row)[-1]["content"]
    scores = {"score_chosen": 8.5, "score_rejected": 3.0}
    rest = {"prompt_id": "f0e37e9f", "messages": row["chosen"], **scores}
    return {"prompt": prompt, **minimind(row), **rest}


def sharegpt(row: Row) -> Row:
    def turn(message: dict[str, str]) -> Row:
        return {"from": _SPEAKERS[message["role"]], "value": message["content"]}

    return {
        "conversations": [turn(message) for message in prompt_of(row)],
        "chosen": turn(row["chosen"][-1]),
        "rejected": turn(row["rejected"][-1]),
    }


def messages(row: Row) -> Row:
    """Return the row as in LLaMA-Factory's OpenAI format: one object per answer."""
    return {
        "messages": prompt_of(row),
        "chosen": row["chosen"][-1],
        "rejected": row["rejected"][-1],
        "id": 3,
    }


def alpaca(row: Row) -> Row:
    answers = {side: row[side][-1]["content"] for side in ("chosen", "rejected")}
    question = prompt_of(row)[-1]["content"]
    instruction, line, rest = question.partition("\n")
    rest = rest if line and instruction and rest else ""
    return {"instruction": instruction if rest else question, "input": rest, **answers}


def openai(row: Row) -> Row:
    return {
        "input": {"messages": prompt_of(row), "tools": [], "parallel_tool_calls": True},
        "preferred_output": row["chosen"][-1:],
        "non_preferred_output": row["rejected"][-1:],
    }


def swift(row: Row) -> Row:
    return {"messages": row["chosen"], "rejected_response": row["rejected"][-1]["content"]}


def generations(row: Row) -> Row:
    """Return the row as distilabel writes it: four answers, the second best, the third worst."""
    chosen, rejected = (row[side][-1]["content"] for side in ("chosen", "rejected"))
    return {
        "instruction": prompt_of(row)[-1]["content"],
        "generations": ["Hm.", chosen, rejected, "Hm, hm."],
        "ratings": [3.0, 5.0, 1.0, 3.0],
        "model_names": ["a", "b", "c", "d"],
    }


def helpsteer(row: Row) -> Row:
    """Return the row in HelpSteer's format; in every other row the second response is chosen."""
    chosen, rejected = (row[side][-1]["content"] for side in ("chosen", "rejected"))
    is_first = len(chosen) % 2 == 0
    return {
        "domain": "general",
        "context": prompt_of(row),
        "response1": chosen if is_first else rejected,
        "response2": rejected if is_first else chosen,
        "overall_preference": -2 if is_first else 1,
    }


def parse_row(line: int, raw: bytes) -> PreferencePair | SkippedRow:
    """Parse one line of a JSONL file in MiniMind's format."""
    try:
        row: dict[str, Any] | MalformedError = parse_line(raw)
    except MalformedError as error:
        row = error
    return to_pair(line, row, formats.FORMATS["minimind"], {})


FORMATS: dict[str, Callable[[Row], Row]] = {
    each.__name__: each
    for each in (
        *(minimind, conversational, plain, implicit, ultrafeedback, sharegpt, messages, alpaca),
        *(openai, swift, generations, helpsteer),
    )
}


def jsonl(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def json_array(rows: Sequence[Row]) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def escaped_array(rows: Sequence[Row]) -> bytes:
    return json.dumps(rows).encode()


def csv_file(rows: Sequence[Row]) -> bytes:
    """Write a CSV file: texts with newlines and quotes are quoted, lists are JSON."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {
                name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                for name, value in row.items()
            }
        )
    return text.getvalue().encode()


def parquet(rows: Sequence[Row]) -> bytes:
    import pyarrow
    from pyarrow.parquet import write_table

    sink = pyarrow.BufferOutputStream()
    write_table(pyarrow.Table.from_pylist(list(rows)), sink, row_group_size=7)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def nested_texts(rows: Sequence[Row]) -> bytes:
    """Write JSONL with JSON text in place of each list and object, also of each message."""

    def text(value: Any) -> Any:
        is_messages = isinstance(value, list) and value and isinstance(value[0], dict)
        value = [json.dumps(each) for each in value] if is_messages else value
        return json.dumps(value) if isinstance(value, list | dict) else value

    return jsonl([{name: text(value) for name, value in row.items()} for row in rows])


CONTAINERS: dict[str, Callable[[Sequence[Row]], bytes]] = {
    "pairs.jsonl": jsonl,
    "texts.jsonl": nested_texts,
    "pairs.json": json_array,
    "escaped.json": escaped_array,
    "pairs.csv": csv_file,
    "pairs.parquet": parquet,
}


def zstd(content: bytes) -> bytes:
    from backports import zstd

    compressed: bytes = zstd.compress(content)
    return compressed


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd}


def rows_of_every_format(shared: Path, count: int) -> list[Row]:
    """Return real pairs that all formats can represent: one question, texts without outer space."""
    lines = (shared / "data/dpo_en_zh_400.jsonl").read_text().splitlines()

    def is_fit(row: Row) -> bool:
        sides = row["chosen"], row["rejected"]
        texts = [turn["content"] for side in sides for turn in side]
        return (
            [len(side) for side in sides] == [2, 2]
            and all(text == text.strip() != "" for text in texts)
            and not any("\n\nHuman:" in text or "\n\nAssistant:" in text for text in texts)
        )

    fit = [row for row in map(json.loads, lines) if is_fit(row)][:count]
    assert len(fit) == count
    return fit

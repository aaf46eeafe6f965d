"""The same pairs written down in every format, container and compression."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

from dpo_cli.data import formats
from dpo_cli.data.pairs import PreferencePair, SkippedRow, to_pair
from dpo_cli.data.rows import MalformedError, parse_line

Row = dict[str, Any]

_SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def prompt_of(row: Row) -> list[dict[str, str]]:
    """What both sides begin with: all but the last answer."""
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
    """Without a prompt of its own, as Anthropic wrote its pairs down."""

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


def parse_row(line: int, raw: bytes) -> PreferencePair | SkippedRow:
    """One line of a JSONL in MiniMind's format."""
    try:
        row: dict[str, Any] | MalformedError = parse_line(raw)
    except MalformedError as error:
        row = error
    return to_pair(line, row, formats.FORMATS["minimind"], {})


FORMATS: dict[str, Callable[[Row], Row]] = {
    each.__name__: each
    for each in (minimind, conversational, plain, implicit, ultrafeedback, sharegpt)
}


def jsonl(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def json_array(rows: Sequence[Row]) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def escaped_array(rows: Sequence[Row]) -> bytes:
    return json.dumps(rows).encode()


def csv_file(rows: Sequence[Row]) -> bytes:
    """As `csv` writes it: texts with newlines and quotes in quotes, lists as JSON."""
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


CONTAINERS: dict[str, Callable[[Sequence[Row]], bytes]] = {
    "pairs.jsonl": jsonl,
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

"""Seeded mutations of bytes and of JSON values."""

from __future__ import annotations

import json
import random
from typing import Any

from tests.support.unsafe import EVIL

STRANGE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, -1e-300, 1e400),
    *(float("nan"), float("inf"), "", "0", "8", "nan", "a" * 5000, "\0", "../../x", "/", "~", "$X"),
    *("\ud800", EVIL, "你好" * 200, "/dev/null", "/proc/self/mem", "{{ 1 }}", [], {}, [[]], [{}]),
    *({"": ""}, {"a": None}, [None], [0, "", {}]),
]
"""Values that a field does not expect."""
_PIECES = [
    *(
        b"",
        b"\0",
        b"\n",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xe2\x80\xae",
        b"\x1b]0;x\x07",
        b"\xc2\x9b31m",
    ),
    *(b'"', b"'", b"[", b"{", b"]", b"}", b",", b"=", b"[" * 3000, b'{"a":' * 3000, b"9" * 5000),
    *(
        b"1e999",
        b"-0",
        b"nan",
        b"inf",
        b"null",
        b"\\u0000",
        b"\\ud800",
        b'"""',
        b"'''",
        b"#",
        b"\r",
    ),
    *(b"\xef\xbb\xbf", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"PK\x03\x04", b"a" * 300),
]


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Change, delete, repeat or insert pieces of a text or binary file."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        length = min(len(data) - at, rng.choice((1, 1, 2, 4, 16, 100, 1000)))
        match rng.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
            case 3:
                data[at : at + length] = rng.randbytes(length)
            case 4:
                data[at:at] = rng.choice(_PIECES)
            case _:
                data[at : at + length] = rng.choice(_PIECES)
    return bytes(data)


def mutate_value(rng: random.Random, value: Any) -> Any:
    """Change one part of a JSON value: another value, a missing, repeated or renamed key."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        changed = dict(value)
        match rng.randrange(8):
            case 0:
                del changed[name]
            case 1:
                changed[rng.choice(("", name * 50, EVIL, name.upper(), "0"))] = changed.pop(name)
            case _:
                changed[name] = mutate_value(rng, value[name])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        changed_list = list(value)
        match rng.randrange(6):
            case 0:
                del changed_list[at]
            case 1:
                changed_list[at:at] = [changed_list[at]] * rng.choice((1, 100))
            case _:
                changed_list[at] = mutate_value(rng, value[at])
        return changed_list
    if rng.random() < 0.03:
        return nested(rng.choice((50, 900, 5000)))
    if isinstance(value, str) and rng.random() < 0.3:
        at = rng.randrange(len(value) + 1)
        return value[:at] + rng.choice((EVIL, "\0", "/", " ", "x" * 300, "\n")) + value[at:]
    if isinstance(value, int | float) and rng.random() < 0.4:
        return value * rng.choice((-1, 0, 2, 1000, 10**9, 0.5))
    return rng.choice(STRANGE)


class nested:  # noqa: N801 - a value of JSON that Python's encoder does not write
    """Return lists in lists, for `json_text`."""

    def __init__(self, depth: int) -> None:
        self.depth = depth


def json_text(value: Any) -> str:
    """Write a value as JSON, also half surrogates, NaN and deep nesting."""
    deep: list[nested] = []

    def mark(each: Any) -> str:
        deep.append(each)
        return f"@nested{len(deep) - 1}@"

    text = json.dumps(value, default=mark)
    for number, each in enumerate(deep):
        text = text.replace(f'"@nested{number}@"', "[" * each.depth + "]" * each.depth)
    return text


def mutate_json(rng: random.Random, content: bytes) -> bytes:
    """Mutate a JSON text as a value, sometimes as bytes."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return mutate_bytes(rng, content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not isinstance(value, nested):
            value = mutate_value(rng, value)
    text = json_text(value).encode()
    return mutate_bytes(rng, text) if rng.random() < 0.15 else text

"""Parsed JSON values checked against type annotations."""

from __future__ import annotations

import functools
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints, is_typeddict


def typed(value: Any, hint: Any) -> Any:
    """Return a parsed JSON value as the annotated type: lists as tuples, objects as dataclasses.

    Args:
        value: result of `json.loads`.
        hint: a plain type, tuple[X, ...], dict[str, X], a union, a TypedDict, a dataclass, or Any.

    Raises:
        TypeError: the value, or one inside it, has another type.
        KeyError: an object lacks a key, or has an unknown one.
    """
    if hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _first_fit(value, arguments)
    if origin is tuple:
        return tuple(typed(each, arguments[0]) for each in _require(value, list))
    if origin is dict:
        return {key: typed(each, arguments[1]) for key, each in _require(value, dict).items()}
    if is_typeddict(hint):
        return {key: typed(value[key], each) for key, each in field_types(hint).items()}
    if is_dataclass(hint):
        return value if isinstance(value, cast(type, hint)) else _typed_object(value, hint)
    if isinstance(value, bool) and hint is not bool:  # a bool is an int to Python
        raise TypeError("a boolean instead of a number")
    # JSON has one kind of numbers: a float without a fraction may be written as an integer.
    return _require(value, (int, float) if hint is float else hint)


def field_types(kind: Any) -> dict[str, Any]:
    """Return the resolved annotations of a class by field name."""
    return _hints(kind)


_hints = functools.cache(get_type_hints)


def _typed_object(value: Any, kind: Any) -> Any:
    types = field_types(kind)
    return kind(**{key: typed(each, types[key]) for key, each in _require(value, dict).items()})


def _first_fit(value: Any, hints: tuple[Any, ...]) -> Any:
    for hint in hints:
        try:
            return typed(value, hint)
        except TypeError:
            continue
    raise TypeError(f"{type(value).__name__} fits none of the types")


def _require(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} instead of {kind}")
    return value

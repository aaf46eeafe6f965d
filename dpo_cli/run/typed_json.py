"""Parsed JSON values checked against type annotations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

Converter = Callable[[Any], Any]

_INT_LIMIT = 1 << 63


def typed(value: Any, hint: Any) -> Any:
    """Return a parsed JSON value as the annotated type: lists as tuples, objects as dataclasses.

    Args:
        value: result of `json.loads`, or of `dataclasses.asdict`, which keeps tuples.
        hint: a plain type, tuple[X, ...], dict[str, X], a union, a TypedDict, a dataclass, or Any.

    Raises:
        TypeError: the value, or one inside it, has another type.
        KeyError: an object lacks a key, or has an unknown one.
    """
    return _converter(hint)(value)


# Converters are built once per type: streams have hundreds of thousands of lines.
@functools.cache
def field_converters(kind: Any) -> dict[str, Converter]:
    """Return a function like `typed` for each field of a dataclass or key of a TypedDict."""
    hints = get_type_hints(kind)
    names = hints if is_typeddict(kind) else [field.name for field in fields(kind)]
    return {name: _converter(hints[name]) for name in names}


@functools.cache
def _converter(hint: Any) -> Converter:
    if hint is Any:
        return lambda value: value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return functools.partial(_first_fit, [_converter(each) for each in arguments])
    if origin is tuple:
        return functools.partial(_tuple, _converter(arguments[0]))
    if origin is dict:
        return functools.partial(_dict, _converter(arguments[1]))
    if is_typeddict(hint):
        required = hint.__required_keys__
        return lambda value: {
            key: to(value[key])
            for key, to in field_converters(hint).items()
            if key in required or key in value
        }
    if is_dataclass(hint):
        return functools.partial(_object, hint)
    # JSON has one kind of numbers: a float without a fraction may be written as an integer.
    return functools.partial(_plain, (float, int) if hint is float else (hint,))


def _plain(kinds: tuple[type, ...], value: Any) -> Any:
    # A larger integer is no count, and would overflow as soon as it is used as a float.
    if type(value) is int and not -_INT_LIMIT <= value < _INT_LIMIT:
        raise TypeError("an integer of more than 64 bits")
    # The first test is the fast one, and excludes bool, which is a subclass of int.
    if type(value) in kinds or (isinstance(value, kinds) and not isinstance(value, bool)):
        return value
    raise TypeError(f"{type(value).__name__} instead of {kinds[0].__name__}")


def _first_fit(converters: list[Converter], value: Any) -> Any:
    for convert in converters:
        try:
            return convert(value)
        except TypeError:
            continue
    raise TypeError(f"{type(value).__name__} fits none of the types")


def _tuple(convert: Converter, value: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{type(value).__name__} instead of a list")
    return tuple(map(convert, value))


def _dict(convert: Converter, value: Any) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} instead of an object")
    return {key: convert(each) for key, each in value.items()}


def _object(kind: Any, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} instead of an object")
    converters = field_converters(kind)
    return kind(**{key: converters[key](each) for key, each in value.items()})

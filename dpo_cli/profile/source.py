"""Profile files: shipped profiles, inheritance by `extends`, and the line of each key."""

from __future__ import annotations

import contextlib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from dpo_cli.errors import UsageError, first_line
from dpo_cli.profile.text import did_you_mean, near_path, show_path, show_value

_MAX_PROFILE_BYTES = 1 << 20
_PLAIN_VALUES = "Write a profile of plain values; `dpo init NAME` makes one."
_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Document:
    """One parsed profile file."""

    path: Path
    values: Mapping[str, Any]
    lines: Mapping[str, int]
    """Line of each dotted key, from 1; keys in unusual TOML constructs may be missing."""

    def origin(self, key: str) -> str:
        """Return the place of `key`, for example "profiles/my.toml:12"."""
        line = self.lines.get(key)
        return show_path(self.path) + (f":{line}" if line else "")


def shipped_profiles() -> dict[str, Path]:
    """Return the profiles of the package by name, from the wheel or the repository."""
    in_wheel = _PACKAGE / "profiles"
    folder = in_wheel if in_wheel.is_dir() else _PACKAGE.parent / "profiles"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_profile(path: Path, name: str) -> Path:
    """Return the file at `path`, or the shipped profile called `name`.

    Raises:
        UsageError: neither exists; the message suggests a similar name.
    """
    if os.path.isfile(path):
        return path
    shipped = shipped_profiles()
    if name in shipped:
        return shipped[name]
    remedy = f"Use a .toml file or a shipped profile: {', '.join(shipped)}."
    if os.path.isdir(path):
        raise UsageError(f"{show_path(path)} is a directory, not a profile", remedy)
    near = {stem: stem for stem in shipped}
    with contextlib.suppress(OSError, ValueError):  # an impossible name, or an unreadable folder
        for folder in (path.parent, path.parent / "profiles"):  # where dpo init writes
            near |= {sibling.stem: show_path(sibling) for sibling in folder.glob("*.toml")}
    hint = did_you_mean(path.stem, near, near.__getitem__)
    if path.suffix == ".toml":
        hint = near_path(path) or hint
    raise UsageError(f"no profile {show_path(path)}{hint}", remedy)


def read_chain(path: Path) -> list[Document]:
    """Read the profile at `path` and all that it extends, the farthest ancestor first.

    Raises:
        UsageError: a file cannot be read or parsed, a parent is missing, or `extends` is circular.
    """
    chain = [_read(path)]
    while (parent := chain[-1].values.get("extends")) is not None:
        chain.append(_read(_find_parent(chain[-1], parent)))
        paths = [document.path for document in chain]
        if any(paths[-1].samefile(earlier) for earlier in paths[:-1]):
            raise UsageError(
                f"profiles extend each other: {' -> '.join(map(show_path, paths))}",
                "Remove one `extends`.",
            )
    return chain[::-1]


def expand_path(text: str, base: Path) -> Path:
    """Expand ~ and $VAR in `text` and make it absolute, relative to `base`.

    $$ is a literal dollar sign. Symbolic links are not resolved, because the name of the link may
    matter, as in full_sft_512.pth.

    Raises:
        ValueError: `text` is empty, contains NUL, or uses an undefined variable or home directory.
    """
    if not text:
        raise ValueError("must not be empty")
    if "\0" in text:
        raise ValueError("must not contain the character NUL")
    try:
        expanded = Template(os.path.expanduser(text)).substitute(os.environ)
    except KeyError as error:
        raise ValueError(f"variable {error.args[0]} is not set; export it") from None
    except ValueError:
        raise ValueError("$ without a variable name; write $$ for a literal $") from None
    if expanded.startswith("~"):
        raise ValueError(f"no home directory {expanded.split('/')[0]}; write the full path")
    return Path(os.path.abspath(base / expanded))


def _find_parent(child: Document, parent: object) -> Path:
    where = f"{child.origin('extends')}  extends = {show_value(parent)}"
    if not isinstance(parent, str):
        raise UsageError(f"{where}: must be a path or the name of a shipped profile, in quotes")
    try:
        return find_profile(expand_path(parent, child.path.parent), parent)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", error.remedy) from None


def _read(path: Path) -> Document:
    shown = show_path(path)
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_PROFILE_BYTES + 1)
        if len(content) > _MAX_PROFILE_BYTES:
            raise UsageError(f"{shown} is larger than 1 MiB, too large for a profile")
        text = content.decode("utf-8-sig")  # -sig accepts a byte order mark
        return Document(path, tomllib.loads(text), scan_lines(text))
    except OSError as error:
        raise UsageError(f"{shown} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{shown}:{line} is not UTF-8", "Save the file as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise _invalid_toml(shown, text, str(error)) from None
    except RecursionError:
        raise UsageError(f"{shown}: its values are nested too deeply", _PLAIN_VALUES) from None
    except ValueError as error:  # an integer of more digits than Python converts, or a NUL in path
        raise UsageError(f"{shown} cannot be read: {first_line(error)}", _PLAIN_VALUES) from None


def _invalid_toml(shown: str, text: str, message: str) -> UsageError:
    remedy = 'Quote strings and paths ("..."); write booleans as true and false.'
    place = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    if place is None:  # "(at end of document)"
        return UsageError(f"{shown}: invalid TOML: {message}", remedy)
    line, column = map(int, place.groups())
    return UsageError(
        f"{shown}:{line}:{column}: invalid TOML: {message[: place.start()]}",
        remedy,
        [text.split("\n")[line - 1].strip()],
    )


_PART = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*\[\s*({_DOTTED})\s*\]")
_STATEMENT = re.compile(rf"\s*({_DOTTED})\s*=\s*(\{{)?")
_INLINE = re.compile(rf"[{{,]\s*({_DOTTED})\s*=")


def scan_lines(text: str) -> dict[str, int]:
    """Return the line of each key in a valid TOML text, by regular expressions.

    tomllib reports no lines. Covers headers, dotted and quoted keys, and inline tables of one
    level, which is enough for error messages.
    """
    lines: dict[str, int] = {}
    table = ""
    quote = ""  # delimiter of the multi-line string that is open, if any
    for number, line in enumerate(text.split("\n"), start=1):
        was_quoted = bool(quote)
        for mark in re.findall(r'"""|\'\'\'', line):
            quote = "" if quote == mark else quote or mark
        if was_quoted:
            continue
        if header := _HEADER.match(line):
            table = _plain(header[1]) + "."
            lines.setdefault(table[:-1], number)
        elif statement := _STATEMENT.match(line):
            key = table + _plain(statement[1])
            lines.setdefault(key, number)
            if statement[2]:
                for inner in _INLINE.findall(line, statement.start(2)):
                    lines.setdefault(f"{key}.{_plain(inner)}", number)
    return lines


def _plain(dotted: str) -> str:
    """Normalize `train . "beta"` to `train.beta`."""
    return re.sub(r"""\s*\.\s*|["']""", lambda match: "." if "." in match[0] else "", dotted)

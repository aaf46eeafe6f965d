"""Command lines of other tools: `trl dpo --beta 0.1`, `torchrun ... train_dpo.py --epochs 2`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_cli.errors import UsageError

_PROGRAMS = ("trl", "swift", "llamafactory-cli", "axolotl", "tune", "megatron")
_LAUNCHERS = ("python", "python3", "accelerate", "torchrun", "deepspeed", "uv", "poetry", "srun")
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_CONFIG = re.compile(r".+\.(ya?ml|json)")


@dataclass(frozen=True)
class Command:
    """One command line.

    Attributes:
        program: name of the tool's program or script, for example "train_dpo.py".
        words: words after it that are no options, for example "dpo".
        options: by name, with underscores; a list for several values, true for none.
        launcher: options and variables in front of the program, by name.
    """

    program: str
    words: tuple[str, ...]
    options: Mapping[str, Any]
    launcher: Mapping[str, Any]

    @property
    def config(self) -> str | None:
        """Path of the file with settings that the command names."""
        named = self.options.get("config")
        if isinstance(named, str):
            return named
        return next((word for word in self.words if _CONFIG.fullmatch(word)), None)


def parse_command(content: str, where: str) -> Command:
    """Find the command of a training tool in a script or a quoted line.

    Raises:
        UsageError: there is none, there are several, or quotes do not match.
    """
    commands: list[Command] = []
    variables: dict[str, str] = {}
    for line in _lines(content):
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise UsageError(
                f"{where}: not a command line ({error})", "Close the quotes."
            ) from error
        words = [word for word in words if word != "export"]
        if words and all(_ASSIGNMENT.fullmatch(word) for word in words):
            for word in words:
                name, value = word.split("=", 1)
                variables[name] = _substitute(value, variables)
            continue
        if (at := _program(words)) is not None:
            commands.append(_command([_substitute(word, variables) for word in words], at))
    if len(commands) != 1:
        found = "several commands" if commands else "no command"
        raise UsageError(
            f"{where}: {found} of a training tool",
            "Keep one command, for example: trl dpo --beta 0.1 ...",
        )
    return commands[0]


def is_command(content: str) -> bool:
    """Return True if the text begins a command line of a training tool in one of its lines."""
    for line in _lines(content):
        try:
            if _program(shlex.split(line)) is not None:
                return True
        except ValueError:
            continue
    return False


def _lines(content: str) -> Iterator[str]:
    """Yield logical lines: continued lines are joined, and the commands of one line divided."""
    joined = re.sub(r"[ \t]*\\\r?\n", " ", content)
    for line in map(_without_comment, joined.splitlines()):
        line = re.sub(r"^\s*[!$]\s+|^\s*!", "", line)  # a shell line of a notebook or of a page
        yield from (part for part in re.split(r"\s(?:&&|;|\|)\s", line) if part.strip())


def _without_comment(line: str) -> str:
    """Remove a comment: "#" at the beginning of a word, but not within one ("NAME#1000")."""
    quote = ""
    for at, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "#" and line[at - 1 : at] in ("", " ", "\t"):
            return line[:at]
    return line


def _program(words: Sequence[str]) -> int | None:
    """Return the position of the tool's program or script."""
    for at, word in enumerate(words):
        if word.endswith(".py") or word.rpartition("/")[2] in _PROGRAMS:
            # "from trl import" of a YAML or Python text is no command.
            is_first = all(_ASSIGNMENT.fullmatch(each) for each in words[:at])
            launched = any(each.rpartition("/")[2] in _LAUNCHERS for each in words[:at])
            if is_first or launched:
                return at
        if word == "-m" and words[at + 1 : at + 2] and at and words[at - 1].startswith("python"):
            return at + 1
    return None


def _command(words: Sequence[str], at: int) -> Command:
    before = [word for word in words[:at] if not _ASSIGNMENT.fullmatch(word)]
    assigned = dict(word.split("=", 1) for word in words[:at] if _ASSIGNMENT.fullmatch(word))
    _, options = _options(before)
    positional, own = _options(words[at + 1 :])
    return Command(words[at].rpartition("/")[2], positional, own, {**assigned, **options})


def _options(words: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Divide words into those in front of the first option, and options with their values."""
    positional: list[str] = []
    options: dict[str, Any] = {}
    name = ""
    values: list[str] = []
    for word in (*words, "--"):
        if not re.match(r"--|-[A-Za-z]", word):
            (values if name else positional).append(word)
            continue
        if name:
            options[name] = True if not values else values[0] if len(values) == 1 else values
        name, equals, value = word.lstrip("-").partition("=")
        name, values = name.replace("-", "_"), [value] if equals else []
    return tuple(positional), options


def _substitute(word: str, variables: Mapping[str, str]) -> str:
    """Replace the variables that the script itself sets; others stay as they are written."""
    return _VARIABLE.sub(
        lambda match: variables.get(match[1] or match[2], match[0]),
        word,
    )


def has_variable(value: Any) -> bool:
    """Return True if a value contains a variable of the shell, whose value is unknown."""
    values = value if isinstance(value, list) else [value]
    return any(isinstance(each, str) and _VARIABLE.search(each) for each in values)

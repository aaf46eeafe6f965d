"""Questions of `dpo init` on a terminal. An option answers each of them in advance."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import typer

from dpo_cli.errors import DpoError
from dpo_cli.profile import folder
from dpo_cli.profile.discover import is_whole_model
from dpo_cli.profile.text import show_path
from dpo_cli.ui.terminal.console import line_console


def is_interactive() -> bool:
    """Return True if a person can answer questions."""
    return sys.stdin.isatty()


def ask_which(what: str, paths: Sequence[Path]) -> Path | None:
    """Let the user choose one of several paths on a terminal; else return the first."""
    if len(paths) < 2 or not is_interactive():
        return paths[0] if paths else None
    line_console().print(f"{what} (--{what} PATH answers this):")
    choices = [show_path(path) + remark(path) for path in paths]
    return paths[_ask_number(choices, "which?", "a path from the list") - 1]


def ask_for(
    what: str, choices: Sequence[tuple[str, str]], question: str, check: Callable[[str], object]
) -> str:
    """Ask for a file or a name on the Hub until the answer is a possible one, and return it.

    Args:
        what: "model" or "data", the name of the option that answers this.
        choices: answers that a number chooses, each with a remark; the first is the default.
        question: what to type.
        check: raises `DpoError` for a wrong answer.
    """
    line_console().print(f"{what}: none in this directory. Some choices (--{what} answers this):")
    width = max((len(name) for name, _ in choices), default=0)
    for number, (name, note) in enumerate(choices, start=1):
        line_console().print(f"  {number}  {name:<{width}}  {note}".rstrip())
    while True:
        answer = str(typer.prompt(question, default="1" if choices else None)).strip()
        if answer.isdecimal() and 1 <= int(answer) <= len(choices):
            answer = choices[int(answer) - 1][0]
        try:
            check(answer)
        except DpoError as error:
            line_console().print(f"  {error.message}. {error.remedy}")
        else:
            return answer


def ask_columns(names: Sequence[str], columns: Sequence[str]) -> dict[str, str]:
    """Ask which columns of a file are the prompt and the answers.

    The default is the column of the most similar name, if one is similar.

    Args:
        names: columns that the formats use.
        columns: columns of the file.
    """
    answers: dict[str, str] = {}
    for name in names:
        line_console().print(f"  column of {name} (--columns {name}=COLUMN answers this):")
        free = [column for column in columns if column not in answers.values()]
        near = difflib.get_close_matches(name, free, n=1)
        default = columns.index(near[0]) + 1 if near else None
        number = _ask_number(columns, "which?", "a column name", indent="    ", default=default)
        answers[name] = columns[number - 1]
    return answers


def ask_download(what: str) -> bool:
    """Ask whether to download a model or a data set now."""
    return bool(typer.confirm(f"download {what} now (--download answers this)?", default=False))


def remark(path: Path) -> str:
    """Return what a user should know of a model before choosing it."""
    lacks_template = path.is_dir() and is_whole_model(path) and not folder.has_chat_template(path)
    return "  (no chat template)" if lacks_template else ""


def _ask_number(
    choices: Sequence[str],
    question: str,
    other: str,
    indent: str = "  ",
    default: int | None = 1,
) -> int:
    """List numbered choices, and ask until the answer is one of them, as a number or in full.

    Args:
        choices: texts of the choices.
        question: what to type.
        other: words for a choice that is typed in full, for example "a column name".
        indent: spaces before each choice.
        default: number that an empty answer means; None if there is none.
    """
    for number, choice in enumerate(choices, start=1):
        line_console().print(f"{indent}{number}  {choice}")
    while True:
        shown = None if default is None else str(default)
        answer = str(typer.prompt(question, default=shown)).strip()
        if answer in choices:
            return choices.index(answer) + 1
        if answer.isdecimal() and 1 <= int(answer) <= len(choices):
            return int(answer)
        line_console().print(f"{indent}Type a number from 1 to {len(choices)}, or {other}.")

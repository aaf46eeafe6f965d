"""Questions of `dpo init` on a terminal. An option answers each of them in advance."""

from __future__ import annotations

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
    return paths[_ask_number([show_path(path) + remark(path) for path in paths], "which?") - 1]


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

    Args:
        names: columns that the formats use.
        columns: columns of the file.
    """
    answers = {}
    for name in names:
        line_console().print(f"  column of {name} (--columns {name}=COLUMN answers this):")
        answers[name] = columns[_ask_number(columns, "which?", indent="    ") - 1]
    return answers


def ask_download(what: str) -> bool:
    """Ask whether to download a model or a data set now."""
    return bool(typer.confirm(f"download {what} now (--download answers this)?", default=False))


def remark(path: Path) -> str:
    """Return what a user should know of a model before choosing it."""
    lacks_template = path.is_dir() and is_whole_model(path) and not folder.has_chat_template(path)
    return "  (no chat template)" if lacks_template else ""


def _ask_number(choices: Sequence[str], question: str, indent: str = "  ") -> int:
    """List numbered choices, and ask until the answer is one of the numbers; 1 is the default."""
    for number, choice in enumerate(choices, start=1):
        line_console().print(f"{indent}{number}  {choice}")
    while True:
        choice_number: int = typer.prompt(question, default=1, type=int)
        if 1 <= choice_number <= len(choices):
            return choice_number

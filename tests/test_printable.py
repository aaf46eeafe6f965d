"""Text that is safe to print on terminals of any encoding."""

from __future__ import annotations

import ast
import io
import json
import re
import sys
import tomllib
import unicodedata

import pytest
from rich.console import Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dpo_cli import printable as module
from dpo_cli.printable import (
    DEGRADE,
    degrade_streams,
    escape_json,
    escape_toml,
    one_line,
    printable,
)
from dpo_cli.ui.terminal.console import SafeConsole
from tests.support.cli import REPOSITORY
from tests.support.unsafe import EVIL, unsafe_characters

EVERY = "".join(map(chr, (*range(0xE0200, 0xDFFFF, -1), *range(0x1FFFF, -1, -1))))


def test_no_character_is_left_that_acts_on_a_terminal() -> None:
    assert not unsafe_characters(printable(EVERY))
    assert not unsafe_characters(one_line(EVERY))
    assert "\n" not in one_line(EVERY)
    printable(EVERY).encode()


def test_the_fast_path_changes_nothing() -> None:
    slow = "".join(map(module._printable, EVERY))
    assert printable(EVERY) == slow == "".join(map(printable, EVERY))


def test_readable_text_stays_as_it_is() -> None:
    text = "你好，世界　ﬁn — “é” 🍜 ⣿▁╭─╮ ␛\nsecond line"
    assert printable(text) == text


def test_escapes_give_the_same_values() -> None:
    value = {f"key {EVIL}": [EVIL, EVERY]}
    text = escape_json(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(text) == value
    assert not unsafe_characters(text)
    toml = escape_toml('"\u202e" = "\x9b\U000e0001"  # \n')
    assert tomllib.loads(toml) == {"\u202e": "\x9b\U000e0001"}
    assert not unsafe_characters(toml)


def test_a_console_prints_nothing_unsafe_at_any_depth() -> None:
    file = io.StringIO()
    console = SafeConsole(file=file, width=60, force_terminal=False)
    table = Table(EVIL, title=EVIL, caption=EVIL)
    table.add_row(Panel(Text(EVIL), title=escape(EVIL)))
    table.add_row(Group(EVIL, Text.assemble((EVIL, "bold"), EVIL)))
    console.print(table)
    console.print(escape(EVIL), escape(EVIL), soft_wrap=True)
    console.out(EVIL, end="")
    assert not unsafe_characters(file.getvalue())
    assert len({len(line) for line in file.getvalue().splitlines()[1:8]}) == 1, "frames are whole"


def test_styles_and_cursor_movements_of_the_console_itself_pass() -> None:
    file = io.StringIO()
    console = SafeConsole(file=file, force_terminal=True, color_system="standard")
    with console.screen():
        console.print(Text(f"x{EVIL}", style="red"))
    assert "\x1b[31mx" in file.getvalue()
    assert "\x1b[?1049h" in file.getvalue()
    assert not unsafe_characters(re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", file.getvalue()))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "gbk", "utf-8"])
def test_an_encoding_without_a_character_shows_another(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    monkeypatch.setattr(sys, "stderr", None)  # closed
    degrade_streams()
    sys.stdout.write("╭─╮│你\udc80ab…")
    sys.stdout.flush()
    shown = raw.getvalue().decode(encoding)
    assert shown.endswith(("ab…", "ab."))
    if encoding in ("ascii", "latin-1"):
        assert shown == "+-+|???ab."


def test_a_degraded_character_takes_as_many_cells() -> None:
    for character in map(chr, range(0x20, 0x20000)):
        if unicodedata.category(character) in ("So", "Lo", "Po", "Pd"):
            wide = unicodedata.east_asian_width(character) in "WF"
            degraded = character.encode("ascii", DEGRADE)
            assert len(degraded) == 1 + (wide and not character.isascii())


def test_nothing_is_printed_past_the_gate() -> None:
    """Only the console module creates consoles and calls typer's print functions."""
    gate = REPOSITORY / "dpo_cli/ui/terminal/console.py"
    for path in (REPOSITORY / "dpo_cli").rglob("*.py"):
        if path == gate:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in (
                    *("Console", "rich.print", "typer.echo", "typer.secho", "click.echo"),
                    *("sys.stdout.write", "sys.stderr.write"),
                ), f"{path}:{node.lineno}"

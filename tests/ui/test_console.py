"""Tests of the console for lines: words wrap on a terminal, and lines stay whole elsewhere."""

from __future__ import annotations

import io

import pytest

from dpo_cli.ui.terminal.console import line_console

LINE = "help: Continue with other settings: dpo resume my-run --set a=1 --allow-changes"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(monkeypatch: pytest.MonkeyPatch, file: io.StringIO, **environment: str) -> list[str]:
    monkeypatch.setattr("sys.stdout", file)
    for name, value in {"COLUMNS": "70", "TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    line_console().print(LINE)
    return file.getvalue().splitlines()


def test_lines_break_between_words_at_the_edge_of_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = printed(monkeypatch, _Terminal())
    assert len(lines) == 2
    assert " ".join(lines).split() == LINE.split()


def test_lines_for_programs_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(monkeypatch, io.StringIO()) == [LINE]
    assert printed(monkeypatch, io.StringIO(), NO_COLOR="1", FORCE_COLOR="1") == [LINE]

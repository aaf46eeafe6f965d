"""Tests of long output with and without a pager."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.padding import Padding

from dpo_cli.ui.terminal.pager import page, pages_with_less
from tests.support.terminal import Terminal

SCRIPT = """
from rich.console import Console
from rich.text import Text
from dpo_cli.ui.terminal.pager import page
page(Console(), "title", (Text(f"page {n}", style="green") for n in range(100_000)))
print("the end")
"""


def test_a_pager_gets_colors_and_may_exit_early(tmp_path: Path) -> None:
    (tmp_path / "pager").write_text("#!/bin/sh\necho options $LESS\nhead -3\n")
    (tmp_path / "pager").chmod(0o755)
    with Terminal(SCRIPT, cwd=tmp_path, PAGER=f"{tmp_path}/pager") as terminal:
        assert terminal.wait() == 0
        assert terminal.lines == ["options FRX", "title", "page 0", "page 1", "the end"]
        assert "\x1b[32mpage 1" in terminal.raw


def test_ctrl_c_goes_to_the_pager(tmp_path: Path) -> None:
    # Blocked, so that the signal is not lost if it comes before the process waits for it.
    pager = "import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [2]);"
    pager += "print('ready', flush=True); signal.sigwait([2]); print('heard', flush=True);"
    pager += "print(sys.stdin.readline())"
    (tmp_path / "pager.py").write_text(pager)
    with Terminal(SCRIPT, cwd=tmp_path, PAGER=f"python3 {tmp_path}/pager.py") as terminal:
        terminal.until(lambda: "ready" in terminal.raw)
        terminal.press("\x03")
        assert terminal.wait() == 0
        assert any(line.endswith("heard") for line in terminal.lines)  # after an echoed ^C
        assert terminal.lines[-1] == "the end"


def test_without_a_pager_it_is_printed(tmp_path: Path) -> None:
    script = SCRIPT.replace("100_000", "3")
    with Terminal(script, cwd=tmp_path, PAGER="no-such-pager") as terminal:
        assert terminal.wait() == 0
        assert terminal.lines == ["title", "page 0", "page 1", "page 2", "the end"]


def test_on_a_pipe_lines_have_no_trailing_spaces() -> None:
    file = io.StringIO()
    page(Console(file=file, width=20), "title", [Padding("page", (0, 0, 0, 2))])
    assert file.getvalue() == "title\n  page\n"


@pytest.mark.parametrize(("pager", "is_less"), [("", True), ("less -S", True), ("most", False)])
def test_only_less_has_the_keys_that_a_title_names(
    monkeypatch: pytest.MonkeyPatch, pager: str, is_less: bool
) -> None:
    monkeypatch.setenv("PAGER", pager)
    assert pages_with_less(Console(file=io.StringIO(), force_terminal=True)) == is_less
    assert not pages_with_less(Console(file=io.StringIO(), force_terminal=False))

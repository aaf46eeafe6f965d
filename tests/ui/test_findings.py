"""Tests of the findings and the progress bar of `dpo check`."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dpo_cli.findings import Diagnosis, Finding, Level
from dpo_cli.ui.terminal.findings import findings_table, verdict
from dpo_cli.ui.terminal.progress import PhaseBar
from tests.support.shown import shown

FINDINGS = (
    Finding("profile", Level.OK, "my.toml", "5 keys stated"),
    Finding("data-malformed", Level.WARN, "pairs.jsonl", "1 row\nline 3: [no] JSON", "mend it"),
    Finding("checkpoint-unusable", Level.ERROR, "", "cut off", "copy it again"),
    Finding("plan", Level.SKIP, "", "needs weights"),
)


def test_each_finding_with_its_remedy_below() -> None:
    assert shown(findings_table(FINDINGS)).splitlines() == [
        "ERROR  checkpoint-unusable  cut off",
        "                            -> copy it again",
        "WARN   data-malformed       pairs.jsonl  1 row",
        "                            line 3: [no] JSON",
        "                            -> mend it",
        "skip   plan                 needs weights",
        "ok     profile              my.toml  5 keys stated",
    ]


@pytest.mark.parametrize(("level", "in_full"), [(Level.WARN, False), (Level.OK, True)])
def test_long_messages_stay_in_their_column(level: Level, in_full: bool) -> None:
    finding = Finding("data", level, "", "word " * 40)
    lines = shown(findings_table([finding], in_full=in_full), 80).splitlines()
    assert len(lines) > 2
    assert all(len(line) <= 80 for line in lines)
    assert all(line.startswith(" " * 10) for line in lines[1:])


def test_what_is_fine_takes_one_line_of_whole_statements() -> None:
    path, other = "/a/folder/that/is/long/enough/to/fill/the/line/pairs.jsonl", "/other/same.jsonl"
    findings = [
        Finding("texts", Level.OK, path, "640 prompts in 640 pairs; 640 in Latin script; no more"),
        Finding("data", Level.OK, path, "9 of 9 rows"),
        Finding("plan", Level.OK, "", f"{'word ' * 20}end; more"),
        Finding("files", Level.OK, "hf:ORG/NAME", "one\ntwo"),
        Finding("format", Level.OK, other, "JSONL; " + "word " * 20),
        Finding("format", Level.WARN, "/some/same.jsonl", "JSON"),
    ]
    assert shown(findings_table(findings), 80).splitlines() == [
        "WARN  format  /some/same.jsonl  JSON",
        "ok    texts   pairs.jsonl  640 prompts in 640 pairs; 640 in Latin script",
        "ok    data    pairs.jsonl  9 of 9 rows",
        "ok    plan    word word word word word word word word word word word word word",
        "              word word word word word word word end",
        "ok    files   hf:ORG/NAME  one",
        "              two",
        "ok    format  /other/same.jsonl  JSONL",
    ]
    assert "…" not in shown(findings_table(FINDINGS), 24)
    assert shown(findings_table(findings[:1]), 60).endswith("640 prompts in 640 pairs")


@pytest.mark.parametrize(
    ("findings", "words", "command"),
    [
        (FINDINGS[:1], "ready to train", "next: train it"),
        (FINDINGS[:2], "ready to train, with 1 warning", "next: train it"),
        (FINDINGS, "not ready to train: 1 error and 1 warning", "once fixed: check it"),
        (FINDINGS[2:3] * 2, "not ready to train: 2 errors", "once fixed: check it"),
    ],
)
def test_the_verdict_names_the_next_command(
    findings: tuple[Finding, ...], words: str, command: str
) -> None:
    lines = verdict(Diagnosis(findings, None, {}), "train it", "check it")
    assert [line.plain for line in lines] == [words, command]


# --- the bar -----------------------------------------------------------------------------------


def test_the_bar_shows_the_phase() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with PhaseBar(console) as bar:
        bar("encoding", 10, 2000, "rows")
        bar("encoding", 1020, 2000, "rows")
        [task] = bar._progress.tasks
        assert (task.description, task.percentage) == ("encoding", 51)
        assert task.fields["amount"] == "1,020 of 2,000 rows"
        bar("loading", 0, 0, "")
        [task] = bar._progress.tasks
        assert (task.description, task.total, task.fields["amount"]) == ("loading", None, "")


def test_no_bar_on_a_pipe() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with PhaseBar(console) as bar:
        bar("encoding", 10, 40, "rows")
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]

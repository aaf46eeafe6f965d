"""What `dpo check` shows, as text of a given width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from dpo_cli.findings import Diagnosis, Finding, Level, PairPreview, Span
from dpo_cli.ui.findings import findings_table, pair_preview, verdict
from dpo_cli.ui.progress import PhaseBar

FINDINGS = (
    Finding("profile", Level.OK, "my.toml", "5 keys stated"),
    Finding("data-malformed", Level.WARN, "pairs.jsonl", "1 row\nline 3: [no] JSON", "mend it"),
    Finding("checkpoint-unusable", Level.ERROR, "", "cut off", "copy it again"),
    Finding("plan", Level.SKIP, "", "needs weights"),
)


def shown(renderable: RenderableType, width: int = 60, *, colour: bool = False) -> str:
    console = Console(
        width=width,
        file=io.StringIO(),
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def test_each_finding_with_its_remedy_below() -> None:
    assert shown(findings_table(FINDINGS)).splitlines() == [
        "ok     profile              my.toml  5 keys stated",
        "WARN   data-malformed       pairs.jsonl  1 row",
        "                            line 3: [no] JSON",
        "                            -> mend it",
        "ERROR  checkpoint-unusable  cut off",
        "                            -> copy it again",
        "skip   plan                 needs weights",
    ]


def test_long_messages_stay_in_their_column() -> None:
    finding = Finding("data", Level.OK, "", "word " * 40)
    lines = shown(findings_table([finding]), 80).splitlines()
    assert len(lines) > 2
    assert all(len(line) <= 80 for line in lines)
    assert all(line.startswith(" " * 10) for line in lines[1:])


@pytest.mark.parametrize(
    ("findings", "words", "command"),
    [
        (FINDINGS[:1], "ready to train", "next: train it"),
        (FINDINGS[:2], "ready to train, with 1 warning", "next: train it"),
        (FINDINGS, "not ready to train: 1 error and 1 warning", "when mended: check it"),
        (FINDINGS[2:3] * 2, "not ready to train: 2 errors", "when mended: check it"),
    ],
)
def test_the_verdict_names_the_next_command(
    findings: tuple[Finding, ...], words: str, command: str
) -> None:
    lines = verdict(Diagnosis(findings, None, {}), "train it", "check it")
    assert [line.plain for line in lines] == [words, command]


# --- the preview -------------------------------------------------------------------------------

PAIR = PairPreview(
    line=7,
    shared=(Span("<|user|>\nHow?\n", 5, False),),
    chosen=(Span("So.\n", 2, True), Span("<|user|>\n", 2, False), Span("你好", 1, True)),
    rejected=(Span("No.\n", 2, True),),
)


def test_without_colour_brackets_show_what_carries_loss() -> None:
    lines = shown(pair_preview(PAIR, marks=True), 100).splitlines()
    assert [line.rstrip("─ ") for line in lines] == [
        "the pair of line 7: tokens that carry loss are in ⟦brackets⟧, ↵ is a newline",
        "both sides begin with · 5 tokens, 0 with loss",
        "  <|user|>↵",
        "  How?↵",
        "chosen · 5 tokens, 3 with loss",
        "  ⟦So.↵⟧",
        "  <|user|>↵",
        "  ⟦你好⟧",
        "rejected · 2 tokens, 2 with loss",
        "  ⟦No.↵⟧",
    ]


def test_with_colour_it_is_green_and_nothing_else_is() -> None:
    text = shown(pair_preview(PAIR, marks=False), colour=True)
    assert "\x1b[32mSo.↵" in text
    assert "\x1b[2m<|user|>↵" in text
    assert "⟦" not in text


def test_long_texts_lose_their_middle() -> None:
    prompt = "".join(f"{number:04} " for number in range(200))
    pair = PairPreview(1, (Span(prompt, 400, False),), (), ())
    text = shown(pair_preview(pair, marks=False), 80).replace("\n  ", "")
    assert "0000 0001" in text
    assert "0199" in text
    assert "[... 760 characters ...]" in text
    assert "0100" not in text
    barely = PairPreview(1, (Span("x" * 250, 400, False),), (), ())
    assert "characters" not in shown(pair_preview(barely, marks=False))


def test_control_characters_of_the_data_do_not_reach_the_terminal() -> None:
    pair = PairPreview(1, (Span("a\x1b[31mb\x07\r\tc", 3, False),), (), ())
    text = shown(pair_preview(pair, marks=False))
    assert "\x1b" not in text
    assert "a␛[31mb␇␍" in text


# --- the bar -----------------------------------------------------------------------------------


def test_the_bar_shows_the_phase_and_vanishes() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with PhaseBar(console) as bar:
        bar("encoding", 10, 2000, "rows")
        bar("encoding", 1020, 2000, "rows")
        [task] = bar._progress.tasks
        assert (task.description, task.percentage) == ("encoding", 51)
        assert task.fields["how_far"] == "1,020 of 2,000 rows"
        bar("loading", 0, 0, "")
        [task] = bar._progress.tasks
        assert (task.description, task.total, task.fields["how_far"]) == ("loading", None, "")


def test_no_bar_on_a_pipe() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with PhaseBar(console) as bar:
        bar("encoding", 10, 40, "rows")
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]

"""Tests of pair previews and histograms of lengths."""

from __future__ import annotations

from dpo_cli.findings import Histogram, PairPreview, Span
from dpo_cli.ui.terminal.pairs import lengths_table, pair_page, pair_preview, row_page
from tests.support.shown import shown

# --- one pair ----------------------------------------------------------------------------------

PAIR = PairPreview(
    place="line 7",
    shared=(Span("<|user|>\nHow?\n", 5, False),),
    chosen=(Span("So.\n", 2, True), Span("<|user|>\n", 2, False), Span("你好", 1, True)),
    rejected=(Span("No.\n", 2, True),),
)


def test_without_color_brackets_mark_tokens_with_loss() -> None:
    lines = shown(pair_preview(PAIR, marks=True), 100).splitlines()
    assert [line.rstrip("─ ") for line in lines] == [
        "pair at line 7: tokens with loss are in ⟦brackets⟧, ↵ is a newline",
        "shared prompt · 5 tokens, 0 with loss",
        "  <|user|>↵",
        "  How?↵",
        "chosen · 5 tokens, 3 with loss",
        "  ⟦So.↵⟧",
        "  <|user|>↵",
        "  ⟦你好⟧",
        "rejected · 2 tokens, 2 with loss",
        "  ⟦No.↵⟧",
    ]


def test_with_color_only_tokens_with_loss_are_green() -> None:
    text = shown(pair_preview(PAIR, marks=False), color=True)
    assert "\x1b[32mSo.↵" in text
    assert "\x1b[2m<|user|>↵" in text
    assert "⟦" not in text


def test_long_texts_lose_their_middle() -> None:
    prompt = "".join(f"{number:04} " for number in range(200))
    pair = PairPreview("line 1", (Span(prompt, 400, False),), (), ())
    text = shown(pair_preview(pair, marks=False), 80).replace("\n  ", "")
    assert "0000 0001" in text
    assert "0199" in text
    assert "[... 760 characters ...]" in text
    assert "0100" not in text
    barely = PairPreview("line 1", (Span("x" * 250, 400, False),), (), ())
    assert "characters" not in shown(pair_preview(barely, marks=False))


def test_control_characters_of_the_data_do_not_reach_the_terminal() -> None:
    pair = PairPreview("line 1", (Span("a\x1b[31mb\x07\r\tc", 3, False),), (), ())
    text = shown(pair_preview(pair, marks=False))
    assert "\x1b" not in text
    assert "a␛[31mb␇␍" in text


def test_a_page_has_the_whole_pair_and_its_issues() -> None:
    pair = PairPreview("line 7", (Span("x" * 2000, 5, False),), (Span("So.", 2, True),), ())
    lines = shown(pair_page(pair, ["truncated", "repeated (line 3)"], marks=True)).splitlines()
    assert lines[0] == "line 7 · truncated, repeated (line 3)"
    assert sum(line.count("x") for line in lines) == 2000
    assert shown(pair_page(pair, [], marks=True)).splitlines()[0] == "line 7"


def test_a_skipped_row_is_shown_without_control_characters() -> None:
    text = shown(row_page("line 3", "malformed", "not JSON", '{"a":"\x1b[2J' + "y" * 900))
    assert text.splitlines()[0] == "line 3 · malformed: not JSON"
    assert '  {"a":"␛[2Jyy' in text
    assert "characters ...]" in text
    assert text.count("y") < 500


# --- lengths -----------------------------------------------------------------------------------


def histogram(name: str, *counts: int) -> Histogram:
    return Histogram(name, counts, 1024, 40, 500, 3054)


def test_bars_of_lengths() -> None:
    counts = (64, 32, 8, 1, 0, 0, 0, 0)
    table = lengths_table([histogram("prompt", *counts, 4), histogram("chosen", *counts, 0)])
    assert [line.rstrip("─ ") for line in shown(table, 60).splitlines()] == [
        "lengths of 109 pairs",
        "  tokens  0 to 1,024, then beyond  median  90 %  longest",
        "  prompt  █▄▁▁    │▁                   40   500    3,054",
        "  chosen  █▄▁▁    │                    40   500    3,054",
    ]


def test_without_truncated_pairs_there_is_no_bin_for_them() -> None:
    table = lengths_table([histogram("prompt", 1, 2, 0)])
    assert "│" not in shown(table)
    assert "▄█" in shown(table)

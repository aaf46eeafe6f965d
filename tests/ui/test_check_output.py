"""Snapshots of the whole output of `dpo check`."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_cli import app
from dpo_cli.findings import Diagnosis, Finding, Histogram, Level, PairPreview, Span
from tests.support.snapshots import assert_snapshot

PAIRS = "data/pairs.jsonl"
BINS = (0, 9, 120, 80, 41, 22, 9, 14, 3, 1, 1, 4, 0, 0, 2, 1, 3, 0, 0, 0, 1, 2, 0, 1)
FINDINGS = (
    Finding("profile", Level.OK, "my.toml", "7 keys set, 42 default"),
    Finding("files", Level.OK, "", "weights, tokenizer and pairs exist"),
    Finding(
        "data-truncated",
        Level.WARN,
        PAIRS,
        "349 of 400 rows kept at 1,024 tokens; skipped: 51 too long; 58 of the kept rows (17 %) are"
        " truncated",
        "Set data.max_seq_len to 1536 to keep 372 (1.23 times the tokens).",
    ),
    Finding(
        "pairs-contradictory",
        Level.WARN,
        PAIRS,
        "4 of 349 pairs (1.1 %) contradict another pair with the same two answers: lines 3 and 17,"
        " 28 and 140",
        "Keep one of each two; together they teach nothing.",
    ),
    Finding(
        "lr-sum-small",
        Level.WARN,
        "train.learning_rate",
        "lr_sum 9.5e-7 over 158 steps: at most 6 % of the weights change in a float16 file (14 % in"
        " bfloat16, 100 % in float32)",
        "Change the learning rate and beta together; see no-saturation below.",
    ),
    Finding(
        "no-saturation",
        Level.WARN,
        "dpo.beta",
        "mean x beta 0.1: the gradient halves once chosen and rejected differ by 11 nats per token"
        " (random guessing scores 8.8), so the loss never saturates and reads 0.693 even if"
        " weights change",
        'Set dpo.reduction = "sum", dpo.beta = 0.1 and train.learning_rate = 5e-6 together, as dpo'
        " init proposes. Do not raise the learning rate alone.",
    ),
    Finding(
        "memory",
        Level.OK,
        "",
        "2.2 GB at most in real steps, including the longest batch (2 pairs, 2,044 tokens);"
        " 19.6 GB of memory left on cpu",
    ),
    Finding(
        "time",
        Level.OK,
        "",
        "about 9m 05s on this device: 3.1 s per step on average, at most 4.9 s; start 5s, reference"
        " 2m 00s, evaluation 40s, saving 2s",
    ),
)
PAIR = PairPreview(
    "line 3",
    (Span("<|im_start|>user\n为什么天是蓝的？<|im_end|>\n<|im_start|>assistant\n", 21, False),),
    (Span("因为空气散射蓝光比红光多。" * 6 + "<|im_end|>\n", 70, True),),
    (Span("Because it is.<|im_end|>\n", 6, True),),
)


def histogram(name: str, beyond: int, *figures: int) -> Histogram:
    return Histogram(name, (*BINS, *([0] * 8), beyond), 1024, *figures)


HISTOGRAMS = (
    histogram("prompt", 12, 136, 1167, 3054),
    histogram("chosen", 0, 310, 702, 1020),
    histogram("rejected", 3, 290, 680, 1133),
    histogram("longer side", 51, 520, 1400, 3310),
)


@pytest.mark.parametrize("width", [80, 160])
def test_the_page(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    diagnosis = Diagnosis(FINDINGS, PAIR, {}, HISTOGRAMS)
    monkeypatch.setattr("dpo_cli.commands.check.run_checks", lambda *_, **__: diagnosis)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text("")
    assert app.main(["check", "my.toml", "-v"]) == 0
    assert_snapshot(f"check-{width}", capsys.readouterr().out)

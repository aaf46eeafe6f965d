"""The whole page of `dpo check`, at the widths of two terminals."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_cli import app
from dpo_cli.checks import examination
from dpo_cli.findings import Diagnosis, Finding, Histogram, Level, PairPreview, Span
from tests.support.snapshots import assert_snapshot

PAIRS = "data/pairs.jsonl"
BINS = (0, 9, 120, 80, 41, 22, 9, 14, 3, 1, 1, 4, 0, 0, 2, 1, 3, 0, 0, 0, 1, 2, 0, 1)
FINDINGS = (
    Finding("profile", Level.OK, "my.toml", "7 keys stated, 42 default"),
    Finding("files", Level.OK, "", "weights, tokenizer and pairs are where the profile says"),
    Finding(
        "data-truncated",
        Level.WARN,
        PAIRS,
        "349 of 400 rows kept at 1,024 tokens; set aside: 51 too long; 58 of the kept (17%) lose"
        " their end",
        "data.max_seq_len = 1536 keeps 372 for 1.23 times the tokens",
    ),
    Finding(
        "pairs-contradictory",
        Level.WARN,
        PAIRS,
        "4 of 349 pairs (1.1%) contradict another, the same two answers the other way round: lines"
        " 3 and 17, 28 and 140",
        "keep one of each two: together they teach nothing",
    ),
    Finding(
        "lr-sum-small",
        Level.WARN,
        "train.learning_rate",
        "reach 9.5e-7, the sum of the learning rates of 158 updates: at most 6% of the weights"
        " change in a float16 file (14% in bfloat16, 100% in float32)",
        "see no-saturation, below: the learning rate and beta together",
    ),
    Finding(
        "no-saturation",
        Level.WARN,
        "dpo.beta",
        "mean x beta 0.1: the loss pushes half as hard where chosen and rejected are 11 nats a"
        " token apart (blind guessing costs 8.8): no brake but the reach of 9.5e-7; the loss will"
        " read 0.693 even if weights move",
        'together: dpo.reduction = "mean", dpo.beta = 5 and train.learning_rate = 1e-5, a reach of'
        " 0.001 that brakes itself (as dpo init proposes); never the learning rate alone",
    ),
    Finding(
        "memory",
        Level.OK,
        "",
        "2.2 GB at most, in real steps, among them the longest batch (2 pairs, 2,044 tokens);"
        " 19.6 GB more are free on cpu",
    ),
    Finding(
        "time",
        Level.OK,
        "",
        "about 9 min on this device: 3.1 s an update in the mean, 4.9 s the longest; of it start"
        " 5 s, reference 2 min, evaluation 40 s, saving 2 s",
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
    monkeypatch.setattr(examination, "examine", lambda *_: diagnosis)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text("")
    assert app.main(["check", "my.toml"]) == 0
    assert_snapshot(f"check-{width}", capsys.readouterr().out)

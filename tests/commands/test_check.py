"""Tests of `dpo check` as a command: output, exit code, and the suggested next command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dpo_cli.findings import Diagnosis, Finding, Level, PairPreview, Span
from tests.commands.conftest import Cli

OK = Finding("profile", Level.OK, "my.toml", "fine")
BAD = Finding("data-none", Level.ERROR, "pairs.jsonl", "no pair", "write some")
PAIR = PairPreview(
    "line 3", (Span("How?\n", 3, False),), (Span("So.", 2, True),), (Span("No.", 2, True),)
)


@pytest.fixture(autouse=True)
def profile_here(root: Path, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("")


@pytest.fixture
def set_findings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[object, ...]]]:
    """Replace the findings of all checks; the returned list collects the arguments."""

    def replace(*findings: Finding) -> list[tuple[object, ...]]:
        asked: list[tuple[object, ...]] = []

        def run_checks(*arguments: object, takes_steps: bool) -> Diagnosis:
            asked.append((*arguments[:4], takes_steps))
            return Diagnosis(findings, PAIR, {"lengths": {1024: {"kept": 8}}})

        monkeypatch.setattr("dpo_cli.commands.check.run_checks", run_checks)
        return asked

    return replace


SetFindings = Callable[..., list[tuple[object, ...]]]


def test_ready_to_train(dpo: Cli, set_findings: SetFindings) -> None:
    asked = set_findings(OK)
    code, out, err = dpo(
        *("check", "my.toml", "--set", "a.b=x y", "--pair", "3", "--runs-dir", "elsewhere")
    )
    assert (code, err) == (0, "")
    assert asked == [(Path("my.toml"), ["a.b=x y"], Path("elsewhere"), "3", True)]
    lines = out.splitlines()
    assert lines[0].startswith("pair at line 3")
    assert "ok  profile  my.toml  fine" in [line.rstrip() for line in lines]
    assert lines[-2:] == [
        "ready to train",
        'next: dpo train my.toml --set "a.b=x y" --runs-dir elsewhere',
    ]


def test_the_pair_is_shown_when_asked_for(dpo: Cli, set_findings: SetFindings) -> None:
    asked = set_findings(OK)
    assert dpo("check", "my.toml", "--quick")[1].startswith("ok  profile")
    assert asked[-1][-1] is False
    for option in (["-v"], ["--verbose"], ["--pair", "3"]):
        assert dpo("check", "my.toml", *option)[1].startswith("pair at line 3")


def test_not_ready_exits_1(dpo: Cli, set_findings: SetFindings) -> None:
    set_findings(OK, BAD)
    code, out, err = dpo("check", "my.toml")
    assert (code, err) == (1, "")
    assert out.splitlines()[-2:] == [
        "not ready to train: 1 error",
        "once fixed: dpo check my.toml",
    ]


def interrupted(show: bool) -> Callable[..., Diagnosis]:
    """Return checks that find a problem, then are interrupted by Ctrl-C or end."""

    def run_checks(*arguments: object, takes_steps: bool) -> Diagnosis:
        on_findings = arguments[5]
        assert callable(on_findings) == takes_steps
        if callable(on_findings):
            on_findings([OK, BAD])
            if show:
                raise KeyboardInterrupt
        return Diagnosis((OK, BAD, replace(OK, code="time")), None, {})

    return run_checks


def test_problems_are_printed_before_the_slow_steps_and_once(
    dpo: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpo_cli.commands.check.run_checks", interrupted(show=False))
    lines = dpo("check", "my.toml")[1].splitlines()
    assert lines[:4] == [
        "ERROR  data-none  pairs.jsonl  no pair",
        "                  -> write some",
        "ok  profile  my.toml  fine",
        "ok  time     my.toml  fine",
    ]
    assert dpo("check", "my.toml", "--quick")[1].count("data-none") == 1


def test_an_interrupted_check_shows_what_is_known(
    dpo: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpo_cli.commands.check.run_checks", interrupted(show=True))
    code, out, _ = dpo("check", "my.toml")
    assert code == 130
    assert out.splitlines() == [
        "ERROR  data-none  pairs.jsonl  no pair",
        "                  -> write some",
        "ok  profile  my.toml  fine",
        "stopped: the other checks did not run",
    ]


def test_a_picture_of_the_page(
    dpo: Cli, set_findings: SetFindings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    set_findings(OK, BAD)
    code, out, err = dpo("check", "my.toml", "-v", "--svg", "page.txt")
    assert (code, err) == (1, "")
    heading, *page = (tmp_path / "page.txt").read_text().splitlines()
    # The loss mask is marked on a pipe, and colored in a picture.
    assert "tokens with loss are green" in heading
    on_pipe = out.replace("⟦", "").replace("⟧", "").splitlines()[1:]
    assert [line.rstrip() for line in page] == [line.rstrip() for line in on_pipe]
    dpo("check", "my.toml", "--svg", "page.svg")
    svg = ElementTree.parse(tmp_path / "page.svg")
    assert "write some" in "".join(svg.getroot().itertext()).replace("\N{NO-BREAK SPACE}", " ")
    code, _, err = dpo("check", "my.toml", "--svg", "no/page.svg")
    assert code == 1
    assert "cannot write no/page.svg: No such file or directory" in err


@pytest.mark.parametrize(("findings", "is_ready"), [((OK,), True), ((OK, BAD), False)])
def test_json_for_programs(
    dpo: Cli, set_findings: SetFindings, findings: tuple[Finding, ...], is_ready: bool
) -> None:
    set_findings(*findings)
    code, out, err = dpo("check", "my.toml", "--json")
    report = json.loads(out)
    assert (code, err) == (0 if is_ready else 1, "")
    assert report["ready"] is is_ready
    assert report["next"] == f"dpo {'train' if is_ready else 'check'} my.toml"
    assert report["findings"][0] == {
        "code": "profile",
        "level": "ok",
        "subject": "my.toml",
        "message": "fine",
        "remedy": "",
    }
    assert report["preview"]["chosen"] == [{"text": "So.", "tokens": 2, "carries_loss": True}]
    assert report["facts"] == {"lengths": {"1024": {"kept": 8}}}


@pytest.mark.parametrize(
    "arguments", [["nothing.toml"], ["my.toml", "--pair", "0"], ["my.toml", "--pair", "x"]]
)
def test_a_wrong_command_line_exits_2(
    dpo: Cli, set_findings: SetFindings, arguments: list[str]
) -> None:
    asked = set_findings(OK)
    code, out, err = dpo("check", *arguments)
    assert (code, out) == (2, "")
    assert err
    assert asked == []


def test_a_shipped_profile_by_name(dpo: Cli, set_findings: SetFindings) -> None:
    asked = set_findings(OK)
    assert dpo("check", "dense")[1].endswith("next: dpo train dense\n")
    assert Path(str(asked[0][0])).name == "dense.toml"


def test_untrained_golden_weights_are_the_only_error(
    shared: Path, dpo: Cli, tmp_path: Path
) -> None:
    (tmp_path / "my.toml").write_text(
        f'[model]\nweights = "{shared}/golden/train/seed/full_sft_64.pth"\n'
        f'tokenizer = "{shared}/tokenizer/minimind2"\n'
        f'[data]\ndata_path = "{shared}/golden/data/train27.jsonl"\n'
        '[dpo]\nbeta = 5.0\n[train]\ndevice = "cpu"\nlearning_rate = 1e-5\n'
    )
    code, out, _ = dpo("check", "my.toml", "--json")
    report = json.loads(out)
    bad = [finding["code"] for finding in report["findings"] if finding["level"] == "error"]
    assert code == 1
    assert bad == ["tokenizer-mismatch"]
    assert report["facts"]["plan"]["pairs"]["kept"] == 27
    assert list(tmp_path.iterdir()) == [tmp_path / "my.toml"]

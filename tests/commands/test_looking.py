"""Tests of `dpo runs`, `show` and `watch` on hand-made runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Failed, Sample, Sampled, Stopped, WorkerEnded
from tests.commands.conftest import Cli
from tests.support import story
from tests.support.terminal import Terminal

pytestmark = pytest.mark.usefixtures("root")

MAIN = "import sys; from dpo_cli import app; sys.exit(app.main(sys.argv[1:]))"


@pytest.fixture
def finished(root: Path) -> RunDirectory:
    return story.write(root, "finished", *story.whole())


@pytest.fixture
def stopped(root: Path) -> RunDirectory:
    end = Stopped(reason="interrupted", step=110, optimizer_step=55)
    events = [*story.preparation(), *story.training(0, 110), story.at(171, end)]
    return story.write(root, "stopped", *events)


# --- runs -------------------------------------------------------------------------------------


def test_no_runs(dpo: Cli) -> None:
    assert dpo("runs") == (0, "there are no runs in runs\nstart one: dpo train PROFILE\n", "")
    assert dpo("runs", "--json")[1] == "[]\n"


def test_the_table_of_runs(
    dpo: Cli, root: Path, finished: RunDirectory, stopped: RunDirectory
) -> None:
    failed = story.write(root, "失败", *story.preparation(), story.at(4, Failed(message="m")))
    killed = story.write(root, "killed", *story.preparation(), WorkerEnded(exit_code=1, signal=9))
    new = story.write(root, "new")
    with new.locked():
        code, out, _ = dpo("runs")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:]}
    assert list(rows) == [run.name for run in (new, killed, failed, stopped, finished)]
    assert rows[finished.name][:6] == ["completed", "400/400", "0.5026", "0.83", "200", "10m"]
    assert rows[stopped.name][:3] == ["stopped", "110/400", "0.6482"]
    assert rows[failed.name][:4] == ["failed", "0/400", "-", "-"]
    assert rows[killed.name][:2] == ["killed", "0/400"]
    assert rows[new.name][:2] == ["training", "(process"]


@pytest.mark.parametrize(
    ("columns", "headings"),
    [
        ("120", "run state steps loss held-out acc best at time size"),
        ("80", "run state steps loss held-out acc time"),
        ("60", "run state steps loss"),
        ("30", "run state"),
    ],
)
def test_a_narrow_terminal_leaves_out_columns_but_never_wraps_a_name(
    dpo: Cli,
    finished: RunDirectory,
    stopped: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
    headings: str,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", columns)
    with stopped.locked():  # the column of the process is the first one that is left out
        out = re.sub(r"\x1b\[[0-9;]*m", "", dpo("runs")[1])
    first, *rows = out.splitlines()
    assert " ".join(first.split()) == headings
    assert [row.split()[0] for row in rows] == [stopped.name, finished.name]
    if columns != "30":
        assert all(len(line.rstrip()) <= int(columns) for line in out.splitlines())


def test_runs_as_json(dpo: Cli, stopped: RunDirectory) -> None:
    [found] = json.loads(dpo("runs", "--json")[1])
    assert found.pop("size_bytes") > 10_000
    assert found.pop("loss") == pytest.approx(0.6482, abs=1e-4)
    assert found.pop("held_out_accuracy") == pytest.approx(0.48 + 0.35 / 4)
    assert found == {
        "name": stopped.name,
        "state": "stopped",
        "holder": None,
        "started": story.STARTED,
        "step": 110,
        "total_steps": 400,
        "best_step": None,
        "seconds": 171.0,
        "problem": None,
    }


def test_show_prints_samples_whole(dpo: Cli, root: Path, stopped: RunDirectory) -> None:
    said = Sample(place="line 7", prompt="Why\nnot?", policy="Because. " * 40, reference="No.")
    events = [
        *story.preparation(),
        *story.training(0, 50),
        story.at(90, Sampled(step=50, optimizer_step=25, samples=(said,), seconds=1.0)),
    ]
    run = story.write(root, "sampled", *events)
    code, out, _ = dpo("show", run.name, "--samples")
    assert code == 0
    assert out.splitlines() == [
        "after step 25",
        "line 7: Why not?",
        "  reference: No.",
        f"  policy: {('Because. ' * 40).strip()}",
    ]
    code, _, err = dpo("show", stopped.name, "--samples")
    assert code == 1
    assert "because eval.num_samples is 0" in err
    assert f"dpo chat {stopped.designation}" in err


# --- show -------------------------------------------------------------------------------------


def test_show_the_end(dpo: Cli, finished: RunDirectory) -> None:
    code, out, err = dpo("show")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].endswith("completed")
    assert lines[-1].rstrip() == f"export: dpo export {finished.name} --best  (step 100)"
    assert (len(lines), len(lines[0])) == (30, 100)


def test_show_a_moment_in_any_size(dpo: Cli, finished: RunDirectory) -> None:
    _, out, _ = dpo("show", "finished", "--at", "100", "--width", "80", "--height", "24")
    lines = out.splitlines()
    assert (len(lines), len(lines[0])) == (24, 80)
    assert lines[0].endswith("training")
    assert lines[1].startswith("micro-step 100/400")
    assert "saved     step 50, 0s ago" in out
    assert dpo("show", "--at", "0")[1].splitlines()[1].startswith("micro-step 0/400")


def test_a_run_without_process_and_end_was_killed(dpo: Cli, root: Path) -> None:
    run = story.write(root, "lost", *story.preparation(), *story.training(0, 10))
    assert dpo("show")[1].splitlines()[0].endswith("killed")
    with run.locked():
        assert dpo("show")[1].splitlines()[0].endswith("training")


def test_show_into_files(dpo: Cli, finished: RunDirectory) -> None:
    assert dpo("show", "--svg", "panel.svg") == (0, "wrote panel.svg\n", "")
    picture = Path("panel.svg").read_text(encoding="utf-8")
    assert picture.startswith("<svg")
    assert finished.name in picture
    assert "@font-face" not in picture  # nothing is fetched to look at it
    assert dpo("show", "--svg", "panel.txt", "--width", "80", "--height", "24")[0] == 0
    assert len(Path("panel.txt").read_text(encoding="utf-8").splitlines()) == 24
    code, _, err = dpo("show", "--svg", "missing/panel.svg")
    assert code == 1
    assert err.splitlines() == [
        "error: cannot write missing/panel.svg: No such file or directory",
        "help: Choose another path for the file.",
    ]


def test_show_a_run_that_is_not_there(dpo: Cli, finished: RunDirectory) -> None:
    assert dpo("show", "fnished")[0] == 2


# --- watch ------------------------------------------------------------------------------------


def test_on_a_pipe_it_prints_plain_lines(dpo: Cli, finished: RunDirectory) -> None:
    code, out, _ = dpo("watch")
    assert code == 0
    assert out.splitlines()[0].startswith("model")
    last = out.splitlines()[-1]
    assert last.startswith(f"export: dpo export {finished.name} --best  (step 100)  (")
    assert last.endswith("loaded back and compared)")


def test_a_finished_run_is_shown_as_it_ended(finished: RunDirectory) -> None:
    with Terminal(MAIN, "watch", cwd=Path.cwd(), columns=100, rows=30) as terminal:
        assert terminal.wait() == 0
        assert "\x1b[?1049h" not in terminal.raw
        assert terminal.lines[0].endswith("completed")
        assert len(terminal.lines) == 29  # and one more for the prompt


def test_a_finished_run_is_shown_again(finished: RunDirectory) -> None:
    with Terminal(MAIN, "watch", "--speed", "100", cwd=Path.cwd()) as terminal:
        terminal.until_shown("training")
        terminal.until_shown("d leave")
        assert terminal.wait() == 0  # after 6 seconds
        assert terminal.lines[0].endswith("completed")
    steps = {line.split()[1] for line in terminal.raw.split("\n") if line.startswith("micro-step ")}
    assert len(steps) > 2  # a busy machine shows fewer frames, but not the last one only


def test_a_replay_can_be_left(finished: RunDirectory) -> None:
    with Terminal(MAIN, "watch", "--speed", "1", cwd=Path.cwd()) as terminal:
        terminal.until_shown("preparing")
        terminal.press("d")
        assert terminal.wait() == 0
        assert terminal.lines == []


def test_ctrl_c_leaves_a_watched_run_alone(root: Path) -> None:
    run = story.write(root, "busy", *story.preparation(), *story.training(0, 10))
    with run.locked(), Terminal(MAIN, "watch", cwd=Path.cwd()) as terminal:
        terminal.until_shown("step 10/400")
        terminal.press("\x03")
        assert terminal.wait() == 130
        assert terminal.modes_now() == terminal.modes
    assert run.take_request() is None

"""Tests of the run directory: name, lock, lookup, requests, and disk errors."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_cli.errors import DpoError, ExitCode, NoSpaceError, UsageError
from dpo_cli.run import directory, plan
from dpo_cli.run.directory import RunDirectory, runs_root
from dpo_cli.run.disk import explain_disk_errors, is_no_space
from dpo_cli.run.lookup import find_run, find_runs, find_saved_run
from tests.support.story import PLAN


def make_run(root: Path, directory_name: str) -> RunDirectory:
    (root / directory_name).mkdir(parents=True)
    run = RunDirectory(root / directory_name)
    run.profile_path.write_text("")
    return run


def test_root_is_the_option_then_the_environment_then_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPO_RUNS_DIR", "from-environment")
    assert runs_root(Path("option")) == Path("option")
    assert runs_root(None) == Path("from-environment")
    monkeypatch.delenv("DPO_RUNS_DIR")
    assert runs_root(None) == Path("runs")


def test_created_run_has_its_profile_and_a_name_with_the_time(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "a" / "runs", "dense", "x = 1\n")
    assert re.fullmatch(r"dense-\d{8}-\d{6}-[0-9a-f]{4}", run.name)
    assert run.profile_name == "dense"
    assert run.read_profile() == "x = 1\n"
    assert run.checkpoints_path.is_dir()
    assert [r.path for r in find_runs(tmp_path / "a" / "runs")] == [run.path]


def test_names_sort_by_creation_within_one_second(tmp_path: Path) -> None:
    created = [RunDirectory.create(tmp_path, "dense", "").name for _ in range(20)]
    assert [run.name for run in find_runs(tmp_path)] == created[::-1]


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc", "etc"),
        ("/absolute/path", "absolute-path"),
        (".hidden", "hidden"),
        ("..", "run"),
        ("a b\n\x00c", "a-b-c"),
        ("偏好 对齐", "偏好-对齐"),
        ("x" * 500, "x" * 64),
    ],
)
def test_a_name_cannot_leave_the_root(tmp_path: Path, name: str, safe: str) -> None:
    run = RunDirectory.create(tmp_path / "runs", name, "")
    assert run.path.resolve().parent == (tmp_path / "runs").resolve()
    assert run.profile_name == safe


def test_a_root_that_is_a_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UsageError, match="a file is in the way"):
        RunDirectory.create(tmp_path / "runs", "dense", "")


@pytest.mark.parametrize(
    ("number", "expected", "code"),
    [
        (errno.ENOSPC, NoSpaceError, ExitCode.NO_SPACE),
        (errno.EDQUOT, NoSpaceError, ExitCode.NO_SPACE),
        (errno.EROFS, DpoError, ExitCode.FAILED),
        (errno.EACCES, DpoError, ExitCode.FAILED),
    ],
)
def test_creating_on_a_bad_disk_names_it_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    expected: type[DpoError],
    code: ExitCode,
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(directory, "write_text_atomically", refuse)
    with pytest.raises(expected, match=re.escape(str(tmp_path))) as caught:
        RunDirectory.create(tmp_path, "dense", "")
    assert caught.value.exit_code is code
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_no_space_is_found_in_chains_and_texts() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    wrapped = RuntimeError("file write failed")
    wrapped.__context__ = full
    caused = RuntimeError("cannot save")
    caused.__cause__ = wrapped
    assert is_no_space(wrapped)
    assert is_no_space(caused)
    assert is_no_space(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_no_space(RuntimeError("shape mismatch"))
    loop = RuntimeError("a")
    loop.__context__ = RuntimeError("b")
    loop.__context__.__context__ = loop
    assert not is_no_space(loop)


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(KeyError), explain_disk_errors(tmp_path):
        raise KeyError("mine")


# --- finding ----------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in (
        "dense-20260101-100000-0000",
        "dense-20260102-100000-0000",
        "dense-big-20260103-100000-0000",
        "moe-20250101-100000-ffff",
    ):
        make_run(tmp_path / "runs", name)
    (tmp_path / "runs" / "notes-20270101-000000-0000").mkdir()  # has no profile: not a run
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (None, "dense-big-20260103-100000-0000"),
        ("dense-20260101-100000-0000", "dense-20260101-100000-0000"),
        ("dense", "dense-20260102-100000-0000"),
        ("dense-20260101", "dense-20260101-100000-0000"),
        ("m", "moe-20250101-100000-ffff"),
    ],
)
def test_found_by_name_profile_or_prefix(root: Path, query: str | None, found: str) -> None:
    assert find_run(root, query).name == found


@pytest.mark.parametrize("query", [None, "dense"])
def test_newer_runs_without_weights_are_passed_over(root: Path, query: str | None) -> None:
    said: list[str] = []
    with_weights, without = "dense-20260101-100000-0000", "dense-20260102-100000-0000"
    newest = find_run(root, query).name
    assert find_saved_run(root, query, said.append).name == newest  # no run has weights
    (root / with_weights / "checkpoints/step-00000004").mkdir(parents=True)
    (root / with_weights / "plan.json").touch()
    assert not said
    assert find_saved_run(root, query, said.append).name == with_weights
    assert said == [f"{newest} has saved nothing yet; this is {with_weights}"]
    # A run that was named itself is the one that is meant.
    assert find_saved_run(root, without, said.append).name == without
    assert len(said) == 1


def test_found_by_path(root: Path) -> None:
    path = root / "moe-20250101-100000-ffff"
    assert find_run(Path("elsewhere"), f"{path}/").path == path
    with pytest.raises(UsageError, match="is not a run"):
        find_run(root, f"{root}/notes-20270101-000000-0000")


def test_ambiguous_prefix_lists_the_runs(root: Path) -> None:
    with pytest.raises(UsageError) as caught:
        find_run(root, "den")
    assert len(caught.value.details) == 3


def test_unknown_name_suggests_near_ones(root: Path) -> None:
    with pytest.raises(UsageError, match="no run 'dnese'") as caught:
        find_run(root, "dnese")
    assert "Did you mean dense" in caught.value.remedy
    with pytest.raises(UsageError) as caught:
        find_run(root, "zzzz")
    assert len(caught.value.details) == 4


def test_no_runs_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no runs"):
        find_run(tmp_path / "nothing", None)


def test_default_prefers_and_falls_back_to_the_newest(root: Path) -> None:
    assert find_run(root, None, prefer=lambda run: run.profile_name == "moe").profile_name == "moe"
    assert find_run(root, None, prefer=lambda run: False).profile_name == "dense-big"


def test_designation_is_the_name_in_the_default_root_else_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DPO_RUNS_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    default = RunDirectory.create(runs_root(None), "dense", "")
    other = RunDirectory.create(tmp_path / "other", "dense", "")
    assert default.designation == default.name
    assert find_run(runs_root(None), default.designation).name == default.name
    assert find_run(runs_root(None), other.designation).path == other.path


# --- lock -------------------------------------------------------------------------------------

_TAKE_LOCK = """
import sys, time
from pathlib import Path
from dpo_cli.errors import DpoError
from dpo_cli.run.directory import RunDirectory
try:
    RunDirectory(Path(sys.argv[1])).lock()
except DpoError as error:
    print("refused:", error.message, flush=True)
else:
    print("won", flush=True)
    sys.stdin.read()
"""


def test_one_of_20_processes_gets_the_lock_and_the_others_name_it(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "dense", "")
    lockers = [
        subprocess.Popen(
            [sys.executable, "-c", _TAKE_LOCK, str(run.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(20)
    ]
    try:
        answers = [locker.stdout.readline().strip() for locker in lockers if locker.stdout]
        [winner] = [k for k, answer in enumerate(answers) if answer == "won"]
        refusals = [answer for answer in answers if answer != "won"]
        assert len(refusals) == 19
        # A process that lost while the winner was writing its name may see "another process".
        assert sum(f"process {lockers[winner].pid} on" in refusal for refusal in refusals) > 0
        assert run.holder() is not None
        assert f"process {lockers[winner].pid} on" in (run.holder() or "")

        lockers[winner].kill()
        lockers[winner].wait()
        assert run.holder() is None  # free at once after a SIGKILL
        os.close(run.lock())
    finally:
        for locker in lockers:
            locker.communicate()


def test_lock_lives_as_long_as_a_process_that_inherited_it(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "dense", "")
    with run.locked() as lock:
        heir = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            pass_fds=(lock,),
        )
    assert run.holder() is not None
    with pytest.raises(DpoError, match="is being trained by process") as caught:
        run.lock()
    assert "dpo stop" in caught.value.remedy
    heir.communicate()
    assert run.holder() is None


def test_reading_the_holder_neither_takes_nor_creates_the_lock(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "dense", "")
    assert run.holder() is None
    assert not (run.path / "lock").exists()
    with run.locked():
        assert run.holder()
    assert run.holder() is None


# --- files ------------------------------------------------------------------------------------


def test_plan_and_completion(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "dense", "")
    assert run.read_plan() is None
    run.write_plan(PLAN)
    assert run.read_plan() == PLAN
    for damaged in ("{", "[]", json.dumps({"device": "cpu", "version": plan.VERSION})):
        run.plan_path.write_text(damaged)
        with pytest.raises(DpoError, match="is damaged"):
            run.read_plan()
    for version, which in ((0, "an earlier"), (plan.VERSION + 1, "a later")):
        run.plan_path.write_text(json.dumps({**PLAN.to_dict(), "version": version}))
        with pytest.raises(DpoError, match=f"written by {which} version of dpo"):
            run.read_plan()

    assert not run.is_completed
    run.clear_completed()()
    assert not run.is_completed
    run.mark_completed(optimizer_step=7, weights="rlhf_512.pth")
    undo = run.clear_completed()
    assert not run.is_completed
    undo()
    assert json.loads(run.completed_path.read_text())["optimizer_step"] == 7


def test_a_request_is_taken_once_and_only_if_known(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "dense", "")
    assert run.take_request() is None
    run.put_request("evaluate")
    run.put_request("stop")
    run.put_request("save")
    assert run.is_requested("stop")
    # No request replaces another one, and the most urgent is taken first.
    assert [run.take_request() for _ in range(4)] == ["stop", "save", "evaluate", None]
    assert not run.is_requested("stop")
    with pytest.raises(ValueError, match="not a request"):
        run.put_request("dance")

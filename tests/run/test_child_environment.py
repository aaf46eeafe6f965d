"""Tests of the environment of child processes: module search path, and the spin of OpenMP."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dpo_cli.run.child_environment import bounded_spin, child_environment
from tests.support.cli import REPOSITORY


@pytest.mark.parametrize("relative", ["", ".", "sub/dir", "../beside"])
def test_children_get_no_relative_search_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: str
) -> None:
    """An empty entry is the working directory, as `export PYTHONPATH=$PYTHONPATH:/x` leaves it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([relative, "/mine", relative]))
    assert child_environment()["PYTHONPATH"] == "/mine"


def test_the_search_path_of_this_package_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("PYTHONPATH", ".")
    assert child_environment()["PYTHONPATH"] == str(REPOSITORY)


def test_children_of_children_have_a_safe_path_and_the_pid_of_their_parent() -> None:
    environment = child_environment()
    assert environment["PYTHONSAFEPATH"] == "1"
    assert environment["DPO_PARENT_PID"] == str(os.getpid())


def test_the_spin_is_bounded_for_both_libraries() -> None:
    bounds = bounded_spin({})
    assert set(bounds) == {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    assert 0 < int(bounds["GOMP_SPINCOUNT"]) <= 10_000
    assert 0 < int(bounds["KMP_BLOCKTIME"]) < 200


@pytest.mark.parametrize(
    ("own", "added"),
    [
        ({"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME"}),
        ({"KMP_BLOCKTIME": "infinite"}, {"GOMP_SPINCOUNT"}),
        ({"OMP_WAIT_POLICY": "active"}, set()),
        ({"OMP_NUM_THREADS": "2"}, {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"}),
    ],
)
def test_settings_of_the_user_take_precedence(own: dict[str, str], added: set[str]) -> None:
    assert set(bounded_spin(own)) == added


def test_every_child_gets_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    assert bounded_spin({}).items() <= child_environment().items()
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert child_environment()["GOMP_SPINCOUNT"] == "7"

"""Tests of processes started by torchrun or Slurm: rank, and the run of an earlier attempt."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dpo_cli.errors import UsageError
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.placement import Place, begun_run, first_host, mark_run, recognize
from tests.support.placement import SLURM, TORCHRUN


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


def test_a_single_process_has_no_place() -> None:
    assert recognize({}) is None
    assert recognize({"WORLD_SIZE": "1", "RANK": "0"}) is None
    assert recognize({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None
    assert recognize({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None  # of a batch script


def test_torchrun_is_recognized() -> None:
    place = recognize(TORCHRUN)
    assert place is not None
    assert (place.starter, place.rank, place.world_size) == ("torchrun", 3, 4)
    assert place.environment == {}
    one = {**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    assert recognize(one) is not None
    assert recognize(without(one, "TORCHELASTIC_RUN_ID")) is None


def test_slurm_is_recognized_and_translated_for_torch() -> None:
    place = recognize(SLURM)
    assert place is not None
    assert (place.starter, place.rank, place.world_size) == ("srun", 9, 16)
    assert place.environment == {
        "RANK": "9",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "16",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "11236",
    }
    stated = recognize({**SLURM, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "2222"})
    assert stated is not None
    assert not {"MASTER_ADDR", "MASTER_PORT"} & set(stated.environment)


def test_torchrun_within_slurm_takes_precedence() -> None:
    place = recognize({**SLURM, **TORCHRUN})
    assert place is not None
    assert place.starter == "torchrun"


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_missing_variables_of_torchrun_are_named(missing: str) -> None:
    with pytest.raises(UsageError, match=f"(?m)but not {missing}$"):
        recognize(without(TORCHRUN, missing))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RANK": "4"}, "RANK=4, LOCAL_RANK=1 and WORLD_SIZE=4: ranks are counted from 0"),
        ({"RANK": "x"}, "RANK='x', which is no whole number"),
    ],
)
def test_a_contradictory_environment_is_refused(changed: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recognize({**TORCHRUN, **changed})


def test_missing_variables_of_slurm_are_named() -> None:
    with pytest.raises(UsageError, match="but not SLURM_LOCALID"):
        recognize(without(SLURM, "SLURM_LOCALID"))
    with pytest.raises(UsageError, match="contains no host"):
        recognize(without(SLURM, "SLURM_STEP_NODELIST"))


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("login", "login"),
        ("gpu3,gpu5", "gpu3"),
        ("node[01-04,07],gpu3", "node01"),
        ("node[7,9]-ib", "node7-ib"),
        ("r[1-2]c[03-10]", "r1c03"),
    ],
)
def test_the_first_host_of_slurms_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_the_next_attempt_of_a_torchrun_finds_its_run(tmp_path: Path) -> None:
    place = Place("torchrun", 0, 2, {}, "none here:7:100")
    assert begun_run(tmp_path, place) is None
    mine = RunDirectory.create(tmp_path, "mine", "")
    mark_run(mine, place)
    RunDirectory.create(tmp_path, "by hand", "")
    others = RunDirectory.create(tmp_path, "others", "")
    mark_run(others, dataclasses.replace(place, group="none here:8:200"))
    assert begun_run(tmp_path, place) == mine

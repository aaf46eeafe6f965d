"""Tests of the arguments of torchrun for a [launch] table, and of counting GPUs without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_cli.errors import UsageError
from dpo_cli.profile.launch import Launch
from dpo_cli.profile.schema import Profile
from dpo_cli.run import torchrun
from dpo_cli.run.gpus import count_gpus
from dpo_cli.run.torchrun import processes_here, torchrun_arguments

MACHINES = {"nnodes": 2, "rdzv_endpoint": "nowhere.invalid:29400"}


def profile(device: str, nproc: int | str) -> Profile:
    return Profile.model_validate(
        {
            "model": {"tokenizer": "m"},
            "data": {"data_path": "d"},
            "train": {"device": device},
            "launch": {"nproc_per_node": nproc},
        }
    )


@pytest.mark.parametrize(
    ("present", "visible", "count"),
    [
        (0, None, 0),
        (0, "0,1", 0),
        (8, None, 8),
        (8, "2,3", 2),
        (8, "", 0),
        (8, "0,-1,3", 1),
        (2, "0,1,2", 2),
        (2, "GPU-5d6f,GPU-77aa", 2),
    ],
)
def test_count_gpus(tmp_path: Path, present: int, visible: str | None, count: int) -> None:
    for name in ["nvidiactl", "nvidia-uvm", *(f"nvidia{number}" for number in range(present))]:
        (tmp_path / name).touch()
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert count_gpus(environment, tmp_path) == count


@pytest.mark.parametrize(
    ("device", "nproc", "processes"),
    [
        *(("auto", "auto", 4), ("cuda", "auto", 4), ("cuda:1", "auto", 1), ("cpu", "auto", 1)),
        *(("auto", 3, 3), ("cpu", 2, 2), ("cuda:1", 1, 1)),
    ],
)
def test_processes_on_a_machine_with_four_gpus(
    monkeypatch: pytest.MonkeyPatch, device: str, nproc: int | str, processes: int
) -> None:
    monkeypatch.setattr(torchrun, "count_gpus", lambda: 4)
    assert processes_here(profile(device, nproc)) == processes


def test_auto_is_one_process_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "count_gpus", lambda: 0)
    assert processes_here(profile("auto", "auto")) == 1


def test_several_processes_cannot_share_one_gpu() -> None:
    with pytest.raises(UsageError, match="'cuda:1' is one GPU"):
        processes_here(profile("cuda:1", 2))


def test_one_machine() -> None:
    assert torchrun_arguments(Launch(max_restarts=3), 2, ["--rdzv-id", "mine"]) == [
        *("--nnodes", "1", "--nproc-per-node", "2"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--rdzv-id", "dpo"),
        *("--local-addr", "127.0.0.1", "--max-restarts", "3", "--rdzv-id", "mine"),
    ]


@pytest.mark.parametrize(("node_rank", "is_host"), [(0, "true"), (1, "false")])
def test_the_first_machine_hosts_the_rendezvous(node_rank: int, is_host: str) -> None:
    assert torchrun_arguments(Launch(**MACHINES, node_rank=node_rank), 8) == [
        *("--nnodes", "2", "--nproc-per-node", "8"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "nowhere.invalid:29400"),
        *("--rdzv-id", "dpo", "--rdzv-conf", f"is_host={is_host}", "--max-restarts", "0"),
    ]


def test_static_rendezvous_numbers_the_machines() -> None:
    words = torchrun_arguments(Launch(**MACHINES, node_rank=1, rdzv_backend="static"), 8)
    assert words[words.index("--node-rank") + 1] == "1"
    assert "--rdzv-conf" not in words


def test_the_local_address_is_the_one_on_the_way_to_the_rendezvous() -> None:
    launch = Launch(nnodes=2, rdzv_endpoint="127.0.0.1:29400")
    words = torchrun_arguments(launch, 1)
    assert words[words.index("--local-addr") + 1] == "127.0.0.1"

"""Tests of `dpo check` for several ranks: environment, devices, a real all-reduce, the recipe."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch

from dpo_cli.checks import launch
from dpo_cli.checks.launch import check_launch
from dpo_cli.checks.reporter import Reporter
from dpo_cli.compute.device import Device
from dpo_cli.findings import Finding, Level
from dpo_cli.profile.schema import Profile
from dpo_cli.run import torchrun
from tests.checks.conftest import Examine, of
from tests.support.placement import TORCHRUN

CPU = Device(torch.device("cpu"), torch.float32)
GPU = Device(torch.device("cuda", 0), torch.bfloat16)


@pytest.fixture(autouse=True)
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine with four GPUs."""
    monkeypatch.setattr(torchrun, "count_gpus", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def check(device: Device = CPU, **keys: Any) -> tuple[int | None, dict[str, Finding]]:
    """Return the number of ranks, and the findings by code."""
    profile = Profile.model_validate(
        {"model": {"tokenizer": "m"}, "data": {"data_path": "d"}, "launch": keys}
    )
    reporter = Reporter()
    world_size = check_launch(reporter, profile, device, lambda *_: None)
    return world_size, {finding.code: finding for finding in reporter.findings}


@pytest.fixture
def no_all_reduce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_check_all_reduce", lambda *_: None)


def test_one_process_has_no_findings() -> None:
    assert check() == (1, {})


def test_idle_gpus_are_reported() -> None:
    _, findings = check(GPU)
    assert findings["idle-gpus"].message == "1 of 4 GPUs used"
    assert "--nproc auto" in findings["idle-gpus"].remedy


@pytest.mark.usefixtures("no_all_reduce")
def test_each_process_needs_a_visible_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    world_size, findings = check(GPU, nproc_per_node="auto")
    assert (world_size, findings["launch-devices"].level) == (4, Level.OK)
    assert findings["launch-devices"].message == "4 processes on 4 GPUs, over nccl"

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    _, findings = check(GPU, nproc_per_node=3)
    assert findings["launch-devices"].level is Level.ERROR
    assert "has 2 GPUs (CUDA_VISIBLE_DEVICES=0,1)" in findings["launch-devices"].message
    assert findings["all-reduce"].level is Level.SKIP

    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    assert "no NCCL" in check(GPU, nproc_per_node=2)[1]["launch-devices"].message


@pytest.mark.usefixtures("no_all_reduce")
def test_more_processes_than_cores_are_reported() -> None:
    findings = check(nproc_per_node=4096)[1]["launch-devices"]
    assert (findings.level, "4096 processes on" in findings.message) == (Level.WARN, True)


@pytest.mark.usefixtures("no_all_reduce")
def test_the_rendezvous_endpoint() -> None:
    keys = {"nproc_per_node": 2, "nnodes": 2}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        world_size, findings = check(**keys, rdzv_endpoint=endpoint)
        assert (world_size, findings["endpoint-taken"].level) == (4, Level.ERROR)
        assert "Choose a free port" in findings["endpoint-taken"].remedy
        _, findings = check(**keys, rdzv_endpoint=endpoint, node_rank=1)
        assert findings["endpoint"].level is Level.OK
    assert check(**keys, rdzv_endpoint=endpoint)[1]["endpoint"].level is Level.OK
    findings = check(**keys, rdzv_endpoint="nowhere.invalid:2222")[1]
    assert "nowhere.invalid cannot be resolved" in findings["endpoint-unknown"].message


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    world_size, findings = check(nproc_per_node=2)
    assert world_size == 4
    assert findings["launch-environment"].message == "rank 3 of 4; [launch] is ignored"
    monkeypatch.delenv("LOCAL_RANK")
    world_size, findings = check(nproc_per_node=2)
    assert (world_size, findings["launch-environment"].level) == (None, Level.ERROR)
    assert "not LOCAL_RANK" in findings["launch-environment"].message


def test_a_real_all_reduce_and_another_recipe(examined: Examine) -> None:
    diagnosis = examined("launch.nproc_per_node=2")
    assert of(diagnosis, "all-reduce").level is Level.OK
    lr_sum = of(diagnosis, "launch-lr-sum")
    assert lr_sum.level is Level.WARN
    assert lr_sum.message == (
        "1 process: 4 steps of 4 pairs, lr_sum 0.00029; 2 processes: 2 steps of 8 pairs, lr_sum"
        " 0.00012"
    )
    assert lr_sum.remedy.startswith("Set train.global_batch_size = 4 for the same recipe")


def test_the_same_recipe_on_two_processes(
    examined: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_check_all_reduce", lambda *_: None)
    keys = ("launch.nproc_per_node=2", "train.batch_size=2")
    same = examined(*keys, "train.global_batch_size=4")
    assert of(same, "launch-lr-sum").level is Level.OK
    assert of(same, "launch-lr-sum").message.endswith("the same recipe")
    unshared = examined("launch.nproc_per_node=2", "train.global_batch_size=4")
    assert of(unshared, "launch-batches").level is Level.ERROR
    assert "4 x 2 = 8" in of(unshared, "launch-batches").message


def test_a_failed_all_reduce_has_the_error_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    findings = check(nproc_per_node=2)[1]["all-reduce"]
    assert findings.level is Level.ERROR
    assert findings.message.startswith("rank ")
    assert "no-such-interface" in findings.message
    assert "GLOO_SOCKET_IFNAME" in findings.remedy

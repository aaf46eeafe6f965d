"""Tests that the fake GPU detects the events that other tests of this folder search for."""

from __future__ import annotations

import pytest
import torch

from tests.support.fake_gpu import TYPE, Recorder, device, fake_gpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    with fake_gpu(monkeypatch) as recorder:
        pass
    return recorder


def test_kernels_are_counted_and_views_are_not(gpu: Recorder) -> None:
    with gpu:
        row = torch.zeros(4, 6, device=device())
        (row.view(6, 4).t() + 1).sum()
    assert gpu.record.kernels == {"zeros": 1, "add": 1, "sum": 1}
    assert not gpu.record.waits


def test_waits_are_found(gpu: Recorder) -> None:
    with gpu:
        row = torch.ones(4, device=device())
        row.sum().item()
        row.tolist()
        row.cpu()
        torch.ones(3).to(device())
        torch.ones(3).to(device(), non_blocking=True)
    found = [wait.split()[0] for wait in gpu.record.waits]
    assert found == ["_local_scalar_dense", "tolist", "copy", "copy"]
    assert sum(gpu.record.copies.values()) == 1


def test_a_shape_that_depends_on_values_is_a_wait(gpu: Recorder) -> None:
    with gpu:
        row = torch.ones(4, device=device())
        with pytest.raises(Exception, match="nonzero"):
            row.nonzero()
    assert [wait.split()[0] for wait in gpu.record.waits] == ["nonzero"]


def test_tensors_of_two_devices_are_a_mix(gpu: Recorder) -> None:
    with gpu:
        row = torch.ones(4, device=device())
        with pytest.raises(Exception, match="device"):
            row + torch.ones(4)
        row * torch.tensor(2.0)  # a number from the CPU is no mix
    assert [mix.split()[0] for mix in gpu.record.mixes] == ["add"]


def test_autocast_computes_products_in_half_precision(gpu: Recorder) -> None:
    with gpu:
        weight = torch.nn.Parameter(torch.ones(4, 4, device=device()))
        with torch.autocast(TYPE, torch.bfloat16):
            product = weight @ weight
            assert product.dtype == torch.bfloat16
            assert product.exp().dtype == torch.float32
        with torch.autograd.set_multithreading_enabled(False):
            product.float().sum().backward()
    assert weight.grad is not None
    assert (weight.grad.dtype, weight.grad.device.type) == (torch.float32, TYPE)
    assert gpu.record.kernels["mm"] == 3

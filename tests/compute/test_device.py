from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dpo_cli.compute import device
from dpo_cli.training.plan import environment


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("tf32", "expected"), [(False, "highest"), (True, "high")])
def test_tf32_is_set_on_cuda_only_and_recorded(tf32: bool, expected: str) -> None:
    """torch calls TF32 "high". Setting it needs no card."""
    device.configure_device(device.Device(torch.device("cuda"), torch.float32), None, tf32=tf32)
    assert torch.get_float32_matmul_precision() == environment()["float32_matmul"] == expected
    device.configure_device(device.Device(torch.device("cpu"), torch.float32), "highest", tf32=tf32)
    assert torch.get_float32_matmul_precision() == "highest"

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dpo_cli.compute import accelerator, device, memory
from dpo_cli.errors import DpoError
from dpo_cli.training.plan import environment


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("tf32", "expected"), [(False, "highest"), (True, "high")])
def test_tf32_is_set_on_cuda_only_and_recorded(tf32: bool, expected: str) -> None:
    """torch calls TF32 "high". The setting needs no GPU."""
    device.configure_device(device.Device(torch.device("cuda"), torch.float32), None, tf32=tf32)
    assert torch.get_float32_matmul_precision() == environment()["float32_matmul"] == expected
    device.configure_device(device.Device(torch.device("cpu"), torch.float32), "highest", tf32=tf32)
    assert torch.get_float32_matmul_precision() == "highest"


class Cuda:
    """Replace functions of `torch.cuda` by those of a machine with one GPU."""

    def __init__(self, *, has_bfloat16: bool = True, error: str = "") -> None:
        self.has_bfloat16, self.error, self.current = has_bfloat16, error, ""

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch, "ones", self.ones)
        functions = {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "set_device": lambda name: setattr(self, "current", name),
            "get_device_name": lambda index=None: "Test GPU",
            "get_device_capability": lambda index=None: (7, 5),
            "get_arch_list": lambda: ["sm_90"],
            "is_bf16_supported": lambda including_emulation: (
                including_emulation or self.has_bfloat16
            ),
        }
        for name, function in functions.items():
            monkeypatch.setattr(torch.cuda, name, function)

    def ones(self, *size: int, device: str) -> torch.Tensor:
        if self.error:
            raise RuntimeError(self.error)
        return torch.full(size, 1.0)


class TestCuda:
    def test_attention_of_cudnn_is_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """cuDNN would build a plan for each new pair of lengths."""
        was = torch.backends.cuda.cudnn_sdp_enabled()
        torch.backends.cuda.enable_cudnn_sdp(True)
        Cuda().install(monkeypatch)
        try:
            device.resolve("cuda", "auto")
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            assert torch.backends.cuda.flash_sdp_enabled()
        finally:
            torch.backends.cuda.enable_cudnn_sdp(was)

    @pytest.mark.parametrize(("has_bfloat16", "dtype"), [(True, "bfloat16"), (False, "float16")])
    def test_auto_is_what_the_gpu_has_hardware_for(
        self, has_bfloat16: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Cuda(has_bfloat16=has_bfloat16).install(monkeypatch)
        assert device.resolve("auto", "auto").dtype_name == dtype
        stated = device.resolve("cuda", "bfloat16")
        assert stated.dtype_name == "bfloat16"
        assert stated.emulates_dtype != has_bfloat16
        assert not device.resolve("cuda", "float32").emulates_dtype

    @pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
    def test_the_first_gpu_has_one_name(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Several ranks find a log-prob that one process stored, and vice versa."""
        cuda = Cuda()
        cuda.install(monkeypatch)
        assert str(device.resolve(name, "auto").torch_device) == "cuda:0"
        assert str(device.resolve("cuda", "auto", local_rank=0).torch_device) == "cuda:0"
        assert cuda.current == "cuda:0"

    def test_memory_grows_in_segments_unless_the_user_decides(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Cuda().install(monkeypatch)
        device.resolve("cuda", "auto")
        assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
        monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
        monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")
        device.resolve("cuda", "auto")
        assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ
        assert os.environ["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:64"

    @pytest.mark.parametrize(
        ("error", "remedy"),
        [
            ("CUDA error: out of memory", "nvidia-smi"),
            ("CUDA-capable device(s) is/are busy or unavailable", "nvidia-smi"),
            ("no kernel image is available for execution on the device", "Install a build"),
        ],
    )
    def test_a_gpu_that_cannot_be_opened_says_why(
        self, error: str, remedy: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Cuda(error=error).install(monkeypatch)
        with pytest.raises(DpoError, match="Test GPU") as caught:
            device.resolve("cuda", "auto")
        assert error in caught.value.message
        assert remedy in caught.value.remedy


def test_partial_sums_stay_in_float32_on_cuda() -> None:
    matmul = torch.backends.cuda.matmul
    names = [f"allow_{name}_reduced_precision_reduction" for name in ("bf16", "fp16")]
    before = {name: getattr(matmul, name) for name in names}
    try:
        for name in names:
            setattr(matmul, name, True)
        device.configure_device(device.Device(torch.device("cuda"), torch.bfloat16))
        assert not any(getattr(matmul, name) for name in names)
    finally:
        for name, value in before.items():
            setattr(matmul, name, value)


def test_deterministic_algorithms_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    try:
        device.make_deterministic()
        assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    finally:
        torch.use_deterministic_algorithms(False)


def find(monkeypatch: pytest.MonkeyPatch, kind: str | None) -> None:
    """Let torch find one accelerator of this kind, and no CUDA."""
    found = torch.device(kind) if kind else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    monkeypatch.setattr(device, "_has_nvidia_card", lambda: False)
    for each in ("mps", "xpu"):
        monkeypatch.setattr(getattr(torch, each), "is_available", lambda each=each: each == kind)
        monkeypatch.setattr(getattr(torch, each), "device_count", lambda: 1)


class TestOtherDevices:
    @pytest.mark.parametrize(
        ("kind", "name", "dtype"),
        [
            ("mps", "mps", "float32"),
            ("xpu", "xpu", "bfloat16"),
            ("hpu", "cpu", "float32"),
            (None, "cpu", "float32"),
        ],
    )
    def test_auto_takes_the_gpu_that_torch_finds(
        self, kind: str | None, name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        find(monkeypatch, kind)
        found = device.resolve("auto", "auto")
        assert (str(found.torch_device), found.dtype_name) == (name, dtype)

    def test_a_device_that_is_absent_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        find(monkeypatch, None)
        with pytest.raises(DpoError, match=r"'mps': torch .* finds no MPS device") as caught:
            device.resolve("mps", "auto")
        assert 'train.device = "auto"' in caught.value.remedy
        find(monkeypatch, "xpu")
        with pytest.raises(DpoError, match=r"this machine has 1 XPU device\b"):
            device.resolve("xpu:1", "auto")

    def test_torch_for_amd_is_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The kernels for variable lengths differ from NVIDIA's, so none is chosen."""
        Cuda().install(monkeypatch)
        monkeypatch.setattr(torch.version, "cuda", None)
        monkeypatch.setattr(torch.version, "hip", "7.0")
        found = device.resolve("auto", "auto")
        assert str(found.torch_device) == "cuda:0"
        assert found.versions["gpu"] == "Test GPU"
        assert found.versions["cuda"] == "7.0"
        assert accelerator.capability(found.torch_device) is None

    def test_an_apple_gpu_has_a_name_and_a_version(self) -> None:
        gpu = device.Device(torch.device("mps"), torch.float32)
        assert gpu.name.startswith("Apple GPU (")
        assert gpu.versions == {"gpu": gpu.name}
        assert gpu.peak_bytes() == 0


class TestMemory:
    CPU = torch.device("cpu")

    def test_figures_of_linux(self) -> None:
        assert 0 < memory.process_bytes() <= memory.peak_process_bytes()
        assert 0 < memory.free_memory(self.CPU) <= memory.total_memory(self.CPU)

    def test_the_peak_of_a_system_without_proc(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The unit is KiB, but bytes on macOS; `tests/machines` has the other figures."""
        monkeypatch.setattr(memory, "_PROC", tmp_path)
        kib = memory.peak_process_bytes()
        assert kib > 1 << 20
        monkeypatch.setattr(sys, "platform", "darwin")
        assert memory.peak_process_bytes() < kib / 1000

    def test_an_apple_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 << 30)
        monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 5 << 30)
        assert memory.free_memory(torch.device("mps")) == 7 << 30

    def test_reserved_memory_without_tensors_is_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 << 30, 24 << 30))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 9 << 30)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 8 << 30)
        assert memory.free_memory(torch.device("cuda")) == 4 << 30
        assert memory.total_memory(torch.device("cuda")) == 24 << 30

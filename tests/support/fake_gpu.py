"""A GPU without arithmetic: tensors with shape, dtype and device, and a record of all operations.

torch's free device type (PrivateUse1) becomes the type "fakegpu". A tensor that is copied to it
becomes a `FakeTensor`; every operation on it computes the shape of its result and nothing else. So
a real optimizer step of a real model takes a second, whatever its size, and shows what it would do
on a GPU: operations, copies, and places where the CPU would wait. Tensors on the CPU stay real.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils import clip_grad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

from dpo_cli.compute import accelerator
from dpo_cli.compute.device import Device
from dpo_cli.data import lookahead, staging
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.objective import logps

TYPE = "fakegpu"
FREE_BYTES = 64 << 30

_MODE = FakeTensorMode(allow_non_fake_inputs=True)
_VIEWS = {
    *("view", "_unsafe_view", "expand", "permute", "transpose", "t", "slice", "select", "split"),
    *("split_with_sizes", "unsqueeze", "squeeze", "detach", "alias", "as_strided", "unbind"),
    *("lift_fresh", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("_reshape_alias", "reshape", "diagonal", "set_", "is_same_size", "resize_", "numel"),
    "device",
}
"""Operations that start no kernel."""
_SYNCHRONIZING = {"nonzero", "masked_select", "_unique2", "unique_dim"}
"""Operations whose result has a shape that depends on values, so the CPU waits for them."""
_SHOWN = ("/dpo_cli/", "/transformers/", "/torch/optim/", "/torch/amp/", "clip_grad")
_LOW_PRECISION = (
    *("matmul", "mm", "bmm", "linear", "addmm", "baddbmm", "addmv", "mv", "einsum"),
    "scaled_dot_product_attention",
)
_FLOAT32 = (
    *("exp", "expm1", "log", "log1p", "reciprocal", "rsqrt", "softplus", "norm.Scalar"),
    *("pow.Tensor_Scalar", "pow.Tensor_Tensor"),
)
_FLOAT32_RESULT = ["softmax.int", "log_softmax.int", "cumsum", "sum", "sum.dim_IntList", "prod"]


class _Module(_DummyBackendModule):  # type: ignore[misc]
    """Functions of `torch.cuda` that the program calls."""

    capability = (9, 0)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        return self.capability

    def get_device_name(self, device: Any = None) -> str:
        return "Fake GPU"

    def max_memory_allocated(self, device: Any = None) -> int:
        return 1

    def memory_reserved(self, device: Any = None) -> int:
        return 0

    def memory_allocated(self, device: Any = None) -> int:
        return 0

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return FREE_BYTES, FREE_BYTES

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    def set_rng_state(self, *arguments: Any) -> None:
        pass

    def synchronize(self, device: Any = None) -> None:
        raise AssertionError("the step waits for the device")


class _Hook(_DummyPrivateUse1Hook):  # type: ignore[misc]
    """Hooks that hide the device from code that searches for one, such as other tests."""

    def is_available(self) -> bool:
        return False


@cache
def device() -> torch.device:
    """Register the device type, once per process."""
    _setup_privateuseone_for_python_backend(TYPE, backend_module=_Module(), hook=_Hook())
    _register_autocast()
    _register_kernels()
    return torch.device(TYPE, 0)


@dataclass
class Record:
    """Operations, copies and waits on the fake device.

    Attributes:
        kernels: operations that start one, by name.
        places: the same, by the innermost line of the program or of a library.
        waits: places where the CPU waits for the device, or for a blocking copy.
        copies: copies to the device that do not block, by place.
        mixes: operations on tensors of both devices.
        dtypes: dtypes of the tensors of an operation, by its name.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    mixes: Counter[str] = field(default_factory=Counter)
    dtypes: dict[str, Counter[tuple[torch.dtype, ...]]] = field(default_factory=dict)

    @property
    def launches(self) -> int:
        """Number of kernels."""
        return sum(self.kernels.values())


class Recorder(TorchDispatchMode):
    """Runs operations of the fake device by their shapes, and records them."""

    def __init__(self, *, has_float64: bool = True) -> None:
        super().__init__()
        self.record, self.has_float64 = Record(), has_float64

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        is_here = any(t.device.type == TYPE for t in tensors)
        if name in ("_to_copy", "copy_") and (result := self._copied(name, tensors, args, kwargs)):
            return result[0]
        if not is_here:
            if torch.device(kwargs.get("device") or "cpu").type != TYPE:
                return function(*args, **kwargs)
            with _MODE:
                result = function(*args, **kwargs)
            self._count(name, [result])
            return result
        if name == "_local_scalar_dense":
            self.record.waits[f"{name} {_place()}"] += 1
            return torch.zeros((), dtype=tensors[0].dtype).item()
        if self._depends_on_values(name, args, kwargs):
            self.record.waits[f"{name} {_place()}"] += 1
        if any(t.device.type == "cpu" and t.dim() for t in tensors):
            self.record.mixes[f"{name} {_place()}"] += 1
        with _MODE:
            if name == "_efficient_attention_backward":
                # torch's own function for its shapes does not take all of its arguments.
                result = (*(torch.empty_like(state) for state in args[1:4]), None)
            else:
                result = function(*args, **kwargs)
        results = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        self._count(name, [*tensors, *results])
        return result

    def _copied(
        self, name: str, tensors: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Tensor] | None:
        """Copy between the devices; None for a copy within one."""
        if name == "copy_":
            target, source = tensors
            to, non_blocking = target.device, args[2] if len(args) > 2 else False
        else:
            [source] = tensors
            to, non_blocking = torch.device(kwargs.get("device") or source.device), False
        non_blocking = kwargs.get("non_blocking", non_blocking)
        if to.type == source.device.type:
            return None
        if to.type == TYPE and non_blocking:
            self.record.copies[_place()] += 1
        else:
            self.record.waits[f"copy from {source.device.type} {_place()}"] += 1
        if name == "copy_":
            return [target]
        dtype = kwargs.get("dtype") or source.dtype
        if to.type == "cpu":
            return [torch.zeros(source.shape, dtype=dtype)]
        return [fake(source.detach().to(dtype))]

    def _depends_on_values(self, name: str, args: tuple[Any, ...], kwargs: Any) -> bool:
        if name == "repeat_interleave":
            return kwargs.get("output_size") is None
        if name in ("index", "index_put", "index_put_"):
            indices = [i for i in args[1] if i is not None]
            return any(i.dtype == torch.bool for i in indices)
        return name in _SYNCHRONIZING

    def _count(self, name: str, tensors: list[Tensor]) -> None:
        if not self.has_float64:
            found = [t for t in tensors if t.device.type == TYPE and t.dtype == torch.float64]
            assert not found, f"float64 on the device: {name} {_place()}"
        if name in _VIEWS:
            return
        self.record.kernels[name] += 1
        self.record.places[_place()] += 1
        dtypes = tuple(t.dtype for t in tensors)
        self.record.dtypes.setdefault(name, Counter())[dtypes] += 1


class InlineExecutor(nullcontext[Any]):
    """Runs each job at once, in the thread that submits it."""

    def __init__(self, workers: int, **options: Any) -> None:
        super().__init__(self)

    def submit(self, job: Any, *arguments: Any) -> Any:
        future: Future[Any] = Future()
        future.set_result(job(*arguments))
        return future


def fake(tensor: Tensor) -> Tensor:
    """Return a tensor like this one, on the fake device."""
    with torch._C._DisableTorchDispatch():
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return FakeTensor(_MODE, meta, device())


def move(module: nn.Module) -> None:
    """Move a module to the fake device; tied weights stay tied."""
    moved: dict[int, nn.Parameter] = {}
    for child in module.modules():
        for name, parameter in child._parameters.items():
            if parameter is not None:
                if id(parameter) not in moved:
                    moved[id(parameter)] = nn.Parameter(
                        fake(parameter.data), requires_grad=parameter.requires_grad
                    )
                child._parameters[name] = moved[id(parameter)]
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = fake(buffer)


@contextmanager
def fake_gpu(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int] = (9, 0),
    *,
    like: Literal["cuda", "mps"] = "cuda",
) -> Iterator[Recorder]:
    """Make the program compute on the fake device within this context; yield the recorder.

    Args:
        monkeypatch: fixture of the test.
        capability: compute capability of an NVIDIA GPU.
        like: kind of the device: with the kernels of CUDA, or without float64 as Apple's ("mps").
    """
    recorder = Recorder(has_float64=like != "mps")
    if like == "mps":
        monkeypatch.setattr(logps, "_WITHOUT_FLOAT64", ("mps", TYPE))
    else:
        monkeypatch.setattr(accelerator, "_CUDA_TYPES", ("cuda", TYPE))
        monkeypatch.setattr(logps, "_MIXED_PRODUCTS", ("cuda", TYPE))
        monkeypatch.setattr(staging, "_PINNED_TYPES", ("cuda", TYPE))
    monkeypatch.setattr(_Module, "capability", capability)
    plain_to = ResponseScorer.to

    def to(self: ResponseScorer, *args: Any) -> ResponseScorer:
        if args[0] == device():
            move(self)
            return self
        return plain_to(self, *args)

    monkeypatch.setattr(ResponseScorer, "to", to)

    def tolist(self: Tensor) -> Any:
        recorder.record.waits[f"tolist {_place()}"] += 1
        return torch.zeros(self.shape, dtype=self.dtype).tolist()

    monkeypatch.setattr(FakeTensor, "tolist", tolist)
    # torch asks for the exact class of a tensor.
    monkeypatch.setattr(clip_grad, "_has_foreach_support", lambda tensors, device: True)
    # The recorder gets only the operations of its own thread.
    monkeypatch.setattr(lookahead, "ThreadPoolExecutor", InlineExecutor)
    plain_autocast = Device.autocast

    @contextmanager
    def autocast(self: Device) -> Iterator[None]:
        with plain_autocast(self):
            yield
        _CASTS.clear()

    monkeypatch.setattr(Device, "autocast", autocast)
    device()
    # In this thread, because backward threads exist only for devices known at the first backward.
    with recorder, torch.autograd.set_multithreading_enabled(False):
        yield recorder


def _place() -> str:
    """Return the innermost two lines of the program, or of a library that it calls."""
    lines: list[str] = []
    frame = sys._getframe(1)
    while frame is not None and len(lines) < 2:
        path = frame.f_code.co_filename
        if any(part in path for part in _SHOWN):
            name = path.rpartition("dpo_cli/")[2].rpartition("site-packages/")[2]
            lines.append(f"{name}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(lines) or "backward"


# --- autocast by CUDA's lists (autocast_mode.h of torch) ------------------------------------------

_LIBRARIES: list[torch.library.Library] = []
_CASTS: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}
"""Casts of weights within one autocast context. An entry keeps its weight, so ids stay unique."""
_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


def _register_autocast() -> None:
    rest = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    rest.fallback(torch.library.fallthrough_kernel)
    aten = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for names, cast in ((_LOW_PRECISION, _to_low), (_FLOAT32, _to_float32)):
        for name in names:
            aten.impl(name, _casting(name, cast))
    for name in _FLOAT32_RESULT:
        aten.impl(name, _with_float32_result(name))
    _LIBRARIES.extend([rest, aten])


def _register_kernels() -> None:
    """Declare operations that have one kernel on CUDA but are composed of several elsewhere."""
    library = torch.library.Library("aten", "IMPL", "PrivateUse1")
    for name in ("silu_backward",):
        library.impl(name, _never)
    _LIBRARIES.append(library)


def _never(*arguments: Any) -> None:
    raise AssertionError("the recorder computes each operation")


def _operator(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _casting(name: str, cast: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            args, kwargs = tree_map(cast, (args, kwargs))
            return _operator(name)(*args, **kwargs)

    return call


def _with_float32_result(name: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            is_given = kwargs.get("dtype") or any(isinstance(a, torch.dtype) for a in args)
            if args[0].dtype in (torch.float16, torch.bfloat16) and not is_given:
                kwargs["dtype"] = torch.float32
            return _operator(name)(*args, **kwargs)

    return call


def _to_low(value: Any) -> Any:
    if not _is_eligible(value):
        return value
    dtype = torch.get_autocast_dtype(TYPE)
    if value.dtype == dtype:
        return value
    if not (value.requires_grad and value.is_leaf):
        return value.to(dtype)
    # CUDA's autocast keeps the casts of weights until its context ends.
    key = id(value), torch.is_grad_enabled()
    if key not in _CASTS:
        _CASTS[key] = value, value.to(dtype)
    return _CASTS[key][1]


def _to_float32(value: Any) -> Any:
    return value.float() if _is_eligible(value) else value


def _is_eligible(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.device.type == TYPE
        and value.is_floating_point()
        and value.dtype != torch.float64
    )

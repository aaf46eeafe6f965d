"""Limits on weights files and configurations, checked before anything is built from them.

A broken or hostile download may describe far more than it contains: a layer number of a billion, a
tensor that repeats one number, an archive of zeros. Whatever is built in memory must be in
proportion to the file.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpo_cli.errors import DpoError

_MAX_HEADER_BYTES = 1 << 24
"""Largest header of a safetensors file: enough for 150,000 tensors."""
_TIED_FACTOR = 3
"""A weight may be in a file once and in the state dict twice, as embedding and as head."""
_SLACK_BYTES = 1 << 20
_LAYER_COUNTS = re.compile(r"n_?layers?|num_.*layers|.*_layers|depth")
_SPARE_LAYERS = 256
"""Allowance for settings that match `_LAYER_COUNTS` and are no number of layers."""
_MAX_SETTING = 1 << 32
_MAX_BUFFER_ELEMENTS = 1 << 26
_AGAIN = "Copy or download it again."


def check_archive(path: Path, *, is_safetensors: bool) -> None:
    """Refuse a weights file whose reading would take far more memory than its size.

    Raises:
        DpoError: the header of a safetensors file is too large, or a PyTorch archive is compressed
            or overlaps itself, which `torch.save` never writes.
    """
    if is_safetensors:
        with path.open("rb") as file:
            head = file.read(8)
        size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if _MAX_HEADER_BYTES < size <= path.stat().st_size:
            raise DpoError(f"{path}: its header has {size >> 20} MiB, too much for weights", _AGAIN)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:
            raise DpoError(
                f"{path}: a compressed archive; torch.save writes weights uncompressed", _AGAIN
            )


def check_tensors(state: Mapping[Any, Tensor], path: Path) -> None:
    """Refuse tensors that repeat their memory, have no elements, or are not dense on the CPU.

    Raises:
        DpoError: names the first one.
    """
    total = 0
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise DpoError(f"{path}: a weight is named {name!r:.80}, which is no text", _AGAIN)
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise DpoError(
                f"{path}: {name} is no plain tensor", "Save the weights as plain tensors."
            )
        if not tensor.numel():
            raise DpoError(f"{path}: {name} has no elements", _AGAIN)
        total += tensor.numel() * tensor.element_size()
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise DpoError(f"{path}: {name} repeats its memory", "Save a contiguous copy of it.")
    if total > _TIED_FACTOR * path.stat().st_size + _SLACK_BYTES:
        raise DpoError(
            f"{path}: its tensors share memory, and are {total:,} bytes together", _AGAIN
        )


def check_settings(settings: Mapping[str, Any], state: Mapping[str, Tensor], source: str) -> None:
    """Refuse a config.json that describes far more than the weights contain.

    Raises:
        DpoError: names the setting.
    """
    for name, value in _integers(settings):
        if _LAYER_COUNTS.fullmatch(name) and value > len(state) + _SPARE_LAYERS:
            raise DpoError(
                f"{source}: config.json sets {name} = {value}, but there are {len(state)} weights",
                _AGAIN,
            )
        if abs(value) >= _MAX_SETTING and not name.endswith("max_length"):
            raise DpoError(f"{source}: config.json sets {name} = {value}", _AGAIN)


def check_size(model: torch.nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Refuse a model on the meta device that is far larger than its weights.

    Raises:
        DpoError: names both sizes.
    """
    expected = sum(parameter.numel() for parameter in model.parameters())
    actual = sum(tensor.numel() for tensor in state.values())
    if expected > 2 * actual + _SLACK_BYTES:
        raise DpoError(
            f"{source}: not a complete model: config.json describes {expected:,} weights, the"
            f" files hold {actual:,}",
            "Copy or download the directory again, and check that it is complete.",
        )
    computed = sum(buffer.numel() for buffer in model.buffers())
    if computed > 2 * actual + _MAX_BUFFER_ELEMENTS:
        raise DpoError(f"{source}: config.json describes tables of {computed:,} numbers", _AGAIN)


def _integers(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield all integers, also of nested objects, with their names."""
    pending: list[tuple[str, Any]] = list(settings.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += value.items()
        elif isinstance(value, list):
            pending += [(name, each) for each in value if isinstance(each, list | dict)]
            yield name, len(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield name, value

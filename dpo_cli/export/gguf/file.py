"""GGUF files: quantization, writing, and reading back as float32 weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dpo_cli.errors import DpoError
from dpo_cli.export.gguf.architectures import GgufArchitecture
from dpo_cli.export.gguf.quantizations import Quantization
from dpo_cli.export.gguf.vocabulary import GgufVocabulary
from dpo_cli.files import fsync_path
from dpo_cli.models.convert import StateDict

if TYPE_CHECKING:
    import gguf

_HEADS = ("token_embd.weight", "output.weight")
_MIN_BITS = 8
_FILE_TYPES: Mapping[Quantization, str] = {"f32": "ALL_F32"}


@dataclass(frozen=True)
class GgufContent:
    """Content of a file beside the weights."""

    name: str
    architecture: GgufArchitecture
    vocabulary: GgufVocabulary


def write_gguf(
    path: Path, tensors: StateDict, content: GgufContent, quantization: Quantization
) -> str:
    """Write a file, read it back and compare every byte of the weights.

    Args:
        path: new file.
        tensors: float32, with the names and layout of `GgufArchitecture.to_gguf`.
        content: settings and tokenizer.
        quantization: format of the matrices.

    Returns:
        SHA-256 of the weights as stored.

    Raises:
        OSError: the file cannot be written.
        DpoError: the file has other weights when it is read back.
    """
    import gguf

    writer = gguf.GGUFWriter(path, content.architecture.name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(content.name)
    content.architecture.add_settings(writer)
    file_type = _FILE_TYPES.get(quantization, f"MOSTLY_{quantization.upper()}")
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    content.vocabulary.add_to(writer)
    digests = {}
    for name, (stored, kind) in _stored(tensors, quantization):
        digests[name] = _digest(stored)
        writer.add_tensor(name, stored, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    fsync_path(path)
    read_back = {tensor.name: _digest(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    if different := [name for name in digests if read_back.get(name) != digests[name]]:
        raise DpoError(
            f"{path}: {different[0]} read back differs from what was written",
            "Disk or memory may be faulty. Choose another path.",
        )
    return hashlib.sha256("".join(digests.values()).encode()).hexdigest()


def read_gguf(path: Path) -> StateDict:
    """Read the weights of a file as float32, with the names and layout of the file."""
    import gguf

    return {
        tensor.name: _restored(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
    }


def as_stored(tensors: StateDict, quantization: Quantization) -> StateDict:
    """Quantize weights and return them as `read_gguf` would read them from a file."""
    return {
        name: _restored(stored, kind) for name, (stored, kind) in _stored(tensors, quantization)
    }


def _stored(
    tensors: StateDict, quantization: Quantization
) -> Iterator[tuple[str, tuple[np.ndarray, gguf.GGMLQuantizationType]]]:
    import gguf

    for name, tensor in tensors.items():
        kind = _tensor_type(name, tensor, quantization)
        values = tensor.float().contiguous().numpy()
        yield name, (gguf.quants.quantize(values, kind), kind)


def _restored(stored: np.ndarray, kind: gguf.GGMLQuantizationType) -> Tensor:
    import gguf

    return torch.from_numpy(np.array(gguf.quants.dequantize(stored, kind), dtype=np.float32))


def _tensor_type(
    name: str, tensor: Tensor, quantization: Quantization
) -> gguf.GGMLQuantizationType:
    """Return the format of one tensor, by the rules of llama.cpp's own converter.

    Norms, biases and routers stay in float32. Embedding and head get at least 8 bits, because an
    error in the head changes every logit. Rows that no block size divides are stored as float16.
    """
    import gguf

    kinds = gguf.GGMLQuantizationType
    if tensor.ndim == 1 or "ffn_gate_inp" in name:
        return kinds.F32
    kind = kinds[quantization.upper()]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if name in _HEADS and 8 * size < _MIN_BITS * block:
        kind = kinds.Q8_0
    return kind if tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else kinds.F16


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()

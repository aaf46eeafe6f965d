"""Load weights and build models.

Files are read and never executed, see `dpo_cli.models.weight_files`. Code inside a Hugging Face
directory is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from dpo_cli.compute.cpu_math import settle_functions
from dpo_cli.compute.device import DTYPES
from dpo_cli.errors import DpoError, first_line
from dpo_cli.files import sha256_file
from dpo_cli.integrity import require_unchanged, stamp
from dpo_cli.models import attention
from dpo_cli.models.adapter import Adapter
from dpo_cli.models.convert import EMBEDDING, HEAD, StateDict
from dpo_cli.models.huggingface import HuggingFace, read_settings, with_dtypes
from dpo_cli.models.infer import (
    check_overrides,
    infer_minimind,
    infer_minimind_directory,
    list_names,
)
from dpo_cli.models.limits import check_settings, check_size
from dpo_cli.models.minimind import MiniMind
from dpo_cli.models.names import common_prefixes, is_old_buffer, refuse_adapter, unwrap
from dpo_cli.models.quantized import quantize
from dpo_cli.models.spec import Architecture
from dpo_cli.models.weight_files import read_state_dict
from dpo_cli.profile import folder
from dpo_cli.profile.model import Quantization

transformers.utils.logging.disable_progress_bar()

_NOT_FLOAT = (
    "Use the model's weights in float32, float16 or bfloat16; quantized ones are not trained."
)


@dataclass(frozen=True)
class ModelWeights:
    """Weights of a recognized model.

    Attributes:
        architecture: of the weights.
        state: in the Hugging Face layout, in the dtype of the file; in float32 if the file has
            several dtypes.
        dtype: dtype of the file, or of most of its weights.
        fingerprint: SHA-256 of the file, or over the files of a directory.
        removed_prefixes: parts of the names that wrappers had added, for example "_orig_mod."; ""
            if none.
        adapter: adapter that the model computes with, beside these weights.
        quantization: format to which the linear layers are rounded when the model is built; `state`
            is not rounded.
    """

    architecture: Architecture
    state: StateDict
    dtype: torch.dtype
    fingerprint: str
    removed_prefixes: str = ""
    adapter: Adapter | None = None
    quantization: Quantization | None = None

    @property
    def parameters(self) -> int:
        """Number of weights, tied ones counted once, without the adapter."""
        return sum(tensor.numel() for tensor in self.state.values())

    @property
    def description(self) -> str:
        """One-line summary for the user, with the parts of names that were removed."""
        removed = f", read without {self.removed_prefixes} in the names"
        return self.architecture.description + (removed if self.removed_prefixes else "")

    @property
    def dtype_name(self) -> str:
        """Name of the dtype in profiles, for example "float16"."""
        return _dtype_name(self.dtype)

    def without_values(self) -> ModelWeights:
        """Return the names and shapes of the weights, for a rank that receives the values.

        The tensors are zeros that take no memory, also in a model that is built with them.
        """
        names = {name: torch.zeros(()).expand(each.shape) for name, each in self.state.items()}
        return replace(self, state=names)


def load_model_weights(path: Path, overrides: Mapping[str, Any]) -> ModelWeights:
    """Load MiniMind weights from `.pth` or `.safetensors`, or any model from its directory.

    Args:
        path: the file, or a Hugging Face directory.
        overrides: the profile's [model] keys (see `infer_minimind`).

    Raises:
        DpoError: the file cannot be read safely, changes while it is read, or does not hold exactly
            one model's weights.
    """
    if folder.is_model(path):
        return _load_directory(path, overrides)
    with _unchanged(path):
        return _load_file(path, overrides)


@contextlib.contextmanager
def _unchanged(*files: Path) -> Iterator[None]:
    """Check that files do not change while they are read and hashed.

    Raises:
        DpoError: a file has changed, so that the fingerprint could be of other weights.
    """
    before = stamp(*files)
    yield
    require_unchanged(before, *files)


def _load_file(path: Path, overrides: Mapping[str, Any]) -> ModelWeights:
    state, removed = unwrap(read_state_dict(path), EMBEDDING)
    refuse_adapter(state, path)
    architecture = infer_minimind(_shapes(state), overrides, str(path))
    return _minimind_weights(architecture, state, path, sha256_file(path), removed)


def hash_weights(path: Path) -> str:
    """Return the SHA-256 of a weights file, or over config.json and the weights of a directory.

    Raises:
        DpoError: the directory holds no weights.
    """
    if not path.is_dir():
        return sha256_file(path)
    files = [path / folder.CONFIG, *folder.weight_files(path)]
    hashes = "".join(f"{file.name} {sha256_file(file)}\n" for file in files)
    return hashlib.sha256(hashes.encode()).hexdigest()


def _load_directory(path: Path, overrides: Mapping[str, Any]) -> ModelWeights:
    state: StateDict = {}
    with _unchanged(path / folder.CONFIG):
        settings = folder.read_json(path / folder.CONFIG)  # a damaged one before missing weights
        files = folder.weight_files(path)
        with _unchanged(*files):
            for file in files:
                state |= read_state_dict(file)
            refuse_adapter(state, path)
            fingerprint = hash_weights(path)
    if settings.get("model_type") == "minimind":
        state, removed = unwrap(state, EMBEDDING)
        minimind = infer_minimind_directory(_shapes(state), settings, overrides, str(path))
        return _minimind_weights(minimind, state, path, fingerprint, removed)
    check_settings(settings, state, str(path))
    state, removed = unwrap(state)
    generation_path = path / folder.GENERATION_CONFIG
    generation = folder.read_json(generation_path) if generation_path.exists() else {}
    architecture = read_settings(settings, generation, str(path))
    check_overrides(architecture, overrides, str(path))
    # Old versions of transformers saved boolean masks beside the weights. A real weight that is
    # dropped here, for example a quantized one, is reported as missing below.
    state = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    sizes = Counter[torch.dtype]()
    for tensor in state.values():
        sizes[tensor.dtype] += tensor.numel()
    dtype = max(sizes, key=sizes.__getitem__, default=torch.float32)
    if unsupported := sizes.keys() - DTYPES.values():
        raise DpoError(f"{path}: holds weights of type {unsupported.pop()}", _NOT_FLOAT)
    # With several dtypes all become float32, so that none is rounded: norms are often float32 in a
    # bfloat16 model.
    dtype_in_memory = dtype if len(sizes) == 1 else torch.float32
    model, problems, state, prefix = _build_unwrapped(architecture, state, dtype_in_memory, path)
    removed = ", ".join(filter(None, (removed, prefix)))
    if problems:
        raise DpoError(
            f"{path}: not a complete {architecture.description}",
            "A directory must hold exactly the weights that its config.json describes. Check that"
            " it is complete, and a whole model rather than an adapter.",
            [line for problem, names in problems.items() for line in list_names(problem, names)],
        )
    # transformers 5 does not tie a head that differs from the embedding; older versions and other
    # programs replace the head if the configuration says that it is tied.
    if model._tied_weights_keys and not model.all_tied_weights_keys:
        architecture = architecture.untied()
    # Under the names that transformers writes: older files have other names, or lack a prefix.
    on_disk = to_disk_names(model, model.state_dict())
    _require_finite_floats(on_disk, path)
    base_prefix = f"{model.base_model_prefix}."
    dtypes = {}
    for name in on_disk:
        in_file = state.get(name, state.get(name.removeprefix(base_prefix)))
        dtypes[name] = _dtype_name(dtype if in_file is None else in_file.dtype)
    architecture = with_dtypes(architecture, dtypes, _dtype_name(dtype))
    return ModelWeights(architecture, on_disk, dtype, fingerprint, removed)


def _build_unwrapped(
    architecture: HuggingFace, state: StateDict, dtype: torch.dtype, path: Path
) -> tuple[transformers.PreTrainedModel, dict[str, list[str]], StateDict, str]:
    """Build a model with the weights of a directory, whose names may have a wrapper's prefix.

    Returns:
        The model, the names of weights that do not fit by kind of problem, the weights under the
        names that fit, and the removed prefix, "" if none.

    Raises:
        DpoError: transformers cannot build the model, or it is far larger than its weights.
    """
    config = architecture.config()
    try:
        with _without_reports():
            with torch.device("meta"), torch.random.fork_rng(devices=[]):
                described = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
            check_size(described, state, str(path))
            model, problems = _instantiate(config, state, dtype)
            # Some other wrapper may hold the model under a name of its own.
            for prefix in common_prefixes(state) if problems else []:
                inner = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
                other, rest = _instantiate(architecture.config(), inner, dtype)
                if not rest:
                    return other, rest, inner, prefix
            return model, problems, state, ""
    except DpoError:
        raise
    except Exception as error:  # model code raises anything for inconsistent settings
        raise DpoError(
            f"{path}: transformers cannot build this model ({first_line(error)})",
            "Copy or download the directory again.",
        ) from error


@contextlib.contextmanager
def _without_reports() -> Iterator[None]:
    """Keep transformers from printing names of weights and values of config.json as they are."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)


def _minimind_weights(
    architecture: MiniMind, state: StateDict, path: Path, fingerprint: str, removed: str
) -> ModelWeights:
    _require_finite_floats(state, path)
    _require_tied_head(state, path)
    dtype = state[EMBEDDING].dtype
    return ModelWeights(architecture, architecture.to_hf_names(state), dtype, fingerprint, removed)


def build_model(
    architecture: Architecture,
    state: StateDict,
    *,
    dropout: float = 0.0,
    quantization: Quantization | None = None,
) -> transformers.PreTrainedModel:
    """Build a model in float32 with these weights, ready for `segment_attention`.

    Every model of this program is built here.

    Args:
        architecture: of the weights.
        state: in the Hugging Face layout, of any float dtype.
        dropout: probability of dropping an attention weight in training.
        quantization: format of the linear layers in the blocks; None for float32.
    """
    settle_functions()
    dtype = torch.float32
    if quantization is not None:  # one layer at a time becomes float32, to be quantized
        dtypes = {tensor.dtype for tensor in state.values()}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    model, problems = _instantiate(architecture.config(dropout), state, dtype)
    assert not problems, f"{type(model).__name__}: {problems}"
    if quantization is not None:
        quantize(model, quantization)
        _use_float32_constants(model, architecture.config(dropout))
    # Without the copy a parameter may share memory with `state`, at any alignment or even in a
    # mapped file. Alignment can change the last bits of a matrix product, and a resumed run must
    # compute the same bits as an uninterrupted one.
    for parameter in model.parameters():
        if parameter.is_floating_point() and any(parameter.stride()):  # not `without_values`
            parameter.data = parameter.data.to(torch.float32, copy=True)
    return model


def _use_float32_constants(
    model: transformers.PreTrainedModel, config: transformers.PreTrainedConfig
) -> None:
    """Set the buffers that are no weights to those of a model that was built in float32.

    In half precision some are rounded, for example the scale of Gemma's embedding.
    """
    from accelerate import init_empty_weights  # peft, which quantized weights need, depends on it

    with init_empty_weights(include_buffers=False), torch.random.fork_rng(devices=[]):
        plain = type(model)(config)
    for name, module in plain.named_modules():
        for own in module._non_persistent_buffers_set:
            setattr(model.get_submodule(name), own, getattr(module, own))
    model.config.dtype = torch.float32


def _instantiate(
    config: transformers.PreTrainedConfig, state: StateDict, dtype: torch.dtype
) -> tuple[transformers.PreTrainedModel, dict[str, list[str]]]:
    """Build a model and return it with the names of weights that do not fit, by kind of problem."""
    # Some models draw random weights before they load the given ones. The number of models built
    # must not change the random numbers of a run.
    with torch.random.fork_rng(devices=[]), _without_reports():
        model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            dtype=dtype,
            attn_implementation=attention.NAME,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    problems = {
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(
            name
            for name in report["unexpected_keys"]
            if not is_old_buffer(name, state[name].ndim if name in state else 0)
        ),
        "wrong shape": [
            f"{name}: {tuple(actual)}, {tuple(expected)} expected"
            for name, actual, expected in sorted(report["mismatched_keys"])
        ],
        "not converted": sorted(report["error_msgs"]),
    }
    return model, {problem: names for problem, names in problems.items() if names}


def to_disk_names(model: transformers.PreTrainedModel, tensors: StateDict) -> StateDict:
    """Rename tensors from a model's names in memory to the Hugging Face layout on disk.

    Names and stacking in memory differ between versions of transformers, those on disk do not.
    Works for any tensors of the shapes of the weights, for example the optimizer's moments. Tied
    weights appear once.
    """
    converted: StateDict = revert_weight_conversion(model, without_tied_copies(model, tensors))
    return converted


def without_tied_copies(
    model: transformers.PreTrainedModel, tensors: StateDict | None = None
) -> StateDict:
    """Return tensors by names in memory, by default those of the model, with tied ones once."""
    found = model.state_dict() if tensors is None else tensors
    tied_copies = model.all_tied_weights_keys
    return {name: tensor for name, tensor in found.items() if name not in tied_copies}


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shapes(state: StateDict) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _require_finite_floats(state: Mapping[str, Tensor], path: Path) -> None:
    integers = [name for name, tensor in state.items() if not tensor.is_floating_point()]
    if integers:
        raise DpoError(
            f"{path}: {integers[0]} is of type {state[integers[0]].dtype}",
            _NOT_FLOAT,
        )
    not_finite = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if not_finite:
        raise DpoError(
            f"{path}: {len(not_finite)} weights hold NaN or infinity, the first is {not_finite[0]}",
            "Use an earlier checkpoint; the training that wrote this file failed.",
        )


def _require_tied_head(state: Mapping[str, Tensor], path: Path) -> None:
    if HEAD in state and not torch.equal(state[HEAD], state[EMBEDDING]):
        raise DpoError(
            f"{path}: {EMBEDDING} and {HEAD} differ, but MiniMind ties them",
            "Use a file that was written by a model with tied embeddings.",
        )

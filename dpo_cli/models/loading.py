"""From weights to a model: the only reader of weights that others wrote.

Files are read, never executed: `.pth` and `.bin` through `weights_only=True`, `.safetensors` by its
library; of a Hugging Face directory the code that it may hold is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from dpo_cli.compute.cpu_math import settle_functions
from dpo_cli.compute.device import DTYPES
from dpo_cli.errors import DpoError
from dpo_cli.files import sha256_file
from dpo_cli.models import attention
from dpo_cli.models.convert import EMBEDDING, HEAD, StateDict
from dpo_cli.models.huggingface import read_settings
from dpo_cli.models.infer import (
    check_overrides,
    infer_minimind,
    infer_minimind_directory,
    list_names,
)
from dpo_cli.models.spec import Architecture
from dpo_cli.profile import folder

transformers.utils.logging.disable_progress_bar()

_COMPILED = ("RMSNorm", "MLP")  # endings of the class names in transformers

_QUANTISED = "quantised weights cannot be trained: use float32, float16 or bfloat16"


@dataclass(frozen=True)
class ModelWeights:
    """Weights that were read and understood.

    Attributes:
        architecture: what they are the weights of.
        state: in the Hugging Face layout, in the dtype of the file; in float32 if it has several.
        dtype: that of the file, or of most of its weights.
        fingerprint: SHA-256 of the file, or of those of a directory.
    """

    architecture: Architecture
    state: StateDict
    dtype: torch.dtype
    fingerprint: str

    @property
    def parameters(self) -> int:
        """Number of weights, tied ones once."""
        return sum(tensor.numel() for tensor in self.state.values())

    @property
    def dtype_name(self) -> str:
        """The dtype as profiles name it: "float16"."""
        return str(self.dtype).removeprefix("torch.")


def load_model_weights(path: Path, stated: Mapping[str, Any]) -> ModelWeights:
    """Read MiniMind weights from `.pth` or `.safetensors`, or any model from its directory.

    Args:
        path: the file, or a Hugging Face directory.
        stated: the profile's [model] keys (see `infer_minimind`).

    Raises:
        DpoError: it cannot be read safely, or is not exactly one model's weights.
    """
    if folder.is_model(path):
        return _load_folder(path, stated)
    state = read_state_dict(path)
    architecture = infer_minimind(_shapes(state), stated, str(path))
    _verify_values(state, path)
    _verify_tied(state, path)
    return ModelWeights(
        architecture, architecture.to_hf_names(state), state[EMBEDDING].dtype, sha256_file(path)
    )


def hash_weights(path: Path) -> str:
    """SHA-256 of a weights file, or of what decides the model in a directory.

    Raises:
        DpoError: the directory holds no weights.
    """
    if not path.is_dir():
        return sha256_file(path)
    files = [path / folder.CONFIG, *folder.weight_files(path)]
    hashes = "".join(f"{file.name} {sha256_file(file)}\n" for file in files)
    return hashlib.sha256(hashes.encode()).hexdigest()


def _load_folder(path: Path, stated: Mapping[str, Any]) -> ModelWeights:
    settings = folder.read_json(path / folder.CONFIG)
    state: StateDict = {}
    for file in folder.weight_files(path):
        state |= read_state_dict(file)
    fingerprint = hash_weights(path)
    if settings.get("model_type") == "minimind":
        minimind = infer_minimind_directory(_shapes(state), settings, stated, str(path))
        _verify_values(state, path)
        _verify_tied(state, path)
        own = minimind.to_hf_names(state)
        return ModelWeights(minimind, own, state[EMBEDDING].dtype, fingerprint)
    generation_path = path / folder.GENERATION_CONFIG
    generation = folder.read_json(generation_path) if generation_path.exists() else {}
    architecture = read_settings(settings, generation, str(path))
    check_overrides(architecture, stated, str(path))
    # Masks that old versions wrote beside the weights; what else is no number, will be missed.
    state = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    sizes = Counter[torch.dtype]()
    for tensor in state.values():
        sizes[tensor.dtype] += tensor.numel()
    dtype = max(sizes, key=sizes.__getitem__, default=torch.float32)
    if unknown := sizes.keys() - DTYPES.values():
        raise DpoError(f"{path}: holds weights of type {unknown.pop()}", _QUANTISED)
    try:
        model, strangers = _instantiate(
            architecture.config(), state, dtype if len(sizes) == 1 else torch.float32
        )
    except Exception as error:  # whatever a model's code makes of settings that contradict
        raise DpoError(
            f"{path}: transformers cannot build this model"
            f" ({(str(error) or type(error).__name__).strip().splitlines()[0][:200]})",
            "copy or download the directory again",
        ) from error
    if strangers:
        raise DpoError(
            f"{path}: not a complete {architecture.description}",
            "a directory must hold exactly the weights that its config.json describes; was it"
            " copied whole, and is it a whole model, no adapter?",
            [line for what, names in strangers.items() for line in list_names(what, names)],
        )
    # The names that transformers writes: older files have others, and some lack a prefix.
    own = to_disk_names(model, model.state_dict())
    _verify_values(own, path)
    return ModelWeights(architecture, own, dtype, fingerprint)


def read_state_dict(path: Path) -> StateDict:
    """The tensors of a `.pth` or `.safetensors` file by name; nothing in it is executed.

    Raises:
        DpoError: missing, empty, cut off, of another kind, or holding anything but tensors.
    """
    if not path.is_file():
        what = "a directory" if path.is_dir() else "no such file"
        raise DpoError(f"{path}: {what}", "set model.weights to a weights file")
    if path.stat().st_size == 0:
        raise DpoError(f"{path}: the file is empty", "copy or write the checkpoint again")
    try:
        path.open("rb").close()
    except OSError as error:
        raise DpoError(f"{path}: {error.strerror}", "make the file readable") from error
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DpoError(
            f"{path}: not plain weights: the file asks to run code, or is no PyTorch file"
            " (nothing in it was run)",
            "save the weights alone: torch.save(model.state_dict(), path)",
        ) from error
    except Exception as error:  # on damaged bytes the readers raise whatever they stumble over
        raise DpoError(
            f"{path}: cut off, corrupted, or no weights file"
            f" ({(str(error) or type(error).__name__).splitlines()[0][:160]})",
            "copy or write the checkpoint again",
        ) from error
    return _only_tensors(content, path)


def build_model(
    architecture: Architecture, state: StateDict, *, dropout: float = 0.0
) -> transformers.PreTrainedModel:
    """The model in float32 with these weights, ready for `segment_attention`.

    Whatever computes a model has it from here.

    Args:
        architecture: of the weights.
        state: in the Hugging Face layout, of any float type.
        dropout: probability of dropping an attention weight in training.
    """
    settle_functions()
    model, strangers = _instantiate(architecture.config(dropout), state, torch.float32)
    assert not strangers, f"{type(model).__name__} does not know {strangers}"
    # Tensors that were handed in may lie anywhere, on a mapped file even; own, aligned memory makes
    # a resumed run compute on the same terms as a fresh one.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def _instantiate(
    config: transformers.PreTrainedConfig, state: StateDict, dtype: torch.dtype
) -> tuple[transformers.PreTrainedModel, dict[str, list[str]]]:
    """A model with these weights, and which of them do not fit, by what is wrong with them."""
    # Some models draw what they then are given; how often one is built must change no bit of a run.
    with torch.random.fork_rng(devices=[]):
        model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            dtype=dtype,
            attn_implementation=attention.NAME,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    strangers = {
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(report["unexpected_keys"]),
        "wrong shape": [
            f"{name}: {tuple(found)}, {tuple(expected)} expected"
            for name, found, expected in sorted(report["mismatched_keys"])
        ],
        "not understood": sorted(report["error_msgs"]),
    }
    return model, {what: names for what, names in strangers.items() if names}


def to_disk_names(model: transformers.PreTrainedModel, tensors: StateDict) -> StateDict:
    """Tensors under a model's names in memory -> the Hugging Face layout on disk.

    Names and stacking in memory differ between versions of transformers; those on disk do not.
    Works for anything shaped like the weights, such as the optimizer's moments. Of weights that are
    tied one copy is left out.
    """
    copies = model.all_tied_weights_keys
    once = {name: tensor for name, tensor in tensors.items() if name not in copies}
    converted: StateDict = revert_weight_conversion(model, once)
    return converted


def use_experts_for(model: transformers.PreTrainedModel, *, float32: bool) -> None:
    """Choose how experts are computed.

    The grouped kernel is the fast one in float32, knows no float64, and under autocast would
    compute in float32; the loop over experts follows whatever autocast says. A few models have but
    one way, their own.
    """
    with contextlib.suppress(ValueError):
        model.set_experts_implementation("grouped_mm" if float32 else "eager")


def checkpoint_activations(model: transformers.PreTrainedModel) -> None:
    """In training, keep only what goes into each block, and compute the rest again on the way back.

    Random numbers are drawn the same again, and no bit of a gradient is another.

    Raises:
        DpoError: the model's code has no such way.
    """
    if not model.supports_gradient_checkpointing:
        raise DpoError(
            f"train.activation_checkpointing: {type(model).__name__} cannot do it",
            "leave it out; a lower train.max_tokens_per_forward or data.max_seq_len saves memory",
        )
    # The name in newer versions of transformers, and the one in older.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def compile_blocks(model: transformers.PreTrainedModel) -> None:
    """Let torch.compile fuse what a block does around its products: the norms, the feed-forward.

    Attention stays as it is, and so do experts: what they do depends on the batch. One compilation
    serves all blocks and all lengths.
    """
    for module in model.modules():
        if type(module).__name__.endswith(_COMPILED):
            module.compile(dynamic=True)


def _shapes(state: StateDict) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _only_tensors(content: Any, path: Path) -> StateDict:
    if not isinstance(content, Mapping) or not content:
        raise DpoError(
            f"{path}: holds {type(content).__name__}, not a state dict",
            "save the weights alone: torch.save(model.state_dict(), path)",
        )
    strangers = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise DpoError(
            f"{path}: not plain weights: {', '.join(strangers[:5])} are no tensors",
            "a resume or training file? give the weights that were saved beside it",
        )
    return dict(content)


def _verify_values(state: Mapping[str, Tensor], path: Path) -> None:
    integers = [name for name, tensor in state.items() if not tensor.is_floating_point()]
    if integers:
        raise DpoError(
            f"{path}: {integers[0]} is of type {state[integers[0]].dtype}",
            _QUANTISED,
        )
    spoilt = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if spoilt:
        raise DpoError(
            f"{path}: {len(spoilt)} weights hold NaN or infinity, the first {spoilt[0]}",
            "the training that wrote it failed: use an earlier checkpoint",
        )


def _verify_tied(state: Mapping[str, Tensor], path: Path) -> None:
    if HEAD in state and not torch.equal(state[HEAD], state[EMBEDDING]):
        raise DpoError(
            f"{path}: {EMBEDDING} and {HEAD} differ, and MiniMind's are tied",
            "was the file written by a model without tied embeddings?",
        )

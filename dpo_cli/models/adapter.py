"""LoRA adapters: low-rank updates of the linear layers of a model, computed by peft.

An adapter is stored as peft stores it: the content of `adapter_config.json`, and tensors under the
names of `adapter_model.safetensors`. peft is an extra, and is imported when it is needed.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.pytorch_utils import Conv1D

from dpo_cli.errors import DpoError
from dpo_cli.files import sha256_file, write_atomically, write_text_atomically
from dpo_cli.models.convert import StateDict
from dpo_cli.models.minimind import Shape
from dpo_cli.models.quantized import load_bitsandbytes
from dpo_cli.models.spec import Architecture
from dpo_cli.models.weight_files import read_state_dict
from dpo_cli.profile import adapter_config, folder
from dpo_cli.profile.adapter_config import ALL_LINEAR
from dpo_cli.profile.lora import Lora

_POLICY = "default"
"""Name in memory of the adapter that a model computes with, and that is trained."""
_START = "start"
"""Name in memory of the adapter that the reference computes with, if training began with one."""
_PREFIX = "base_model.model."
"""Prefix of the names in peft's files."""
_TARGETS = "target_modules"
_CONFIGS = "peft_config"
"""Attribute in which peft keeps the settings of each adapter."""
_LISTED = 12


@dataclass(frozen=True)
class Adapter:
    """Adapter that fits a model.

    Attributes:
        settings: of peft's LoraConfig; the target modules are a list.
        shapes: shape of each tensor, under the names of peft's files.
        state: the tensors; None for those that peft draws.
        seed: seed of the drawn tensors.
        start: tensors that the reference computes with; None if it computes without an adapter.
    """

    settings: Mapping[str, Any]
    shapes: Mapping[str, Shape] = field(repr=False)
    state: StateDict | None = field(default=None, repr=False)
    seed: int = 0
    start: StateDict | None = field(default=None, repr=False)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(map(math.prod, self.shapes.values()))


def new_adapter(architecture: Architecture, lora: Lora, seed: int) -> Adapter:
    """Return the adapter with which `[lora]` begins.

    Raises:
        DpoError: peft is missing, the model has experts, or a target matches no linear layer.
    """
    return _fitted(architecture, adapter_config.adapter_settings(lora), "lora.target_modules", seed)


def read_adapter(directory: Path, architecture: Architecture) -> tuple[Adapter, str]:
    """Read an adapter that peft saved, and check that it fits the model.

    Returns:
        The adapter, and the SHA-256 of its weights.

    Raises:
        DpoError: the directory has no LoRA adapter, or one of another base model.
    """
    settings = adapter_config.read_settings(directory)
    path = directory / adapter_config.WEIGHTS
    # peft could be asked to draw the first factors in a way that changes the base weights.
    settings["init_lora_weights"] = True
    state = read_state_dict(path)
    try:
        adapter = _fitted(architecture, settings, str(directory))
    except DpoError as error:
        raise _other_base(directory, architecture, error.message) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wrong := [name for name in {**shapes, **adapter.shapes} if _differ(name, shapes, adapter)]:
        found, expected = shapes.get(wrong[0]), adapter.shapes.get(wrong[0])
        problem = f"{wrong[0]}: {found or 'missing'}, {expected or 'no such tensor'} expected"
        raise _other_base(directory, architecture, problem)
    if bad := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise DpoError(f"{path}: {bad[0]} holds NaN or infinity", "Use an earlier checkpoint.")
    return replace(adapter, state=state), sha256_file(path)


def attach(model: PreTrainedModel, adapter: Adapter) -> None:
    """Add an adapter to a model, in place; the weights of the model itself are frozen.

    Args:
        model: of `build_model`, on the CPU.
        adapter: fits the model.
    """
    import peft

    def add(name: str, state: StateDict | None) -> None:
        _inject(model, adapter.settings, name, adapter.seed)
        if state is not None:
            inner = {key.removeprefix(_PREFIX): tensor for key, tensor in state.items()}
            peft.set_peft_model_state_dict(model, inner, adapter_name=name)

    if adapter.start is not None:
        add(_START, adapter.start)
    add(_POLICY, adapter.state)
    _use(model, _POLICY)


def adapter_state(model: PreTrainedModel, tensors: Mapping[str, Tensor] | None = None) -> StateDict:
    """Return the tensors of the trained adapter under the names of peft's files.

    Args:
        model: with an adapter.
        tensors: other tensors under the names of the parameters, for example moments.
    """
    import peft

    own = dict(model.named_parameters()) if tensors is None else dict(tensors)
    state = peft.get_peft_model_state_dict(
        model,
        {name: tensor.detach() for name, tensor in own.items() if f".{_START}." not in f"{name}."},
        adapter_name=_POLICY,
        save_embedding_layers=False,
    )
    return {_PREFIX + name: tensor for name, tensor in state.items()}


def adapter_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the trained parameters by their name in memory."""
    part = f".{_POLICY}."
    return {name: each for name, each in model.named_parameters() if part in f"{name}."}


@contextmanager
def as_at_start(model: PreTrainedModel) -> Iterator[None]:
    """Compute without the trained adapter: as the model did before the first step.

    Gradients must be off: peft freezes the adapter meanwhile.
    """
    layers = adapted_layers(model).values()
    has_start = any(_START in layer.lora_A for layer in layers)
    for layer in layers:
        if has_start:
            layer.set_adapter(_START, inference_mode=True)
        else:
            layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
            layer.set_adapter(_POLICY)


@torch.no_grad()
def merged_layer(layer: Any, base: Tensor | None) -> Tensor:
    """Return the weight of an adapted layer with the adapter merged.

    The layer is not changed: to merge and subtract again would not give the same bits.

    Args:
        layer: one of `adapted_layers`.
        base: weight to merge into; None for the layer's own, which must not be quantized.
    """
    own = copy.deepcopy(layer)
    if base is not None:
        device = next(layer.lora_A.parameters()).device
        own.base_layer = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        own.base_layer.weight = nn.Parameter(base.to(device, torch.float32, copy=True))
    own.merge(adapter_names=[_POLICY])
    weight: Tensor = own.get_base_layer().weight.detach()
    return weight


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Return peft's layers by their name in memory."""
    from peft.tuners.lora import LoraLayer

    return {name: each for name, each in model.named_modules() if isinstance(each, LoraLayer)}


def write_adapter(path: Path, adapter: Adapter, state: StateDict, base: str | None) -> None:
    """Write the directory of an adapter for peft and vLLM, or replace the weights in one.

    Args:
        path: directory; may exist.
        adapter: its settings.
        state: float32 tensors under the names of peft's files.
        base: name of the base model on the Hub, if it is there.
    """
    if path.is_symlink():  # replace the link itself; never write to its target
        path.unlink()
    path.mkdir(exist_ok=True)
    settings = json.dumps(adapter_config.to_file(adapter.settings, base), indent=2, sort_keys=True)
    write_text_atomically(path / folder.ADAPTER, settings + "\n")
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    write_atomically(
        path / adapter_config.WEIGHTS,
        lambda temporary: save_file(tensors, temporary, {"format": "pt"}),
    )


def load_with_peft(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """Load the adapter in a directory into a base model as any user of peft would."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(model, directory)
    inner: PreTrainedModel = loaded.get_base_model()
    return inner


# --- peft ----------------------------------------------------------------------------------------


def _inject(model: nn.Module, settings: Mapping[str, Any], name: str, seed: int) -> None:
    import peft

    # peft replaces the adapters that the model has; each name has its own settings.
    before = getattr(model, _CONFIGS, {})
    config = peft.LoraConfig(**settings, task_type="CAUSAL_LM", bias="none")
    # The drawn numbers depend on the seed alone: they are the same on every rank, and the random
    # state of the run does not change.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model, name)
    setattr(model, _CONFIGS, {**before, name: config})


def _use(model: PreTrainedModel, name: str) -> None:
    for layer in adapted_layers(model).values():
        layer.set_adapter(name)


# --- fit of an adapter and a model ---------------------------------------------------------------


def _fitted(
    architecture: Architecture, settings: Mapping[str, Any], source: str, seed: int = 0
) -> Adapter:
    """Return an adapter without tensors whose target modules are those of the model."""
    adapter_config.require_peft(source)
    if find_spec("bitsandbytes") is not None:
        load_bitsandbytes()  # peft imports it, but without the care of this function
    if architecture.use_moe:
        raise DpoError(
            f"{source}: {architecture.name} is a mixture of experts, which dpo trains without"
            " adapters",
            "Leave out [lora] and model.adapter to train all weights.",
        )
    config = architecture.config()
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    targets = settings[_TARGETS]
    settings = {**settings, _TARGETS: _targets(targets, linear, source)}
    with torch.device("meta"):
        _inject(model, settings, _POLICY, seed)
    parameters = adapter_parameters(model)
    shapes = {
        name: tuple(tensor.shape) for name, tensor in adapter_state(model, parameters).items()
    }
    return Adapter(settings, shapes, seed=seed)


def _targets(targets: str | Sequence[str], linear: Sequence[str], source: str) -> list[str]:
    """Return the targets as a sorted list of names.

    Raises:
        DpoError: a target matches no linear layer.
    """
    names = sorted({name.rpartition(".")[2] for name in linear})
    if targets == ALL_LINEAR:
        return names
    if isinstance(targets, str):
        raise DpoError(
            f"{source}: {targets[:80]} is a pattern, not a list of names",
            f"Name the layers: {', '.join(names[:_LISTED])}.",
        )
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise DpoError(
                f"{source}: {target[:80]!r} matches no linear layer of a block",
                f'Use "{ALL_LINEAR}", or names of {", ".join(names[:_LISTED])}.',
            )
    return sorted(set(targets))


def _differ(name: str, shapes: Mapping[str, Shape], adapter: Adapter) -> bool:
    return shapes.get(name) != adapter.shapes.get(name)


def _other_base(directory: Path, architecture: Architecture, problem: str) -> DpoError:
    base = folder.read_json(directory / folder.ADAPTER).get("base_model_name_or_path")
    named = f", {base}" if isinstance(base, str) and base.isprintable() and base else ""
    return DpoError(
        f"{directory}: an adapter of another model than model.weights ({architecture.name})",
        f"Set model.weights to the model it was trained on{named}.",
        [problem],
    )

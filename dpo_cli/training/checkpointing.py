"""Training state on disk: everything that a run needs to continue bit for bit.

Weights are float32, also those that a model has in two halves, and so are the moments of AdamW, or
bfloat16 with such weights. Both have the names of the Hugging Face layout: the names in memory
differ between versions of transformers. The state of other optimizers has other shapes
than the weights (the factors of Adafactor), or exists for some weights only (Muon), and cannot be
renamed like them: it has the names in memory. Nothing is pickled, so reading runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from dpo_cli.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from dpo_cli.errors import DpoError
from dpo_cli.files import apply_umask, write_text
from dpo_cli.models.convert import StateDict
from dpo_cli.models.loading import without_tied_copies
from dpo_cli.models.split_weights import rest_of
from dpo_cli.models.trainable import Trainable
from dpo_cli.profile.model import WeightsDtype
from dpo_cli.profile.train import Train, state_bytes_per_weight
from dpo_cli.training.best import BestSoFar
from dpo_cli.training.optimizer import COMPENSATION, MOMENTS, KahanAdamW

WEIGHTS = "weights.safetensors"
_STEP = "step"
_UNCOUNTED = {"momentum_buffer"}
"""State of weights that Muon updates, which has no count of the updates."""
_RNG = "rng.safetensors"
_STATE = "state.json"
_MAX_SAVING_SHARE = 0.006
"""Largest share of the time that saving may take. Events and the panel take less than 0.004."""


def whole_state(trainable: Trainable, model: PreTrainedModel, group: ProcessGroup) -> StateDict:
    """Return the state of the trained weights; with shards on the main rank only. Collective."""
    if not group.is_sharded:
        return trainable.state(model)
    tensors = dict(group.gather(without_tied_copies(model)))
    return trainable.to_disk_names(model, tensors) if tensors else {}


def optimizer_tensors(
    trainable: Trainable,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Iterator[tuple[str, StateDict]]:
    """Yield the state of the optimizer by name of the state and name of the weight.

    With shards this is collective, and only the main rank gets the tensors.
    """
    optimized, states = trainable.optimized(model), optimizer.state
    for key in _state_names(optimizer):
        found = {
            name: states[parameter][key]
            for name, parameter in optimized.items()
            if key in states.get(parameter, {})
        }
        by_name = {name: tensor.cpu() for name, tensor in group.gather(found)}
        if by_name and _is_adamw(optimizer):
            by_name = trainable.to_disk_names(model, by_name)
        yield key, by_name


def save_state(
    directory: Path,
    *,
    trainable: Trainable,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    optimizer_step: int,
    best: BestSoFar | None = None,
    rng: Mapping[str, Tensor] | None = None,
    weights: StateDict | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> None:
    """Write the training state into an empty directory.

    With shards, all other ranks exhaust `optimizer_tensors` in the meantime.

    Args:
        directory: must exist.
        trainable: part of the model that is trained.
        model, optimizer, scaler: after `optimizer_step` optimizer steps.
        optimizer_step: number of optimizer steps done.
        best: lowest held-out loss so far; None for a run without evaluations.
        rng: random number states of all ranks, from `rng_states`; None for this process alone.
        weights: from `whole_state`; None for those of `model`.
        group: the ranks that train together.
    """
    save_file(copies(weights or trainable.state(model)), directory / WEIGHTS)
    names, states = [], optimizer.state
    for key, by_name in optimizer_tensors(trainable, model, optimizer, group):
        save_file(copies(by_name), directory / f"{key}.safetensors")
        names.append(key)
    # Skipped updates do not count, so this may be less than optimizer_step. It is one number,
    # because each weight gets a gradient in each step; that of an expert without tokens is zero.
    updates = {int(state[_STEP]) for state in states.values() if _STEP in state}
    assert len(updates) <= 1, f"weights have different numbers of updates: {updates}"
    save_file(dict(rng or rng_states(SINGLE_PROCESS, model.device)), directory / _RNG)
    for path in directory.glob("*.safetensors"):
        apply_umask(path)
    write_text(
        directory / _STATE,
        json.dumps(
            {
                "optimizer_step": optimizer_step,
                "updates": updates.pop() if updates else 0,
                "optimizer_state": names,
                "scaler": scaler.state_dict(),
                "best": (best or BestSoFar()).to_dict(),
            }
        ),
    )


def pause_seconds(train: Train, saving_seconds: float) -> float:
    """Return the least time between a save and the next one of `save_interval`.

    At least `save_min_seconds`, and longer after a slow save: saving takes at most 0.6 % of the
    time, however slow the disk. 0 if `save_min_seconds` is 0: then each interval saves.
    """
    least = train.save_min_seconds
    return max(least, saving_seconds / _MAX_SAVING_SHARE) if least else 0.0


def state_bytes(parameters: int, train: Train, weights_dtype: WeightsDtype = "float32") -> int:
    """Return the size of what `save_state` writes at most, without random numbers and JSON."""
    compensation = 4 if train.kahan_summation else 0
    moments = state_bytes_per_weight(train.optimizer, weights_dtype)
    return (4 + moments + compensation) * parameters


def load_weights(directory: Path) -> StateDict:
    """Read the float32 weights of a checkpoint, in the Hugging Face layout."""
    # Copies, because tensors that are mapped from the file would show its later changes.
    return {name: tensor.clone() for name, tensor in _read(directory / WEIGHTS).items()}


def load_best(directory: Path) -> BestSoFar:
    """Read the lowest held-out loss up to a checkpoint."""
    return BestSoFar.from_dict(_read_json(directory / _STATE).get("best", {}))


def restore_state(
    directory: Path,
    *,
    trainable: Trainable,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    group: ProcessGroup = SINGLE_PROCESS,
) -> int:
    """Restore optimizer, scaler and random numbers; the main rank's model has the weights already.

    Only the main rank reads files, which other machines may not see. It sends all tensors, weights
    included, to the other ranks; to shards their parts, one tensor at a time, and no weights: these
    ranks have their parts of them, too. Collective.

    If `optimizer` compensates rounding (`KahanAdamW`) and the saved one did not, compensation
    starts at zero, which is exact: the saved weights are whole.

    Returns:
        The number of optimizer steps done.

    Raises:
        DpoError: a file has the wrong format.
    """

    rng: Mapping[str, Tensor] = {}
    tensors: dict[str, Mapping[str, Tensor]] = {}
    optimized = trainable.optimized(model)

    def read() -> dict[str, Any]:
        nonlocal rng
        state = _read_json(directory / _STATE)
        rng = _read(directory / _RNG)
        for key in _names_to_read(optimizer, state):
            path = directory / f"{key}.safetensors"
            if _is_adamw(optimizer):
                if key in MOMENTS or path.exists():
                    tensors[key] = trainable.from_disk_names(model, _read(path))
                continue
            tensors[key] = _read(path)
            if other := tensors[key].keys() - optimized.keys():
                raise DpoError(
                    f"{path} has a state for {min(other)}, which this model does not have",
                    "Resume with the version of transformers that the run began with.",
                )
        shapes = {
            key: {name: (list(each.shape), str(each.dtype)) for name, each in by_name.items()}
            for key, by_name in tensors.items()
        }
        rng_bytes = {name: len(tensor) for name, tensor in rng.items()}
        return {**state, "shapes": shapes, "rng_bytes": rng_bytes}

    # Two messages: names and sizes first, so that the other ranks can allocate the tensors.
    state = group.broadcast_from_main("state", read)
    if not group.is_main:
        rng = {
            name: torch.empty(size, dtype=torch.uint8) for name, size in state["rng_bytes"].items()
        }
    if group.is_sharded:
        _restore_shards(optimizer, optimized, tensors, state, group)
        group.broadcast_tensors(rng.values())
    else:
        if not group.is_main:
            tensors = {
                key: {
                    name: torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
                    for name, (shape, dtype) in by_name.items()
                }
                for key, by_name in state["shapes"].items()
            }
        sent = [parameter.detach() for parameter in optimized.values()]
        # As bytes: not every backend sends int16.
        rests = [rest_of(parameter) for parameter in optimized.values()]
        sent += [rest.view(torch.uint8) for rest in rests if rest is not None]
        if any(tensors.values()):
            _load_optimizer(optimizer, optimized, tensors, state["updates"])
            sent += [
                optimizer.state[parameter][key]
                for name, parameter in optimized.items()
                for key in tensors
                if name in tensors[key]
            ]
        group.broadcast_tensors([*sent, *rng.values()])
    if state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    _restore_rng(rng, model.device, group.rank)
    return int(state["optimizer_step"])


def _restore_shards(
    optimizer: torch.optim.Optimizer,
    optimized: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    group: ProcessGroup,
) -> None:
    """Fill the shards of the optimizer's state with the whole tensors of the main rank."""
    shards = {
        key: {name: torch.zeros_like(optimized[name].detach()) for name in by_name}
        for key, by_name in state["shapes"].items()
    }
    if any(shards.values()):
        _load_optimizer(optimizer, optimized, shards, state["updates"])
    for key, by_name in shards.items():
        # Those of the optimizer, which may have copied the ones it was given.
        loaded = {name: optimizer.state[optimized[name]][key] for name in by_name}
        group.fill(loaded, tensors.get(key, {}))


def _load_optimizer(
    optimizer: torch.optim.Optimizer,
    optimized: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Mapping[str, Tensor]],
    updates: int,
) -> None:
    """Give each weight its state: tensors by their key and the name of the weight."""
    names = {id(parameter): name for name, parameter in optimized.items()}
    order = [names[id(each)] for group in optimizer.param_groups for each in group["params"]]
    restored = optimizer.state_dict()
    restored["state"] = {}
    for index, name in enumerate(order):
        state: dict[str, Any] = {
            key: by_name[name] for key, by_name in tensors.items() if name in by_name
        }
        if state.keys() - _UNCOUNTED:
            # bitsandbytes, whose state is "state1" and others, counts in a number.
            state[_STEP] = updates if "state1" in state else torch.tensor(float(updates))
        if state:
            restored["state"][index] = state
    optimizer.load_state_dict(restored)


def _is_adamw(optimizer: torch.optim.Optimizer) -> bool:
    return isinstance(optimizer, torch.optim.AdamW)


def _state_names(optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the optimizer's state tensors; each has a file in the checkpoint."""
    if _is_adamw(optimizer):
        compensates = isinstance(optimizer, KahanAdamW)
        return [*MOMENTS, COMPENSATION] if compensates else [*MOMENTS]
    return sorted({key for state in optimizer.state.values() for key in state} - {_STEP})


def _names_to_read(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> list[str]:
    """Return the state tensors to read; `state` is the JSON of the checkpoint."""
    if _is_adamw(optimizer):
        return _state_names(optimizer) if state["updates"] else []
    return list(state["optimizer_state"])


def _read(path: Path) -> StateDict:
    try:
        tensors: StateDict = load_file(path)
    except SafetensorError as error:
        raise _wrong_format(path, f"is not a safetensors file: {error}") from error
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise _wrong_format(path, f"is not JSON: {error}") from error
    return state


def _wrong_format(path: Path, problem: str) -> DpoError:
    # The hashes of the manifest are right, so the file was replaced together with the manifest.
    return DpoError(f"{path} {problem}", "Restore the file: dpo did not write this one.")


def copies(tensors: Mapping[str, Tensor]) -> StateDict:
    """Copy tensors to the CPU, as safetensors can save them."""
    # Unstacked experts are views of one storage, which safetensors refuses.
    return {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}


def rng_states(group: ProcessGroup, device: torch.device) -> dict[str, Tensor]:
    """Return the random number states of all ranks, of the CPU and of each rank's GPU. Collective.

    Dropout draws from them, so a resume without them would use other masks.
    """
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return {
        _rng_key(name, rank): state
        for name, own in states.items()
        for rank, state in enumerate(group.all_gather(own))
    }


def _restore_rng(states: Mapping[str, Tensor], device: torch.device, rank: int) -> None:
    # On more ranks than the run had when it saved, the new ranks keep the state of their seed.
    if (state := states.get(_rng_key("cpu", rank))) is not None:
        torch.set_rng_state(state)
    if device.type != "cpu" and (state := states.get(_rng_key(device.type, rank))) is not None:
        torch.get_device_module(device).set_rng_state(state, device)


def _rng_key(name: str, rank: int) -> str:
    return f"{name}/{rank}" if rank else name

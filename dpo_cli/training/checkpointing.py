"""Training state on disk: everything that a run needs to continue bit for bit.

Weights and optimizer state are float32, under the names of the Hugging Face layout: the names in
memory differ between versions of transformers. Nothing is pickled, so reading runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from dpo_cli.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from dpo_cli.errors import DpoError
from dpo_cli.files import apply_umask, write_text
from dpo_cli.models.convert import StateDict
from dpo_cli.models.trainable import Trainable
from dpo_cli.profile.schema import Train
from dpo_cli.training.best import BestSoFar
from dpo_cli.training.optimizer import COMPENSATION, KahanAdamW

WEIGHTS = "weights.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_RNG = "rng.safetensors"
_STATE = "state.json"
_MAX_SAVING_SHARE = 0.006
"""Largest share of the time that saving may take. Events and the panel take less than 0.004."""


def save_state(
    directory: Path,
    *,
    trainable: Trainable,
    model: PreTrainedModel,
    optimizer: torch.optim.AdamW,
    scaler: torch.amp.GradScaler,
    optimizer_step: int,
    best: BestSoFar | None = None,
    rng: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the training state into an empty directory.

    Args:
        directory: must exist.
        trainable: part of the model that is trained.
        model, optimizer, scaler: after `optimizer_step` optimizer steps.
        optimizer_step: number of optimizer steps done.
        best: lowest held-out loss so far; None for a run without evaluations.
        rng: random number states of all ranks, from `rng_states`; None for this process alone.
    """
    save_file(copies(trainable.state(model)), directory / WEIGHTS)
    moments = optimizer.state
    for moment in _state_names(optimizer):
        by_name = {
            name: moments[parameter][moment].cpu()
            for name, parameter in trainable.optimized(model).items()
            if parameter in moments
        }
        save_file(
            copies(trainable.to_disk_names(model, by_name)), directory / f"{moment}.safetensors"
        )
    # Skipped updates do not count, so this may be less than optimizer_step. It is one number,
    # because each weight gets a gradient in each step; that of an expert without tokens is zero.
    updates = {int(state["step"]) for state in moments.values()}
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


def state_bytes(parameters: int, train: Train) -> int:
    """Return the size of what `save_state` writes, random numbers and JSON not counted."""
    tensors = 4 if train.kahan_summation else 3  # weights, two moments, compensation
    return 4 * tensors * parameters


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
    optimizer: torch.optim.AdamW,
    scaler: torch.amp.GradScaler,
    group: ProcessGroup = SINGLE_PROCESS,
) -> int:
    """Restore optimizer, scaler and random numbers; the main rank's model has the weights already.

    Only the main rank reads files, which other machines may not see. It sends all tensors, weights
    included, to the other ranks. Collective.

    If `optimizer` compensates rounding (`KahanAdamW`) and the saved one did not, compensation
    starts at zero, which is exact: the saved weights are whole.

    Returns:
        The number of optimizer steps done.

    Raises:
        DpoError: a file has the wrong format.
    """

    rng: Mapping[str, Tensor] = {}
    moments: dict[str, Mapping[str, Tensor]] = {}
    optimized = trainable.optimized(model)

    def read() -> dict[str, Any]:
        nonlocal rng
        state = _read_json(directory / _STATE)
        rng = _read(directory / _RNG)
        for moment in _state_names(optimizer) if state["updates"] else ():
            path = directory / f"{moment}.safetensors"
            if moment in _MOMENTS or path.exists():
                moments[moment] = trainable.from_disk_names(model, _read(path))
        rng_bytes = {name: len(tensor) for name, tensor in rng.items()}
        return {**state, "kept": list(moments), "rng_bytes": rng_bytes}

    # Two messages: names and sizes first, so that the other ranks can allocate the tensors.
    state = group.broadcast_from_main("state", read)
    if not group.is_main:
        rng = {
            name: torch.empty(size, dtype=torch.uint8) for name, size in state["rng_bytes"].items()
        }
        moments = {
            moment: {name: torch.empty_like(each) for name, each in optimized.items()}
            for moment in state["kept"]
        }
    tensors = [parameter.detach() for parameter in optimized.values()]
    if state["updates"]:
        restored = optimizer.state_dict()
        restored["state"] = {
            index: {
                "step": torch.tensor(float(state["updates"])),
                **{moment: by_name[name] for moment, by_name in moments.items()},
            }
            for index, name in enumerate(optimized)
        }
        optimizer.load_state_dict(restored)
        tensors += [kept[moment] for kept in optimizer.state.values() for moment in state["kept"]]
    group.broadcast_tensors([*tensors, *rng.values()])
    if state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    _restore_rng(rng, model.device, group.rank)
    return int(state["optimizer_step"])


def _state_names(optimizer: torch.optim.AdamW) -> tuple[str, ...]:
    """Return the names of the optimizer's state tensors; each has a file in the checkpoint."""
    compensates = isinstance(optimizer, KahanAdamW)
    return (*_MOMENTS, COMPENSATION) if compensates else _MOMENTS


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

"""Our own checkpoints: everything a run needs to go on bit for bit.

Weights and what the optimizer keeps of each are stored in float32 under the Hugging Face layout's
names, which are stable where the names in memory are not; nothing is pickled.
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
from dpo_cli.models.convert import StateDict
from dpo_cli.models.loading import build_model, to_disk_names
from dpo_cli.models.spec import Architecture
from dpo_cli.profile.schema import Train
from dpo_cli.training.best import BestSoFar
from dpo_cli.training.optimizer import COMPENSATION, KahanAdamW

WEIGHTS = "weights.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_RNG = "rng.safetensors"
_STATE = "state.json"


def save_state(
    directory: Path,
    *,
    model: PreTrainedModel,
    optimizer: torch.optim.AdamW,
    scaler: torch.amp.GradScaler,
    optimizer_step: int,
    best: BestSoFar | None = None,
    rng: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the state after `optimizer_step` optimizer steps into an empty directory.

    `best` is the held-out loss to beat, None where there is none. `rng` are the random numbers of
    all ranks, from `rng_states`; None where there is but this one.
    """
    save_file(on_disk(model, model.state_dict()), directory / WEIGHTS)
    names = {parameter: name for name, parameter in model.named_parameters()}
    moments = optimizer.state
    for moment in _kept_by(optimizer):
        by_name = {names[p]: moments[p][moment] for p in names if p in moments}
        save_file(on_disk(model, by_name), directory / f"{moment}.safetensors")
    updates = {int(state["step"]) for state in moments.values()}
    # Every weight gets a gradient in every window, experts without tokens a zero one.
    assert len(updates) <= 1, f"weights updated unequally often: {updates}"
    save_file(dict(rng or rng_states(SINGLE_PROCESS, model.device)), directory / _RNG)
    (directory / _STATE).write_text(
        json.dumps(
            {
                "optimizer_step": optimizer_step,
                "updates": updates.pop() if updates else 0,
                "scaler": scaler.state_dict(),
                "best": (best or BestSoFar()).to_dict(),
            }
        ),
        encoding="utf-8",
    )


def state_bytes(parameters: int, train: Train) -> int:
    """What `save_state` writes, but for the little that is no weight's."""
    tensors = 4 if train.kahan_summation else 3
    return 4 * tensors * parameters


def load_weights(directory: Path) -> StateDict:
    """The float32 weights of a checkpoint, in the Hugging Face layout."""
    return _read(directory / WEIGHTS)


def load_best(directory: Path) -> BestSoFar:
    """What the run that saved a checkpoint knew to be its best on the held-out pairs."""
    return BestSoFar.from_dict(_read_position(directory / _STATE).get("best", {}))


def restore_state(
    directory: Path,
    *,
    architecture: Architecture,
    model: PreTrainedModel,
    optimizer: torch.optim.AdamW,
    scaler: torch.amp.GradScaler,
    group: ProcessGroup = SINGLE_PROCESS,
) -> int:
    """Put optimizer, scaler and random numbers back; the weights are the leader's model's already.

    Only the leader reads: the others, which may be on machines that do not see its files, get all
    of it from there. Collective.

    Where the optimizer compensates and the one that was saved did not, nothing is lost yet.

    Returns:
        The number of optimizer steps done.

    Raises:
        DpoError: a file is not what its name says.
    """

    rng: Mapping[str, Tensor] = {}
    moments: dict[str, Mapping[str, Tensor]] = {}

    def read() -> dict[str, Any]:
        nonlocal rng
        state = _read_position(directory / _STATE)
        rng = _read(directory / _RNG)
        for moment in _kept_by(optimizer) if state["updates"] else ():
            path = directory / f"{moment}.safetensors"
            if moment in _MOMENTS or path.exists():
                moments[moment] = _in_memory_names(path, architecture)
        rng_bytes = {name: len(tensor) for name, tensor in rng.items()}
        return {**state, "kept": list(moments), "rng_bytes": rng_bytes}

    state = group.broadcast_from_main("state", read)
    if not group.is_main:
        rng = {
            name: torch.empty(size, dtype=torch.uint8) for name, size in state["rng_bytes"].items()
        }
        moments = {
            moment: {name: torch.empty_like(its) for name, its in model.named_parameters()}
            for moment in state["kept"]
        }
    tensors = [parameter.detach() for parameter in model.parameters()]
    if state["updates"]:
        restored = optimizer.state_dict()
        restored["state"] = {
            index: {
                "step": torch.tensor(float(state["updates"])),
                **{moment: by_name[name] for moment, by_name in moments.items()},
            }
            for index, (name, _) in enumerate(model.named_parameters())
        }
        optimizer.load_state_dict(restored)
        tensors += [its[moment] for its in optimizer.state.values() for moment in state["kept"]]
    group.broadcast_tensors([*tensors, *rng.values()])
    if state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    _restore_rng(rng, model.device, group.rank)
    return int(state["optimizer_step"])


def _kept_by(optimizer: torch.optim.AdamW) -> tuple[str, ...]:
    """What the optimizer keeps of each weight: in the checkpoint, a file each."""
    compensates = isinstance(optimizer, KahanAdamW)
    return (*_MOMENTS, COMPENSATION) if compensates else _MOMENTS


def _in_memory_names(path: Path, architecture: Architecture) -> Mapping[str, Tensor]:
    """Moments travel by the road of the weights: a model built from them names them."""
    carrier = build_model(architecture, _read(path))
    return {name: parameter.detach() for name, parameter in carrier.named_parameters()}


def _read(path: Path) -> StateDict:
    try:
        tensors: StateDict = load_file(path)
    except SafetensorError as error:
        raise _not_ours(path, f"is no safetensors file: {error}") from error
    return tensors


def _read_position(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise _not_ours(path, f"is no JSON: {error}") from error
    return state


def _not_ours(path: Path, problem: str) -> DpoError:
    """Hashes verify, so somebody made it so."""
    return DpoError(
        f"{path} {problem}", "it was not written by dpo; nothing else is ever read in its place"
    )


def on_disk(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> StateDict:
    """Copies of tensors that are named as in memory, as the Hugging Face layout stores them."""
    renamed = to_disk_names(model, {name: tensor.cpu() for name, tensor in tensors.items()})
    # Unstacking gives views of one storage, which safetensors refuses.
    return {name: tensor.clone().contiguous() for name, tensor in renamed.items()}


def rng_states(group: ProcessGroup, device: torch.device) -> dict[str, Tensor]:
    """The random number generators of all ranks, of the CPU and of the card they compute on.

    Collective: all ranks call it at the same moment.
    """
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {
        _of_rank(name, rank): state
        for name, own in states.items()
        for rank, state in enumerate(group.all_gather(own))
    }


def _restore_rng(states: Mapping[str, Tensor], device: torch.device, rank: int) -> None:
    """Those of a rank that there was none of stay as the run's seed left them."""
    if (state := states.get(_of_rank("cpu", rank))) is not None:
        torch.set_rng_state(state)
    if device.type == "cuda" and (state := states.get(_of_rank("cuda", rank))) is not None:
        torch.cuda.set_rng_state(state, device)


def _of_rank(name: str, rank: int) -> str:
    return f"{name}/{rank}" if rank else name

"""Shards of a model by torch's `fully_shard` (FSDP2): each rank holds its part of every tensor.

Each decoder block is gathered right before its forward and its backward and freed after it; the
gradients of a block are summed and divided as soon as its backward is done. The root, which is the
whole scorer, gathers what lies outside of the blocks: embedding, last norm and head.

Every forward and every backward is therefore collective: all ranks make the same number of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from dpo_cli.errors import DpoError

_NEEDED_TORCH = "2.8"
_SUMS = "set_force_sum_reduction_for_comms"
"""Method of a sharded module, from `_NEEDED_TORCH` on, that sums gradients instead of averaging."""


def make_mesh(hosts: Sequence[str], device_type: str) -> DeviceMesh:
    """Arrange the ranks: one row of shards, or one row for each of several machines.

    On several machines with as many ranks each, every machine holds the whole model in shards
    (hybrid sharding, HSDP): weights are gathered within a machine only, and the sums of gradients
    alone cross the network. Otherwise all ranks share one model. Collective.

    Args:
        hosts: host name of each rank.
        device_type: of the tensors, for example "cuda".

    Raises:
        DpoError: this version of torch is too old.
    """
    if not hasattr(FSDPModule, _SUMS):
        raise DpoError(
            f'launch.strategy = "shard" needs torch {_NEEDED_TORCH}, not {torch.__version__}',
            'Install a later torch, or use launch.strategy = "replicate".',
        )
    machines = list(dict.fromkeys(hosts))
    per_machine = len(hosts) // len(machines)
    # Torchrun and Slurm number the ranks machine by machine.
    is_even = list(hosts) == [host for host in machines for _ in range(per_machine)]
    if len(machines) > 1 and per_machine > 1 and is_even:
        shape = (len(machines), per_machine)
        return init_device_mesh(device_type, shape, mesh_dim_names=("replicate", "shard"))
    return init_device_mesh(device_type, (len(hosts),), mesh_dim_names=("shard",))


def shard(root: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh, method: str) -> None:
    """Divide the tensors of a module among the ranks, in place. Collective.

    Args:
        root: module whose forward or `method` is called; on the CPU or on the device of the mesh.
        blocks: its parts that are gathered one at a time, in the order of the forward.
        mesh: from `make_mesh`.
        method: name of a method of `root` that uses its tensors, besides `forward`.
    """
    # Scores are views of what the scorer computes, and nothing writes to them.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for module in (*blocks, root):
        # The root, too, is freed after its forward: otherwise its whole tensors would stay in the
        # place of the shards after each forward without a backward.
        sharded = fully_shard(module, mesh=mesh, reshard_after_forward=True)
        # Gradients are summed, as those of replicas are: the weights of the losses make the mean.
        # Gloo has no other reduction, either.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(root, method)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole, gathered from all ranks if it is a shard. Collective."""
    detached = tensor.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached


def own_part(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, which may be empty; without gradients."""
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


def fill(target: Tensor, source: Tensor | None, main_rank: int) -> None:
    """Overwrite a tensor that is divided among the ranks with the whole one of the main rank.

    The whole tensor travels through the CPU, one at a time. Collective.

    Args:
        target: shard of this rank, or a tensor that each rank has whole.
        source: whole tensor on the main rank; None on the others.
        main_rank: rank that has `source`.
    """
    if source is None:
        sent = torch.empty(target.shape, dtype=target.dtype)
    else:
        sent = source.to("cpu", target.dtype).contiguous()
    dist.broadcast(sent, main_rank)
    if isinstance(target, DTensor):
        sent = own_part(
            distribute_tensor(sent, target.device_mesh, target.placements, src_data_rank=None)
        )
    own_part(target).copy_(sent)

"""Collectives of torch.distributed over all ranks, in the forms that training needs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store

from dpo_cli.distributed.network import interface_towards


def init(
    device: torch.device, store: Store, rank: int, world_size: int, timeout_seconds: float
) -> None:
    """Initialize torch.distributed for tensors on `device` and on the CPU.

    Args:
        device: of the gradients.
        store: for the addresses of the ranks.
        rank: rank of this process.
        world_size: number of ranks.
        timeout_seconds: limit of each collective.
    """
    if interface := interface_towards(os.environ["MASTER_ADDR"]):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend,
        store=PrefixStore("collectives", store),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_seconds),
    )


def all_reduce_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients of all ranks in place; a missing gradient counts as zeros.

    One flat tensor, not one all_reduce per parameter or bucket: floating-point sums depend on their
    order, and the buckets of DistributedDataParallel are rebuilt after the first step, so that a
    resumed run would sum in another order and end with other bits. It also needs no rule for a
    rank without a forward, or an expert without tokens.

    Beside the float32 norms of a model, gradients of bfloat16 weights are summed in float32, too,
    and rounded once.
    """
    # torch.cat returns the wider dtype.
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    )
    is_mixed = any(parameter.dtype != flat.dtype for parameter in parameters)
    if flat.is_cuda:
        # NCCL waits on the GPU, where no timeout could name the missing rank. This sum over gloo
        # waits on the CPU first.
        dist.all_reduce(torch.zeros(1))
    dist.all_reduce(flat)
    pieces = torch.split(flat, [p.numel() for p in parameters])
    for parameter, gradient in zip(parameters, pieces, strict=True):
        # A view: no second copy of all gradients. After a sum of two dtypes, copies, which end the
        # sum.
        gradient = gradient.view_as(parameter)
        parameter.grad = gradient.to(parameter.dtype, copy=is_mixed)


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """Sum numbers over all ranks, position by position, in float64."""
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return cast(list[float], total.tolist())


def all_gather(tensor: Tensor, world_size: int) -> list[Tensor]:
    """Gather a tensor, of one shape on all ranks, from each rank."""
    tensors = [torch.empty_like(tensor) for _ in range(world_size)]
    dist.all_gather(tensors, tensor)
    return tensors


def destroy() -> None:
    """Shut torch.distributed down, if it was initialized."""
    if dist.is_initialized():
        dist.destroy_process_group()

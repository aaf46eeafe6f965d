"""Optimizers of a run: AdamW, Adafactor, SGD and Muon.

AdamW exists also with Kahan summation, in 8 bits, and for weights in two halves.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from dpo_cli.errors import DpoError
from dpo_cli.extras import install_extra
from dpo_cli.models.quantized import load_bitsandbytes
from dpo_cli.models.split_weights import merge, rest_of, split
from dpo_cli.profile.train import Train

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names of the moments in the state of AdamW."""
COMPENSATION = "compensation"
"""Name of the compensation in the state of `KahanAdamW`, beside the moments."""
_PART = 1 << 22
"""Numbers that `SplitAdamW` updates at once: its copies in float32 stay small."""
_NEEDED_TORCH = {"adafactor": ("Adafactor", "2.5"), "muon": ("Muon", "2.9")}
"""Class in torch.optim and the first version with it, of optimizers that older ones lack."""
_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
"""Names of norms and biases, as transformers' trainer finds them."""


class KahanAdamW(torch.optim.AdamW):
    """AdamW that loses no part of an update to rounding.

    At a learning rate of 1e-8, an update is less than half the spacing of float32 at most weights,
    and would be rounded away. Here a weight is the sum of two float32 numbers: the weight that the
    model computes with, and a compensation, the part of the updates that the weight cannot hold.
    Each update is added to both (Kahan 1965, Further remarks on reducing truncation errors), by a
    sum that is exact whichever summand is larger (Knuth, The Art of Computer Programming 2, 4.2.2,
    theorem B). The moments have the same bits as AdamW's.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update each weight that has a gradient; `closure` is part of torch's interface."""
        moving = [
            (weight, weight.clone(), group["lr"] * group["weight_decay"])
            for group in self.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        # On weights of zero, AdamW leaves the update itself, in the full precision of its size.
        for weight, _, _ in moving:
            weight.zero_()
        super().step(closure)
        for weight, before, decay in moving:
            state = self.state[weight]
            if COMPENSATION not in state:
                state[COMPENSATION] = torch.zeros_like(weight)
            # Weight decay is part of the update: AdamW multiplied zeros by it.
            update = weight.sub(before, alpha=decay).add_(state[COMPENSATION])
            weight.copy_(before + update)
            # Knuth's TwoSum: the rounding error of before + update, exactly.
            arrived = weight - before
            state[COMPENSATION] = (before - (weight - arrived)).add_(update - arrived)


class SplitAdamW(torch.optim.AdamW):
    """AdamW on float32 weights in two halves, see `dpo_cli.models.split_weights`.

    Gradients and moments of these weights are bfloat16; an update is computed in float32, part by
    part. Moments are rounded stochastically: the second one changes by a thousandth in a step, less
    than half a spacing of bfloat16, and rounding to nearest would never let it decay. The random
    numbers follow from the seed and the number of updates, so that they are equal on all ranks and
    after a resume.
    """

    seed: int

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update each weight that has a gradient; `closure` is part of torch's interface."""
        assert closure is None, "the loss is not computed again"
        noise: Tensor | None = None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state |= {moment: torch.zeros_like(weight) for moment in MOMENTS}
                state["step"] += 1
                updates = int(state["step"])
                if noise is None:
                    noise = self._noise(updates, weight.device)
                rest = rest_of(weight)
                tensors = [weight.detach(), weight.grad, *(state[moment] for moment in MOMENTS)]
                tensors += [] if rest is None else [rest]
                for parts in zip(*(_parts(tensor) for tensor in tensors), strict=True):
                    _update_part(*parts, group=group, updates=updates, noise=noise)

    def _noise(self, updates: int, device: torch.device) -> Tensor:
        """Return 16 random bits for each number of a part; all parts share them."""
        generator = torch.Generator(device).manual_seed((self.seed << 32) + updates)
        size = max(weight.numel() for group in self.param_groups for weight in group["params"])
        return torch.randint(
            *(0, 1 << 16, (min(size, _PART),)),
            generator=generator,
            dtype=torch.int32,
            device=device,
        )


def _parts(tensor: Tensor) -> Sequence[Tensor]:
    return torch.split(tensor.reshape(-1), _PART)


def _update_part(
    weight: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    rest: Tensor | None = None,
    *,
    group: dict[str, Any],
    updates: int,
    noise: Tensor,
) -> None:
    """Update a part of a weight in place, and its moments, as torch's AdamW does in float32.

    Args:
        weight, gradient, first, second: (n,), float32, or bfloat16 with `rest`.
        rest: (n,) int16.
        group: options of the optimizer.
        updates: number of this update, from 1.
        noise: n or more random numbers of 16 bits.
    """
    full = weight if rest is None else merge(weight, rest)
    gradient, mean, square = gradient.float(), first.float(), second.float()
    rate, (decay, square_decay) = group["lr"], group["betas"]
    full.mul_(1 - rate * group["weight_decay"])
    mean.lerp_(gradient, 1 - decay)
    square.mul_(square_decay).addcmul_(gradient, gradient, value=1 - square_decay)
    root = math.sqrt(1 - square_decay**updates)
    denominator = (square.sqrt() / root).add_(group["eps"])
    full.addcdiv_(mean, denominator, value=-rate / (1 - decay**updates))
    if rest is not None:
        for half, new in zip((weight, rest), split(full), strict=True):
            half.copy_(new)
        for moment, new in ((first, mean), (second, square)):
            # The last 16 bits are the fraction that bfloat16 drops: after the sum it carries over
            # with the probability of the fraction.
            bits = new.view(torch.int32).add_(noise[: len(new)]).bitwise_and_(-(1 << 16))
            moment.copy_(bits.view(torch.float32))


class MuonAdamW(torch.optim.Optimizer):
    """Muon for matrices, and AdamW for all other weights, with one learning rate.

    Muon scales its updates to the size of AdamW's ("match_rms_adamw", arXiv:2502.16982), so that
    the learning rate and the weight decay mean the same for both.
    """

    def __init__(
        self, matrices: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], train: Train
    ) -> None:
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            muon = torch.optim.Muon(
                [*matrices],
                lr=0.0,
                weight_decay=train.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self._parts.append(muon)
        if others:
            self._parts.append(_adamw(torch.optim.AdamW, others, train))
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update each weight that has a gradient; `closure` is part of torch's interface."""
        assert closure is None, "the loss is not computed again"
        first = 0
        for part in self._parts:
            last = first + len(part.param_groups)
            # Loading a state replaces both objects of this optimizer.
            part.param_groups, part.state = self.param_groups[first:last], self.state
            part.step()
            first = last


def make_optimizer(
    parameters: Iterable[nn.Parameter], train: Train, model: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer of a profile.

    The learning rate is set before every step. On CUDA, one kernel of AdamW or SGD updates all
    weights.

    Args:
        parameters: float32, or in two halves.
        train: table [train] of the profile.
        model: model with these parameters; its modules and names show which ones are norms, biases,
            embeddings and the output head. None if there are none.

    Raises:
        DpoError: this version of torch has no such optimizer, or bitsandbytes is not installed.
    """
    require_optimizer(train)
    weights = list(parameters)
    undecayed: set[int] = set()
    if model is not None and not train.decay_norms_and_biases:
        undecayed = _norms_and_biases(model)
    groups = _of([{"params": weights}], lambda each: id(each) not in undecayed)
    for group in _of([{"params": weights}], lambda each: id(each) in undecayed):
        groups.append({**group, "weight_decay": 0.0})
    if train.optimizer == "adamw8bit":
        return _adamw8bit(groups, train)
    if train.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=0.0, weight_decay=train.weight_decay)
    if train.optimizer == "sgd":
        fused = weights[0].device.type != "cpu" or None
        return torch.optim.SGD(groups, lr=0.0, weight_decay=train.weight_decay, fused=fused)
    if train.optimizer == "muon":
        embeddings = set() if model is None else _embeddings(model)
        matrices = {id(each) for each in weights if each.ndim == 2} - embeddings
        return MuonAdamW(
            _of(groups, lambda each: id(each) in matrices),
            _of(groups, lambda each: id(each) not in matrices),
            train,
        )
    if any(rest_of(weight) is not None for weight in weights):
        optimizer = _adamw(SplitAdamW, groups, train)
        assert isinstance(optimizer, SplitAdamW)
        optimizer.seed = train.seed
        return optimizer
    return _adamw(KahanAdamW if train.kahan_summation else torch.optim.AdamW, groups, train)


def _of(
    groups: Sequence[dict[str, Any]], is_wanted: Callable[[nn.Parameter], bool]
) -> list[dict[str, Any]]:
    """Return the parameter groups with the wanted parameters alone, without empty groups."""
    found = [{**each, "params": [p for p in each["params"] if is_wanted(p)]} for each in groups]
    return [each for each in found if each["params"]]


def require_optimizer(train: Train) -> None:
    """Raise DpoError if this version of torch lacks the optimizer of a profile, or bitsandbytes."""
    if train.optimizer == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise DpoError(
            'train.optimizer = "adamw8bit" needs the package bitsandbytes, which is not installed',
            install_extra("quant"),
        )
    name, version = _NEEDED_TORCH.get(train.optimizer, ("AdamW", ""))
    if not hasattr(torch.optim, name):
        raise DpoError(
            f'train.optimizer = "{train.optimizer}": torch {torch.__version__} has no'
            f" torch.optim.{name}",
            f"Install torch {version} or later, or choose another optimizer.",
        )


def _adamw(
    kind: type[torch.optim.AdamW], groups: Sequence[dict[str, Any]], train: Train
) -> torch.optim.AdamW:
    first, second = train.adam_betas
    return kind(
        [*groups],
        lr=0.0,
        betas=(first, second),
        eps=train.adam_epsilon,
        weight_decay=train.weight_decay,
        fused=(kind != SplitAdamW and groups[0]["params"][0].device.type != "cpu") or None,
    )


def _adamw8bit(groups: Sequence[dict[str, Any]], train: Train) -> torch.optim.Optimizer:
    first, second = train.adam_betas
    optimizer: torch.optim.Optimizer = load_bitsandbytes().optim.AdamW8bit(
        [*groups],
        lr=0.0,
        betas=(first, second),
        eps=train.adam_epsilon,
        weight_decay=train.weight_decay,
    )
    return optimizer


def _norms_and_biases(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that transformers' trainer does not decay."""
    found = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if _UNDECAYED.search(name.lower())
    }
    norms = (module for module in model.modules() if isinstance(module, nn.LayerNorm))
    return found | {id(parameter) for norm in norms for parameter in norm.parameters()}


def _embeddings(model: nn.Module) -> set[int]:
    """Return the ids of the weights of embeddings and of the output head."""
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {id(each.weight) for each in (*embeddings, head) if each is not None}


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients together, which is float32 for gradients in bfloat16."""
    gradients = [each.grad for each in parameters if each.grad is not None]
    return get_total_norm(
        [
            # torch would round the norm of a bfloat16 tensor
            torch.linalg.vector_norm(each, dtype=torch.float32)
            if each.dtype == torch.bfloat16
            else each
            for each in gradients
        ]
    )

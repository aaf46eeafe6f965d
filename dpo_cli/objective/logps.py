"""From logits to the log-probability of a response.

Shape legend: S sequences (chosen first, then rejected), P pairs (S = 2P), T time, N targets
(response positions of a packed batch), H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Reduction = Literal["mean", "sum"]

_CHUNK_ELEMENTS = 1 << 24
"""Of a table of logits: 64 MB in float32."""


def gather_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-softmax over V, gathered at the labels.

    Args:
        logits: (..., V), in any float type; half precision is widened to float32 first.
        labels: (...), token ids; label t is the token that follows input t.

    Returns:
        (...), log p(label | everything before it), in nats; float32, or float64 for such logits.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logps = torch.log_softmax(wide, dim=-1)
    return logps.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def log_sum_sq_probs(logits: Tensor) -> Tensor:
    """log sum_v p(v)^2: the expected probability of a token that is drawn from these logits.

    Args:
        logits: (..., V), in any float type; half precision is widened to float32 first.

    Returns:
        (...), float32, or float64 for such logits; without gradients.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return (2 * wide).logsumexp(dim=-1) - 2 * wide.logsumexp(dim=-1)


def head_logps(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, logits_scaling: float = 1.0
) -> Tensor:
    """`gather_logps` of a linear head's logits, whose gradient needs no second table of (N, V).

    With p = softmax(logits), the gradient of log p(label) by the logits is onehot(label) - p. So p
    is all that is kept, in the place of the logits and in chunks of rows; autograd would keep the
    log-probs, and make two more tables on the way back.

    Args:
        hidden: (N, H), in the type to multiply in.
        weight: (V, H), the head's, in the same type.
        labels: (N,), token ids.
        logits_scaling: what the logits are divided by.

    Returns:
        (N,), in nats; float32, or float64 for such input.
    """
    logps: Tensor = _HeadLogps.apply(  # type: ignore[no-untyped-call]
        hidden, weight, labels, logits_scaling
    )
    return logps


@torch.no_grad()
def head_logps_and_entropies(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, logits_scaling: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`head_logps`, to the same bits, and how undecided the head is at each place.

    Args:
        hidden, weight, labels, logits_scaling: see `head_logps`.

    Returns:
        Twice (N,), in nats: the log-probs, and the entropies -sum_v p(v) log p(v).
    """
    logps: list[Tensor] = []
    undecided: list[Tensor] = []
    for logits, its_labels in _chunks(hidden, weight, labels, logits_scaling):
        normalizer = logits.logsumexp(dim=-1, keepdim=True)
        logps.append((logits.gather(-1, its_labels.unsqueeze(-1)) - normalizer).squeeze(-1))
        undecided.append(_entropies_in_place(logits, normalizer))
    return torch.cat(logps), torch.cat(undecided)


@torch.no_grad()
def entropies(logits: Tensor, mask: Tensor) -> Tensor:
    """How undecided the distribution over V is, in nats, where that is asked for.

    Args:
        logits: (..., V), widened as in `gather_logps`, but in chunks.
        mask: (...), true where it is asked for.

    Returns:
        (...), -sum_v p(v) log p(v); 0 elsewhere.
    """
    wanted, rows = mask.flatten().nonzero().squeeze(-1), logits.flatten(0, -2)
    result = torch.zeros(
        mask.numel(),
        dtype=torch.promote_types(logits.dtype, torch.float32),
        device=logits.device,
    )
    for some in torch.split(wanted, _rows_of_a_chunk(logits.shape[-1])):
        wide = rows[some].to(result.dtype)
        result[some] = _entropies_in_place(wide, wide.logsumexp(dim=-1, keepdim=True))
    return result.view(mask.shape)


def _entropies_in_place(logits: Tensor, normalizer: Tensor) -> Tensor:
    """(N,); the table (N, V) of logits is used up."""
    probabilities = logits.sub_(normalizer).exp_()
    torch.special.entr(probabilities, out=probabilities)
    return probabilities.sum(dim=-1)


def _chunks(
    hidden: Tensor, weight: Tensor, labels: Tensor, logits_scaling: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits of some rows after others, wide, with their labels."""
    rows = _rows_of_a_chunk(len(weight))
    for some, its_labels in zip(torch.split(hidden, rows), torch.split(labels, rows), strict=True):
        logits = F.linear(some, weight)
        if logits.dtype != torch.float64:
            logits = logits.float()
        if logits_scaling != 1.0:
            logits /= logits_scaling
        yield logits, its_labels


def _rows_of_a_chunk(vocabulary: int) -> int:
    return max(1, _CHUNK_ELEMENTS // vocabulary)


class _HeadLogps(torch.autograd.Function):
    """See `head_logps`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, logits_scaling: float
    ) -> Tensor:
        is_differentiated = any(ctx.needs_input_grad)
        logps: list[Tensor] = []
        probabilities: list[Tensor] = []
        for logits, its_labels in _chunks(hidden, weight, labels, logits_scaling):
            normalizer = logits.logsumexp(dim=-1, keepdim=True)
            logps.append((logits.gather(-1, its_labels.unsqueeze(-1)) - normalizer).squeeze(-1))
            if is_differentiated:
                # Wide: rounded to half precision, 1 - p would be nought for every sure token.
                probabilities.append(logits.sub_(normalizer).exp_())
        ctx.save_for_backward(hidden, weight, labels)
        ctx.probabilities, ctx.logits_scaling = probabilities, logits_scaling
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, weight, labels = ctx.saved_tensors
        gradient = gradients[0] / ctx.logits_scaling
        by_hidden: list[Tensor] = []
        by_weight = torch.zeros_like(weight)
        start = 0
        while ctx.probabilities:  # each is freed as soon as it was used
            wide = ctx.probabilities.pop(0)
            end = start + len(wide)
            its = gradient[start:end].unsqueeze(-1)
            wide.mul_(-its).scatter_add_(-1, labels[start:end].unsqueeze(-1), its)
            by_logits = wide.to(hidden.dtype)
            by_hidden.append(by_logits @ weight)
            by_weight.addmm_(by_logits.T, hidden[start:end])
            start = end
        return torch.cat(by_hidden), by_weight, None, None


def sequence_logps(token_logps: Tensor, mask: Tensor, reduction: Reduction) -> Tensor:
    """The log-probability of each response.

    The sum runs in float64: a response of 1,000 tokens sums to about -5,000 nats, where float32 is
    4.9e-4 wide, as much as a whole step's change of the margin.

    Args:
        token_logps: (S, T), in nats.
        mask: (S, T), true where a token belongs to the response.
        reduction: "sum" (Rafailov et al. 2023, eq. 7) or "mean" per response token.

    Returns:
        (S,), float64. A sequence without a response token has 0 under both.
    """
    sums = torch.where(mask, token_logps.double(), 0.0).sum(dim=-1)
    return sums if reduction == "sum" else sums / mask.sum(dim=-1).clamp(min=1)

"""Log-probability of a response, computed from logits.

Shape legend: S sequences (chosen first, then rejected), P pairs (S = 2P), T time, N targets
(response positions of a packed batch), H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum"]

_CHUNK_ELEMENTS = 1 << 24
"""Elements of one chunk of logits, (rows, V): 64 MB in float32.

With 150,000 tokens in the vocabulary, the logits of a whole micro-batch would need gigabytes. A
chunk this large still keeps the matrix products efficient on a CPU.
"""
_ACCELERATOR_CHUNK_ELEMENTS = 1 << 27
"""Elements on an accelerator: larger, because each product reads the whole weight."""
_WITHOUT_FLOAT64 = ("mps",)
"""Types of devices that have no float64."""
_MIXED_PRODUCTS = ("cuda",)
"""Types of devices with a matrix product of half-precision factors and a float32 result."""
_MAX_SAVED_PROBABILITIES = 1 << 27
"""Most probabilities of one forward that are kept for the backward pass: 512 MB in float32. Beyond
this number, the backward pass computes them again by one more product."""


def gather_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log_softmax(logits) at the labels.

    Args:
        logits: (..., V), any float dtype. Half precision is widened to float32 first: bfloat16
            represents a log-prob of -5 only to 0.03.
        labels: (...) int64; label t is the token that follows input t.

    Returns:
        (...), log p(label | all tokens before it) in nats; float32, or float64 for float64 logits.
    """
    logps = torch.log_softmax(_widen(logits), dim=-1)
    return logps.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def log_sum_sq_probs(logits: Tensor) -> Tensor:
    """Return log sum_v p(v)^2, the log of the expected probability of a sampled token.

    `dpo.use_weighting` needs it (WPO, arXiv:2406.11827, eq. 2).

    Args:
        logits: (..., V), any float dtype; half precision is widened to float32 first.

    Returns:
        (...), float32, or float64 for float64 logits; without gradients.
    """
    wide = _widen(logits)
    return (2 * wide).logsumexp(dim=-1) - 2 * wide.logsumexp(dim=-1)


def head_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    logits_scaling: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return `gather_logps` of a linear head's logits, with a fused and chunked backward pass.

    Autograd over `gather_logps` would keep the log-probs, (N, V), and allocate two more tables of
    that size in the backward pass. With p = softmax(logits), however, the gradient is simple:

        d log p(label) / d logits = onehot(label) - p

    So only p is kept; it overwrites the logits, chunk by chunk, and becomes the gradient in place.

    Args:
        hidden: (N, H).
        weight: (V, H), of the head, in the same dtype or in bfloat16.
        labels: (N,) int64, token ids.
        logits_scaling: divisor of the logits.
        dtype: round the factors of all products to this dtype; None leaves them as they are. The
            products themselves are float32: logits rounded to bfloat16 would change a log-prob by
            0.015 nats, thirty times as much as one optimizer step does.

    Returns:
        (N,), in nats; float32, or float64 for float64 input.
    """
    logps: Tensor = _HeadLogps.apply(  # type: ignore[no-untyped-call]
        hidden, weight, labels, logits_scaling, dtype or hidden.dtype
    )
    return logps


@torch.no_grad()
def head_logps_and_entropies(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    logits_scaling: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the values of `head_logps`, bit for bit, and the entropies of the distributions.

    Args:
        hidden, weight, labels, logits_scaling, dtype: see `head_logps`.

    Returns:
        Two tensors of shape (N,), in nats: the log-probs, and -sum_v p(v) log p(v).
    """
    logps: list[Tensor] = []
    entropy: list[Tensor] = []
    dtype = dtype or hidden.dtype
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    for logits, chunk_labels in _logit_chunks(hidden, weight, labels, logits_scaling):
        normalizer = logits.logsumexp(dim=-1, keepdim=True)
        logps.append((logits.gather(-1, chunk_labels.unsqueeze(-1)) - normalizer).squeeze(-1))
        entropy.append(_entropies_in_place(logits, normalizer))
    return torch.cat(logps), torch.cat(entropy)


@torch.no_grad()
def entropies(logits: Tensor, mask: Tensor, positions: Tensor | None = None) -> Tensor:
    """Return the entropies -sum_v p(v) log p(v) of the distributions at masked positions.

    Args:
        logits: (..., V), any float dtype; widened to float32 like in `gather_logps`, but in chunks.
        mask: (...) bool, true at the positions to compute.
        positions: (K,) int64, true positions in the flattened mask, if known; finding them on a GPU
            would wait for the GPU.

    Returns:
        (...), in nats; 0 where the mask is false.
    """
    if positions is None:
        positions = mask.flatten().nonzero().squeeze(-1)
    rows = logits.flatten(0, -2)
    result = torch.zeros(
        mask.numel(),
        dtype=torch.promote_types(logits.dtype, torch.float32),
        device=logits.device,
    )
    for chunk in torch.split(positions, _chunk_rows(logits.shape[-1], logits.device)):
        # Indexing copies, so the in-place computation leaves the caller's logits unchanged.
        wide = rows[chunk].to(result.dtype)
        result[chunk] = _entropies_in_place(wide, wide.logsumexp(dim=-1, keepdim=True))
    return result.view(mask.shape)


def sequence_logps(token_logps: Tensor, mask: Tensor, reduction: Reduction) -> Tensor:
    """Return the log-probability of each response.

    The sum runs in float64. A response of 1,000 tokens sums to about -5,000 nats, where neighboring
    float32 numbers are 4.9e-4 apart; one optimizer step may change the margin by no more than that.

    Args:
        token_logps: (S, T), in nats.
        mask: (S, T) bool, the response mask.
        reduction: "sum" (Rafailov et al. 2023, eq. 7) or "mean" per response token.

    Returns:
        (S,) float64; 0 for a sequence without response tokens, whatever the reduction.
    """
    sums = torch.where(mask, token_logps.double(), 0.0).sum(dim=-1)
    return sums if reduction == "sum" else sums / mask.sum(dim=-1).clamp(min=1)


def has_float64(device: torch.device) -> bool:
    """Return True if a device computes in float64."""
    return device.type not in _WITHOUT_FLOAT64


def to_float64_device(tensor: Tensor) -> Tensor:
    """Return a tensor on its own device, or on the CPU if the device has no float64."""
    return tensor if has_float64(tensor.device) else tensor.cpu()


def _widen(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _entropies_in_place(logits: Tensor, normalizer: Tensor) -> Tensor:
    """Return entropies, (N,); overwrites the logits, (N, V)."""
    probabilities = logits.sub_(normalizer).exp_()
    # entr(p) is -p log p and 0 at p = 0, where a product of logits and probabilities gives NaN for
    # logits of minus infinity.
    torch.special.entr(probabilities, out=probabilities)
    return probabilities.sum(dim=-1)


def _logit_chunks(
    hidden: Tensor, weight: Tensor, labels: Tensor, logits_scaling: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (logits, labels) of successive rows; logits (rows, V) in float32 or float64."""
    rows = _chunk_rows(len(weight), weight.device)
    chunks = zip(torch.split(hidden, rows), torch.split(labels, rows), strict=True)
    for chunk_hidden, chunk_labels in chunks:
        yield _scaled_logits(chunk_hidden, weight, logits_scaling), chunk_labels


def _scaled_logits(hidden: Tensor, weight: Tensor, logits_scaling: float) -> Tensor:
    logits = _product(hidden, weight.T)
    if logits_scaling != 1.0:
        logits /= logits_scaling
    return logits


def _chunk_rows(vocabulary: int, device: torch.device) -> int:
    elements = _CHUNK_ELEMENTS if device.type == "cpu" else _ACCELERATOR_CHUNK_ELEMENTS
    return max(1, elements // vocabulary)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return the matrix product in float32 for factors of half precision, else in their dtype."""
    if left.dtype not in (torch.float16, torch.bfloat16):
        return left @ right
    if left.device.type in _MIXED_PRODUCTS:
        # Tensor cores accumulate in float32 anyway.
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Add a product to the sum over earlier chunks, in float32 for factors of half precision.

    A sum in half precision would lose the last digits of each product.
    """
    if total is None:
        return _product(left, right)
    return (
        total.addmm_(left, right)
        if left.dtype == total.dtype
        else total.add_(_product(left, right))
    )


class _HeadLogps(torch.autograd.Function):
    """Autograd function of `head_logps`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        logits_scaling: float,
        dtype: torch.dtype,
    ) -> Tensor:
        # Rounded here, not by the caller: a cast outside would also round the gradients of both.
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        needs_backward = any(ctx.needs_input_grad)
        is_saved = needs_backward and len(hidden) * len(weight) <= _MAX_SAVED_PROBABILITIES
        logps: list[Tensor] = []
        probabilities: list[Tensor] = []
        normalizers: list[Tensor] = []
        for logits, chunk_labels in _logit_chunks(hidden, weight, labels, logits_scaling):
            normalizer = logits.logsumexp(dim=-1, keepdim=True)
            # Gathered before the subtraction, so that the table of log-probs is never formed.
            logps.append((logits.gather(-1, chunk_labels.unsqueeze(-1)) - normalizer).squeeze(-1))
            if is_saved:
                # Kept in float32: in half precision, p rounds to 1 for every confident token, and
                # the gradient 1 - p would be 0.
                probabilities.append(logits.sub_(normalizer).exp_())
            elif needs_backward:
                normalizers.append(normalizer)
        ctx.save_for_backward(hidden, weight, labels, *normalizers)
        # Not through save_for_backward: its tensors may not be changed in place, and all of them
        # live until the end of the backward pass. From a list, each chunk is freed after its use.
        ctx.probabilities, ctx.logits_scaling = probabilities, logits_scaling
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, *normalizers = ctx.saved_tensors
        gradient = gradients[0] / ctx.logits_scaling
        rows = _chunk_rows(len(weight), weight.device)
        grad_hidden: list[Tensor] = []
        grad_weight: Tensor | None = None
        for start in range(0, max(1, len(hidden)), rows):
            part = slice(start, start + rows)
            if normalizers:
                logits = _scaled_logits(hidden[part], weight, ctx.logits_scaling)
                probabilities = logits.sub_(normalizers[start // rows]).exp_()
            else:
                probabilities = ctx.probabilities.pop(0)  # frees each chunk: one backward only
            row_gradient = gradient[part].unsqueeze(-1)
            # g (onehot - p), in place of p.
            probabilities.mul_(-row_gradient)
            probabilities.scatter_add_(-1, labels[part].unsqueeze(-1), row_gradient)
            grad_logits = probabilities.to(hidden.dtype)
            grad_hidden.append(_product(grad_logits, weight))
            if ctx.needs_input_grad[1]:  # the head of a model with an adapter is frozen
                grad_weight = _add_product(grad_weight, grad_logits.T, hidden[part])
        return torch.cat(grad_hidden), grad_weight, None, None, None

"""Ties: differences of log-probs that rounding alone can explain.

Shape legend: S = 2P sequences (chosen first, then rejected), P pairs, T time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpo_cli.objective.logps import Reduction, sequence_logps

ROUNDING_FACTOR = 8.0
"""Rounding bound of a difference, in units of epsilon times the root of the summed squares.

Measured: the same weights scored in batches of other sizes, 23 architectures, float32 (both matmul
libraries) and float64, ATEN_CPU_CAPABILITY default, avx2 and avx512. The margins of equal models
differ from 0 by at most 2.4 of these units; 8 leaves room for deeper models.
"""


@torch.no_grad()
def rounding_bounds(token_logps: Sequence[Tensor], mask: Tensor, reduction: Reduction) -> Tensor:
    """Return the largest difference of each pair that rounding alone can explain.

    A difference adds and subtracts the log-probs of N tokens. Each of them carries a rounding error
    of about epsilon * max(|log p|, 1): log p is a logit minus the logsumexp, so that even log p = 0
    has an error of the size of the logits. The errors are independent, so their sum grows as the
    root of the summed squares, not as the sum:

        bound = ROUNDING_FACTOR * epsilon * sqrt(sum over tokens of max(|log p|, 1)^2)

    With 4 x 250 tokens at 2 nats in float32 that is 6e-5 nats. Epsilon is that of the log-probs
    (float32 under every `train.dtype`), not that of half-precision products: policy and reference
    run the same kernels on the same batch, which give equal weights equal bits, and 8 epsilon of
    bfloat16 would call all that a run learns a tie.

    Args:
        token_logps: the tables (S, T) that the differences were made of, for example those of
            policy and reference.
        mask: (S, T), true where a token belongs to the response.
        reduction: "sum" or "mean" over the tokens of a response, as in the differences.

    Returns:
        (P,) float64, in nats and before any factor beta.
    """
    squares = sum(
        sequence_logps(table.double().abs().clamp(min=1.0).square(), mask, "sum")
        for table in token_logps
    )
    assert isinstance(squares, Tensor)
    if reduction == "mean":
        squares = squares / mask.sum(dim=-1).clamp(min=1).square()
    epsilon = max(torch.finfo(table.dtype).eps for table in token_logps)
    return ROUNDING_FACTOR * epsilon * squares.view(2, -1).sum(dim=0).sqrt()


def is_tied(differences: Tensor, bounds: Tensor) -> Tensor:
    """Return True where chosen and rejected differ by no more than rounding; False for NaN.

    Args:
        differences: (P,), chosen minus rejected, in nats and before any factor beta.
        bounds: (P,), from `rounding_bounds`.
    """
    return differences.abs() <= bounds


def preferences(differences: Tensor, bounds: Tensor) -> Tensor:
    """Return 1 where chosen is ahead of rejected, 0.5 where they tie, and 0 elsewhere.

    A tie counts half, so that the mean over pairs that all tie is that of guessing. NaN gives 0.

    Args:
        differences, bounds: see `is_tied`.

    Returns:
        (P,) float64.
    """
    return (differences > bounds).double() + is_tied(differences, bounds).double() / 2

"""Measurement of the error of quantized weights on the log-probs of responses."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from dpo_cli.checks.model import response_logps, sample_pairs
from dpo_cli.checks.reporter import Reporter
from dpo_cli.compute.memory import free_memory
from dpo_cli.formatting import format_count
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.sources import OnProgress


@dataclass(frozen=True)
class QuantizationError:
    """Change of the log-probs of response tokens when the weights are quantized, in nats.

    Attributes:
        pairs, tokens: number of pairs, and of their response tokens.
        mean_difference, largest_difference: absolute differences of the log-probs of one token.
        loss_before, loss_after: mean of the negative log-probs.
    """

    pairs: int
    tokens: int
    mean_difference: float
    largest_difference: float
    loss_before: float
    loss_after: float


def check_quantization(
    reporter: Reporter, inputs: RunInputs, on_progress: OnProgress
) -> dict[str, Any] | None:
    """Report what quantizing alone does to the log-probs of held-out pairs.

    Returns:
        The `QuantizationError` as plain values; None if the weights are not quantized, or do not
        fit into memory without quantization.
    """
    quantization = inputs.weights.quantization
    if quantization is None:
        return None
    plain = replace(inputs.weights, quantization=None)
    if 4 * plain.parameters > free_memory(inputs.device.torch_device):
        reporter.skip("quantization", "memory for the weights in float32")
        return None
    pairs = sample_pairs(inputs.held_out or inputs.pairs)
    before = response_logps(inputs, plain, pairs, on_progress)
    after = response_logps(inputs, inputs.weights, pairs, on_progress)
    differences = (after - before).abs()
    error = QuantizationError(
        pairs=len(pairs),
        tokens=len(before),
        mean_difference=differences.mean().item(),
        largest_difference=differences.max().item(),
        loss_before=-before.mean().item(),
        loss_after=-after.mean().item(),
    )
    held_out = "held-out pair" if inputs.held_out else "pair"
    reporter.ok(
        "quantization",
        "model.quantization",
        f"{quantization} weights change the log-probs of {error.tokens:,} response tokens in"
        f" {format_count(error.pairs, held_out)} by {error.mean_difference:.2g} nats on average, at"
        f" most {error.largest_difference:.2g}; {error.loss_before:.3f} become"
        f" {error.loss_after:.3f} nats per token",
    )
    return asdict(error)

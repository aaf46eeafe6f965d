"""Weight names: MiniMind's own, and those of the Hugging Face layout on disk.

Dense models and the experts of MiniMind version 3 have the same names in both. The experts of
MiniMind version 2 are separate matrices in MiniMind and stacked ones in GraniteMoeShared, where
each gate projection lies above its up projection. The Hugging Face layout holds the tied embedding
once, MiniMind's holds it twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

StateDict = dict[str, Tensor]

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def to_hf(state: Mapping[str, Tensor], *, layers: int, stacked_experts: int) -> StateDict:
    """Rename weights from MiniMind's names to the Hugging Face layout.

    Args:
        state: under MiniMind's names; the tied head may be missing.
        layers: number of decoder blocks.
        stacked_experts: routed experts per layer to stack; 0 if the names need no change.
    """
    if not stacked_experts:
        return {name: tensor for name, tensor in state.items() if name != HEAD}
    converted = {
        name: tensor for name, tensor in state.items() if name != HEAD and ".mlp." not in name
    }
    for layer in range(layers):
        source, target = f"model.layers.{layer}.mlp.", f"model.layers.{layer}."
        experts = [f"{source}experts.{expert}." for expert in range(stacked_experts)]
        shared = f"{source}shared_experts.0."
        converted |= {
            f"{target}block_sparse_moe.router.layer.weight": state[f"{source}gate.weight"],
            f"{target}block_sparse_moe.input_linear.weight": torch.stack(
                [_gate_and_up(state, expert) for expert in experts]
            ),
            f"{target}block_sparse_moe.output_linear.weight": torch.stack(
                [state[f"{expert}down_proj.weight"] for expert in experts]
            ),
            f"{target}shared_mlp.input_linear.weight": _gate_and_up(state, shared),
            f"{target}shared_mlp.output_linear.weight": state[f"{shared}down_proj.weight"],
        }
    return converted


def to_minimind(
    state: Mapping[str, Tensor], names: Iterable[str], *, layers: int, stacked_experts: int
) -> StateDict:
    """Rename weights from the Hugging Face layout to MiniMind's names, both tied copies included.

    Args:
        state: in the Hugging Face layout.
        names: every weight of the result, in MiniMind's order.
        layers, stacked_experts: see `to_hf`.
    """
    converted = dict(state)
    if stacked_experts:
        for layer in range(layers):
            source, target = f"model.layers.{layer}.", f"model.layers.{layer}.mlp."
            router = converted.pop(f"{source}block_sparse_moe.router.layer.weight")
            inputs = converted.pop(f"{source}block_sparse_moe.input_linear.weight")
            outputs = converted.pop(f"{source}block_sparse_moe.output_linear.weight")
            converted[f"{target}gate.weight"] = router
            for expert in range(stacked_experts):
                converted |= _feed_forward(
                    f"{target}experts.{expert}.", inputs[expert], outputs[expert]
                )
            converted |= _feed_forward(
                f"{target}shared_experts.0.",
                converted.pop(f"{source}shared_mlp.input_linear.weight"),
                converted.pop(f"{source}shared_mlp.output_linear.weight"),
            )
    converted[HEAD] = converted[EMBEDDING]
    return {name: converted[name] for name in names}


def _gate_and_up(state: Mapping[str, Tensor], prefix: str) -> Tensor:
    return torch.cat([state[f"{prefix}gate_proj.weight"], state[f"{prefix}up_proj.weight"]])


def _feed_forward(prefix: str, gate_and_up: Tensor, down: Tensor) -> StateDict:
    gate, up = gate_and_up.chunk(2)
    return {
        f"{prefix}gate_proj.weight": gate,
        f"{prefix}up_proj.weight": up,
        f"{prefix}down_proj.weight": down,
    }

"""State dicts between MiniMind's names and those of the Hugging Face layout on disk.

Dense models and MiniMind 3's experts have the same names in both. MiniMind 2's experts are
stored apart in MiniMind and stacked in GraniteMoeShared, with each gate above its up projection.
The Hugging Face layout holds the tied embedding once, MiniMind's twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dpo_cli.models.minimind import MiniMind

StateDict = dict[str, Tensor]

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def to_hf(state: Mapping[str, Tensor], architecture: MiniMind) -> StateDict:
    """MiniMind's names -> the Hugging Face layout."""
    if not _stacks_experts(architecture):
        return {name: tensor for name, tensor in state.items() if name != HEAD}
    converted = {
        name: tensor for name, tensor in state.items() if name != HEAD and ".mlp." not in name
    }
    for layer in range(architecture.num_hidden_layers):
        source, target = f"model.layers.{layer}.mlp.", f"model.layers.{layer}."
        experts = [f"{source}experts.{expert}." for expert in range(architecture.num_experts)]
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


def to_minimind(state: Mapping[str, Tensor], architecture: MiniMind) -> StateDict:
    """The Hugging Face layout -> MiniMind's names, in MiniMind's order, both tied copies."""
    converted = dict(state)
    if _stacks_experts(architecture):
        for layer in range(architecture.num_hidden_layers):
            source, target = f"model.layers.{layer}.", f"model.layers.{layer}.mlp."
            router = converted.pop(f"{source}block_sparse_moe.router.layer.weight")
            inputs = converted.pop(f"{source}block_sparse_moe.input_linear.weight")
            outputs = converted.pop(f"{source}block_sparse_moe.output_linear.weight")
            converted[f"{target}gate.weight"] = router
            for expert in range(architecture.num_experts):
                converted |= _feed_forward(
                    f"{target}experts.{expert}.", inputs[expert], outputs[expert]
                )
            converted |= _feed_forward(
                f"{target}shared_experts.0.",
                converted.pop(f"{source}shared_mlp.input_linear.weight"),
                converted.pop(f"{source}shared_mlp.output_linear.weight"),
            )
    converted[HEAD] = converted[EMBEDDING]
    return {name: converted[name] for name in architecture.expected_shapes()}


def _stacks_experts(architecture: MiniMind) -> bool:
    return architecture.version == 2 and architecture.use_moe


def _gate_and_up(state: Mapping[str, Tensor], prefix: str) -> Tensor:
    return torch.cat([state[f"{prefix}gate_proj.weight"], state[f"{prefix}up_proj.weight"]])


def _feed_forward(prefix: str, gate_and_up: Tensor, down: Tensor) -> StateDict:
    gate, up = gate_and_up.chunk(2)
    return {
        f"{prefix}gate_proj.weight": gate,
        f"{prefix}up_proj.weight": up,
        f"{prefix}down_proj.weight": down,
    }

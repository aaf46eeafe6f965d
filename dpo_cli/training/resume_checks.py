"""What a resume, and every other rank, is held to: the plan that the run began with."""

from __future__ import annotations

from collections.abc import Mapping

from dpo_cli.errors import DpoError
from dpo_cli.run.plan import Plan
from dpo_cli.training.inputs import RunInputs

_KEYS = {
    "weights": "model.weights",
    "reference": "model.reference",
    "tokenizer": "model.tokenizer",
    "data": "data.data_path",
    "held_out": "eval.path",
}
"""The profile's name of each input that a fingerprint is of."""


def require_same_inputs(saved: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to go on with inputs whose content is not what the run began with.

    Raises:
        DpoError: naming each of them.
    """
    changed = [
        f"{_KEYS[name]}: the content is not what the run began with"
        for name, fingerprint in saved.items()
        if now.get(name, fingerprint) != fingerprint
    ]
    if changed:
        raise DpoError(
            "the run cannot go on: its inputs have changed",
            "restore them (another path with the same content will do, by --set), or start a new"
            " run",
            changed,
        )


def require_same_inputs_on_ranks(by_rank: list[dict[str, str]], main_rank: int) -> None:
    """Refuse ranks that read something else than the leader did.

    Args:
        by_rank: the fingerprints of each rank's inputs.
        leader: whose are right.

    Raises:
        DpoError: naming each rank and input.
    """
    different = [
        f"rank {rank}: {_KEYS[name]} has another content than on rank {main_rank}"
        for rank, fingerprints in enumerate(by_rank)
        for name, fingerprint in by_rank[main_rank].items()
        if fingerprints.get(name) != fingerprint
    ]
    if different:
        raise DpoError(
            "the machines do not hold the same inputs",
            "put the same files at the same paths on all of them",
            different,
        )


def inexact_reasons(inputs: RunInputs) -> list[str]:
    """Why the bits may differ even where the run began."""
    if inputs.device.type == "cuda" and not inputs.profile.train.deterministic:
        return ["train.deterministic = false: CUDA does not repeat itself bit for bit"]
    return []


def environment_changes(saved_plan: Plan, now: Plan) -> list[str]:
    """What the bits depend on and is not as it was."""
    before, after = (
        {**plan.environment, "device": plan.device, "dtype": plan.dtype}
        for plan in (saved_plan, now)
    )
    return [
        f"{name} {value} -> {after.get(name)}"
        for name, value in before.items()
        if after.get(name) != value
    ]

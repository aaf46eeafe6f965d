"""Checks that a resumed run, or another rank, uses the same inputs."""

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
"""Profile key of each fingerprint."""


def require_same_inputs(saved: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to resume with inputs whose content has changed.

    Args:
        saved: fingerprints in the plan of the run.
        now: fingerprints of the inputs as they were read now.

    Raises:
        DpoError: naming each changed input.
    """
    changed = [
        f"{_KEYS[name]}: the content is not what the run began with"
        for name, fingerprint in saved.items()
        if now.get(name, fingerprint) != fingerprint
    ]
    if changed:
        raise DpoError(
            "the run cannot resume: its inputs have changed",
            "Restore them (or set another path with the same content), or start a new run.",
            changed,
        )


def require_same_inputs_on_ranks(by_rank: list[dict[str, str]], main_rank: int) -> None:
    """Refuse ranks whose inputs differ from those of the main rank.

    Args:
        by_rank: fingerprints of each rank's inputs.
        main_rank: rank to compare with.

    Raises:
        DpoError: naming each rank and input.
    """
    different = [
        f"rank {rank}: {_KEYS[name]} differs from that of rank {main_rank}"
        for rank, fingerprints in enumerate(by_rank)
        for name, fingerprint in by_rank[main_rank].items()
        if fingerprints.get(name) != fingerprint
    ]
    if different:
        raise DpoError(
            "the machines have different inputs",
            "Put the same files at the same paths on all machines.",
            different,
        )


def inexact_reasons(inputs: RunInputs) -> list[str]:
    """Return why the last bits may differ even in the same environment."""
    if inputs.device.type != "cpu" and not inputs.profile.train.deterministic:
        return ["train.deterministic = false: results on a GPU vary in the last bits"]
    return []


def environment_changes(saved_plan: Plan, now: Plan) -> list[str]:
    """Return the values that decide the last bits and have changed, for people."""
    before, after = (
        {**plan.environment, "device": plan.device, "dtype": plan.dtype}
        for plan in (saved_plan, now)
    )
    return [
        f"{name} {value} -> {after.get(name)}"
        for name, value in before.items()
        if after.get(name) != value
    ]

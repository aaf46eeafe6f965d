"""What the alarms have to know of a run beforehand."""

from __future__ import annotations

from dpo_cli.alerts.history import RunFacts
from dpo_cli.compute.device import DTYPES
from dpo_cli.profile.recipe import saturation_margin
from dpo_cli.training.checkpointing import state_bytes
from dpo_cli.training.plan import Prepared


def saturation_margin_of(prepared: Prepared) -> float | None:
    """See `saturation_margin`; None of another loss than DPO's own, which pushes otherwise."""
    dpo = prepared.profile.dpo
    if list(dpo.losses) != ["sigmoid"]:
        return None
    tokens = prepared.pairs.response_tokens.double().mean().item()
    return saturation_margin(dpo.beta, dpo.reduction, tokens)


def facts_of(prepared: Prepared) -> RunFacts:
    """Read off the inputs and the profile of a run."""
    profile, order, pairs = prepared.profile, prepared.order, prepared.pairs
    parameters = prepared.model_weights.parameters
    file_bytes = DTYPES[prepared.export_dtype].itemsize

    def rows_of(optimizer_step: int, micro_batch: int) -> str:
        window = next(order.global_batches(start=optimizer_step - 1))
        lines = pairs.lines[list(window.micro_batches[micro_batch])].tolist()
        return pairs.places.names(lines, most=len(lines))

    return RunFacts(
        optimizer_steps=order.optimizer_steps,
        parameters=parameters,
        learning_rate=profile.train.learning_rate,
        reach=sum(map(prepared.learning_rate.at, order.last_steps)),
        beta=profile.dpo.beta,
        reduction=profile.dpo.reduction,
        saturation_margin=saturation_margin_of(prepared) or 0.0,
        export_dtype=prepared.export_dtype,
        state_bytes=state_bytes(parameters, profile.train) + file_bytes * parameters,
        rows_of=rows_of,
    )

"""Facts about a run for the alert rules."""

from __future__ import annotations

from dpo_cli.alerts.history import RunFacts
from dpo_cli.compute.device import DTYPES
from dpo_cli.profile.recipe import saturation_margin
from dpo_cli.training.checkpointing import state_bytes
from dpo_cli.training.inputs import RunInputs


def saturation_margin_of(inputs: RunInputs) -> float | None:
    """See `saturation_margin`; None of another loss than DPO's own, which pushes otherwise."""
    dpo = inputs.profile.dpo
    if list(dpo.losses) != ["sigmoid"]:
        return None
    tokens = inputs.pairs.response_tokens.double().mean().item()
    return saturation_margin(dpo.beta, dpo.reduction, tokens)


def facts_of(inputs: RunInputs) -> RunFacts:
    """Read off the inputs and the profile of a run."""
    profile, order, pairs = inputs.profile, inputs.order, inputs.pairs
    parameters = inputs.weights.parameters
    file_bytes = DTYPES[inputs.export_dtype].itemsize

    def rows_of(optimizer_step: int, micro_batch: int) -> str:
        window = next(order.global_batches(start=optimizer_step - 1))
        lines = pairs.lines[list(window.micro_batches[micro_batch])].tolist()
        return pairs.places.names(lines, most=len(lines))

    return RunFacts(
        optimizer_steps=order.optimizer_steps,
        parameters=parameters,
        learning_rate=profile.train.learning_rate,
        lr_sum=sum(map(inputs.learning_rate.at, order.last_steps)),
        beta=profile.dpo.beta,
        reduction=profile.dpo.reduction,
        saturation_margin=saturation_margin_of(inputs) or 0.0,
        export_dtype=inputs.export_dtype,
        state_bytes=state_bytes(parameters, profile.train) + file_bytes * parameters,
        rows_of=rows_of,
    )

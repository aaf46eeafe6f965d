"""Log-prob metrics on held-out pairs; each rank scores its share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress

import torch
from torch import Tensor

from dpo_cli.compute.accelerator import is_cuda
from dpo_cli.compute.device import Device
from dpo_cli.data.batching import Batch
from dpo_cli.data.lookahead import ahead
from dpo_cli.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.objective.held_out import (
    HELD_OUT_METRICS,
    means,
    score_held_out_pairs,
    summarize,
)
from dpo_cli.paired import ModelScores
from dpo_cli.profile.objective import Dpo
from dpo_cli.run.events import COMPARED_METRICS, Evaluated
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.reference import CachedReference, Reference


@torch.no_grad()
def score_held_out(
    policy: ResponseScorer | CachedReference,
    reference: Reference,
    batches: Sequence[Sequence[int]],
    make_batch: Callable[[Sequence[int]], Batch],
    *,
    dpo: Dpo,
    device: Device,
    on_progress: Callable[[int], None],
    group: ProcessGroup = SINGLE_PROCESS,
) -> Tensor:
    """Score held-out pairs, and return the same table on all ranks. Collective.

    Args:
        policy: is left in evaluation mode; or the cached reference, while both score identically.
        reference: model to compare with.
        batches: indices of the pairs that are scored together; each of K pairs is in one batch.
        make_batch: returns the tensors of these pairs, on the device.
        dpo: the objective.
        device: device and dtype.
        on_progress: called with the number of pairs that this rank has done.
        group: the ranks that share the work.

    Returns:
        (K, F), float64 on the CPU: `HELD_OUT_METRICS` by pair.
    """
    if isinstance(policy, ResponseScorer):
        policy.eval()
    own: list[int] = []
    figures: list[Tensor] = []
    share = [*batches[group.rank :: group.world_size]]
    counted = len(share)
    if group.is_sharded:
        # All ranks make the same number of forwards; the last one does not count on some.
        share += batches[: -(-len(batches) // group.world_size) - counted]
    made = ahead(make_batch, share, is_threaded=is_cuda(device.torch_device))
    for number, (indices, batch) in enumerate(zip(share, made, strict=True)):
        with group.computing():
            if isinstance(policy, CachedReference):
                scores = policy.scores(indices, batch)
            else:
                with device.autocast():
                    scores = policy(batch, with_entropies=True)
            reference_logps = reference.token_logps(indices, batch)
        if number == counted:
            break
        assert scores.entropies is not None
        figures.append(
            score_held_out_pairs(
                scores.token_logps,
                reference_logps,
                scores.entropies,
                scores.mask,
                dpo,
                scores.log_sum_sq_probs,
            )
        )
        own += indices
        on_progress(len(own))
    table = torch.zeros(sum(map(len, batches)), len(HELD_OUT_METRICS), dtype=torch.float64)
    if own:
        table[own] = torch.cat(figures).cpu()
    # One rank has the row of a pair, the others add zero: the same bits for any number of ranks.
    return torch.tensor(
        group.all_reduce_sum(table.flatten().tolist()), dtype=torch.float64
    ).view_as(table)


def summarize_groups(
    table: Tensor, groups: Mapping[str, Tensor], prompts: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Summarize the pairs of each group; see `dpo_cli.objective.held_out.summarize`.

    Args:
        table: (K, F), from `score_held_out`.
        groups: (K,) bool by name, from `dpo_cli.data.groups`.
        prompts: K labels, from `dpo_cli.data.groups.prompt_labels`.
    """
    return {
        name: summarize(table[members], list(compress(prompts, members.tolist())))
        for name, members in groups.items()
    }


def evaluation_event(
    table: Tensor, inputs: RunInputs, optimizer_step: int, seconds: float
) -> Evaluated:
    """Return the event about an evaluation of a run's held-out pairs after a step.

    Args:
        table: (K, F), from `score_held_out`.
        inputs: inputs of the run.
        optimizer_step: optimizer steps done.
        seconds: duration of the evaluation.
    """
    return Evaluated(
        step=inputs.order.steps_done(optimizer_step),
        optimizer_step=optimizer_step,
        metrics=means(table),
        groups=summarize_groups(table, inputs.held_out_groups, inputs.held_out_prompts),
        pairs=len(table),
        seconds=seconds,
    )


def pair_scores(table: Tensor, prompts: Sequence[int]) -> ModelScores:
    """Return the metrics of each pair in which models are compared; see `summarize_groups`."""
    columns = dict(zip(HELD_OUT_METRICS, table.T, strict=True))
    names = [name for name in COMPARED_METRICS if name in means(table)]
    return ModelScores({name: columns[name].tolist() for name in names}, prompts)

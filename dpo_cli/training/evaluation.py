"""The policy on held-out pairs: scored pair by pair, each rank its share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dpo_cli.compute.device import Device
from dpo_cli.data.batching import Batch
from dpo_cli.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.objective.held_out import HELD_OUT_METRICS, score_held_out_pairs, summarize
from dpo_cli.profile.objective import Dpo
from dpo_cli.training.reference import CachedReference, Reference


@torch.no_grad()
def score_held_out(
    policy: ResponseScorer | CachedReference,
    reference: Reference,
    rows: Sequence[Sequence[int]],
    make_batch: Callable[[Sequence[int]], Batch],
    *,
    dpo: Dpo,
    device: Device,
    on_progress: Callable[[int], None],
    group: ProcessGroup = SINGLE_PROCESS,
) -> Tensor:
    """Score pairs that are not trained on; several ranks to the same table, each its share.

    Args:
        policy: left in evaluation mode; or the reference, while their weights are the same.
        reference: what it is compared with.
        rows: which pairs are scored together; every one of K stands in one row.
        make_batch: the pairs of a row, on the device.
        dpo: the objective.
        device: device and autocast.
        on_progress: hears how many pairs this rank has done.
        group: who scores together. Collective: all of them call it at the same moment.

    Returns:
        (K, F), float64 on the CPU: `HELD_OUT_METRICS` by pair.
    """
    if isinstance(policy, ResponseScorer):
        policy.eval()
    own: list[int] = []
    figures: list[Tensor] = []
    for indices in rows[group.rank :: group.world_size]:
        batch = make_batch(indices)
        if isinstance(policy, CachedReference):
            scores = policy.scores(indices, batch)
        else:
            with device.autocast():
                scores = policy(batch, with_entropies=True)
        assert scores.entropies is not None
        figures.append(
            score_held_out_pairs(
                scores.token_logps,
                reference.token_logps(indices, batch),
                scores.entropies,
                scores.mask,
                dpo,
                scores.log_sum_sq_probs,
            )
        )
        own += indices
        on_progress(len(own))
    table = torch.zeros(sum(map(len, rows)), len(HELD_OUT_METRICS), dtype=torch.float64)
    if own:
        table[own] = torch.cat(figures).cpu()
    # Each pair is one rank's, and nought is added to it: the same bits, however many ranks.
    return torch.tensor(
        group.all_reduce_sum(table.flatten().tolist()), dtype=torch.float64
    ).view_as(table)


def summarize_groups(table: Tensor, groups: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """What the pairs of each group come to; see `dpo_cli.objective.held_out.summarize`.

    Args:
        table: (K, F), from `score_held_out`.
        groups: (K,) bool by name, from `dpo_cli.data.groups`.
    """
    return {name: summarize(table[members]) for name, members in groups.items()}

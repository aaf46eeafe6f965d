"""Names of the losses, and the inputs that each needs.

The formulas are in `dpo_cli.objective.formulas`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

LossName = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
    "dpop",
    "sft",
    "simpo",
    "orpo",
]


@dataclass(frozen=True)
class Needs:
    """Requirements of a loss beside the policy's log-probs of the responses.

    Attributes:
        reference: needs the log-probs of the frozen reference.
        mean: needs the mean of a response's token log-probs; other losses also accept the sum.
        whole_batch: needs all pairs of a micro-batch at once. Its loss is not a mean over
            independent pairs, so they must not be regrouped into other forwards.
        known_start: has one value for every pair while policy and reference are equal, whatever
            their log-probs and lengths are. `dpo check` compares the first step with that value.
        smoothing: uses `dpo.label_smoothing`.
        divergence: is a function of the difference of two scores, and therefore also defined for
            other f-divergences than the reverse KL.
    """

    reference: bool = True
    mean: bool = False
    whole_batch: bool = False
    known_start: bool = True
    smoothing: bool = False
    divergence: bool = False


LOSSES: Mapping[LossName, Needs] = {
    "sigmoid": Needs(smoothing=True, divergence=True),
    "hinge": Needs(divergence=True),
    "ipo": Needs(mean=True, divergence=True),
    "robust": Needs(smoothing=True, divergence=True),
    "exo_pair": Needs(smoothing=True, divergence=True),
    "nca_pair": Needs(),
    "bco_pair": Needs(),
    "sppo_hard": Needs(),
    "aot": Needs(whole_batch=True, smoothing=True),
    "aot_unpaired": Needs(whole_batch=True, smoothing=True),
    "apo_zero": Needs(),
    "apo_down": Needs(),
    "discopop": Needs(divergence=True),
    "sigmoid_norm": Needs(mean=True, divergence=True),
    "dpop": Needs(),
    "sft": Needs(reference=False, whole_batch=True, known_start=False, divergence=True),
    "simpo": Needs(reference=False, mean=True, known_start=False),
    "orpo": Needs(reference=False, mean=True, known_start=False),
}
"""`sft` uses no divergence, so any is allowed with it."""

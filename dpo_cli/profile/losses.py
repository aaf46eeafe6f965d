"""The losses that `dpo.loss` may name, and what each of them needs; the formulas themselves are in
`dpo_cli.objective.formulas`.
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
    """What a loss asks for beside the policy's log-probs of the responses.

    Attributes:
        reference: the frozen reference's log-probs.
        mean: a response's log-prob as the mean over its tokens; others take the sum as well.
        whole_batch: the pairs of a micro-batch together: its loss is no mean over pairs that know
            nothing of each other, and they must not be dealt out anew.
        smoothing: it reads `dpo.label_smoothing`.
        divergence: it is a function of the difference of two scores, and so has a meaning under
            another f-divergence than the reverse KL divergence.
    """

    reference: bool = True
    mean: bool = False
    whole_batch: bool = False
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
    "sft": Needs(reference=False, whole_batch=True, divergence=True),
    "simpo": Needs(reference=False, mean=True),
    "orpo": Needs(reference=False, mean=True),
}
"""`sft` knows no divergence, and therefore goes with any."""

"""The table `[dpo]`: preference loss and its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from dpo_cli.profile.losses import LOSSES, LossName
from dpo_cli.profile.table import LOSS, MATHEMATICS, Table, contradiction
from dpo_cli.profile.text import show_value

PositiveFloat = Annotated[float, Field(gt=0)]


class Dpo(Table):
    """Objective: Direct Preference Optimization, or another preference loss."""

    loss: Annotated[
        LossName | list[LossName],
        Field(examples=["sigmoid", ["sigmoid", "sft"]]),
        MATHEMATICS,
        LOSS,
    ] = "sigmoid"
    """Loss to minimize; "sigmoid" is DPO. A list is minimized as a sum, weighted by loss_weights.
    docs/losses.md explains each: formula, requirements, recommended settings."""

    loss_weights: Annotated[
        list[PositiveFloat] | None, Field(examples=[[1.0]]), MATHEMATICS, LOSS
    ] = None
    """Weight of each loss in the list. Default: 1 for each."""

    beta: Annotated[float, Field(gt=0), MATHEMATICS, LOSS] = 0.1
    """Scale of the implicit reward, beta x (policy - reference) log-ratio. Larger values saturate
    the loss earlier and keep the policy closer to the reference."""

    reduction: Annotated[Literal["mean", "sum"], MATHEMATICS, LOSS] = "mean"
    """Reduction of a response's token log-probs to one number: "mean" as in MiniMind version 2, or
    "sum" as in MiniMind version 3 and the DPO paper. "mean" needs a far larger beta. Default:
    "mean" for MiniMind weights, "sum" for a Hugging Face model."""

    label_smoothing: Annotated[
        float | None, Field(ge=0, lt=0.5, examples=[0.1]), MATHEMATICS, LOSS
    ] = None
    """Assumed share of wrong labels (only for "sigmoid", which becomes cDPO, "robust", "exo_pair",
    "aot" and "aot_unpaired"). Default: 0, or 1e-3 for "exo_pair"."""

    f_divergence_type: Annotated[
        Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"], MATHEMATICS, LOSS
    ] = "reverse_kl"
    """Divergence between policy and reference. Other than "reverse_kl" only for losses that depend
    on the difference of the two scores."""

    f_alpha_divergence_coef: Annotated[float, MATHEMATICS, LOSS] = 0.5
    """Alpha of f_divergence_type = "alpha_divergence": 0 is the forward, 1 the reverse KL
    divergence."""

    ld_alpha: Annotated[float | None, Field(ge=0, le=1, examples=[0.5]), MATHEMATICS, LOSS] = None
    """Weight of the tokens by which the longer response of a pair exceeds the shorter one (LD-DPO);
    lower values reduce the influence of length. Default: all tokens count equally."""

    use_weighting: Annotated[bool, MATHEMATICS, LOSS] = False
    """Weight each pair by the probability that the policy gives both responses (WPO). Computes all
    logits twice more."""

    discopop_tau: Annotated[float, Field(gt=0, le=1), MATHEMATICS, LOSS] = 0.05
    """Temperature of the transition between the two losses of "discopop"."""

    simpo_gamma: Annotated[float, Field(ge=0), MATHEMATICS, LOSS] = 0.5
    """Target margin between the two rewards in "simpo"."""

    dpop_lambda: Annotated[float, Field(ge=0), MATHEMATICS, LOSS] = 50.0
    """Penalty of "dpop" for a chosen response that is less likely than under the reference."""

    @field_validator("loss", mode="before")
    @classmethod
    def _check_loss(cls, value: object) -> object:
        names = value if isinstance(value, list) else [value]
        for name in names:
            if not isinstance(name, str) or name not in LOSSES:
                raise contradiction(
                    f"{show_value(name)} is not a loss; choose from sigmoid (DPO), "
                    + ", ".join(other for other in LOSSES if other != "sigmoid")
                )
        if len(set(names)) != len(names) or not names:
            raise contradiction("must name each loss once; set their weights in dpo.loss_weights")
        return value

    @field_validator("loss_weights")
    @classmethod
    def _check_loss_weights(
        cls, value: list[float] | None, info: ValidationInfo
    ) -> list[float] | None:
        names = _loss_names(info)
        if value is not None and names and len(value) != len(names):
            raise contradiction(
                f"must have a weight for each of dpo.loss = {show_value(list(names))}; "
                f"for example {show_value([1.0] * len(names))}"
            )
        return value

    @field_validator("reduction")
    @classmethod
    def _check_reduction(cls, value: str, info: ValidationInfo) -> str:
        means = [name for name in _loss_names(info) if LOSSES[name].mean]
        if value == "sum" and means:
            raise contradiction(
                f'dpo.loss = "{means[0]}" uses the mean over tokens; set dpo.reduction = "mean"'
            )
        return value

    @field_validator("label_smoothing")
    @classmethod
    def _check_label_smoothing(cls, value: float | None, info: ValidationInfo) -> float | None:
        names = _loss_names(info)
        if value and names and not any(LOSSES[name].smoothing for name in names):
            raise contradiction(
                f'dpo.loss = "{names[0]}" ignores it; leave it out, or set dpo.loss to one of '
                + ", ".join(name for name in LOSSES if LOSSES[name].smoothing)
            )
        if value == 0 and "exo_pair" in names:
            raise contradiction(
                'dpo.loss = "exo_pair" takes its logarithm, so it must be above 0; for example 1e-3'
            )
        return value

    @field_validator("f_divergence_type")
    @classmethod
    def _check_f_divergence_type(cls, value: str, info: ValidationInfo) -> str:
        others = [name for name in _loss_names(info) if not LOSSES[name].divergence]
        if value != "reverse_kl" and others:
            raise contradiction(
                f'dpo.loss = "{others[0]}" needs the reverse KL divergence; set '
                'dpo.f_divergence_type = "reverse_kl", or set dpo.loss to one of '
                + ", ".join(name for name in LOSSES if LOSSES[name].divergence)
            )
        return value

    @field_validator("ld_alpha")
    @classmethod
    def _check_ld_alpha(cls, value: float | None, info: ValidationInfo) -> float | None:
        names = _loss_names(info)
        if value is not None and names and not any(LOSSES[name].reference for name in names):
            raise contradiction(
                f'dpo.loss = "{names[0]}" has no reference log-ratio that it could weight; '
                "leave dpo.ld_alpha out"
            )
        return value

    @field_validator("use_weighting")
    @classmethod
    def _check_use_weighting(cls, value: bool, info: ValidationInfo) -> bool:
        whole = [name for name in _loss_names(info) if LOSSES[name].whole_batch]
        if value and whole:
            raise contradiction(
                f'dpo.loss = "{whole[0]}" has no loss per pair that could be weighted; leave '
                "dpo.use_weighting out"
            )
        return value

    @property
    def losses(self) -> Mapping[LossName, float]:
        """Weight of each loss in the sum."""
        names = self.loss if isinstance(self.loss, list) else [self.loss]
        return dict(zip(names, self.loss_weights or [1.0] * len(names), strict=True))

    @property
    def title(self) -> str:
        """Losses and their weights in one line."""
        if self.losses == {"sigmoid": 1.0}:
            return "DPO"
        return " + ".join(
            name if weight == 1 else f"{weight:g} {name}" for name, weight in self.losses.items()
        )

    @property
    def needs_reference(self) -> bool:
        """True if any of the losses compares the policy with the reference."""
        return any(LOSSES[name].reference for name in self.losses)

    @property
    def needs_whole_batch(self) -> bool:
        """True if the pairs of a micro-batch must be computed together."""
        return any(LOSSES[name].whole_batch for name in self.losses)

    @property
    def has_known_start(self) -> bool:
        """True if every pair has the same known loss while policy and reference are equal."""
        return all(LOSSES[name].known_start for name in self.losses) and not self.use_weighting


def _loss_names(info: ValidationInfo) -> Sequence[LossName]:
    """Losses of `dpo.loss`; none if that key is invalid, which has its own error."""
    loss = info.data.get("loss", [])
    return loss if isinstance(loss, list) else [loss]

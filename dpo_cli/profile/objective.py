"""The table `dpo` of a profile: which preference loss is minimized, and how it is set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from dpo_cli.profile.losses import LOSSES, LossName
from dpo_cli.profile.table import LOSS, MATHEMATICS, Table, contradiction
from dpo_cli.profile.text import show_value

PositiveFloat = Annotated[float, Field(gt=0)]


class Dpo(Table):
    """The objective: Direct Preference Optimization, or another preference loss."""

    loss: Annotated[
        LossName | list[LossName],
        Field(examples=["sigmoid", ["sigmoid", "sft"]]),
        MATHEMATICS,
        LOSS,
    ] = "sigmoid"
    """What is minimized: "sigmoid" is DPO. An array of losses is their sum, weighted by
    loss_weights. docs/losses.md has them all: formula, needs, recommended settings."""

    loss_weights: Annotated[
        list[PositiveFloat] | None, Field(examples=[[1.0]]), MATHEMATICS, LOSS
    ] = None
    """Weights of the losses in an array, one for each. Default: 1 for each."""

    beta: Annotated[float, Field(gt=0), MATHEMATICS, LOSS] = 0.1
    """Scale of the implicit reward, beta times the log-ratio of policy and reference. The larger
    it is, the sooner the loss is content, and the closer the policy stays to the reference."""

    reduction: Annotated[Literal["mean", "sum"], MATHEMATICS, LOSS] = "mean"
    """Reduction of a response's token log-probs to one number: "mean" as in MiniMind version 2, or
    "sum" as in MiniMind version 3 and the DPO paper. "mean" needs a far larger beta."""

    label_smoothing: Annotated[
        float | None, Field(ge=0, lt=0.5, examples=[0.1]), MATHEMATICS, LOSS
    ] = None
    """Share of the pairs whose label is taken to be wrong ("sigmoid", which is cDPO with it,
    "robust", "exo_pair", "aot" and "aot_unpaired" only). Default: 0, or 1e-3 in "exo_pair"."""

    f_divergence_type: Annotated[
        Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"], MATHEMATICS, LOSS
    ] = "reverse_kl"
    """The divergence that holds the policy to the reference; another one than the reverse KL
    divergence only for losses of the difference between two scores."""

    f_alpha_divergence_coef: Annotated[float, MATHEMATICS, LOSS] = 0.5
    """Alpha of f_divergence_type = "alpha_divergence": 0 is the forward, 1 the reverse KL
    divergence."""

    ld_alpha: Annotated[float | None, Field(ge=0, le=1, examples=[0.5]), MATHEMATICS, LOSS] = None
    """Weight of the tokens by which one response of a pair is longer than the other (LD-DPO): the
    lower, the less length counts. Default: all tokens count alike."""

    use_weighting: Annotated[bool, MATHEMATICS, LOSS] = False
    """Whether a pair counts the more, the more likely the policy itself finds both responses
    (WPO). It computes all logits twice more."""

    discopop_tau: Annotated[float, Field(gt=0, le=1), MATHEMATICS, LOSS] = 0.05
    """Temperature at which "discopop" passes from one of its two losses to the other."""

    simpo_gamma: Annotated[float, Field(ge=0), MATHEMATICS, LOSS] = 0.5
    """Margin between the rewards of both responses that "simpo" asks for."""

    dpop_lambda: Annotated[float, Field(ge=0), MATHEMATICS, LOSS] = 50.0
    """How strongly "dpop" holds the chosen response at least as likely as under the reference."""

    @field_validator("loss", mode="before")
    @classmethod
    def _check_loss(cls, value: object) -> object:
        names = value if isinstance(value, list) else [value]
        for name in names:
            if not isinstance(name, str) or name not in LOSSES:
                raise contradiction(
                    f"{show_value(name)} is no loss; there are sigmoid (which is DPO), "
                    + ", ".join(other for other in LOSSES if other != "sigmoid")
                )
        if len(set(names)) != len(names) or not names:
            raise contradiction("must name each loss once; weights are in dpo.loss_weights")
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
                f'dpo.loss = "{means[0]}" is a loss of means; set dpo.reduction = "mean"'
            )
        return value

    @field_validator("label_smoothing")
    @classmethod
    def _check_label_smoothing(cls, value: float | None, info: ValidationInfo) -> float | None:
        names = _loss_names(info)
        if value and names and not any(LOSSES[name].smoothing for name in names):
            raise contradiction(
                f'dpo.loss = "{names[0]}" takes no notice of it; leave it out, or choose one of '
                + ", ".join(name for name in LOSSES if LOSSES[name].smoothing)
            )
        if value == 0 and "exo_pair" in names:
            raise contradiction('dpo.loss = "exo_pair" takes its logarithm; for example 1e-3')
        return value

    @field_validator("f_divergence_type")
    @classmethod
    def _check_f_divergence_type(cls, value: str, info: ValidationInfo) -> str:
        others = [name for name in _loss_names(info) if not LOSSES[name].divergence]
        if value != "reverse_kl" and others:
            raise contradiction(
                f'dpo.loss = "{others[0]}" is defined by the reverse KL divergence; set '
                'dpo.f_divergence_type = "reverse_kl", or choose one of '
                + ", ".join(name for name in LOSSES if LOSSES[name].divergence)
            )
        return value

    @field_validator("ld_alpha")
    @classmethod
    def _check_ld_alpha(cls, value: float | None, info: ValidationInfo) -> float | None:
        names = _loss_names(info)
        if value is not None and names and not any(LOSSES[name].reference for name in names):
            raise contradiction(
                f'dpo.loss = "{names[0]}" has no log-ratio whose tokens could count less; leave '
                "dpo.ld_alpha out"
            )
        return value

    @field_validator("use_weighting")
    @classmethod
    def _check_use_weighting(cls, value: bool, info: ValidationInfo) -> bool:
        whole = [name for name in _loss_names(info) if LOSSES[name].whole_batch]
        if value and whole:
            raise contradiction(
                f'a pair has no loss of its own in dpo.loss = "{whole[0]}" that could be weighted; '
                "leave dpo.use_weighting out"
            )
        return value

    @property
    def losses(self) -> Mapping[LossName, float]:
        """Each loss that it is the sum of, with its weight."""
        names = self.loss if isinstance(self.loss, list) else [self.loss]
        return dict(zip(names, self.loss_weights or [1.0] * len(names), strict=True))

    @property
    def title(self) -> str:
        """The losses and their weights in a line."""
        if self.losses == {"sigmoid": 1.0}:
            return "DPO"
        return " + ".join(
            name if weight == 1 else f"{weight:g} {name}" for name, weight in self.losses.items()
        )

    @property
    def needs_reference(self) -> bool:
        """Whether any of the losses compares the policy with the reference."""
        return any(LOSSES[name].reference for name in self.losses)

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the pairs of a micro-batch must be computed together."""
        return any(LOSSES[name].whole_batch for name in self.losses)

    @property
    def has_known_start(self) -> bool:
        """Whether all pairs have one loss, known beforehand, where policy and reference agree."""
        return all(LOSSES[name].reference for name in self.losses) and not self.use_weighting


def _loss_names(info: ValidationInfo) -> Sequence[LossName]:
    """The losses that were stated; none where that went wrong, which has an error of its own."""
    loss = info.data.get("loss", [])
    return loss if isinstance(loss, list) else [loss]

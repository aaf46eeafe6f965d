"""The table `[lora]`: low-rank adapters, LoRA (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from dpo_cli.profile.table import MATHEMATICS, POSITION, REFERENCE, Table, contradiction


class Lora(Table):
    """Low-rank adapters, which peft trains instead of all weights. Off unless rank is set."""

    rank: Annotated[int | None, Field(ge=1, examples=[16]), POSITION] = None
    """Rank of the adapters; set it to train adapters. Needs the extra lora of this package."""

    alpha: Annotated[int | None, Field(ge=1, examples=[32]), POSITION] = None
    """Scale of the adapters: their output counts alpha / rank times, or alpha / sqrt(rank) times
    with use_rslora. Default: 2 x rank."""

    dropout: Annotated[float, Field(ge=0, lt=1), MATHEMATICS, REFERENCE] = 0.0
    """Share of the adapters' inputs dropped in training. Above 0, the two sides of a pair no longer
    share the computation of their prompt, which is slower."""

    target_modules: Annotated[
        str | list[str],
        Field(min_length=1, examples=["all-linear", ["q_proj", "v_proj"]]),
        POSITION,
    ] = "all-linear"
    """Linear layers that get an adapter: "all-linear" for all in the blocks, or a list of names,
    for example ["q_proj", "v_proj"]."""

    use_dora: Annotated[bool, POSITION] = False
    """Also train the length of each row of the adapted weights (DoRA, arXiv:2402.09353): slower,
    and somewhat closer to full training at low ranks."""

    use_rslora: Annotated[bool, POSITION] = False
    """Divide alpha by the root of the rank instead of the rank (rsLoRA, arXiv:2312.03732), for high
    ranks."""

    init_lora_weights: Annotated[Literal["kaiming", "gaussian"], POSITION] = "kaiming"
    """Random numbers that the first factor of each adapter begins with: "kaiming" (uniform, the
    default of peft) or "gaussian". The second factor begins at zero, so that the policy begins as
    its reference."""

    continue_adapter: Annotated[bool, POSITION, REFERENCE] = False
    """Train model.adapter itself. Otherwise it is merged into the weights first. The reference is
    the model with that adapter in both cases."""

    @field_validator("target_modules")
    @classmethod
    def _check_target_modules(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, str) and value != "all-linear":
            raise contradiction(
                'must be "all-linear" or a list of names; for example lora.target_modules ='
                ' ["q_proj", "v_proj"]'
            )
        return value

    @field_validator("continue_adapter")
    @classmethod
    def _check_continue_adapter(cls, value: bool, info: ValidationInfo) -> bool:
        if value and "rank" in info.data and info.data["rank"] is None:
            raise contradiction("needs lora.rank; set it to the rank of model.adapter")
        return value

    @property
    def is_on(self) -> bool:
        """Return True if adapters are trained instead of all weights."""
        return self.rank is not None

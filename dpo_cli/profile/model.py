"""The table `[model]`: weights, reference, tokenizer and model settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dpo_cli.profile.table import (
    HELD_OUT,
    MATHEMATICS,
    NONE,
    POSITION,
    REFERENCE,
    TOKENS,
    Kind,
    Location,
    Table,
)

Quantization = Literal["nf4", "int8"]
WeightsDtype = Literal["float32", "bfloat16"]
WEIGHT_BYTES: dict[WeightsDtype, int] = {"float32": 4, "bfloat16": 2}
"""Bytes of a weight in memory, and of its gradient."""


class Model(Table):
    """Weights to train, and model settings that cannot be inferred from them."""

    out_dir: Annotated[Location | None, Field(examples=["../out"]), Kind.PATH, NONE, REFERENCE] = (
        None
    )
    """MiniMind's folder of weights. SFT weights are looked up here, and the result is exported to
    it."""

    weights: Annotated[
        str | None,
        Field(min_length=1, examples=["full_sft_512.pth"]),
        Kind.WEIGHTS,
        NONE,
        REFERENCE,
    ] = None
    """Weights to start from: a name in out_dir, the path of a file or of a Hugging Face directory,
    "hf:ORG/NAME" or "hf:ORG/NAME@REVISION" for a model on the Hub, or "run:NAME" for the float32
    weights of an earlier run. Default: the only full_sft_* in out_dir."""

    reference: Annotated[
        str | None,
        Field(min_length=1, examples=["full_sft_512.pth"]),
        Kind.WEIGHTS,
        NONE,
        REFERENCE,
    ] = None
    """Weights of the frozen reference, named like model.weights. Default: model.weights. With other
    weights the loss does not have to start at ln 2."""

    adapter: Annotated[
        Location | None, Field(examples=["../out/sft-adapter"]), Kind.PATH, NONE, REFERENCE
    ] = None
    """Directory of a LoRA adapter of model.weights, for example from SFT, as peft saves it. It is
    merged into the weights first, or trained itself with lora.continue_adapter. The reference is
    the model with this adapter, unless model.reference is set."""

    quantization: Annotated[
        Quantization | None, Field(examples=["nf4", "int8"]), POSITION, REFERENCE
    ] = None
    """Format of the frozen linear layers below adapters, only with lora.rank: "nf4" takes 0.52
    bytes per weight, "int8" 1, instead of 4. Needs the extra quant of this package. model.reference
    is not quantized, and an export merges the adapter into the weights as they were read."""

    weights_dtype: Annotated[WeightsDtype, POSITION, REFERENCE] = "float32"
    """Dtype of the weights that are computed with, in policy and reference. Training in "bfloat16"
    takes 10 bytes per weight instead of 16: 2 for the weight, 2 for what it cannot hold, so that
    the optimizer updates float32 numbers and loses no small update, 2 for the gradient and 4 for
    the moments. Checkpoints and exports have the float32 numbers. Only for all weights (no lora or
    quantization), with "adamw" without train.kahan_summation; train.dtype is then "bfloat16"."""

    tokenizer: Annotated[
        Location | None,
        Field(examples=["../model"]),
        Kind.PATH,
        NONE,
        TOKENS | HELD_OUT | REFERENCE,
    ] = None
    """Folder with tokenizer.json and tokenizer_config.json. Use the tokenizer that the weights were
    trained with: those of MiniMind versions 2 and 3 have the same size, but different vocabularies.
    Default: the tokenizer in the Hugging Face directory of the weights."""

    hidden_size: Annotated[int | None, Field(ge=1, examples=[512]), POSITION, REFERENCE] = None
    """Width of the model. Inferred from the weights; if given, it must match."""

    num_hidden_layers: Annotated[int | None, Field(ge=1, examples=[8]), POSITION, REFERENCE] = None
    """Number of transformer blocks. Inferred from the weights; if given, it must match."""

    use_moe: Annotated[bool | None, Field(examples=[False]), POSITION, REFERENCE] = None
    """Mixture of experts in the feed-forward blocks. Inferred from the weights; if given, it must
    match."""

    num_attention_heads: Annotated[int | None, Field(ge=1, examples=[8]), POSITION, REFERENCE] = (
        None
    )
    """Number of query heads. It cannot always be inferred from the weights. Default: that of the
    MiniMind version."""

    num_key_value_heads: Annotated[int | None, Field(ge=1, examples=[2]), POSITION, REFERENCE] = (
        None
    )
    """Number of key and value heads; a group of query heads shares each. Default: that of the
    MiniMind version."""

    num_experts_per_tok: Annotated[int | None, Field(ge=1, examples=[2]), POSITION, REFERENCE] = (
        None
    )
    """Number of experts per token (mixture of experts only). Default: that of the MiniMind
    version."""

    norm_topk_prob: Annotated[bool | None, Field(examples=[True]), POSITION, REFERENCE] = None
    """Scale the weights of a token's selected experts to a sum of 1 (mixture of experts only).
    Default: that of the MiniMind version."""

    rope_theta: Annotated[float | None, Field(gt=0, examples=[1e6]), POSITION, REFERENCE] = None
    """Base of the rotary position frequencies. A wrong value ruins the model without an error.
    Default: that of the MiniMind version."""

    rms_norm_eps: Annotated[float | None, Field(gt=0, examples=[1e-5]), POSITION, REFERENCE] = None
    """Epsilon of the RMS norms. Default: that of the MiniMind version."""

    dropout: Annotated[float, Field(ge=0, lt=1), MATHEMATICS, REFERENCE] = 0.0
    """Share of attention weights dropped in training. Above 0, the two sides of a pair no longer
    share the computation of their prompt, which is slower."""

    @property
    def reference_key(self) -> Literal["weights", "reference"]:
        """Key of this table that names the frozen weights."""
        return "weights" if self.reference is None else "reference"

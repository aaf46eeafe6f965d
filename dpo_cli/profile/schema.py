"""What a profile may say: every key with its type, limits, default, meaning and effect on a resume.

The docstring under a field is its description in the JSON Schema and in commented profiles. The
models check values only; where values come from, and what paths mean, is `dpo_cli.profile.load`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from dpo_cli.errors import UsageError
from dpo_cli.profile.launch import Launch
from dpo_cli.profile.objective import Dpo
from dpo_cli.profile.pairs import Data
from dpo_cli.profile.table import (
    HELD_OUT,
    MATHEMATICS,
    NONE,
    POSITION,
    REFERENCE,
    SPLIT,
    TOKENS,
    Affects,
    Effect,
    Kind,
    Location,
    Table,
    contradiction,
)
from dpo_cli.profile.tracking import Track


class Model(Table):
    """Which weights to train, and what the weights themselves cannot tell."""

    out_dir: Annotated[Location | None, Field(examples=["../out"]), Kind.PATH, NONE, REFERENCE] = (
        None
    )
    """Folder where MiniMind keeps its weights: the SFT checkpoint is looked for here, and the
    result is exported to it."""

    weights: Annotated[
        str | None,
        Field(min_length=1, examples=["full_sft_512.pth"]),
        Kind.WEIGHTS,
        NONE,
        REFERENCE,
    ] = None
    """Weights to start from: a name in out_dir, the path of a file or of a Hugging Face directory,
    "hf:ORG/NAME" or "hf:ORG/NAME@REVISION" for a model on the Hub, or "run:NAME" for the float32
    state of an earlier run. Default: the only full_sft_* in out_dir."""

    reference: Annotated[
        str | None,
        Field(min_length=1, examples=["full_sft_512.pth"]),
        Kind.WEIGHTS,
        NONE,
        REFERENCE,
    ] = None
    """Frozen weights the policy is compared with, named like checkpoint. Default: the checkpoint;
    with any other the loss need not start at ln 2."""

    tokenizer: Annotated[
        Location | None,
        Field(examples=["../model"]),
        Kind.PATH,
        NONE,
        TOKENS | HELD_OUT | REFERENCE,
    ] = None
    """Folder with tokenizer.json and tokenizer_config.json. The two MiniMind versions have
    different vocabularies of the same size: take the one the weights were trained with. Default:
    the checkpoint's own, where it is a Hugging Face directory."""

    hidden_size: Annotated[int | None, Field(ge=1, examples=[512]), POSITION, REFERENCE] = None
    """Width of the model. Read from the weights; stated, it must agree with them."""

    num_hidden_layers: Annotated[int | None, Field(ge=1, examples=[8]), POSITION, REFERENCE] = None
    """Number of transformer blocks. Read from the weights; stated, it must agree with them."""

    use_moe: Annotated[bool | None, Field(examples=[False]), POSITION, REFERENCE] = None
    """Whether the feed-forward blocks are mixtures of experts. Read from the weights; stated, it
    must agree with them."""

    num_attention_heads: Annotated[int | None, Field(ge=1, examples=[8]), POSITION, REFERENCE] = (
        None
    )
    """Number of query heads, which weights cannot always tell. Default: the version's."""

    num_key_value_heads: Annotated[int | None, Field(ge=1, examples=[2]), POSITION, REFERENCE] = (
        None
    )
    """Number of key and value heads, each shared by a group of query heads. Default: the
    version's."""

    num_experts_per_tok: Annotated[int | None, Field(ge=1, examples=[2]), POSITION, REFERENCE] = (
        None
    )
    """Experts that each token is routed to (mixtures of experts only). Default: the
    version's."""

    norm_topk_prob: Annotated[bool | None, Field(examples=[True]), POSITION, REFERENCE] = None
    """Whether the weights of a token's chosen experts are scaled to sum to one (mixtures of
    experts only). Default: the version's."""

    rope_theta: Annotated[float | None, Field(gt=0, examples=[1e6]), POSITION, REFERENCE] = None
    """Base of the rotary position frequencies; a wrong one ruins the model silently. Default: the
    version's."""

    rms_norm_eps: Annotated[float | None, Field(gt=0, examples=[1e-5]), POSITION, REFERENCE] = None
    """Small number that keeps the norms from dividing by zero. Default: the version's."""

    dropout: Annotated[float, Field(ge=0, lt=1), MATHEMATICS, REFERENCE] = 0.0
    """Share of attention weights dropped while training. Above 0 a pair's two sides no longer
    share the computation of their prompt."""

    @property
    def reference_key(self) -> Literal["weights", "reference"]:
        """Which of the two keys names the frozen weights."""
        return "weights" if self.reference is None else "reference"


class Train(Table):
    """The optimization: how long, how fast, on what."""

    epochs: Annotated[int, Field(ge=1), MATHEMATICS] = 2
    """Passes over the pairs. The learning rate falls over all of them together."""

    batch_size: Annotated[int, Field(ge=1), POSITION, REFERENCE] = 4
    """Pairs in a micro-batch, per device: the unit of steps, intervals and the schedule. How many
    are computed at once is another matter: see max_tokens_per_forward."""

    accumulation_steps: Annotated[int | None, Field(ge=1, examples=[1]), POSITION, REFERENCE] = None
    """Micro-batches whose gradients are added up for one optimizer step. Default: 1, or what
    global_batch_size asks for."""

    global_batch_size: Annotated[int | None, Field(ge=1, examples=[32]), POSITION, REFERENCE] = None
    """Pairs in one optimizer step over all devices, a multiple of batch_size: it derives the
    accumulation, so that one and eight devices train the same recipe."""

    learning_rate: Annotated[float, Field(gt=0), MATHEMATICS] = 1e-8
    """Step size of AdamW, before the schedule. How far the weights can move is the sum of the
    learning rates over all steps; a large one makes the model forget what it has learned."""

    schedule: Annotated[Literal["minimind2", "minimind3"], MATHEMATICS] = "minimind2"
    """Cosine over the T micro-batches of the run: "minimind2" is lr*(0.1+0.5*(1+cos(pi*t/T))) with
    t from 0; "minimind3" is lr*(0.1+0.45*(1+cos(pi*t/T))) with t from 1."""

    warmup_iters: Annotated[int, Field(ge=0), MATHEMATICS] = 0
    """Micro-batches over which the learning rate first rises in a line up to the schedule's."""

    kahan_summation: Annotated[bool, MATHEMATICS] = False
    """Whether each weight keeps what float32 cannot hold of its updates, so that none is lost
    however small: at a learning rate of 1e-8 hardly a weight above 0.25 moves otherwise. It takes
    eight more bytes a weight in memory and four in each save, and may begin or end at a resume."""

    grad_clip: Annotated[float, Field(gt=0), MATHEMATICS] = 1.0
    """Largest norm of all gradients together; longer ones are scaled down to it."""

    nan_policy: Annotated[Literal["stop", "skip"], MATHEMATICS] = "stop"
    """What to do when a loss or gradient is not a finite number: "stop" before the weights are
    touched, or "skip" this update and go on. Either way the pairs are named, and what the first
    such step began with is kept in the run's folder non_finite/."""

    seed: Annotated[int, Field(ge=0, lt=2**32), POSITION, TOKENS | SPLIT | REFERENCE] = 1337
    """Start of every random choice: order, dropout, think blocks, held-out pairs."""

    device: Annotated[
        str,
        Field(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$", examples=["auto", "cpu", "cuda", "cuda:0"]),
        MATHEMATICS,
        REFERENCE,
    ] = "auto"
    """Where to compute: "cpu", "cuda", or "cuda:N" for the card N. "auto" is CUDA where there is
    a card, else the CPU."""

    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], MATHEMATICS, REFERENCE] = (
        "auto"
    )
    """Precision of the forward and backward pass; weights and optimizer stay in float32. "auto" is
    bfloat16 on CUDA and float32 on the CPU."""

    tf32: Annotated[bool, MATHEMATICS, REFERENCE] = False
    """Whether CUDA may multiply float32 matrices as TF32: faster, but each factor is rounded to 10
    bits of mantissa, where float32 has 23 and bfloat16 7; products are off by 5e-4 of their largest
    element instead of 1e-6. Products in half precision and those of the CPU stay as they are."""

    activation_checkpointing: Annotated[bool, NONE] = False
    """Whether each transformer block is computed again on the way back, instead of keeping what
    its gradient needs: less memory for one more forward, and the same bits."""

    router_aux_loss_coef: Annotated[float | None, Field(ge=0, examples=[5e-4]), MATHEMATICS] = None
    """Weight of the auxiliary loss that keeps all experts in use (mixtures of experts only).
    Default: 0 for MiniMind version 2 (computed, not added), 5e-4 for MiniMind version 3."""

    layout: Annotated[Literal["packed", "padded"], MATHEMATICS, REFERENCE] = "packed"
    """How a batch is computed: "packed" without padding and with each prompt once, or "padded",
    the plain padded loop: slower, with the same result."""

    max_tokens_per_forward: Annotated[
        int | None, Field(ge=1, examples=[2048]), MATHEMATICS, REFERENCE
    ] = None
    """Tokens that are computed together at most: the pairs of an optimizer step are dealt out
    anew, with the same gradient, and a longer pair stands alone. The lower, the less memory.
    Default: 2048 on a CPU; on CUDA micro-batches stay as they are, as they do everywhere with
    experts, with dropout, with a loss of whole batches, and in the padded layout."""

    aux_loss_tokens: Annotated[Literal["real", "all"], MATHEMATICS, REFERENCE] = "real"
    """Tokens that the auxiliary loss counts: "real" tokens only, or "all" with padding, as in
    MiniMind version 3's own script (only with layout = "padded")."""

    deterministic: Annotated[bool, MATHEMATICS, REFERENCE] = False
    """Whether CUDA must repeat itself bit for bit, which is slower. The CPU always does."""

    compile: Annotated[bool, MATHEMATICS, REFERENCE] = False
    """Whether torch.compile fuses what lies around the matrix products of a block, so that CUDA has
    less to launch; it costs up to a minute at the start. On a CPU it needs a C++ compiler, and has
    not been seen to gain anything."""

    log_interval: Annotated[int, Field(ge=1), NONE] = 100
    """Micro-batches between two lines of the plain log."""

    save_interval: Annotated[int, Field(ge=1), NONE] = 100
    """Micro-batches between two saves of the training state; the save falls on the next optimizer
    step."""

    save_min_seconds: Annotated[float, Field(ge=0), NONE] = 60.0
    """Seconds at least between two saves, since one writes twelve bytes a parameter; more where a
    save would take over 0.6 % of the time. 0 saves at each save_interval."""

    @field_validator("global_batch_size")
    @classmethod
    def _check_global_batch_size(cls, value: int | None, info: ValidationInfo) -> int | None:
        batch_size = info.data.get("batch_size")
        accumulation_steps = info.data.get("accumulation_steps")
        if value is None or batch_size is None:
            return value
        if value % batch_size:
            raise contradiction(
                f"must be a multiple of train.batch_size, which is {batch_size}; "
                f"for example {max(value // batch_size, 1) * batch_size}"
            )
        if accumulation_steps not in (None, value // batch_size):
            raise contradiction(
                f"contradicts train.batch_size x train.accumulation_steps = "
                f"{batch_size} x {accumulation_steps} = {batch_size * accumulation_steps}; "
                "state only one of train.global_batch_size and train.accumulation_steps"
            )
        return value

    @field_validator("aux_loss_tokens")
    @classmethod
    def _check_aux_tokens(cls, value: str, info: ValidationInfo) -> str:
        if value == "all" and info.data.get("layout") == "packed":
            raise contradiction(
                'the packed layout has no padding to count; set train.layout = "padded", '
                'or leave train.aux_loss_tokens = "real"'
            )
        return value

    def accumulation_on(self, devices: int) -> int:
        """Micro-batches in one optimizer step when `devices` devices train together.

        Where both are stated, `global_batch_size` governs.

        Raises:
            UsageError: `global_batch_size` cannot be shared evenly among so many devices.
        """
        if self.global_batch_size is None:
            return self.accumulation_steps or 1
        steps, rest = divmod(self.global_batch_size, self.batch_size * devices)
        if rest:
            raise UsageError(
                f"train.global_batch_size = {self.global_batch_size}: must be a multiple of "
                f"train.batch_size x devices = {self.batch_size} x {devices} = "
                f"{self.batch_size * devices}",
                "Change train.global_batch_size, train.batch_size or the number of devices.",
            )
        return steps


class Eval(Table):
    """Held-out pairs: the only honest measure of what was learned."""

    fraction: Annotated[float, Field(ge=0, lt=1), POSITION, SPLIT | REFERENCE] = 0.0
    """Share of the pairs that is held out of training and evaluated."""

    path: Annotated[
        Location | None,
        Field(examples=["../dataset/dpo_test.jsonl"]),
        Kind.PATH,
        MATHEMATICS,
        HELD_OUT | REFERENCE,
    ] = None
    """Held-out pairs in a file or folder of their own, instead of a fraction; in any format that
    data.data_path may have."""

    interval: Annotated[int, Field(ge=0), MATHEMATICS] = 0
    """Micro-batches between two evaluations; 0 evaluates once before training and once after it.
    Without held-out pairs there is none."""

    keep_best: Annotated[bool, NONE] = False
    """Whether the state with the lowest held-out loss is kept beside the newest ones, and its
    weights in a file of their own, rlhf_best_512.pth. A new best is saved at once."""

    num_samples: Annotated[int, Field(ge=0, examples=[3]), NONE] = 0
    """Held-out prompts that policy and reference answer at each evaluation, to be read side by
    side: greedily, up to 96 tokens each."""

    patience: Annotated[int, Field(ge=0), NONE] = 0
    """Evaluations in a row without a lower held-out loss after which the run ends by itself; 0
    trains to the end. Needs eval.interval."""

    @field_validator("patience")
    @classmethod
    def _check_patience(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("interval") == 0:
            raise contradiction(
                "needs evaluations between the first step and the last; set eval.interval"
            )
        return value

    @field_validator("path")
    @classmethod
    def _check_path(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("fraction"):
            raise contradiction(
                "held-out pairs come from a file or from a fraction of the training pairs, not "
                "both; leave out eval.path or eval.fraction"
            )
        return value


class Export(Table):
    """What a run's weights become: the half-precision file that MiniMind's own scripts load, or of
    any other model a Hugging Face directory."""

    # With all that is put around it while it is written, below the 255 bytes of a file name.
    prefix: Annotated[
        str, Field(pattern=r"^[^/\x00-\x1f]{1,48}$", examples=["rlhf", "dpo"]), NONE
    ] = "rlhf"
    """Beginning of the file's name, which goes on with the hidden size and "_moe": rlhf_512.pth. A
    Hugging Face directory has it as its name."""

    dtype: Annotated[Literal["auto", "float16", "bfloat16", "float32"], NONE] = "auto"
    """Precision of the file. Weights that were born float16 should not become bfloat16: its
    rounding is larger than the update. "auto" is float16 for MiniMind, and in a Hugging Face
    directory that of the checkpoint."""


class Profile(Table):
    """Everything a run is told. Paths are absolute once `load_profile` has read it."""

    model: Model
    data: Data
    dpo: Dpo = Dpo()
    train: Train = Train()
    eval: Eval = Eval()
    export: Export = Export()
    launch: Launch = Launch()
    track: Track = Track()


@dataclass(frozen=True)
class Key:
    """One key of the profile, as its readers need it."""

    name: str
    """Dotted: "train.learning_rate"."""
    description: str
    effect: Effect
    affects: Affects
    kind: Kind
    examples: tuple[object, ...]
    """Values that would do; the default, if nothing else is of interest."""
    default: object
    """The value of a profile that is silent; None where there is none, or it is read elsewhere."""
    is_required: bool
    """Whether a profile must state it."""


TABLES: Mapping[str, type[BaseModel]] = {
    name: cast(type[BaseModel], info.annotation) for name, info in Profile.model_fields.items()
}
"""The tables of a profile, in order."""


def _describe_keys() -> dict[str, Key]:
    keys = {}
    for table, model in TABLES.items():
        for field, info in model.model_fields.items():
            keys[f"{table}.{field}"] = Key(
                name=f"{table}.{field}",
                description=" ".join((info.description or "").split()),
                effect=next(item for item in info.metadata if isinstance(item, Effect)),
                affects=next(
                    (item for item in info.metadata if isinstance(item, Affects)), Affects(0)
                ),
                kind=next((item for item in info.metadata if isinstance(item, Kind)), Kind.PLAIN),
                examples=tuple(info.examples or [info.default]),
                default=None if info.is_required() else info.default,
                is_required=info.is_required(),
            )
    return keys


KEYS: Mapping[str, Key] = _describe_keys()
"""All keys by dotted name, in the order of the schema."""


def keys_affecting(affects: Affects, *, plain: bool = False) -> tuple[str, ...]:
    """Return the keys that any of `affects` depends on, in the order of the schema.

    With `plain` only keys whose value is no path: files are compared by content elsewhere.
    """
    return tuple(
        key.name
        for key in KEYS.values()
        if key.affects & affects and not (plain and key.kind is not Kind.PLAIN)
    )

"""Schema of a profile: every key with type, limits, default, description and effect on a resume.

The docstring under a field is its description in the JSON Schema and in commented profiles. The
pydantic models check values only; `dpo_cli.profile.load` reads the files and resolves paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from dpo_cli.errors import UsageError
from dpo_cli.learning_rate import ScheduleName
from dpo_cli.profile.launch import Launch
from dpo_cli.profile.lora import Lora
from dpo_cli.profile.model import Model
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


class Train(Table):
    """Optimization: duration, learning rate, precision, device and saves."""

    epochs: Annotated[int, Field(ge=1), MATHEMATICS] = 2
    """Passes over the training pairs. The learning rate decays once over all of them."""

    batch_size: Annotated[int, Field(ge=1), POSITION, REFERENCE] = 4
    """Pairs in a micro-batch, per device. Log, save and evaluation intervals and the schedule count
    micro-batches. max_tokens_per_forward limits how many pairs are computed at once."""

    accumulation_steps: Annotated[int | None, Field(ge=1, examples=[1]), POSITION, REFERENCE] = None
    """Micro-batches per optimizer step, whose gradients are accumulated. Default: 1, or derived
    from global_batch_size."""

    global_batch_size: Annotated[int | None, Field(ge=1, examples=[32]), POSITION, REFERENCE] = None
    """Pairs in one optimizer step over all devices; a multiple of batch_size. accumulation_steps is
    derived from it, so that one and eight devices train the same recipe. Default: batch_size x
    accumulation_steps x devices."""

    learning_rate: Annotated[float, Field(gt=0), MATHEMATICS] = 1e-8
    """Base learning rate of AdamW, before the schedule. The sum of the learning rates over all
    optimizer steps (lr_sum) bounds how far a weight moves; too large a value makes the model
    forget."""

    schedule: Annotated[ScheduleName, MATHEMATICS] = "minimind2"
    """Cosine decay over the T micro-batches of the run: "minimind2" is lr*(0.1+0.5*(1+cos(pi*t/T)))
    with t from 0; "minimind3" is lr*(0.1+0.45*(1+cos(pi*t/T))) with t from 1."""

    warmup_iters: Annotated[int, Field(ge=0), MATHEMATICS] = 0
    """Linear warm-up, in micro-batches."""

    kahan_summation: Annotated[bool, MATHEMATICS] = False
    """Keep the rounding error of each weight's float32 updates and add it to the next one, so that
    small updates are not lost: at a learning rate of 1e-8 hardly a weight above 0.25 moves
    otherwise. Takes eight more bytes per weight in memory and four in each checkpoint. You can
    switch it on or off at a resume."""

    grad_clip: Annotated[float, Field(gt=0), MATHEMATICS] = 1.0
    """Gradient-norm clipping threshold."""

    nan_policy: Annotated[Literal["stop", "skip"], MATHEMATICS] = "stop"
    """Action on a NaN or infinite loss or gradient: "stop" before the weights change, or "skip"
    this update and continue. Both name the pairs, and keep the inputs of the first such step in the
    run's folder non_finite/."""

    seed: Annotated[int, Field(ge=0, lt=2**32), POSITION, TOKENS | SPLIT | REFERENCE] = 1337
    """Seed of all random choices: order, dropout, think blocks, held-out pairs."""

    device: Annotated[
        str,
        Field(
            pattern=r"^(auto|cpu|mps|(cuda|xpu)(:[0-9]+)?)$",
            examples=["auto", "cpu", "cuda", "cuda:0", "mps"],
        ),
        MATHEMATICS,
        REFERENCE,
    ] = "auto"
    """Device to compute on: "cpu", "cuda" or "cuda:N" (GPUs of NVIDIA and AMD), "mps" (Apple), or
    "xpu" (Intel). "auto" is the GPU if there is one, else the CPU."""

    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], MATHEMATICS, REFERENCE] = (
        "auto"
    )
    """Precision of the forward and backward pass; weights and optimizer state stay in float32.
    "auto" is float32 on the CPU and on MPS, and bfloat16 on other GPUs, or float16 on those that
    only emulate bfloat16 (before compute capability 8.0)."""

    threads: Annotated[int | None, Field(ge=1, examples=[1]), NONE, REFERENCE] = None
    """CPU threads of each process. Default: OMP_NUM_THREADS, else the physical cores that the
    process may use (CPU affinity, limit of the container); a resumed run keeps its number. Set 1 if
    other processes use the CPU. Another number changes the last bits."""

    tf32: Annotated[bool, MATHEMATICS, REFERENCE] = False
    """Allow TF32 for float32 matrix products on CUDA: faster, but less accurate (10 mantissa bits
    instead of 23; errors of 5e-4 of the largest element instead of 1e-6). No effect on half
    precision and on the CPU."""

    activation_checkpointing: Annotated[bool, NONE] = False
    """Recompute each transformer block in the backward pass instead of keeping its activations:
    less memory for one more forward, with bitwise the same result."""

    router_aux_loss_coef: Annotated[float | None, Field(ge=0, examples=[5e-4]), MATHEMATICS] = None
    """Weight of the auxiliary loss that keeps all experts in use (mixture of experts only).
    Default: 0 for MiniMind version 2 (computed, not added), 5e-4 for MiniMind version 3."""

    layout: Annotated[Literal["packed", "padded"], MATHEMATICS, REFERENCE] = "packed"
    """Layout of a batch: "packed" has no padding and computes each prompt once; "padded" is the
    plain loop over padded rows: slower, with the same result."""

    max_tokens_per_forward: Annotated[
        int | None, Field(ge=1, examples=[2048]), MATHEMATICS, REFERENCE
    ] = None
    """Most tokens computed in one forward. The pairs of an optimizer step are regrouped to fit,
    with the same gradient; a longer pair is computed alone. Lower values need less memory. Default:
    2048 on a CPU; on a GPU a power of two from 1,024 to 65,536 that follows from the free memory at
    the start of the run. It is always one micro-batch with experts, with dropout, with a loss over
    whole batches, and in the padded layout. On a GPU evaluations compute four times as much."""

    aux_loss_tokens: Annotated[Literal["real", "all"], MATHEMATICS, REFERENCE] = "real"
    """Tokens that the auxiliary loss counts: "real" tokens only, or "all" with padding, as in
    MiniMind version 3's own script (only with layout = "padded")."""

    deterministic: Annotated[bool, MATHEMATICS, REFERENCE] = False
    """Require bitwise repeatable results on CUDA, which is slower. The CPU always repeats them."""

    compile: Annotated[bool, MATHEMATICS, REFERENCE] = False
    """Fuse the operations between the matrix products of a block with torch.compile: fewer kernel
    launches on CUDA, up to a minute longer at the start. On a CPU it needs a C++ compiler, and no
    gain has been measured."""

    log_interval: Annotated[int, Field(ge=1), NONE] = 100
    """Micro-batches between two lines of the plain log."""

    save_interval: Annotated[int, Field(ge=1), NONE] = 100
    """Micro-batches between two checkpoints; each is saved at the next optimizer step."""

    save_min_seconds: Annotated[float, Field(ge=0), NONE] = 60.0
    """Minimum seconds between two checkpoints, which take twelve bytes per parameter each. The
    interval grows where saving would take over 0.6 % of the time. 0 saves at every
    save_interval."""

    @field_validator("global_batch_size")
    @classmethod
    def _check_global_batch_size(cls, value: int | None, info: ValidationInfo) -> int | None:
        # `info.data` holds the valid keys above this one, so the order of keys in a table matters.
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
                "set only one of train.global_batch_size and train.accumulation_steps"
            )
        return value

    @field_validator("aux_loss_tokens")
    @classmethod
    def _check_aux_loss_tokens(cls, value: str, info: ValidationInfo) -> str:
        if value == "all" and info.data.get("layout") == "packed":
            raise contradiction(
                'the packed layout has no padding to count; set train.layout = "padded", '
                'or leave train.aux_loss_tokens = "real"'
            )
        return value

    def accumulation_on(self, devices: int) -> int:
        """Return the micro-batches per optimizer step and device, on `devices` devices.

        `global_batch_size` takes precedence over `accumulation_steps`.

        Raises:
            UsageError: `global_batch_size` does not divide evenly among the devices.
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
    """Held-out pairs, which are evaluated but not trained on."""

    fraction: Annotated[float, Field(ge=0, lt=1), POSITION, SPLIT | REFERENCE] = 0.0
    """Share of the pairs that is held out of training and evaluated."""

    path: Annotated[
        Location | None,
        Field(examples=["../dataset/dpo_test.jsonl"]),
        Kind.DATA,
        MATHEMATICS,
        HELD_OUT | REFERENCE,
    ] = None
    """Held-out pairs, instead of a fraction of the training pairs: anything that data.data_path
    accepts, except for a list."""

    interval: Annotated[int, Field(ge=0), MATHEMATICS] = 0
    """Micro-batches between two evaluations; 0 evaluates once before and once after training. No
    effect without held-out pairs."""

    keep_best: Annotated[bool, NONE] = False
    """Keep the checkpoint with the lowest held-out loss besides the newest ones, and write its
    weights to a file of their own, rlhf_best_512.pth. A new best is saved at once."""

    num_samples: Annotated[int, Field(ge=0, examples=[3]), NONE] = 0
    """Held-out prompts that policy and reference answer at each evaluation, for side-by-side
    reading: greedy decoding, up to 96 tokens each."""

    patience: Annotated[int, Field(ge=0), NONE] = 0
    """Stop after this many evaluations in a row without a lower held-out loss; 0 trains to the end.
    Needs eval.interval."""

    @field_validator("patience")
    @classmethod
    def _check_patience(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("interval") == 0:
            raise contradiction("needs evaluations during training; set eval.interval")
        return value

    @field_validator("path")
    @classmethod
    def _check_path(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("fraction"):
            raise contradiction(
                "held-out pairs come from a file or are a fraction of the training pairs, not "
                "both; leave out eval.path or eval.fraction"
            )
        return value


class Export(Table):
    """Exported weights: a file for MiniMind's own scripts, or a Hugging Face directory."""

    # At most 48 characters of 4 bytes each, so that the temporary file names that are made from
    # the prefix stay below 255 bytes.
    prefix: Annotated[
        str, Field(pattern=r"^[^/\x00-\x1f]{1,48}$", examples=["rlhf", "dpo"]), NONE
    ] = "rlhf"
    """Prefix of the file name; hidden size and "_moe" follow, as in rlhf_512.pth. It is the name of
    an exported Hugging Face directory."""

    dtype: Annotated[Literal["auto", "float16", "bfloat16", "float32"], NONE] = "auto"
    """Precision of the file. Do not export weights that started as float16 in bfloat16: its
    rounding is larger than the update. "auto" is float16 for MiniMind, and the precision of the
    starting weights for a Hugging Face directory. bfloat16 weights are rounded stochastically,
    which keeps the update; the nearest values would lose most of it."""


class Profile(Table):
    """All settings of a run. Paths are absolute once `load_profile` has read them."""

    model: Model
    data: Data
    dpo: Dpo = Dpo()
    train: Train = Train()
    lora: Lora = Lora()
    eval: Eval = Eval()
    export: Export = Export()
    launch: Launch = Launch()
    track: Track = Track()

    @property
    def has_dropout(self) -> bool:
        """Return True if training drops anything at random."""
        return bool(self.model.dropout or (self.lora.is_on and self.lora.dropout))


@dataclass(frozen=True)
class Key:
    """One key of the profile."""

    name: str
    """Dotted name, for example "train.learning_rate"."""
    description: str
    effect: Effect
    affects: Affects
    kind: Kind
    examples: tuple[object, ...]
    """Valid values; the default if the schema gives no others."""
    default: object
    """Value if the profile does not set the key; None if there is none, or it is inferred."""
    is_required: bool
    """True if every profile must set the key."""


TABLES: Mapping[str, type[BaseModel]] = {
    name: cast(type[BaseModel], info.annotation) for name, info in Profile.model_fields.items()
}
"""Tables of a profile by name, in order."""


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

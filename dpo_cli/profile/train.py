"""Table [train] of a profile: duration, learning rate, optimizer, precision, device and saves."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from dpo_cli.errors import UsageError
from dpo_cli.learning_rate import BY_MICRO_BATCH, ScheduleName
from dpo_cli.profile.model import WEIGHT_BYTES, WeightsDtype
from dpo_cli.profile.table import (
    MATHEMATICS,
    NONE,
    POSITION,
    REFERENCE,
    SPLIT,
    TOKENS,
    Table,
    contradiction,
)

OptimizerName = Literal["adamw", "adamw8bit", "adafactor", "sgd", "muon"]
STATE_BYTES: dict[str, int] = {"adamw": 8, "adamw8bit": 3, "adafactor": 0, "sgd": 0, "muon": 8}
"""Bytes of optimizer state per weight, at most. In 8 bits there are two, and scales of 32 bits for
blocks of 256 and for small tensors. Adafactor keeps a row and a column of each matrix. Muon keeps
4 bytes for the matrices of the blocks and 8 for other weights."""


def state_bytes_per_weight(optimizer: OptimizerName, weights_dtype: WeightsDtype) -> int:
    """Return the bytes of optimizer state per weight, at most; half beside bfloat16 weights."""
    return STATE_BYTES[optimizer] * WEIGHT_BYTES[weights_dtype] // WEIGHT_BYTES["float32"]


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
    """Base learning rate, before the schedule. With AdamW, the sum of the learning rates over all
    optimizer steps (lr_sum) bounds how far a weight moves; too large a value makes the model
    forget."""

    schedule: Annotated[ScheduleName, MATHEMATICS] = "minimind2"
    """Schedule of the learning rate. Over the T micro-batches of the run: "minimind2" is
    lr*(0.1+0.5*(1+cos(pi*t/T))) with t from 0; "minimind3" is lr*(0.1+0.45*(1+cos(pi*t/T))) with t
    from 1. Over its optimizer steps, as in transformers: "linear", "cosine", "constant", or "wsd"
    (constant, then a decay); after a warm-up, whose first step has a rate of 0."""

    warmup_iters: Annotated[int, Field(ge=0), MATHEMATICS] = 0
    """Linear warm-up, in micro-batches; for a schedule over optimizer steps, in the steps that have
    them."""

    warmup_ratio: Annotated[float, Field(ge=0, lt=1), MATHEMATICS] = 0.0
    """Linear warm-up as a share of the run, instead of warmup_iters; rounded up."""

    min_lr_ratio: Annotated[float, Field(ge=0, lt=1), MATHEMATICS] = 0.0
    """Rate at the end of "linear", "cosine" and "wsd", as a share of learning_rate."""

    decay_iters: Annotated[int | None, Field(ge=1, examples=[100]), MATHEMATICS] = None
    """Micro-batches of the decay of "wsd", a cosine at the end of the run. No effect on other
    schedules. Default: decay_ratio."""

    decay_ratio: Annotated[float | None, Field(gt=0, le=1, examples=[0.2]), MATHEMATICS] = None
    """Share of the optimizer steps in which "wsd" decays, rounded up. No effect on other schedules.
    Default: 0.1, or decay_iters."""

    optimizer: Annotated[OptimizerName, POSITION] = "adamw"
    """Optimizer, as torch has it. Bytes per weight for its state: "adamw" 8; "adamw8bit" 2, by
    bitsandbytes (the extra quant); "adafactor" nearly none, and it multiplies the learning rate by
    the size of each tensor; "sgd" none (no momentum); "muon" 4 for the matrices of the blocks, with
    AdamW for all other weights, at most 8. Start a new run to change it."""

    adam_betas: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]],
        Field(min_length=2, max_length=2),
        MATHEMATICS,
    ] = [0.9, 0.999]  # noqa: RUF012  pydantic copies it
    """Decay rates of the two moments of AdamW, also beside Muon."""

    adam_epsilon: Annotated[float, Field(gt=0), MATHEMATICS] = 1e-8
    """Number that AdamW adds to its denominator, also beside Muon."""

    weight_decay: Annotated[float, Field(ge=0), MATHEMATICS] = 0.01
    """Weight decay. A step shrinks a weight by this factor of the learning rate; with "sgd" it is
    added to the gradient instead."""

    decay_norms_and_biases: Annotated[bool, MATHEMATICS] = True
    """Decay the weights of norms and the biases, too. Set it to false to do as transformers."""

    kahan_summation: Annotated[bool, MATHEMATICS] = False
    """Keep the rounding error of each weight's float32 updates and add it to the next one, so that
    small updates are not lost: at a learning rate of 1e-8 hardly a weight above 0.25 moves
    otherwise. Takes eight more bytes per weight in memory and four in each checkpoint. You can
    switch it on or off at a resume. Only for "adamw"."""

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
    """Precision of the forward and backward pass; weights and optimizer state stay in float32,
    unless model.weights_dtype is set. "auto" is float32 on the CPU and on MPS, and bfloat16 on
    other GPUs, or float16 on those that only emulate bfloat16 (before compute capability 8.0)."""

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
    """Minimum seconds between two checkpoints, which take four bytes per weight each, and the state
    of the optimizer. The interval grows where saving would take over 0.6 % of the time. 0 saves at
    every save_interval."""

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

    @field_validator("warmup_ratio")
    @classmethod
    def _check_warmup_ratio(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("warmup_iters"):
            raise _two_ways("warmup_ratio", "warmup_iters", info)
        return value

    @field_validator("min_lr_ratio")
    @classmethod
    def _check_min_lr_ratio(cls, value: float, info: ValidationInfo) -> float:
        schedule = info.data.get("schedule")
        if value and schedule in (*BY_MICRO_BATCH, "constant"):
            raise contradiction(
                f'has no effect on train.schedule = "{schedule}"; set train.schedule to "linear",'
                ' "cosine" or "wsd", or remove train.min_lr_ratio'
            )
        return value

    @field_validator("decay_ratio")
    @classmethod
    def _check_decay_ratio(cls, value: float | None, info: ValidationInfo) -> float | None:
        if None not in (value, info.data.get("decay_iters")):
            raise _two_ways("decay_ratio", "decay_iters", info)
        return value

    @field_validator("kahan_summation")
    @classmethod
    def _check_kahan_summation(cls, value: bool, info: ValidationInfo) -> bool:
        optimizer = info.data.get("optimizer", "adamw")
        if value and optimizer != "adamw":
            raise contradiction(
                f'works with train.optimizer = "adamw" only, not with "{optimizer}"; remove'
                " train.kahan_summation, or choose adamw"
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


def _two_ways(key: str, other: str, info: ValidationInfo) -> PydanticCustomError:
    """Return the error of a key that sets what another key sets, too."""
    return contradiction(
        f"contradicts train.{other} = {info.data[other]}; set only one of train.{key} and"
        f" train.{other}"
    )

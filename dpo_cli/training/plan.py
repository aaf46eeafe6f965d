"""Everything a run needs, read and resolved before its first step.

The plan is what a run promises: rank 0 writes it once; a resume computes it again and refuses to
start where the content of an input is another one.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from dpo_cli.data.batching import Batch, make_batch
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.groups import groups_of
from dpo_cli.data.order import DataOrder, hold_out, repeat
from dpo_cli.data.pairs import SetAside
from dpo_cli.data.regroup import Forward, regroup
from dpo_cli.data.tokens import Rows, TokenizedPairs
from dpo_cli.errors import DpoError
from dpo_cli.models.architecture import Architecture
from dpo_cli.models.zoo import Checkpoint
from dpo_cli.objective.losses import loss_at_start
from dpo_cli.profile.inputs import resolve_tokenizer
from dpo_cli.profile.resolved import to_tables
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.text import show_value
from dpo_cli.run.store import RunDirectory
from dpo_cli.training.device import Compute
from dpo_cli.training.inputs import (
    OnProgress,
    held_out_pairs,
    read_checkpoint,
    require_positions,
    require_same_vocabulary,
    training_pairs,
    usable_rows,
)
from dpo_cli.training.optim import LearningRate
from dpo_cli.training.ranks import ALONE, Ranks

CPU_TOKENS_PER_FORWARD = 2048
"""Positions of a forward on a CPU, where larger tables only fall out of its caches."""
_KERNEL_VARIABLES = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
"""Environment variables that choose the kernels of MKL and oneDNN, and with them the last bits."""


@dataclass(frozen=True)
class Prepared:
    """The inputs of a run, and what was decided from them."""

    profile: Profile
    compute: Compute
    checkpoint: Checkpoint
    reference: Checkpoint
    tokenizer: Path
    """Its folder."""
    pad_id: int
    pairs: TokenizedPairs
    held_out: TokenizedPairs
    set_aside: Sequence[SetAside]
    order: DataOrder
    learning_rate: LearningRate
    router_aux_loss_coef: float
    fingerprints: dict[str, str]
    held_out_set_aside: Sequence[SetAside] = ()
    held_out_groups: Mapping[str, Tensor] = field(default_factory=dict)
    """Which held-out pairs belong to which group; see `groups_of`."""
    devices: int = 1
    """Ranks that train together; the order of the pairs does not know them."""

    @property
    def export_dtype(self) -> str:
        """The precision of the weights that other tools are to load."""
        checkpoint = self.checkpoint
        return export_dtype(self.profile, checkpoint.architecture, checkpoint.dtype_name)

    @property
    def begins_as_reference(self) -> bool:
        """Whether all that an evaluation asks of the policy is the reference's at first."""
        start, reference = self.checkpoint, self.reference
        is_same = start.fingerprint == reference.fingerprint
        is_computed_alike = start.architecture == reference.architecture
        return is_same and is_computed_alike and not self.profile.dpo.use_weighting

    @property
    def balance_weight(self) -> float:
        """Of a micro-batch's balance loss in the loss of its window."""
        return self.router_aux_loss_coef / self.order.accumulation_steps

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that is computed, padding included."""
        if self.profile.train.layout == "reference":
            return self.profile.data.max_seq_len
        return max(int(pairs.lengths.max()) for pairs in (self.pairs, self.held_out) if pairs)

    @cached_property
    def held_out_rows(self) -> list[tuple[int, ...]]:
        """Which held-out pairs are scored together."""
        count, size = len(self.held_out), self.order.batch_size
        chunks = [range(start, min(start + size, count)) for start in range(0, count, size)]
        return [
            forward.indices
            for chunk in chunks
            for forward in self._regroup([chunk], self.held_out, ranks=1)[0]
        ]

    def batch(self, pairs: TokenizedPairs, indices: Sequence[int]) -> Batch:
        """The tensors of these pairs, on the device."""
        profile = self.profile
        return make_batch(
            [pairs[i] for i in indices],
            profile.train.layout,
            max_seq_len=profile.data.max_seq_len,
            pad_id=self.pad_id,
            share_prompts=not profile.model.dropout,
        ).to(self.compute.device)

    def forwards(self, micro_batches: Sequence[Sequence[int]]) -> list[Forward]:
        """What is computed together of the micro-batches of one optimizer step, on all ranks."""
        return [forward for share in self.shares(micro_batches) for forward in share]

    def shares(self, micro_batches: Sequence[Sequence[int]]) -> list[list[Forward]]:
        """The same by rank."""
        return self._regroup(micro_batches, self.pairs, self.devices)

    def _regroup(
        self, micro_batches: Sequence[Sequence[int]], pairs: TokenizedPairs, ranks: int
    ) -> list[list[Forward]]:
        indices = [index for indices in micro_batches for index in indices]
        tokens = dict(zip(indices, pairs.computed_tokens[indices].tolist(), strict=True))
        return regroup(
            micro_batches, self.order.accumulation_steps, tokens, self._tokens_per_forward, ranks
        )

    @property
    def reference_rows(self) -> list[tuple[int, ...]]:
        """The pairs that the reference scores together: each forward of the first epoch.

        The same rows as the policy's, because the size of a matrix product decides its last bits:
        only then does the first epoch compare equal weights to equal bits.
        """
        return [
            forward.indices
            for window in itertools.takewhile(lambda window: not window.epoch, self.order.windows())
            for forward in self.forwards(window.micro_batches)
        ]

    @property
    def may_regroup(self) -> bool:
        """Whether other portions than the micro-batches would mean the same."""
        is_free = self.profile.train.layout == "packed" and not self.profile.model.dropout
        is_joint = self.checkpoint.architecture.use_moe or self.profile.dpo.needs_whole_batch
        return is_free and not is_joint

    @property
    def _tokens_per_forward(self) -> int | None:
        if not self.may_regroup:
            return None
        default = CPU_TOKENS_PER_FORWARD if self.compute.device.type == "cpu" else None
        return self.profile.train.tokens_per_forward or default

    def plan(self) -> dict[str, Any]:
        """What goes into `plan.json` and to the screen: plain values."""
        profile, architecture = self.profile, self.checkpoint.architecture
        return {
            "model": {
                "architecture": architecture.name,
                "description": architecture.description,
                "parameters": self.checkpoint.parameters,
                "shape": architecture.to_dict(),
                "weights_dtype": self.checkpoint.dtype_name,
                "weights_file": architecture.file_name(profile.export.prefix),
            },
            "pairs": {
                "kept": len(self.pairs),
                "set_aside": len(self.set_aside),
                "held_out": len(self.held_out),
                "held_out_set_aside": len(self.held_out_set_aside),
                "max_seq_len": profile.data.max_seq_len,
            },
            "steps": {
                "epochs": self.order.epochs,
                "micro_batches": self.order.micro_batches,
                "micro_batches_per_epoch": self.order.micro_batches_per_epoch,
                "optimizer_steps": self.order.optimizer_steps,
                "batch_size": self.order.batch_size,
                "accumulation_steps": self.order.accumulation_steps,
            },
            "profile": {
                "learning_rate": profile.train.learning_rate,
                "schedule": profile.train.schedule,
                "loss": profile.dpo.title,
                "loss_at_start": loss_at_start(profile.dpo),
                "beta": profile.dpo.beta,
                "reduction": profile.dpo.reduction,
                "layout": profile.train.layout,
                "router_aux_loss_coef": self.router_aux_loss_coef,
                "grad_clip": profile.train.grad_clip,
                "log_interval": profile.train.log_interval,
                "save_interval": profile.train.save_interval,
            },
            "settings": to_tables(profile),
            "device": str(self.compute.device),
            "dtype": self.compute.dtype_name,
            "fingerprints": self.fingerprints,
            "environment": {**environment(), "ranks": str(self.devices)},
        }


def export_dtype(profile: Profile, architecture: Architecture, born: str) -> str:
    """The precision of exported weights, of a checkpoint that was born in `born`."""
    stated = profile.export.dtype
    return architecture.file_dtype(born) if stated == "auto" else stated


def environment() -> dict[str, str]:
    """What the bits of a run depend on beside its inputs."""
    kernels = [f"{name}={os.environ[name]}" for name in _KERNEL_VARIABLES if name in os.environ]
    cpu = [platform.machine(), torch.backends.cpu.get_cpu_capability(), *kernels]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": str(torch.get_num_threads()),
        "float32_matmul": torch.get_float32_matmul_precision(),
        "cpu": " ".join(cpu),
    }


def prepare(
    profile: Profile,
    compute: Compute,
    run: RunDirectory,
    on_progress: OnProgress,
    ranks: Ranks = ALONE,
    window: int | None = None,
) -> Prepared:
    """Read, encode and resolve everything; writes nothing but what `run:NAME` stood for.

    Args:
        profile: validated.
        compute: where and in what precision.
        run: beside it `run:NAME` is looked for, and in it that run's weights are kept: it may train
            on, and its states of today are gone then.
        on_progress: hears how far it is.
        ranks: who trains together.
        window: see `assemble`.

    Raises:
        DpoError: an input is missing, damaged, or does not fit the others.
    """
    tokenizer = ChatTokenizer(resolve_tokenizer(profile))

    def read_weights() -> tuple[Checkpoint, Checkpoint]:
        checkpoint = read_checkpoint(profile, "checkpoint", run.path.parent, run.path)
        if profile.model.reference is None:
            return checkpoint, checkpoint
        return checkpoint, read_checkpoint(profile, "reference", run.path.parent, run.path)

    # The leader keeps what `run:NAME` stands for now; the others find that.
    checkpoint, reference = ranks.leader_first("weights", read_weights)
    require_same_vocabulary(tokenizer, checkpoint, reference)
    rows = usable_rows(profile, training_pairs(profile), tokenizer, on_progress, ranks)
    held_out = None
    if (source := held_out_pairs(profile)) is not None:
        held_out = usable_rows(profile, source, tokenizer, on_progress, ranks)
    return assemble(
        profile,
        compute,
        tokenizer,
        checkpoint,
        reference,
        rows,
        held_out,
        devices=ranks.size,
        window=window,
    )


def assemble(
    profile: Profile,
    compute: Compute,
    tokenizer: ChatTokenizer,
    checkpoint: Checkpoint,
    reference: Checkpoint,
    rows: Rows,
    held_out: Rows | None,
    *,
    devices: int = 1,
    window: int | None = None,
) -> Prepared:
    """What follows from inputs that were read: the split, the order, the schedule.

    Args:
        profile, compute: see `prepare`.
        tokenizer, checkpoint, reference: read; they fit each other.
        rows: of `data.data_path`; `eval.fraction` is taken of them.
        held_out: of `eval.path`, if there is one.
        devices: ranks that train together.
        window: micro-batches of an optimizer step, on all of them, which a resume keeps; None to
            take it from the profile.

    Raises:
        DpoError: a sequence is longer than the model can tell positions apart, there are too few
            pairs to hold any out, or too few micro-batches for so many devices.
    """
    require_positions(profile, checkpoint, training_pairs(profile), rows.kept)
    if held_out and (source := held_out_pairs(profile)):
        require_positions(profile, checkpoint, source, held_out.kept)
    fingerprints = {
        "weights": checkpoint.fingerprint,
        "reference": reference.fingerprint,
        "tokenizer": tokenizer.fingerprint(),
        "data": _content(profile, rows),
    }
    pairs, evaluated = rows.kept, held_out.kept if held_out else rows.kept[:0]
    if held_out:
        fingerprints["held_out"] = held_out.content
    elif profile.eval.fraction:
        if len(pairs) < 2:
            raise DpoError(
                f"eval.fraction = {profile.eval.fraction}: only one pair is left to train on",
                "use more data, or leave eval.fraction out",
            )
        training, evaluation = hold_out(len(pairs), profile.eval.fraction, profile.train.seed)
        pairs, evaluated = pairs.select(training), pairs.select(evaluation)
    if (weights := profile.data.path_weights) is not None:
        pairs = pairs.select(repeat(_by_path(pairs, len(weights)), weights, profile.train.seed))
        if not pairs:
            raise DpoError(
                f"data.path_weights = {show_value(weights)}: no pair is left to train on",
                "state larger weights",
            )

    order = DataOrder(
        pairs=len(pairs),
        batch_size=profile.train.batch_size,
        accumulation_steps=window or devices * profile.train.accumulation_on(devices),
        epochs=profile.train.epochs,
        shuffle=profile.data.shuffle,
        seed=profile.train.seed,
    )
    if order.accumulation_steps < devices:
        raise DpoError(
            f"an optimizer step of this run has {order.accumulation_steps} micro-batches, too few"
            f" for {devices} devices: some would never have anything to do",
            f"go on with up to {order.accumulation_steps}: --nproc {order.accumulation_steps}",
        )
    architecture, coefficient = checkpoint.architecture, profile.train.router_aux_loss_coef
    if coefficient is None:
        coefficient = architecture.default_router_aux_loss_coef
    if coefficient and architecture.use_moe and architecture.balance_kind is None:
        raise DpoError(
            f"train.router_aux_loss_coef = {coefficient:g}: no balance loss is known for"
            f" {architecture.name}",
            "leave it out: the experts are trained without",
        )
    return Prepared(
        profile=profile,
        compute=compute,
        checkpoint=checkpoint,
        reference=reference,
        tokenizer=tokenizer.folder,
        pad_id=tokenizer.pad_id,
        pairs=pairs,
        held_out=evaluated,
        set_aside=rows.set_aside,
        held_out_set_aside=held_out.set_aside if held_out else (),
        held_out_groups=groups_of(evaluated, tokenizer.decode),
        order=order,
        learning_rate=LearningRate(
            profile.train.schedule,
            profile.train.learning_rate,
            order.micro_batches,
            profile.train.warmup_iters,
        ),
        router_aux_loss_coef=coefficient,
        fingerprints=fingerprints,
        devices=devices,
    )


def _content(profile: Profile, rows: Rows) -> str:
    """Hex SHA-256 of the data; with weights, also of which file has which."""
    if profile.data.path_weights is None:
        return rows.content
    sources = [part.source for part in rows.places.parts]
    return hashlib.sha256(f"{rows.content} {sources}".encode()).hexdigest()


def _by_path(pairs: TokenizedPairs, paths: int) -> list[list[int]]:
    """The pairs that come from each of the paths of `data.data_path`."""
    groups: list[list[int]] = [[] for _ in range(paths)]
    for index, line in enumerate(pairs.lines.tolist()):
        part = pairs.places.part(line)
        groups[part.source if part else 0].append(index)
    return groups

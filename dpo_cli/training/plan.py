"""Everything a run needs, read and resolved before its first step.

The plan is what a run promises: rank 0 writes it once; a resume computes it again and refuses to
start where the content of an input is another one.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.order import DataOrder, hold_out
from dpo_cli.data.pairs import SetAside, refuse_if_mostly_malformed
from dpo_cli.data.regroup import Forward, regroup
from dpo_cli.data.token_cache import encode_file
from dpo_cli.data.tokens import EncodedRows, Rows, TokenizedPairs
from dpo_cli.errors import DpoError
from dpo_cli.files import sha256_file, write_atomically
from dpo_cli.models.minimind import Architecture
from dpo_cli.models.zoo import Checkpoint, load_checkpoint
from dpo_cli.profile.inputs import resolve_checkpoint
from dpo_cli.profile.resolved import to_tables
from dpo_cli.profile.schema import Profile
from dpo_cli.run.store import RunDirectory, find_run
from dpo_cli.training.device import Compute
from dpo_cli.training.optim import LearningRate
from dpo_cli.training.state import load_weights

RUN_PREFIX = "run:"
CPU_TOKENS_PER_FORWARD = 2048
"""Positions of a forward on a CPU, where larger tables only fall out of its caches."""

OnProgress = Callable[[str, int, int, str], None]
"""Called with phase, done, total and unit."""


@dataclass(frozen=True)
class Prepared:
    """The inputs of a run, and what was decided from them."""

    profile: Profile
    compute: Compute
    checkpoint: Checkpoint
    reference: Checkpoint
    pad_id: int
    pairs: TokenizedPairs
    held_out: TokenizedPairs
    set_aside: Sequence[SetAside]
    order: DataOrder
    learning_rate: LearningRate
    router_aux_loss_coef: float
    fingerprints: dict[str, str]
    held_out_set_aside: Sequence[SetAside] = ()

    @property
    def balance_weight(self) -> float:
        """Of a micro-batch's balance loss in the loss of its window."""
        return self.router_aux_loss_coef / self.order.accumulation_steps

    @cached_property
    def held_out_rows(self) -> list[tuple[int, ...]]:
        """Which held-out pairs are scored together."""
        count, size = len(self.held_out), self.order.batch_size
        chunks = [range(start, min(start + size, count)) for start in range(0, count, size)]
        return [f.indices for chunk in chunks for f in self._regroup([chunk], self.held_out)]

    def forwards(self, micro_batches: Sequence[Sequence[int]]) -> list[Forward]:
        """What is computed together of the micro-batches of one optimizer step."""
        return self._regroup(micro_batches, self.pairs)

    def _regroup(
        self, micro_batches: Sequence[Sequence[int]], pairs: TokenizedPairs
    ) -> list[Forward]:
        limit, accumulation_steps = self._tokens_per_forward, self.order.accumulation_steps
        if limit is None:
            return regroup(micro_batches, accumulation_steps)
        indices = [index for indices in micro_batches for index in indices]
        tokens = dict(zip(indices, pairs.computed_tokens[indices].tolist(), strict=True))
        return regroup(micro_batches, accumulation_steps, tokens, limit)

    @property
    def may_regroup(self) -> bool:
        """Whether other portions than the micro-batches would mean the same."""
        is_free = self.profile.train.layout == "packed" and not self.profile.model.dropout
        return is_free and not self.checkpoint.architecture.use_moe

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
                "architecture": f"minimind{architecture.generation}",
                "description": architecture.description,
                "parameters": self.checkpoint.parameters,
                "shape": architecture.to_dict(),
                "weights_dtype": str(self.checkpoint.dtype).removeprefix("torch."),
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
            "environment": environment(),
        }


def environment() -> dict[str, str]:
    """What the bits of a run depend on beside its inputs."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": str(torch.get_num_threads()),
        "float32_matmul": torch.get_float32_matmul_precision(),
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def prepare(
    profile: Profile, compute: Compute, run: RunDirectory, on_progress: OnProgress
) -> Prepared:
    """Read, encode and resolve everything; writes nothing but what `run:NAME` stood for.

    Args:
        profile: validated.
        compute: where and in what precision.
        run: beside it `run:NAME` is looked for, and in it that run's weights are kept: it may train
            on, and its states of today are gone then.
        on_progress: hears how far it is.

    Raises:
        DpoError: an input is missing, damaged, or does not fit the others.
    """
    tokenizer = ChatTokenizer(profile.model.tokenizer)
    checkpoint = read_checkpoint(profile, "checkpoint", run.path.parent, run.path)
    reference = checkpoint
    if profile.model.reference is not None:
        reference = read_checkpoint(profile, "reference", run.path.parent, run.path)
    require_same_vocabulary(tokenizer, checkpoint, reference)
    rows = _usable(profile, profile.data.data_path, tokenizer, on_progress)
    held_out = None
    if profile.eval.path is not None:
        held_out = _usable(profile, profile.eval.path, tokenizer, on_progress)
    return assemble(profile, compute, tokenizer, checkpoint, reference, rows, held_out)


def assemble(
    profile: Profile,
    compute: Compute,
    tokenizer: ChatTokenizer,
    checkpoint: Checkpoint,
    reference: Checkpoint,
    rows: Rows,
    held_out: Rows | None,
) -> Prepared:
    """What follows from inputs that were read: the split, the order, the schedule.

    Args:
        profile, compute: see `prepare`.
        tokenizer, checkpoint, reference: read; they fit each other.
        rows: of `data.data_path`; `eval.fraction` is taken of them.
        held_out: of `eval.path`, if there is one.

    Raises:
        DpoError: a sequence is longer than the model can tell positions apart, or there are too few
            pairs to hold any out.
    """
    require_positions(profile, checkpoint, profile.data.data_path, rows.kept)
    if held_out:
        require_positions(profile, checkpoint, profile.eval.path, held_out.kept)
    fingerprints = {
        "weights": checkpoint.fingerprint,
        "reference": reference.fingerprint,
        "tokenizer": tokenizer.fingerprint(),
        "data": rows.content,
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

    order = DataOrder(
        pairs=len(pairs),
        batch_size=profile.train.batch_size,
        accumulation_steps=profile.train.accumulation_on(devices=1),
        epochs=profile.train.epochs,
        shuffle=profile.data.shuffle,
        seed=profile.train.seed,
    )
    coefficient = profile.train.router_aux_loss_coef
    if coefficient is None:
        coefficient = checkpoint.architecture.default_router_aux_loss_coef
    return Prepared(
        profile=profile,
        compute=compute,
        checkpoint=checkpoint,
        reference=reference,
        pad_id=tokenizer.pad_id,
        pairs=pairs,
        held_out=evaluated,
        set_aside=rows.set_aside,
        held_out_set_aside=held_out.set_aside if held_out else (),
        order=order,
        learning_rate=LearningRate(
            profile.train.schedule,
            profile.train.learning_rate,
            order.micro_batches,
            profile.train.warmup_iters,
        ),
        router_aux_loss_coef=coefficient,
        fingerprints=fingerprints,
    )


def refuse_other_inputs(promised: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with inputs whose content is not what the run began with.

    Raises:
        DpoError: naming each of them.
    """
    keys = {
        "weights": "model.checkpoint",
        "reference": "model.reference",
        "tokenizer": "model.tokenizer",
        "data": "data.data_path",
        "held_out": "eval.path",
    }
    changed = [
        f"{keys[name]}: the content is not what the run began with"
        for name, fingerprint in promised["fingerprints"].items()
        if now["fingerprints"].get(name, fingerprint) != fingerprint
    ]
    if changed:
        raise DpoError(
            "the run cannot go on: its inputs have changed",
            "restore them (another path with the same content will do, by --set), or start a new"
            " run",
            changed,
        )


def read_checkpoint(
    profile: Profile,
    which: Literal["checkpoint", "reference"],
    runs_root: Path,
    keep_in: Path | None = None,
) -> Checkpoint:
    """The weights that the profile starts from, or compares with.

    Args:
        profile: states them.
        which: of the two.
        runs_root: where `run:NAME` is looked for.
        keep_in: a folder where the weights of `run:NAME` are kept, and found again.

    Raises:
        DpoError: they are missing, damaged, or contradict the profile.
    """
    source = resolve_checkpoint(profile, which)
    if source.startswith(RUN_PREFIX):
        return _load_run(source, runs_root, keep_in and keep_in / f"{which}.safetensors")
    return load_checkpoint(Path(source), profile.model.model_dump())


def _load_run(source: str, runs_root: Path, kept: Path | None) -> Checkpoint:
    """The float32 weights of another run's newest generation, as they were when first read."""
    if kept is None or not kept.exists():
        run = find_run(runs_root, source.removeprefix(RUN_PREFIX))
        plan, newest = run.read_plan(), run.read_newest(load_weights)
        if plan is None or newest is None:
            raise DpoError(
                f"{source}: the run has saved nothing yet",
                "let it train up to its first save, or choose another checkpoint",
            )
        architecture, state = Architecture(**plan["model"]["shape"]), newest[1]
        if kept is None:
            return Checkpoint(architecture, state, torch.float32, fingerprint="")
        shape = {"shape": json.dumps(architecture.to_dict())}
        write_atomically(kept, lambda temporary: save_file(state, temporary, shape))
    with safe_open(kept, framework="pt") as file:
        shape = json.loads(file.metadata()["shape"])
    return Checkpoint(Architecture(**shape), load_file(kept), torch.float32, sha256_file(kept))


def require_same_vocabulary(
    tokenizer: ChatTokenizer, checkpoint: Checkpoint, reference: Checkpoint
) -> None:
    """Refuse a tokenizer or a reference of another vocabulary than the checkpoint's.

    Raises:
        DpoError: naming the sizes.
    """
    vocab_size = checkpoint.architecture.vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise DpoError(
            f"{tokenizer.folder}: the tokenizer has {tokenizer.vocab_size} entries, the checkpoint"
            f" knows {vocab_size}",
            "use the tokenizer that the checkpoint was trained with",
        )
    if reference.architecture.vocab_size != vocab_size:
        raise DpoError(
            f"model.reference knows {reference.architecture.vocab_size} tokens, model.checkpoint"
            f" {vocab_size}",
            "policy and reference must share a tokenizer",
        )


def require_positions(
    profile: Profile, checkpoint: Checkpoint, path: Path | None, pairs: TokenizedPairs
) -> None:
    """Refuse pairs of a file with more tokens than the model has positions for.

    A `data.max_seq_len` beyond that is fine where no conversation is as long; not so in the
    reference layout, which pads each of them to it.

    Raises:
        DpoError: naming the lines.
    """
    limit = checkpoint.architecture.max_positions
    remedy = f"state data.max_seq_len = {limit}, or less"
    if profile.train.layout == "reference" and profile.data.max_seq_len > limit:
        raise DpoError(
            f"data.max_seq_len = {profile.data.max_seq_len}: the model has {limit} positions, and"
            ' train.layout = "reference" pads every sequence to that length',
            remedy,
        )
    longest = pairs.lengths.amax(dim=1)
    beyond = pairs.lines[longest > limit].tolist()
    if beyond:
        named = ", ".join(map(str, beyond[:5])) + (", ..." if len(beyond) > 5 else "")
        raise DpoError(
            f"{path}: {len(beyond)} pairs have up to {longest.max()} tokens on a side, and"
            f" the model has {limit} positions: lines {named}",
            remedy,
        )


def encode(
    profile: Profile, path: Path, tokenizer: ChatTokenizer, on_progress: OnProgress
) -> EncodedRows:
    """The rows of a file as the profile has them encoded; see `encode_file`."""
    return encode_file(
        path,
        tokenizer,
        empty_think_ratio=profile.data.empty_think_ratio,
        seed=profile.train.seed,
        on_progress=lambda done, lines: on_progress("encoding", done, lines, "rows"),
    )


def _usable(
    profile: Profile, path: Path, tokenizer: ChatTokenizer, on_progress: OnProgress
) -> Rows:
    rows = encode(profile, path, tokenizer, on_progress).cut(profile.data.max_seq_len)
    refuse_if_mostly_malformed(path, rows.set_aside, rows.total)
    if not rows.kept:
        raise DpoError(
            f"{path}: no row can be trained on",
            "is data.max_seq_len too small?",
            [f"line {row.line}: {row.reason}" for row in rows.set_aside[:5]],
        )
    return rows

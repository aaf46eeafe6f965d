"""Inputs of a run: weights and pairs, read and checked against each other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from dpo_cli.compute.device import Device
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.groups import groups_of, prompt_labels
from dpo_cli.data.pairs import SkippedRow
from dpo_cli.data.sampler import BatchSampler
from dpo_cli.data.tokens import Rows, TokenizedPairs
from dpo_cli.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from dpo_cli.errors import DpoError
from dpo_cli.formatting import format_count
from dpo_cli.learning_rate import LearningRate
from dpo_cli.models.forward_size import CPU_TOKENS_PER_FORWARD, default_max_tokens_per_forward
from dpo_cli.models.loading import ModelWeights
from dpo_cli.models.rounding import Rounding, default_rounding
from dpo_cli.models.spec import Architecture
from dpo_cli.models.trainable import Trainable, trainable_of
from dpo_cli.profile.doctrine import RunRecipe, saturation_margin
from dpo_cli.profile.inputs import resolve_tokenizer
from dpo_cli.profile.schema import Profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.training.batches import BatchPlanner
from dpo_cli.training.sources import (
    OnProgress,
    held_out_pairs,
    require_positions,
    require_same_vocabulary,
    split_pairs,
    training_pairs,
    usable_rows,
)
from dpo_cli.training.weights import read_model_weights


@dataclass(frozen=True)
class RunInputs:
    """Inputs of a run, read before its first step.

    Attributes:
        profile: the validated profile.
        device: device and dtype.
        weights, reference_weights: starting weights of policy and reference.
        tokenizer: directory of the tokenizer.
        pad_id: token id of padding.
        pairs, held_out: pairs to train on, and pairs that are only evaluated.
        skipped_rows, held_out_skipped_rows: rows left out, with line and reason.
        unread_columns: number of pairs with a value in each column of the data that is not read.
        fingerprints: hex SHA-256 of each input, see `dpo_cli.run.plan.Plan`.
        held_out_groups: (K,) bool by group name: the held-out pairs of each group.
        accumulation_steps: micro-batches of one optimizer step, over all ranks. A resumed run keeps
            the number it began with, also on another number of ranks.
        world_size: number of ranks that train together.
        max_tokens_per_forward: limit where the profile leaves it open; a resumed run keeps it, too.
        whole_prompts: see `dpo_cli.run.plan.PlannedPairs`.
    """

    profile: Profile
    device: Device
    weights: ModelWeights
    reference_weights: ModelWeights
    tokenizer: Path
    pad_id: int
    pairs: TokenizedPairs
    held_out: TokenizedPairs
    skipped_rows: Sequence[SkippedRow]
    fingerprints: dict[str, str]
    held_out_skipped_rows: Sequence[SkippedRow] = ()
    unread_columns: Mapping[str, int] = field(default_factory=dict)
    held_out_groups: Mapping[str, Tensor] = field(default_factory=dict)
    accumulation_steps: int = 1
    world_size: int = 1
    max_tokens_per_forward: int = CPU_TOKENS_PER_FORWARD
    whole_prompts: bool = True

    @cached_property
    def held_out_prompts(self) -> list[int]:
        """Label of each held-out pair's prompt; see `dpo_cli.data.groups.prompt_labels`."""
        return prompt_labels(self.held_out)

    @cached_property
    def trainable(self) -> Trainable:
        """Part of the model that the run trains."""
        return trainable_of(self.profile, self.weights)

    @cached_property
    def order(self) -> BatchSampler:
        """Order of the pairs: which ones form each optimizer step."""
        return BatchSampler(
            pairs=len(self.pairs),
            batch_size=self.profile.train.batch_size,
            accumulation_steps=self.accumulation_steps,
            epochs=self.profile.train.epochs,
            shuffle=self.profile.data.shuffle,
            seed=self.profile.train.seed,
        )

    @cached_property
    def batches(self) -> BatchPlanner:
        """Batch planner of this run."""
        return BatchPlanner(
            profile=self.profile,
            device=self.device,
            pad_id=self.pad_id,
            pairs=self.pairs,
            held_out=self.held_out,
            order=self.order,
            use_moe=self.weights.architecture.use_moe,
            max_tokens_per_forward=self.max_tokens_per_forward,
            world_size=self.world_size,
            is_sharded=self.shards > 1,
        )

    @cached_property
    def learning_rate(self) -> LearningRate:
        """Schedule of the learning rate."""
        order = self.order
        return LearningRate.of(
            self.profile.train.model_dump(),
            order.micro_batches,
            order.accumulation_steps,
            order.epochs,
        )

    @property
    def export_dtype(self) -> str:
        """Name of the dtype in which the run writes its weights for other tools."""
        return export_dtype(self.profile, self.weights.architecture, self.weights.dtype_name)

    @property
    def export_rounding(self) -> Rounding:
        """Rounding of the weights for other tools."""
        return default_rounding(self.export_dtype, self.weights.dtype_name)

    @property
    def router_aux_loss_coef(self) -> float:
        """Weight of the aux_loss in the loss of a micro-batch; 0 leaves it out."""
        coefficient = self.profile.train.router_aux_loss_coef
        if coefficient is None:
            return self.weights.architecture.default_router_aux_loss_coef
        return coefficient

    @property
    def aux_loss_weight(self) -> float:
        """Weight of a micro-batch's aux_loss in the loss of one optimizer step."""
        return self.router_aux_loss_coef / self.order.accumulation_steps

    @cached_property
    def saturation_margin(self) -> float | None:
        """Margin at which the loss gradient halves; None for other losses than DPO's own."""
        dpo = self.profile.dpo
        if list(dpo.losses) != ["sigmoid"]:
            return None
        tokens = self.pairs.response_tokens.double().mean().item()
        return saturation_margin(dpo.beta, dpo.reduction, tokens)

    @cached_property
    def current_recipe(self) -> RunRecipe:
        """Values of this run that remedies compare with the proposed ones."""
        dpo, train = self.profile.dpo, self.profile.train
        return RunRecipe(
            reduction=dpo.reduction,
            beta=dpo.beta,
            learning_rate=train.learning_rate,
            lr_sum=self.learning_rate.lr_sum(self.order.last_steps),
            parameters=self.trainable.parameters,
            optimizer=train.optimizer,
            is_lora=self.profile.lora.is_on,
        )

    @property
    def shards(self) -> int:
        """Number of ranks that share one model; 1 if each has all of it."""
        return self.world_size if self.profile.launch.strategy == "shard" else 1

    def without_values(self) -> RunInputs:
        """Return the inputs of a rank that receives its part of the weights from another rank."""
        own, other = self.weights.without_values(), self.reference_weights
        other = own if other is self.weights else other.without_values()
        return replace(self, weights=own, reference_weights=other)

    @property
    def policy_is_reference(self) -> bool:
        """Return True if the policy computes the reference, without its adapter."""
        return self.trainable.at_start is not None and self.reference_weights is self.weights

    @property
    def policy_starts_as_reference(self) -> bool:
        """Return True if policy and reference score held-out pairs identically at step 0."""
        policy, reference = self.weights, self.reference_weights
        has_same_weights = policy.fingerprint == reference.fingerprint
        has_same_shape = policy.architecture == reference.architecture
        return has_same_weights and has_same_shape and not self.profile.dpo.use_weighting

    @property
    def longest_sequence(self) -> int:
        """Length in tokens of the longest sequence that is computed, padding included."""
        if self.profile.train.layout == "padded":
            return self.profile.data.max_seq_len
        return max(int(pairs.lengths.max()) for pairs in (self.pairs, self.held_out) if pairs)


def read_inputs(
    profile: Profile,
    device: Device,
    run: RunDirectory,
    on_progress: OnProgress,
    group: ProcessGroup = SINGLE_PROCESS,
    accumulation_steps: int | None = None,
    max_tokens_per_forward: int | None = None,
    whole_prompts: bool = True,
) -> RunInputs:
    """Read and check all inputs; writes nothing but a copy of the weights that `run:NAME` names.

    Args:
        profile: the validated profile.
        device: device and dtype.
        run: `run:NAME` is looked up beside it. A copy of those weights is kept in it, because the
            other run may train on and remove the checkpoint.
        on_progress: see `OnProgress`.
        group: the ranks that train together; collective.
        accumulation_steps, max_tokens_per_forward, whole_prompts: see `assemble_inputs`.

    Raises:
        DpoError: an input is missing, damaged, or does not fit the others.
    """
    tokenizer = ChatTokenizer(resolve_tokenizer(profile))

    def read_weights() -> tuple[ModelWeights, ModelWeights]:
        weights = read_model_weights(profile, "weights", run.path.parent, run.path)
        if profile.model.reference is None:
            return weights, weights
        return weights, read_model_weights(profile, "reference", run.path.parent, run.path)

    # The main rank goes first and keeps its copy of `run:NAME`; the others read that copy. Else
    # each rank could see another checkpoint of a run that is still training.
    weights, reference_weights = group.main_process_first("weights", read_weights)
    require_same_vocabulary(tokenizer, weights, reference_weights)
    rows = usable_rows(profile, training_pairs(profile), tokenizer, on_progress, group)
    held_out = None
    if (source := held_out_pairs(profile)) is not None:
        held_out = usable_rows(profile, source, tokenizer, on_progress, group)
    return assemble_inputs(
        profile,
        device,
        tokenizer,
        weights,
        reference_weights,
        rows,
        held_out,
        world_size=group.world_size,
        accumulation_steps=accumulation_steps,
        # All ranks must group the pairs alike, so the free memory of the main rank decides.
        max_tokens_per_forward=max_tokens_per_forward
        or group.broadcast_from_main(
            "max_tokens_per_forward",
            lambda: default_max_tokens_per_forward(
                device, weights, reference_weights, profile, group.world_size
            ),
        ),
        whole_prompts=whole_prompts,
    )


def assemble_inputs(
    profile: Profile,
    device: Device,
    tokenizer: ChatTokenizer,
    weights: ModelWeights,
    reference_weights: ModelWeights,
    rows: Rows,
    held_out: Rows | None,
    *,
    world_size: int = 1,
    accumulation_steps: int | None = None,
    max_tokens_per_forward: int | None = None,
    whole_prompts: bool = True,
) -> RunInputs:
    """Split the pairs, mix their sources, and put the inputs together.

    Args:
        profile, device: see `read_inputs`.
        tokenizer, weights, reference_weights: of one vocabulary.
        rows: encoded rows of `data.data_path`; `eval.fraction` of them is held out.
        held_out: encoded rows of `eval.path`, if it is set.
        world_size: number of ranks that train together.
        accumulation_steps: micro-batches of one optimizer step over all ranks, which a resumed run
            keeps; None to compute it from the profile.
        max_tokens_per_forward: most tokens of a forward where the profile leaves it open, which a
            resumed run keeps; None to compute it from the free memory.
        whole_prompts: the split by `eval.fraction` keeps the pairs of a prompt together; False for
            runs of earlier versions.

    Raises:
        DpoError: a sequence is longer than the model has positions for, there are too few pairs to
            hold any out, fewer micro-batches than ranks, or no aux_loss for these experts.
    """
    require_positions(profile, weights, training_pairs(profile), rows.kept)
    if held_out and (source := held_out_pairs(profile)):
        require_positions(profile, weights, source, held_out.kept)
    fingerprints = {
        "weights": weights.fingerprint,
        "reference": reference_weights.fingerprint,
        "tokenizer": tokenizer.fingerprint(),
        "data": _data_fingerprint(profile, rows),
    }
    if held_out:
        fingerprints["held_out"] = held_out.content
    pairs, evaluated = split_pairs(profile, rows, held_out, whole_prompts)
    inputs = RunInputs(
        profile=profile,
        device=device,
        weights=weights,
        reference_weights=reference_weights,
        tokenizer=tokenizer.folder,
        pad_id=tokenizer.pad_id,
        pairs=pairs,
        held_out=evaluated,
        skipped_rows=rows.skipped_rows,
        held_out_skipped_rows=held_out.skipped_rows if held_out else (),
        unread_columns=rows.unread,
        held_out_groups=groups_of(evaluated, tokenizer.decode),
        fingerprints=fingerprints,
        accumulation_steps=accumulation_steps
        or world_size * profile.train.accumulation_on(world_size),
        world_size=world_size,
        max_tokens_per_forward=max_tokens_per_forward
        or default_max_tokens_per_forward(device, weights, reference_weights, profile, world_size),
        whole_prompts=whole_prompts,
    )
    if inputs.accumulation_steps < world_size:
        steps = inputs.accumulation_steps
        raise DpoError(
            f"an optimizer step of this run has {steps} micro-batches, too few for {world_size}"
            " devices",
            f"Use at most {steps} devices: launch.nproc_per_node = {steps}",
        )
    if not inputs.current_recipe.lr_sum:
        steps = inputs.order.optimizer_steps
        raise DpoError(
            f"the learning rate is 0 in the whole run of {format_count(steps, 'step')}: the first"
            f" step of a warm-up has a rate of 0",
            "Remove train.warmup_ratio and train.warmup_iters, or train on more pairs.",
        )
    architecture, coefficient = weights.architecture, inputs.router_aux_loss_coef
    if coefficient and architecture.use_moe and architecture.aux_loss_kind is None:
        raise DpoError(
            f"train.router_aux_loss_coef = {coefficient:g}: no aux_loss is defined for"
            f" {architecture.name}",
            "Remove the key: the experts are trained without an aux_loss.",
        )
    return inputs


def export_dtype(profile: Profile, architecture: Architecture, source_dtype: str) -> str:
    """Return the dtype of exported weights whose starting weights were in `source_dtype`."""
    dtype = profile.export.dtype
    return architecture.file_dtype(source_dtype) if dtype == "auto" else dtype


def _data_fingerprint(profile: Profile, rows: Rows) -> str:
    """Return the hex SHA-256 of the data; with mixture weights also of each file's source."""
    if profile.data.mixture_weights is None:
        return rows.content
    sources = [part.source for part in rows.places.parts]
    return hashlib.sha256(f"{rows.content} {sources}".encode()).hexdigest()

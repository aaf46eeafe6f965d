"""What is read and computed to see whether a profile will train: seconds, and torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.sources import Source
from dpo_cli.data.tokens import Rows
from dpo_cli.doctor.data import check_data, check_masks, preview
from dpo_cli.doctor.first_step import check_first_step
from dpo_cli.doctor.launch import check_launch, check_reach
from dpo_cli.doctor.model import check_fit, check_tokenizer, check_weights
from dpo_cli.doctor.notes import Notes
from dpo_cli.doctor.resources import check_device, check_disk, check_memory, check_plan
from dpo_cli.findings import Diagnosis
from dpo_cli.models.zoo import Checkpoint
from dpo_cli.profile.inputs import Input
from dpo_cli.profile.schema import Profile
from dpo_cli.training.building import configure_torch
from dpo_cli.training.device import Compute
from dpo_cli.training.failures import explain
from dpo_cli.training.inputs import (
    OnProgress,
    held_out_pairs,
    require_same_vocabulary,
    training_pairs,
)
from dpo_cli.training.plan import Prepared, assemble


@dataclass(frozen=True)
class CloseLook:
    """Takes up the inputs one after another, then what they make together.

    What cannot be had is None from then on, and the checks that need it are noted as skipped.

    Attributes:
        notes: has the findings so far, and gets the others.
        profile: with defaults in the place of wrong values.
        wrong_keys: the keys of those.
        unusable: inputs whose file is not there, or not known.
        runs_root: where runs lie.
        on_progress: hears how far it is.
    """

    notes: Notes
    profile: Profile
    wrong_keys: Collection[str]
    unusable: Collection[Input]
    runs_root: Path
    on_progress: OnProgress

    def examine(self, pair_line: int | None) -> Diagnosis:
        """Everything from the device to the disk."""
        notes, profile = self.notes, self.profile
        configure_torch(profile)
        compute = check_device(notes, profile)
        world_size = check_launch(notes, profile, compute, self.on_progress)
        checkpoint, reference = self.read_weights()
        tokenizer = check_tokenizer(notes, profile) if self.has_file("tokenizer") else None
        by_length = self.encode("data", training_pairs(profile), tokenizer)
        held_out: dict[int, Rows] = {}
        if profile.eval.path is not None or "held_out" in self.unusable:
            held_out = self.encode("held_out", held_out_pairs(profile), tokenizer)
        rows, shown = by_length.get(profile.data.max_seq_len), None
        if rows and tokenizer:
            check_masks(notes, rows)
            shown = preview(notes, rows, tokenizer, pair_line)

        facts: dict[str, Any] = {"lengths": {n: r.facts() for n, r in by_length.items()}}
        prepared = self.assemble(compute, checkpoint, reference, tokenizer, rows, held_out)
        if prepared:
            self.compute(prepared)
            if self.wrong_keys:
                notes.skip("plan", "a profile without errors")
                notes.skip("memory", "a profile without errors")
            else:
                check_plan(notes, prepared)
                if world_size != 1 and world_size is not None:
                    check_reach(notes, prepared, world_size)
                check_memory(notes, prepared)
                facts["plan"] = prepared.plan()
        check_disk(notes, self.runs_root, checkpoint)
        return Diagnosis(tuple(notes.findings), shown, facts)

    def read_weights(self) -> tuple[Checkpoint | None, Checkpoint | None]:
        """The policy's and the reference's, which are one where the profile names no other."""
        checkpoint = reference = None
        if self.has_file("checkpoint"):
            checkpoint = check_weights(self.notes, self.profile, "checkpoint", self.runs_root)
        if self.profile.model.reference is None and "reference" not in self.unusable:
            return checkpoint, checkpoint
        if self.has_file("reference"):
            reference = check_weights(self.notes, self.profile, "reference", self.runs_root)
        return checkpoint, reference

    def encode(
        self, name: Input, source: Source | None, tokenizer: ChatTokenizer | None
    ) -> dict[int, Rows]:
        """The pairs of a file, as several lengths would keep them; empty if there are none."""
        if source is None or not self.has_file(name):
            return {}
        if tokenizer is None:
            self.notes.skip(name.replace("_", "-"), "the tokenizer")
            return {}
        return check_data(self.notes, self.profile, source, tokenizer, self.on_progress)

    def compute(self, prepared: Prepared) -> None:
        """Let the model score pairs, and the loss flow back once."""
        try:
            check_fit(self.notes, prepared, self.on_progress)
            check_first_step(self.notes, prepared, self.on_progress)
        except Exception as error:
            explained = explain(error)
            if explained is None:
                raise
            where = str(prepared.compute.device)
            self.notes.error("first-step", where, explained.message, explained.remedy)

    def assemble(
        self,
        compute: Compute,
        checkpoint: Checkpoint | None,
        reference: Checkpoint | None,
        tokenizer: ChatTokenizer | None,
        rows: Rows | None,
        held_out: Mapping[int, Rows],
    ) -> Prepared | None:
        """The inputs as a run would hold them, where they are all there and fit each other."""
        if not (checkpoint and reference and tokenizer and rows):
            found = {"weights": checkpoint and reference, "tokenizer": tokenizer, "data": rows}
            missing = " and ".join(name for name, value in found.items() if not value)
            for code in ("tokenizer-fit", "first-loss", "gradients", "plan", "memory"):
                self.notes.skip(code, missing)
            return None
        profile = self.profile
        evaluated = held_out.get(profile.data.max_seq_len)
        if evaluated is None:
            evaluation = profile.eval.model_copy(update={"path": None})
            profile = profile.model_copy(update={"eval": evaluation})
        with self.notes.errors_as("inputs-misfit", ""):
            require_same_vocabulary(tokenizer, checkpoint, reference)
            return assemble(
                profile,
                compute,
                tokenizer,
                checkpoint,
                reference,
                rows,
                evaluated,
            )
        return None

    def has_file(self, name: Input) -> bool:
        """Whether the file of an input is there; its check is skipped otherwise."""
        if name in self.unusable:
            self.notes.skip(name.replace("_", "-"), "its file")
        return name not in self.unusable

"""One worker's life: prepare, start or resume, train, and say how it ended."""

from __future__ import annotations

import contextlib
import math
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from dpo_cli.data.order import DataOrder, Window
from dpo_cli.errors import DpoError, ExitCode
from dpo_cli.files import write_text_atomically
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.models.zoo import (
    Checkpoint,
    build_model,
    checkpoint_activations,
    compile_blocks,
    to_disk_names,
    use_experts_for,
)
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.schema import Profile
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.run.events import (
    Alert,
    Completed,
    Event,
    EventWriter,
    Failed,
    Planned,
    Progress,
    Resumed,
    Saved,
    Stopped,
    WorkerStarted,
    history,
)
from dpo_cli.run.generations import Generation
from dpo_cli.run.store import RunDirectory
from dpo_cli.training.device import Compute, make_deterministic, resolve, tune
from dpo_cli.training.evidence import has_evidence, keep_evidence
from dpo_cli.training.failures import explain
from dpo_cli.training.optim import make_optimizer
from dpo_cli.training.plan import Prepared, environment, prepare, refuse_other_inputs
from dpo_cli.training.reference import KeptReference, open_references
from dpo_cli.training.state import load_weights, restore_state, save_state
from dpo_cli.training.trainer import Trainer
from dpo_cli.training.weights import write_weights

NON_FINITE_DIRECTORY = "non_finite"
_PROGRESS_SECONDS = 0.5


class StopSource(Protocol):
    """Where a wish to stop comes from; see `dpo_cli.training.worker.Signals`."""

    stop: str | None


class _StoppedEarly(Exception):  # noqa: N818 - not an error
    """Asked to stop before the first step."""


def configure_torch(profile: Profile) -> None:
    """Process-wide settings, before anything is computed."""
    torch.manual_seed(profile.train.seed)
    if profile.data.num_workers:
        # The tokenizer's thread pool reads it when it is first used.
        os.environ["RAYON_NUM_THREADS"] = str(profile.data.num_workers)
    if profile.train.deterministic:
        make_deterministic()


def train_run(
    path: Path, signals: StopSource, changes: Sequence[str] = (), *, exact: bool = False
) -> ExitCode:
    """Train the run at `path` from its newest generation, or from the start.

    Args:
        path: the run directory, whose lock is held for this process.
        signals: where a wish to stop comes from.
        changes: what the profile says otherwise than when the run was planned, in words.
        exact: refuse to go on where it would no longer be to the same bits.

    Every failure that the user can act on becomes a `Failed` event; anything else a traceback.
    """
    run = RunDirectory(path)
    events = EventWriter(run.events_path)
    session = _Session(run, events, signals)
    try:
        with explain_disk_errors(run.path):
            return session.run_to_end(changes, exact)
    except DpoError as error:
        failure = error
    except Exception as error:
        traceback.print_exc()
        explained = explain(error)
        if explained is None:
            return ExitCode.FAILED
        failure = explained
    with contextlib.suppress(OSError):  # a full disk may not take this either; the exit code tells
        events.append(
            Failed(
                message=failure.message,
                remedy=failure.remedy,
                details=failure.details,
                exit_code=failure.exit_code,
            )
        )
    return failure.exit_code


class _Session:
    """Joins the run directory, the event stream and the trainer."""

    def __init__(self, run: RunDirectory, events: EventWriter, signals: StopSource) -> None:
        self.run = run
        self.events = events
        self.signals = signals
        self.may_leave = True
        self._phase = ""
        self._progress_at = 0.0

    # --- the life of the worker ------------------------------------------------------------------

    def run_to_end(self, changes: Sequence[str], exact: bool) -> ExitCode:
        """Prepare, start or resume, train, and say how it ended."""
        self.run.remove_leftovers()
        profile = load_profile(self.run.profile_path).profile
        configure_torch(profile)
        compute = resolve(profile.train.device, profile.train.dtype)
        promised = self.run.read_plan()
        chosen = promised["environment"].get("float32_matmul") if promised else None
        tune(compute, chosen, tf32=profile.train.tf32)
        self.events.append(
            WorkerStarted(
                pid=os.getpid(),
                device=str(compute.device),
                device_name=compute.device_name,
                dtype=compute.dtype_name,
                versions=environment(),
            )
        )
        try:
            trainer = self.start(profile, compute, promised, changes, exact)
            is_done = trainer.train()
        except _StoppedEarly:
            saved = [e for e in history(self.run.events_path) if isinstance(e, Saved)]
            return self.stopped(*(saved[-1].step, saved[-1].optimizer_step) if saved else (0, 0))
        if not is_done:
            return self.stopped(trainer.step, trainer.optimizer_step)
        weights = weights_file(trainer.prepared)
        self.run.mark_completed(optimizer_step=trainer.optimizer_step, weights=weights)
        self.events.append(
            Completed(step=trainer.step, optimizer_step=trainer.optimizer_step, weights=weights)
        )
        return ExitCode.DONE

    def start(
        self,
        profile: Profile,
        compute: Compute,
        promised: dict[str, Any] | None,
        changes: Sequence[str],
        exact: bool,
    ) -> Trainer:
        """Read the inputs, hold a resumed run to its plan, and stand where training goes on.

        Raises:
            _StoppedEarly: asked to stop meanwhile.
        """
        prepared = prepare(profile, compute, self.run, self.progress)
        if promised is not None:
            refuse_other_inputs(promised, prepared.plan())
        generation, passed_over = self.find_generation(prepared.order)
        self.announce(prepared, promised, exact)
        trainer = self.build(prepared, generation)
        # An evaluation before the first step may be left, and is made again; a later one may not.
        self.may_leave = trainer.optimizer_step == 0
        if promised is not None:
            self.events.append(
                Resumed(
                    step=trainer.step,
                    optimizer_step=trainer.optimizer_step,
                    generation=generation.name if generation else "",
                    passed_over=tuple(passed_over),
                    changes=tuple(changes),
                )
            )
        return trainer

    def announce(self, prepared: Prepared, promised: dict[str, Any] | None, exact: bool) -> None:
        """Hold a resumed run to its environment, write the plan and the rows set aside, tell."""
        plan = prepared.plan()
        other = _other_environment(promised, plan) if promised else []
        # What was once computed elsewhere stays so, also when the run comes home.
        plan["other_environments"] = [*(promised or {}).get("other_environments", []), *other]
        if exact and (reasons := [*plan["other_environments"], *_inexact(prepared)]):
            raise DpoError(
                f"{self.run.name} cannot go on to the same bits here",
                "go on where it began, or without --exact, to slightly other bits",
                reasons,
            )
        rows = "".join(row.to_json() + "\n" for row in prepared.set_aside)
        write_text_atomically(self.run.rejected_rows_path, rows)
        self.run.write_plan(plan)
        self.events.append(Planned(plan=plan))
        if unused := prepared.held_out_set_aside:
            self.events.append(
                Alert(
                    code="held-out-rows-set-aside",
                    message=f"{len(unused)} rows of eval.path are not used; the first is line"
                    f" {unused[0].line}: {unused[0].reason}",
                )
            )
        if other:
            self.events.append(
                Alert(
                    code="other-environment",
                    message=f"not what the run began with: {'; '.join(other)}",
                    remedy="it goes on, but no longer to the same bits",
                )
            )

    def find_generation(self, order: DataOrder) -> tuple[Generation | None, list[str]]:
        """The state to go on from, and those passed over; none if nothing was ever saved.

        Raises:
            DpoError: what was saved is damaged or gone, all of it; or it lies beyond the end of
                `order`.
        """
        generation, passed_over = self.run.newest_verified()
        was_saved = any(isinstance(event, Saved) for event in history(self.run.events_path))
        if generation is None and (passed_over or was_saved):
            raise DpoError(
                f"{self.run.name}: every saved state is damaged or gone, and a run never starts"
                " over by itself",
                "restore the directory from a backup, or start a new run",
                passed_over,
            )
        if generation is not None and generation.optimizer_step > order.optimizer_steps:
            raise DpoError(
                f"{self.run.name} has done {generation.optimizer_step} optimizer steps, and"
                f" train.epochs = {order.epochs} makes only {order.optimizer_steps}",
                "state as many epochs as are begun, or more",
            )
        return generation, passed_over

    def build(self, prepared: Prepared, generation: Generation | None) -> Trainer:
        """Policy, reference and optimizer, in the state of `generation`."""
        references = open_references(
            prepared, lambda: make_scorer(prepared, prepared.reference), self.run.path
        )
        checkpoint = prepared.checkpoint
        if generation is not None:
            checkpoint = replace(checkpoint, state=load_weights(generation.path))
        policy = make_scorer(prepared, checkpoint)
        optimizer = make_optimizer(
            policy.model.parameters(), compensated=prepared.profile.train.compensated
        )
        scaler = torch.amp.GradScaler(
            prepared.compute.device.type, enabled=prepared.compute.dtype == torch.float16
        )
        trainer = Trainer(
            prepared, policy, *references, optimizer, scaler, watch=self, save=self.save
        )
        if generation is not None:
            trainer.optimizer_step = restore_state(
                generation.path,
                architecture=checkpoint.architecture,
                model=policy.model,
                optimizer=optimizer,
                scaler=scaler,
            )
        return trainer

    # --- what the trainer tells and asks ---------------------------------------------------------

    def emit(self, event: Event) -> None:
        """Append to the stream."""
        self.may_leave = False
        self.events.append(event)

    def asked(self) -> set[str]:
        """Requests from the control file, and a stop where a signal asked for one."""
        request = self.run.take_request()
        if request == "stop" and self.signals.stop is None:
            self.signals.stop = "interrupted"
        asked = {request} if request else set()
        return asked | {"stop"} if self.signals.stop else asked

    def not_finite(self, trainer: Trainer, window: Window, losses: Sequence[float]) -> None:
        """Name the pairs of a window whose update must not be made, and keep what shows why.

        Raises:
            DpoError: `train.on_non_finite` is "stop".
        """
        profile = trainer.prepared.profile
        guilty = [n for n, loss in enumerate(losses) if not math.isfinite(loss)]
        micro_batches = [window.micro_batches[n] for n in guilty] or window.micro_batches
        lines = trainer.prepared.pairs.lines.tolist()
        named = ", ".join(str(lines[index]) for indices in micro_batches for index in indices)
        is_skipped = profile.train.on_non_finite == "skip"
        kept = self.run.path / NON_FINITE_DIRECTORY
        evidence = kept / f"step-{trainer.optimizer_step + 1:08d}"
        # Skipping may go on at each step, and evidence is as large as the model.
        if not (is_skipped and has_evidence(kept)):
            with explain_disk_errors(kept):
                keep_evidence(evidence, window, lines, losses, trainer.policy.model)
        subject = "loss" if guilty else "gradient"
        what = f"optimizer step {trainer.optimizer_step + 1}: the {subject} is not a finite number"
        where = f"lines {named} of {profile.data.data_path}"
        if is_skipped:
            self.emit(
                Alert(
                    code="not-finite",
                    message=f"{what}; this update is skipped: {where}",
                    remedy=f"look at these rows; what the first such step began with is in {kept}",
                )
            )
            return
        raise DpoError(
            f"{what}; the weights were not touched",
            "look at these rows, or lower train.learning_rate; or resume with"
            " --set train.on_non_finite=skip --allow-changes. What was saved before is intact",
            [where, f"what the step began with is in {evidence}"],
        )

    def save(self, trainer: Trainer) -> None:
        """Commit a generation, and renew the half-precision weights beside it."""
        began = time.perf_counter()
        model, prepared = trainer.policy.model, trainer.prepared
        is_last = trainer.optimizer_step == prepared.order.optimizer_steps
        # First, so that a run whose last generation is there has its result, too.
        weights = self.run.path / weights_file(prepared)
        write_weights(
            weights,
            to_disk_names(model, model.state_dict()),
            prepared.checkpoint.architecture,
            prepared.profile.export.dtype,
        )
        for reference in (trainer.reference, trainer.held_out_reference):
            if isinstance(reference, KeptReference):
                reference.keep()
        # A state must not outlive the rows of the steps that made it.
        self.events.flush()
        generation = self.run.commit_generation(
            trainer.optimizer_step,
            lambda directory: save_state(
                directory,
                model=model,
                optimizer=trainer.optimizer,
                scaler=trainer.scaler,
                optimizer_step=trainer.optimizer_step,
            ),
            keep=1 if is_last else 2,
        )
        files = [*generation.path.iterdir(), weights]
        self.events.append(
            Saved(
                step=trainer.step,
                optimizer_step=trainer.optimizer_step,
                generation=generation.name,
                weights=weights.name,
                size_bytes=sum(file.stat().st_size for file in files),
                seconds=time.perf_counter() - began,
            )
        )

    def progress(self, phase: str, done: int, total: int, unit: str) -> None:
        """Tell how far a phase is, a few times a second.

        Before the first step that is a moment to stop at; later, what was done is saved first.
        """
        if self.may_leave and (self.signals.stop or self.run.is_requested("stop")):
            raise _StoppedEarly
        now = time.monotonic()
        if phase != self._phase or done == total or now - self._progress_at >= _PROGRESS_SECONDS:
            self._phase, self._progress_at = phase, now
            self.events.append(Progress(phase=phase, done=done, total=total, unit=unit))

    def stopped(self, step: int, optimizer_step: int) -> ExitCode:
        """Say that the run stopped as it was asked to."""
        reason = self.signals.stop or "interrupted"
        self.events.append(Stopped(reason=reason, step=step, optimizer_step=optimizer_step))
        return ExitCode.TERMINATED if reason == "terminated" else ExitCode.INTERRUPTED


def make_scorer(prepared: Prepared, checkpoint: Checkpoint) -> ResponseScorer:
    """The model of a checkpoint on the run's device, as the module that scores responses."""
    profile, architecture = prepared.profile, checkpoint.architecture
    model = build_model(architecture, checkpoint.state, dropout=profile.model.dropout)
    if profile.train.compile:
        compile_blocks(model)
    if profile.train.activation_checkpointing:
        checkpoint_activations(model)
    balance_kind = None
    if architecture.use_moe:
        use_experts_for(model, float32=prepared.compute.dtype == torch.float32)
        balance_kind = architecture.balance_kind
    return ResponseScorer(model, balance_kind, profile.train.aux_tokens).to(prepared.compute.device)


def weights_file(prepared: Prepared) -> str:
    """The name of the half-precision weights in the run directory."""
    return prepared.checkpoint.architecture.file_name(prepared.profile.export.prefix)


def _inexact(prepared: Prepared) -> list[str]:
    """Why the bits may differ even where the run began."""
    if prepared.compute.device.type == "cuda" and not prepared.profile.train.deterministic:
        return ["train.deterministic = false: CUDA does not repeat itself bit for bit"]
    return []


def _other_environment(promised: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What the bits depend on and is not as it was."""
    before = {**promised["environment"], "device": promised["device"], "dtype": promised["dtype"]}
    after = {**now["environment"], "device": now["device"], "dtype": now["dtype"]}
    return [
        f"{name} {value} -> {after.get(name)}"
        for name, value in before.items()
        if after.get(name) != value
    ]

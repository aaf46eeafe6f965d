"""One worker's life: prepare, start or resume, train, and say how it ended."""

from __future__ import annotations

import math
import os
import shutil
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from dpo_cli.alerts.rules import AlertRules
from dpo_cli.compute.device import Device, configure_device, resolve
from dpo_cli.data.sampler import GlobalBatch
from dpo_cli.distributed.process_group import ProcessGroup, RankLostError, StartCancelledError
from dpo_cli.errors import DpoError, ExitCode
from dpo_cli.files import write_text_atomically
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.resolved import from_tables, to_tables
from dpo_cli.profile.schema import Profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.run.event_writer import EventWriter, NullEventWriter
from dpo_cli.run.events import (
    Alert,
    Completed,
    Event,
    Failed,
    Planned,
    Progress,
    Resumed,
    Saved,
    StepDone,
    Stopped,
    WorkerStarted,
    history,
)
from dpo_cli.run.plan import Plan
from dpo_cli.training.alert_facts import facts_of
from dpo_cli.training.checkpointing import rng_states
from dpo_cli.training.failures import explain
from dpo_cli.training.inputs import RunInputs, read_inputs
from dpo_cli.training.nan_dump import has_nan_dump, write_nan_dump
from dpo_cli.training.plan import environment, make_plan
from dpo_cli.training.restoring import build_trainer
from dpo_cli.training.resume_checks import (
    environment_changes,
    inexact_reasons,
    require_same_inputs,
    require_same_inputs_on_ranks,
)
from dpo_cli.training.saves import commit, find_checkpoint
from dpo_cli.training.setup import configure_torch, fallback_alert
from dpo_cli.training.sources import training_pairs
from dpo_cli.training.trainer import Trainer
from dpo_cli.training.weights_files import renew_best, weights_file

_PROGRESS_SECONDS = 0.5


class StopSource(Protocol):
    """Where a wish to stop comes from; see `dpo_cli.training.worker.Signals`."""

    stop: str | None


def train_run(
    path: Path | None, signals: StopSource, changes: Sequence[str] = (), *, exact: bool = False
) -> ExitCode:
    """Train the run at `path` from its newest checkpoint, or from the start.

    Every failure that the user can act on becomes a `Failed` event; anything else a traceback.

    Args:
        path: the run directory, whose lock is held for this process; None for one of several ranks
            that learns it from the others.
        signals: where a wish to stop comes from.
        changes: what the profile says otherwise than when the run was planned, in words.
        exact: refuse to go on where it would no longer be to the same bits.

    Returns:
        How it ended; of several group, DONE also where the leader has told another end in the
        stream, so that whoever started them does not take it for a crash.
    """
    group = ProcessGroup.from_env()
    session = None
    try:
        session = _Session(
            RunDirectory(Path(group.agree_on_run(str(path) if path else None))), signals, group
        )
        with explain_disk_errors(session.run.path):
            code = session.run_to_end(changes, exact)
        group.report_end()
        group.destroy()
        return code if group.world_size == 1 else ExitCode.DONE
    except DpoError as error:
        failure = error
    except RankLostError as error:
        if not group.is_end_known():
            return group.record_exit(str(error))
        if not group.is_main:
            return ExitCode.DONE
        failure = group.reported_failure() or DpoError(str(error))
    except Exception as error:
        traceback.print_exc()
        explained = explain(error)
        if explained is None:
            return group.record_exit(f"{type(error).__name__}: {error}")
        failure = explained
    return _fail(session, group, failure)


def _fail(session: _Session | None, group: ProcessGroup, failure: DpoError) -> ExitCode:
    """Tell why the run ends here."""
    if session is None:
        return group.record_exit(str(failure))
    if not group.is_main:
        group.report_failure(failure)
        return ExitCode.DONE
    try:
        session.events.append(Failed.from_error(failure))
    except OSError:  # a full disk may not take this either; the exit code tells
        return failure.exit_code
    group.report_end()
    return failure.exit_code if group.world_size == 1 else ExitCode.DONE


class _Session:
    """Joins the run directory, the event stream and the trainer."""

    def __init__(self, run: RunDirectory, signals: StopSource, group: ProcessGroup) -> None:
        self.run = run
        self.signals = signals
        self.group = group
        self.events = EventWriter(run.events_path) if group.is_main else NullEventWriter()
        self.may_leave = True
        self.alarms: AlertRules | None = None
        self._phase = ""
        self._progress_at = 0.0

    # --- the life of the worker ------------------------------------------------------------------

    def run_to_end(self, changes: Sequence[str], exact: bool) -> ExitCode:
        """Prepare, start or resume, train, and say how it ended."""
        group = self.group
        if group.is_main:
            self.run.remove_leftovers()
        profile = from_tables(
            group.broadcast_from_main(
                "profile", lambda: to_tables(load_profile(self.run.profile_path).profile)
            )
        )
        configure_torch(profile, group.rank)
        local_rank = group.local_rank if group.world_size > 1 else None
        device = resolve(profile.train.device, profile.train.dtype, local_rank)
        plan_values = group.broadcast_from_main("plan", self.saved_plan_values)
        saved_plan = Plan.from_dict(plan_values) if plan_values else None
        self.tune(profile, device, saved_plan)
        self.events.append(
            WorkerStarted(
                pid=os.getpid(),
                device=str(device.torch_device),
                device_name=device.name,
                dtype=device.dtype_name,
                versions=environment(),
                hosts=tuple(group.hosts),
            )
        )
        try:
            trainer = self.start(profile, device, saved_plan, changes, exact)
            stop = trainer.train()
        except StartCancelledError:
            group.cancel_start()
            saved = [e for e in history(self.run.events_path) if isinstance(e, Saved)]
            done = (saved[-1].step, saved[-1].optimizer_step) if saved else (0, 0)
            return self.stopped(*done, self.signals.stop or "interrupted")
        if stop is not None:
            return self.stopped(trainer.step, trainer.optimizer_step, stop)
        weights = weights_file(trainer.inputs)
        if group.is_main:
            self.run.mark_completed(optimizer_step=trainer.optimizer_step, weights=weights)
        self.events.append(
            Completed(
                step=trainer.step,
                optimizer_step=trainer.optimizer_step,
                weights=weights,
                reason=trainer.best.why_over() if trainer.is_out_of_patience else "",
            )
        )
        return ExitCode.DONE

    def saved_plan_values(self) -> dict[str, Any] | None:
        """Return the plan of an earlier start as values that can be sent to the other ranks."""
        plan = self.run.read_plan()
        return plan.to_dict() if plan else None

    def tune(self, profile: Profile, device: Device, saved_plan: Plan | None) -> None:
        """Multiply as the run began to, and as the leader does: stopwatches err."""
        chosen = saved_plan.environment.get("float32_matmul") if saved_plan else None

        def choose(chosen: str | None) -> str:
            configure_device(device, chosen, tf32=profile.train.tf32)
            return torch.get_float32_matmul_precision()

        found = self.group.broadcast_from_main("matmul", lambda: choose(chosen))
        if not self.group.is_main:
            choose(found)

    def start(
        self,
        profile: Profile,
        device: Device,
        saved_plan: Plan | None,
        changes: Sequence[str],
        exact: bool,
    ) -> Trainer:
        """Read the inputs, hold a resumed run to its plan, and stand where training goes on.

        Raises:
            StartCancelledError: asked to stop meanwhile.
        """
        group = self.group
        window = saved_plan.steps.accumulation_steps if saved_plan else None
        inputs = read_inputs(profile, device, self.run, self.progress, group, window)
        require_same_inputs_on_ranks(
            group.all_gather_object("inputs", inputs.fingerprints), group.main_rank
        )
        if saved_plan is not None:
            require_same_inputs(saved_plan.fingerprints, inputs.fingerprints)
        checkpoint, passed_over = find_checkpoint(self.run, inputs.order, group)
        self.announce(inputs, saved_plan, exact)
        group.init_collectives(device.torch_device, profile.launch.timeout_seconds)
        trainer = build_trainer(inputs, checkpoint, self.run.path, self, self.save, group)
        self.tell_once(fallback_alert(trainer.policy))
        group.all_gather_object("built", None)
        for reference in (trainer.reference, trainer.held_out_reference):
            reference.exchange(group)
        # An evaluation before the first step may be left, and is made again; a later one may not.
        # Nor may one rank leave the others.
        self.may_leave = trainer.optimizer_step == 0 and group.world_size == 1
        if saved_plan is not None and profile.eval.keep_best and group.is_main:
            renew_best(self.run, inputs, trainer.best)
        if saved_plan is not None:
            self.events.append(
                Resumed(
                    step=trainer.step,
                    optimizer_step=trainer.optimizer_step,
                    checkpoint=checkpoint.name if checkpoint else "",
                    passed_over=tuple(passed_over),
                    changes=tuple(changes),
                )
            )
        if group.is_main:
            self.alarms = AlertRules(facts_of(inputs), history(self.run.events_path))
        return trainer

    def announce(self, inputs: RunInputs, saved_plan: Plan | None, exact: bool) -> None:
        """Hold a resumed run to its environment, write the plan and the rows set aside, tell."""
        if not self.group.is_main:
            return
        plan = make_plan(inputs)
        other = environment_changes(saved_plan, plan) if saved_plan else []
        earlier = saved_plan.other_environments if saved_plan else ()
        # What was once computed elsewhere stays so, also when the run comes home.
        plan = replace(plan, other_environments=(*earlier, *other))
        if exact and (reasons := [*plan.other_environments, *inexact_reasons(inputs)]):
            raise DpoError(
                f"{self.run.name} cannot go on to the same bits here",
                "go on where it began, or without --exact, to slightly other bits",
                reasons,
            )
        places = inputs.pairs.places
        rows = "".join(row.to_json(places) + "\n" for row in inputs.skipped_rows)
        write_text_atomically(self.run.skipped_rows_path, rows)
        self.run.write_plan(plan)
        self.events.append(Planned(plan=plan))
        if unused := inputs.held_out_skipped_rows:
            self.events.append(
                Alert(
                    code="held-out-rows-skipped",
                    message=f"{len(unused)} rows of eval.path are not used; the first is"
                    f" {inputs.held_out.places.name(unused[0].line)}: {unused[0].reason}",
                )
            )
        if other:
            self.events.append(
                Alert(
                    code="other-environment",
                    message=f"not what the run began with: {'; '.join(other)}",
                    remedy="it goes on with the same batches, but no longer to the same bits",
                )
            )

    # --- what the trainer tells and asks ---------------------------------------------------------

    def tell_once(self, alert: Alert | None) -> None:
        """Append an alert, unless an earlier life of the run did."""
        if alert is None or not self.group.is_main:
            return
        told = {event.code for event in history(self.run.events_path) if isinstance(event, Alert)}
        if alert.code not in told:
            self.events.append(alert)

    def emit(self, event: Event) -> None:
        """Append to the stream, and what the alarms have to say of it."""
        self.may_leave = False
        self.events.append(event)
        if self.alarms is not None:
            is_step = isinstance(event, StepDone)
            free_bytes = shutil.disk_usage(self.run.path).free if is_step else None
            for alert in self.alarms.take(event, free_bytes):
                self.events.append(alert)

    def asked(self) -> set[str]:
        """Requests from the control file, and a stop where a signal asked for one."""
        request = self.run.take_request() if self.group.is_main else None
        if request == "stop":
            request = "interrupted"
        return {word for word in (request, self.signals.stop) if word}

    def not_finite(self, trainer: Trainer, window: GlobalBatch, losses: Sequence[float]) -> None:
        """Name the pairs of a window whose update must not be made, and keep what shows why.

        Raises:
            DpoError: `train.nan_policy` is "stop".
        """
        profile = trainer.inputs.profile
        guilty = [n for n, loss in enumerate(losses) if not math.isfinite(loss)]
        micro_batches = [window.micro_batches[n] for n in guilty] or window.micro_batches
        lines = trainer.inputs.pairs.lines.tolist()
        guilty_lines = [lines[index] for indices in micro_batches for index in indices]
        named = trainer.inputs.pairs.places.names(guilty_lines, most=len(guilty_lines))
        is_skipped = profile.train.nan_policy == "skip"
        kept = self.run.nan_dump_path
        evidence = kept / f"step-{trainer.optimizer_step + 1:08d}"
        # Skipping may go on at each step, and evidence is as large as the model.
        if self.group.is_main and not (is_skipped and has_nan_dump(kept)):
            with explain_disk_errors(kept):
                write_nan_dump(evidence, window, lines, losses, trainer.policy.model)
        subject = "loss" if guilty else "gradient"
        what = f"optimizer step {trainer.optimizer_step + 1}: the {subject} is not a finite number"
        where = f"{named} of {training_pairs(profile)}"
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
            " --set train.nan_policy=skip --allow-changes. What was saved before is intact",
            [where, f"what the step began with is in {evidence}"],
        )

    def save(self, trainer: Trainer) -> None:
        """Commit a checkpoint, and renew the half-precision weights beside it.

        The leader does, while the others wait as long as it takes.
        """
        for reference in (trainer.reference, trainer.held_out_reference):
            reference.exchange(self.group)
        self.group.require_same("the weights", trainer.policy.parameters())
        rng = rng_states(self.group, trainer.device)
        stage = f"saved-{trainer.optimizer_step}"
        self.group.broadcast_from_main(
            stage, lambda: self.events.append(commit(self.run, trainer, rng, self.events.flush))
        )

    def progress(self, phase: str, done: int, total: int, unit: str) -> None:
        """Tell how far a phase is, a few times a second.

        Before the first step that is a moment to stop at; later, what was done is saved first.
        """
        if self.may_leave and (self.signals.stop or self.run.is_requested("stop")):
            raise StartCancelledError
        now = time.monotonic()
        if phase != self._phase or done == total or now - self._progress_at >= _PROGRESS_SECONDS:
            self._phase, self._progress_at = phase, now
            self.events.append(Progress(phase=phase, done=done, total=total, unit=unit))

    def stopped(self, step: int, optimizer_step: int, reason: str) -> ExitCode:
        """Say that the run stopped as it was asked to."""
        self.events.append(Stopped(reason=reason, step=step, optimizer_step=optimizer_step))
        return ExitCode.TERMINATED if reason == "terminated" else ExitCode.INTERRUPTED

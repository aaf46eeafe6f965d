"""One start of a run: read, plan or resume, train, and report how it ended."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dpo_cli.compute.device import Device, configure_device, resolve
from dpo_cli.distributed.process_group import ProcessGroup, RankLostError, StartCancelledError
from dpo_cli.errors import DpoError, ExitCode
from dpo_cli.files import write_text_atomically
from dpo_cli.formatting import format_count
from dpo_cli.models.quantized import require_kernels
from dpo_cli.printable import printable
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.resolved import from_tables, to_tables
from dpo_cli.profile.schema import Profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.run.events import (
    Alert,
    Completed,
    Failed,
    Planned,
    Resumed,
    Saved,
    Stopped,
    WorkerStarted,
    history,
)
from dpo_cli.run.plan import Plan
from dpo_cli.run.torchrun import require_shards
from dpo_cli.training.failures import explain
from dpo_cli.training.hooks import RunHooks, StopSource
from dpo_cli.training.inputs import RunInputs, read_inputs
from dpo_cli.training.plan import environment, make_plan, saved_max_tokens_per_forward
from dpo_cli.training.resume_checks import (
    environment_changes,
    inexact_reasons,
    require_same_inputs,
    require_same_inputs_on_ranks,
)
from dpo_cli.training.saving import find_checkpoint, restore_best_weights, weights_file
from dpo_cli.training.setup import build_trainer, configure_torch, fallback_alert
from dpo_cli.training.trainer import Trainer


def train_run(
    path: Path | None, signals: StopSource, changes: Sequence[str] = (), *, exact: bool = False
) -> ExitCode:
    """Train the run at `path` from its newest checkpoint, or from the start.

    A failure that the user can act on becomes a `Failed` event; any other prints a traceback.

    Args:
        path: the run directory, whose lock is held for this process; None for one of several ranks,
            which receives the path from the main rank.
        signals: source of a request to stop.
        changes: differences between the profile and the plan, for people.
        exact: refuse to resume if the results could differ in the last bits.

    Returns:
        The exit code of this process. With several ranks, DONE also for a failed or stopped run
        once the main rank has written its end to the event stream: torchrun treats any other code
        as a crash.
    """
    group = ProcessGroup.from_env()
    session = None
    try:
        run = RunDirectory(Path(group.agree_on_run(str(path) if path else None)))
        session = _Session(run, signals, group)
        with explain_disk_errors(run.path):
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
    return _report_failure(session, group, failure)


def _report_failure(session: _Session | None, group: ProcessGroup, failure: DpoError) -> ExitCode:
    if session is None:
        return group.record_exit(str(failure))
    if not group.is_main:
        group.report_failure(failure)
        return ExitCode.DONE
    try:
        session.events.append(Failed.from_error(failure))
    except OSError:  # the disk may be full or read-only for the event, too
        with contextlib.suppress(OSError):
            print(printable(f"error: {failure}"), file=sys.stderr)  # the launcher shows this line
        return failure.exit_code
    group.report_end()
    return failure.exit_code if group.world_size == 1 else ExitCode.DONE


class _Session:
    """Starts, resumes and finishes a run."""

    def __init__(self, run: RunDirectory, signals: StopSource, group: ProcessGroup) -> None:
        self.run, self.signals, self.group = run, signals, group
        self.hooks = RunHooks(run, signals, group)
        self.events = self.hooks.events

    def run_to_end(self, changes: Sequence[str], exact: bool) -> ExitCode:
        """Start or resume the run, train, and report how it ended."""
        group = self.group
        if group.is_main:
            self.run.remove_leftovers()
        profile = from_tables(group.broadcast_from_main("profile", self._profile_tables))
        require_shards(profile, group.world_size)
        plan_values = group.broadcast_from_main("plan", self._plan_values)
        saved_plan = Plan.from_dict(plan_values) if plan_values else None
        configure_torch(profile, group.rank, saved_plan)
        local_rank = group.local_rank if group.world_size > 1 else None
        device = resolve(profile.train.device, profile.compute_dtype, local_rank)
        self._set_matmul_precision(profile, device, saved_plan)
        if profile.model.quantization is not None:
            require_kernels(profile.model.quantization, device.torch_device)
        self.events.append(
            WorkerStarted(
                pid=os.getpid(),
                device=str(device.torch_device),
                device_name=device.name,
                dtype=device.dtype_name,
                versions={**environment(), **device.versions},
                hosts=tuple(group.hosts),
            )
        )
        try:
            trainer = self._start(profile, device, saved_plan, changes, exact)
            stop = trainer.train()
        except StartCancelledError:
            group.cancel_start()
            saved = [event for event in history(self.run.events_path) if isinstance(event, Saved)]
            done = (saved[-1].step, saved[-1].optimizer_step) if saved else (0, 0)
            return self._stopped(*done, self.signals.stop or "interrupted")
        if stop is not None:
            return self._stopped(trainer.step, trainer.optimizer_step, stop)
        return self._completed(trainer)

    # --- starting and resuming -------------------------------------------------------------------

    def _start(
        self,
        profile: Profile,
        device: Device,
        saved_plan: Plan | None,
        changes: Sequence[str],
        exact: bool,
    ) -> Trainer:
        """Read the inputs, check them against the plan of a resumed run, and build the trainer.

        Raises:
            StartCancelledError: a rank was asked to stop before the first step.
        """
        group, hooks = self.group, self.hooks
        accumulation_steps = saved_plan.steps.accumulation_steps if saved_plan else None
        inputs = read_inputs(
            profile,
            device,
            self.run,
            hooks.progress,
            group,
            accumulation_steps=accumulation_steps,
            max_tokens_per_forward=saved_max_tokens_per_forward(saved_plan),
            whole_prompts=saved_plan is None or saved_plan.pairs.whole_prompts,
        )
        require_same_inputs_on_ranks(
            group.all_gather_object("inputs", inputs.fingerprints), group.main_rank
        )
        if saved_plan is not None:
            require_same_inputs(saved_plan.fingerprints, inputs.fingerprints)
        checkpoint, passed_over = find_checkpoint(self.run, inputs.order, group)
        if group.is_main:
            self._write_plan(inputs, saved_plan, exact)
        is_sharded = profile.launch.strategy == "shard"
        if is_sharded and not group.is_main:
            inputs = inputs.without_values()
        group.init_collectives(
            device.torch_device, profile.launch.timeout_seconds, shards_models=is_sharded
        )
        trainer = build_trainer(inputs, checkpoint, self.run.path, hooks, hooks.save, group)
        hooks.emit_once(fallback_alert(trainer.policy))
        # Wait for all ranks here, without a time limit: building takes some longer than others, and
        # the first collective would time out.
        group.all_gather_object("built", None)
        for reference in (trainer.reference, trainer.held_out_reference):
            reference.exchange(group)
        # An evaluation before the first step can be cancelled and made again. A later one follows
        # steps that must be saved first, and several ranks must stop together.
        hooks.can_cancel = trainer.optimizer_step == 0 and group.world_size == 1
        if is_sharded:
            for reference in (trainer.reference, trainer.held_out_reference):
                reference.complete(group, hooks.progress)
        if saved_plan is not None:
            if profile.eval.keep_best and group.is_main:
                restore_best_weights(self.run, inputs, trainer.best)
            self.events.append(
                Resumed(
                    step=trainer.step,
                    optimizer_step=trainer.optimizer_step,
                    checkpoint=checkpoint.name if checkpoint else "",
                    passed_over=tuple(passed_over),
                    changes=tuple(changes),
                )
            )
        hooks.start_alerts(inputs)
        return trainer

    def _profile_tables(self) -> dict[str, dict[str, Any]]:
        return to_tables(load_profile(self.run.profile_path).profile)

    def _plan_values(self) -> dict[str, Any] | None:
        """Return the plan of an earlier start, in values that can be sent to the other ranks."""
        plan = self.run.read_plan()
        return plan.to_dict() if plan else None

    def _set_matmul_precision(
        self, profile: Profile, device: Device, saved_plan: Plan | None
    ) -> None:
        """Set the precision of float32 products: that of the run's start, and of the main rank.

        Machines with different processors would choose differently, and the ranks' weights would
        differ.
        """

        def configure(precision: str | None) -> str:
            configure_device(device, precision, tf32=profile.train.tf32)
            return torch.get_float32_matmul_precision()

        saved = saved_plan.environment.get("float32_matmul") if saved_plan else None
        precision = self.group.broadcast_from_main("matmul", lambda: configure(saved))
        if not self.group.is_main:
            configure(precision)

    def _write_plan(self, inputs: RunInputs, saved_plan: Plan | None, exact: bool) -> None:
        """Write the plan and the skipped rows, and report them.

        Raises:
            DpoError: `exact`, and the results could differ in the last bits.
        """
        plan = make_plan(inputs)
        other = environment_changes(saved_plan, plan) if saved_plan else []
        earlier = saved_plan.other_environments if saved_plan else ()
        # Steps that were computed in another environment keep their bits: a run that returns to
        # its first environment is still not exact.
        plan = replace(plan, other_environments=(*earlier, *other))
        if exact and (reasons := [*plan.other_environments, *inexact_reasons(inputs)]):
            raise DpoError(
                f"{self.run.name}: a resume here may differ in the last bits",
                "Resume it where it began, or leave out exact.",
                reasons,
            )
        places = inputs.pairs.places
        rows = "".join(row.to_json(places) + "\n" for row in inputs.skipped_rows)
        write_text_atomically(self.run.skipped_rows_path, rows)
        self.run.write_plan(plan)
        self.events.append(Planned(plan=plan))
        if skipped_rows := inputs.held_out_skipped_rows:
            first = skipped_rows[0]
            self.events.append(
                Alert(
                    code="held-out-rows-skipped",
                    message=f"{format_count(len(skipped_rows), 'row')} of eval.path"
                    f" {'is' if len(skipped_rows) == 1 else 'are'} not used; the first is"
                    f" {inputs.held_out.places.name(first.line)}: {first.reason}",
                )
            )
        if other:
            self.events.append(
                Alert(
                    code="other-environment",
                    message=f"the run began in another environment: {'; '.join(other)}",
                    remedy="Training continues with the same batches; results may differ in the"
                    " last bits.",
                )
            )

    # --- finishing -------------------------------------------------------------------------------

    def _stopped(self, step: int, optimizer_step: int, reason: str) -> ExitCode:
        self.events.append(Stopped(reason=reason, step=step, optimizer_step=optimizer_step))
        return ExitCode.TERMINATED if reason == "terminated" else ExitCode.INTERRUPTED

    def _completed(self, trainer: Trainer) -> ExitCode:
        weights = weights_file(trainer.inputs)
        if self.group.is_main:
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

"""Plain-text report of a run, one line per event, for pipes and logs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from dpo_cli.formatting import (
    format_count,
    format_duration,
    format_number,
    format_percent,
    format_size,
    format_speed,
)
from dpo_cli.intervals import HIGH, LOW
from dpo_cli.printable import one_line
from dpo_cli.run.events import (
    ACCURACY,
    Alert,
    Completed,
    Evaluated,
    Event,
    Planned,
    Progress,
    Resumed,
    Sampled,
    Saved,
    StepDone,
    Stopped,
    WorkerStarted,
)
from dpo_cli.run.plan import Plan
from dpo_cli.run.view import RunView
from dpo_cli.ui.terminal.metrics import with_missing
from dpo_cli.ui.terminal.ranks import straggler, straggler_message
from dpo_cli.ui.terminal.result import completed_lines, stopped_lines

_FIRST_STEPS = (1, 2, 5, 10)
_LONGEST_SILENCE_SECONDS = 30.0
_PROGRESS_SECONDS = 2.0
_RECENT_STEPS = 20
_LABEL_WIDTH = 10
_SAMPLE_CHARACTERS = 120


class PlainReport:
    """Prints the events of a run as plain lines.

    Args:
        console: where to print.
        designation: name of the run on the command line.
        directory: the run's directory.
        read_view: returns the view of the whole run, for the end of a resumed run, of which the
            report sees only the last events; None if the report sees all events.
        quiet: print only warnings and the final result.
    """

    def __init__(
        self,
        console: Console,
        designation: str,
        directory: Path,
        *,
        read_view: Callable[[], RunView] | None = None,
        quiet: bool = False,
    ) -> None:
        self._console = console
        self._designation = designation
        self._directory = directory
        self._quiet = quiet
        self._read_view = read_view
        self._view = RunView()
        self._phase = _Phase()
        self._recent: deque[StepDone] = deque(maxlen=_RECENT_STEPS)
        self._hosts: tuple[str, ...] = ()
        self._has_shown_straggler = False
        self._has_resumed = False
        self._last_step = 0
        self._shown_at_seconds = 0.0

    def __call__(self, event: Event) -> None:
        """Print `event`, unless it is too frequent to print."""
        self._view.take(event)
        match event:
            case Planned():
                self._print(plan_lines(event.plan, self._directory))
            case Progress() if self._phase.is_due(event):
                self._print([progress_line(event)])
            case WorkerStarted():  # elapsed_seconds starts again at 0
                self._recent.clear()
                self._phase, self._shown_at_seconds = _Phase(), 0.0
                self._hosts, self._has_shown_straggler = event.hosts, False
                if len(event.hosts) > 1:
                    self._print([_ranks_line(event.hosts)])
            case StepDone():
                self._step(event)
            case Evaluated():
                self._print([evaluation_line(event)])
            case Sampled():
                self._print(sample_lines(event, _SAMPLE_CHARACTERS))
            case Saved():
                self._print([saved_line(event)])
            case Resumed():
                self._has_resumed, self._last_step = True, event.step
                self._print(map(_warning, event.passed_over), always=True)
                self._print(resumed_lines(event))
            case Alert():
                self._print(alert_lines(event), always=True)
            case Stopped() if self._view.plan is not None:  # otherwise the launcher reports it
                self._print(stopped_lines(event, self._designation), always=True)
            case Completed():
                whole = self._read_view() if self._has_resumed and self._read_view else self._view
                lines = completed_lines(event, self._designation, self._directory, whole)
                self._print(lines, always=True)

    def _step(self, event: StepDone) -> None:
        self._recent.append(event)
        is_due = self._is_due(event)
        self._last_step = event.step
        if is_due:
            self._shown_at_seconds = event.elapsed_seconds
            self._print([step_line(event, self._recent, self._view.plan)])
        slow = None if self._has_shown_straggler else straggler(self._recent)
        if slow is not None:
            self._has_shown_straggler = True
            self._print([_warning(straggler_message(self._recent, slow, self._hosts))], always=True)

    def _is_due(self, event: StepDone) -> bool:
        before, now = self._last_step, event.step
        is_first = len(self._recent) == 1  # the first one after each start or resume
        if is_first or any(before < step <= now for step in _FIRST_STEPS):
            return True
        if event.elapsed_seconds - self._shown_at_seconds >= _LONGEST_SILENCE_SECONDS:
            return True
        if (plan := self._view.plan) is None:
            return False
        # An optimizer step covers several micro-batches and can jump over a multiple.
        log_interval = plan.setting("train.log_interval")
        return before // log_interval < now // log_interval or now == plan.steps.micro_batches

    def _print(self, lines: Iterable[Text], *, always: bool = False) -> None:
        if always or not self._quiet:
            for line in lines:
                self._console.print(line)


class _Phase:
    """Rate limit for the progress of a phase before training; short phases print nothing."""

    def __init__(self) -> None:
        self._name = ""
        self._shown_at_seconds = 0.0

    def is_due(self, event: Progress) -> bool:
        if event.phase != self._name:
            self._name = event.phase
            self._shown_at_seconds = event.elapsed_seconds
        if event.elapsed_seconds - self._shown_at_seconds < _PROGRESS_SECONDS:
            return False
        self._shown_at_seconds = event.elapsed_seconds
        return True


def plan_lines(plan: Plan, directory: Path) -> list[Text]:
    """Return the plan of a run, one fact per line."""
    return [_fact(label, value) for label, value in plan_facts(plan, directory)]


def plan_facts(plan: Plan, directory: Path) -> list[tuple[str, str]]:
    """Return the plan of a run as (name, fact) pairs."""
    pairs, steps, setting = plan.pairs, plan.steps, plan.setting
    kept = format_count(pairs.kept, "pair")
    if pairs.truncated:
        length = setting("data.max_seq_len")
        kept += f" ({pairs.truncated:,} truncated to {length:,} tokens)"
    if pairs.held_out:
        kept += f", {pairs.held_out:,} held out"
    if pairs.skipped_rows:
        kept += f", {pairs.skipped_rows:,} skipped rows: {directory / 'skipped_rows.jsonl'}"
    if pairs.unread_columns:
        kept += f"; columns that are not read: {', '.join(pairs.unread_columns)}"
    return [
        ("model", f"{plan.model.description}, {format_count(plan.model.parameters, 'parameter')}"),
        *_adapter_facts(plan),
        ("data", kept),
        (
            "steps",
            f"{format_count(setting('train.epochs'), 'epoch')} x {steps.micro_batches_per_epoch:,} "
            f"micro-batches of {format_count(setting('train.batch_size'), 'pair')}"
            + (f", {steps.accumulation_steps} per step" if has_micro_steps(plan) else "")
            + f" = {format_count(steps.optimizer_steps, 'step')}",
        ),
        ("lr", f"{setting('train.learning_rate'):g}, schedule {setting('train.schedule')}"),
        (
            "objective",
            f"{plan.loss}, beta {setting('dpo.beta'):g}, {setting('dpo.reduction')} over tokens",
        ),
        *_template(setting("data.empty_think_ratio")),
        ("device", f"{plan.device}, {plan.dtype}, {setting('train.layout')} layout"),
    ]


def _adapter_facts(plan: Plan) -> list[tuple[str, str]]:
    trained = plan.model.trained_parameters
    if trained is None:
        return []
    rank, quantization = plan.setting("lora.rank"), plan.setting("model.quantization")
    base = f", beside {quantization} weights" if quantization else ""
    share = trained / plan.model.parameters
    return [("adapter", f"rank {rank}: {trained:,} trained parameters, {share:.2%}{base}")]


def _template(empty_think_ratio: float | None) -> list[tuple[str, str]]:
    if empty_think_ratio is None:
        return []
    return [("template", f"the tokenizer's; {think_blocks(empty_think_ratio)}")]


def think_blocks(empty_think_ratio: float) -> str:
    """Describe a value of `data.empty_think_ratio`."""
    return f"empty think blocks kept in {format_percent(empty_think_ratio, 0)} of the pairs"


def has_micro_steps(plan: Plan | None) -> bool:
    """Return True if an optimizer step accumulates the gradients of several micro-batches."""
    return plan is not None and plan.steps.accumulation_steps > 1


def step_name(*plans: Plan | None) -> str:
    """Return "micro-step", which `StepDone.step` counts, if a plan accumulates; else "step"."""
    return "micro-step" if any(map(has_micro_steps, plans)) else "step"


def _ranks_line(hosts: Sequence[str]) -> Text:
    machines = list(dict.fromkeys(hosts))
    several = f"{len(machines)} machines: {', '.join(machines)}"
    return _fact("ranks", f"{len(hosts)} on {several if len(machines) > 1 else 'this machine'}")


def progress_line(event: Progress) -> Text:
    """Return the progress of a phase before training."""
    done = f"({event.done:,} {event.unit})"
    if event.total:
        share = event.done / event.total
        done = f"{format_percent(share, 0)} ({event.done:,} of {event.total:,} {event.unit})"
    return Text(f"{event.phase} {done}", style="dim")


def step_line(event: StepDone, recent: Iterable[StepDone], plan: Plan | None) -> Text:
    """Return one optimizer step; `recent` ends with it and gives the speed, `plan` the totals."""
    metrics, recent = with_missing(event.metrics), list(recent)
    total = epochs = eta = ""
    if plan is not None:
        total, epochs = f"/{plan.steps.micro_batches}", f"/{plan.setting('train.epochs')}"
        eta = format_duration(
            (plan.steps.micro_batches - event.step) * _micro_batch_seconds(recent)
        )
    seconds = sum(step.seconds for step in recent)
    pairs_a_second = sum(step.pairs for step in recent) / seconds if seconds else 0.0
    return _fields(
        (step_name(plan), f"{event.step}{total}"),
        ("epoch", f"{event.epoch}{epochs}"),
        ("loss", f"{metrics['loss']:.4f}"),
        ("lr", f"{event.learning_rate:.1e}"),
        ("margin", f"{metrics['rewards/margins']:+.3g}"),
        ("acc", format_number(event.metrics.get(ACCURACY), ".2f")),
        ("grad", f"{metrics['grad_norm']:.3g}"),
        ("", format_speed(pairs_a_second)),
        ("eta", eta),
        ("", "skipped" if event.is_skipped else ""),
    )


def evaluation_line(event: Evaluated) -> Text:
    """Return the metrics of the policy on the held-out pairs."""
    metrics = with_missing(event.metrics)
    return _fields(
        ("held-out", f"after step {event.optimizer_step}"),
        ("loss", f"{metrics['loss']:.4f}"),
        ("margin", f"{metrics['rewards/margins']:+.3g}"),
        ("acc", format_number(metrics.get(ACCURACY), ".2f") + _interval(event, ACCURACY)),
        ("", f"{format_count(event.pairs, 'pair')} in {format_duration(event.seconds)}"),
    )


def _interval(event: Evaluated, metric: str) -> str:
    """Return the 95 % interval of a metric; empty if the event has none."""
    of_all = event.groups.get("all", {})
    if metric + LOW not in of_all:
        return ""
    return f" ({of_all[metric + LOW]:.2f}-{of_all[metric + HIGH]:.2f})"


def sample_lines(event: Sampled, most_characters: int) -> list[Text]:
    """Return questions with the answers of policy and reference, one line each, truncated."""
    lines = []
    for label, text in sample_texts(event):
        text = one_line(text)
        if len(text) > most_characters:
            text = f"{text[:most_characters]}..."
        lines.append(Text.assemble((label, "dim"), text))
    return lines


def sample_texts(event: Sampled) -> Iterator[tuple[str, str]]:
    """Yield a label and the text of each question and answer."""
    for sample in event.samples:
        yield f"{sample['place']}: ", sample.get("question", sample["prompt"])
        yield "  reference: ", sample["reference"]
        yield "  policy: ", sample["policy"]


def saved_line(event: Saved) -> Text:
    """Return the line about a saved checkpoint."""
    return Text(
        f"saved checkpoint after step {event.optimizer_step} "
        f"({format_size(event.size_bytes)} in {event.seconds:.1f}s)"
        + (": best so far on the held-out pairs" if event.is_best else ""),
        style="dim",
    )


def resumed_lines(event: Resumed) -> list[Text]:
    """Return where training resumes, and the changed settings."""
    where = "from the first step: no checkpoint was saved"
    if event.checkpoint:
        where = f"after step {event.optimizer_step} (micro-step {event.step})"
    return [Text(f"resuming {where}"), *(Text(f"  changed {change}") for change in event.changes)]


def titled_alerts(view: RunView) -> list[tuple[str, Alert]]:
    """Return the alerts of a run with their titles, the oldest first.

    Those from before the last start come first, with the local time: they may no longer hold.
    """
    earlier, now = [], []
    for code, alert in view.alerts.items():
        if code in view.earlier_alerts:
            at = time.strftime("%Y-%m-%d %H:%M", time.localtime(alert.time))
            earlier.append((f"warning of {at}, before the resume", alert))
        else:
            now.append(("warning", alert))
    return [*earlier, *now]


def alert_lines(event: Alert, title: str = "warning") -> list[Text]:
    """Return an alert and its remedy."""
    lines = [_warning(event.message, title)]
    if event.remedy:
        lines.append(Text.assemble(("   help: ", "bold cyan"), event.remedy))
    return lines


def _micro_batch_seconds(recent: list[StepDone]) -> float:
    """Return the seconds per micro-batch, including saves and evaluations, for the time left."""
    first, last = recent[0], recent[-1]
    # The worker's monotonic clock; after the first step there is no earlier time to subtract.
    if first is last:
        return last.seconds / len(last.losses)
    return (last.elapsed_seconds - first.elapsed_seconds) / (last.step - first.step)


def _fields(*fields: tuple[str, str]) -> Text:
    """Join labels and values into one line; leave out empty values."""
    line = Text()
    for label, value in fields:
        if value:
            line.append("  " if line else "")
            line.append(f"{label} " if label else "", style="dim")
            line.append(value)
    return line


def _fact(label: str, value: str) -> Text:
    return Text.assemble((label.ljust(_LABEL_WIDTH), "dim"), value)


def _warning(message: str, title: str = "warning") -> Text:
    return Text.assemble((f"{title}: ", "bold yellow"), message)

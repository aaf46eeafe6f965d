"""Rich renderable of a run at one moment, for any terminal size.

Only the terminal's own 16 colors and background are used, so that dark and light themes both work.
Information shown by color is also shown by shape or text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from dpo_cli.formatting import format_duration, format_percent, format_progress
from dpo_cli.printable import one_line
from dpo_cli.run.events import Progress
from dpo_cli.run.verdict import verdict_of
from dpo_cli.run.view import RunState, RunView
from dpo_cli.shell import dpo_command
from dpo_cli.ui.terminal.ending import failure
from dpo_cli.ui.terminal.layout import Block, bar, beside, draw_frame, fit, fit_block, justify
from dpo_cli.ui.terminal.metrics import (
    GROUPS_TITLE,
    NOTES_HEIGHT,
    figures,
    group_lines,
    metrics_notes,
    metrics_table,
    metrics_title,
)
from dpo_cli.ui.terminal.plain import plan_lines, step_name, titled_alerts
from dpo_cli.ui.terminal.plots import charts
from dpo_cli.ui.terminal.ranks import ranks_frame
from dpo_cli.ui.terminal.result import export_line

_STATE_STYLES = {
    RunState.TRAINING: "bold green",
    RunState.COMPLETED: "bold green",
    RunState.STOPPING: "bold yellow",
    RunState.STOPPED: "bold yellow",
    RunState.FAILED: "bold red",
    RunState.KILLED: "bold red",
}
_NUMBERS_WIDTH, _WIDE_NUMBERS_WIDTH, _WIDE = 38, 53, 130
_LEAST_CHARTS_WIDTH, _LEAST_CHARTS_HEIGHT = 32, 8
_USUAL_HEIGHT = 24
_LEAST_ALERT, _LEAST_FAILURE = 2, 5
"""Lines for messages on a terminal of the usual height."""
_PROGRESS_LABEL_WIDTH, _PROGRESS_REMARK_WIDTH = 24, 17
_PLAN_LABEL_WIDTH, _HELP_LABEL_WIDTH = 10, 14

_KEYS_HELP = (
    ("s", "save a checkpoint after this step"),
    ("e", "evaluate on the held-out pairs after this step"),
    ("q", "press twice to save and stop, like Ctrl-C; then `dpo resume`"),
    ("d", "detach; training continues, `dpo watch` reopens the panel"),
    ("?", "show or hide this page"),
)
_METRICS_HELP = (
    ("loss", "for DPO ln 2 = 0.693 while policy and reference are equal"),
    ("accuracy", "share with a higher reward for chosen; ties count half"),
    ("ranking", "share with a higher policy log-prob for chosen, without the reference"),
    ("reward", "beta x (policy log-prob - reference log-prob)"),
    ("margin", "reward of the chosen minus reward of the rejected answer"),
    ("margin/token", "(chosen - rejected log-ratio) in nats per token, without beta"),
    ("KL", "distance of policy from reference, in nats per token"),
    ("clipped", "share of steps with a gradient norm above train.grad_clip"),
    ("weights", "share whose 16-bit value differs from the start, at that step"),
)


@dataclass(frozen=True)
class Disk:
    """State of the run's disk."""

    free_bytes: int
    checkpoints: int


@dataclass(frozen=True)
class Dashboard:
    """Picture of a run at the time `now`; the same arguments give the same picture.

    Args:
        view: state of the run, from its events.
        designation: name of the run on the command line.
        directory: the run's directory.
        now: wall-clock seconds, for the time since the last event.
        is_alive: False if no process trains the run.
        disk: state of the disk; None for a moment in the past.
        notice: reply to a key press.
        keys: available keys and their actions.
        shows_help: True to show the help page instead of charts.
        headline: left and right text of a line above, for a run of a sweep.
    """

    view: RunView
    designation: str
    directory: Path
    now: float
    is_alive: bool = True
    disk: Disk | None = None
    notice: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)
    shows_help: bool = False
    headline: tuple[Text, Text] | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the picture in the given width and height."""
        for line in self.lines(console, options.max_width, options.height or console.height):
            yield from line.render(console, end="\n")  # already laid out; rich must not wrap again

    def lines(self, console: Console, width: int, height: int) -> Block:
        """Return `height` lines of `width` cells."""
        top = [self._title(width), *self._progress(width)]
        if self.headline is not None:
            top = [justify(*self.headline, width), *top]
        messages = self._messages(console, width, height)
        body = self._body(console, width, height - len(top) - len(messages) - 1)
        return fit_block([*top, *body, *messages, self._footer(width)], width, height)

    @property
    def state(self) -> RunState:
        """State of the run; a run without a process and without an ending was killed."""
        has_ended = self.view.ending is not None
        return self.view.state if has_ended or self.is_alive else RunState.KILLED

    # --- parts, from top to bottom ---------------------------------------------------------------

    def _title(self, width: int) -> Text:
        words = Text.assemble((one_line(self.directory.name), "bold"))
        if self.view.worker:
            ranks = len(self.view.worker.hosts)
            number = f"{ranks} x " if ranks > 1 else ""
            words.append(f"  {number}{self.view.worker.device} {self.view.worker.dtype}")
        if self.view.plan:
            words.append(f"  {one_line(self.view.plan.model.description)}")
        state = Text(f"  {self.state}", style=_STATE_STYLES.get(self.state, "bold cyan"))
        return justify(words, state, width)

    def _progress(self, width: int) -> Block:
        """Return two progress lines: of run and epoch or, before training, of the phase."""
        view, now = self.view, self.now if self.is_alive else self.view.time
        elapsed = f"{format_duration(view.elapsed_seconds(now))} elapsed"
        if view.plan is None or not view.is_under_way:
            phase = view.phase
            if phase is None:
                return [_progress_line(str(self.state), 0.0, elapsed, width), Text()]
            share = phase.done / phase.total if phase.total else 0.0
            done = f"{phase.done:,} of {phase.total:,} {phase.unit}"
            return [_progress_line(phase.phase, share, elapsed, width), Text(done, style="dim")]
        per_epoch = view.plan.steps.micro_batches_per_epoch
        epoch = max(1, -(-view.step // per_epoch))
        return [
            _progress_line(
                f"{step_name(view.plan)} {format_progress(view.step, view.total_steps)}",
                view.step / view.total_steps,
                _time_left(view, now),
                width,
            ),
            _evaluation_line(view.phase, elapsed, width)
            if view.phase
            else _progress_line(
                f"epoch {epoch}/{view.plan.setting('train.epochs')}",
                (view.step - (epoch - 1) * per_epoch) / per_epoch,
                elapsed,
                width,
            ),
        ]

    def _body(self, console: Console, width: int, height: int) -> Block:
        """Return charts or, before the first step, the plan, next to the numbers."""
        numbers_width = _WIDE_NUMBERS_WIDTH if width >= _WIDE else _NUMBERS_WIDTH
        charts_width = width - numbers_width
        if self.shows_help:
            return draw_frame("help", _help_lines(width, console), width, height)
        if charts_width < _LEAST_CHARTS_WIDTH:
            return self._numbers(width, height)
        if self.view.step:
            ranks = ranks_frame(self.view.recent, charts_width)
            below = ranks if height - len(ranks) >= _LEAST_CHARTS_HEIGHT else []
            left = charts(self.view, charts_width, height - len(below)) + below
        else:
            lines = self._plan_lines(console, charts_width)
            frame = draw_frame("plan", lines, charts_width, min(height, len(lines) + 2))
            left = fit_block(frame, charts_width, height)
        return beside(left, self._beside_charts(console, numbers_width, height))

    def _beside_charts(self, console: Console, width: int, height: int) -> Block:
        """Return the numbers and, if they fit, groups of pairs and the plan below."""
        whole = len(self._number_lines(width, NOTES_HEIGHT)) + 2
        groups = group_lines(self.view.held_out, width - 4)
        rest = height - whole
        if not self.view.step or rest < len(self._plan_lines(console, width)) + 2:
            return self._numbers(width, height)
        block = self._numbers(width, whole)
        if groups and rest - len(groups) - 2 >= len(self._plan_lines(console, width)) + 2:
            block += draw_frame(GROUPS_TITLE, groups, width, len(groups) + 2)
        return block + self._plan(console, width, height - len(block))

    def _numbers(self, width: int, height: int) -> Block:
        spare = height - 2 - len(self._number_lines(width, 0))
        lines = self._number_lines(width, min(max(0, spare), NOTES_HEIGHT))
        return draw_frame(metrics_title(self.view), lines, width, height)

    def _number_lines(self, width: int, gap: int) -> Block:
        """Return the numbers, with `gap` lines between metrics and figures."""
        table = metrics_table(self.view, width - 4)
        disk = (self.disk.free_bytes, self.disk.checkpoints) if self.disk else None
        return [*table, *metrics_notes(gap), *figures(self.view, self.now, disk)]

    def _plan(self, console: Console, width: int, height: int) -> Block:
        return draw_frame("plan", self._plan_lines(console, width), width, height)

    def _plan_lines(self, console: Console, width: int) -> Block:
        """Return the plan for a frame of `width` cells."""
        if self.view.plan is None:
            return [Text("reading model and data", style="dim")]
        lines = plan_lines(self.view.plan, Path())  # the path of the run would not fit
        return [
            part for line in lines for part in _hanging(line, _PLAN_LABEL_WIDTH, width - 4, console)
        ]

    def _messages(self, console: Console, width: int, height: int) -> Block:
        """Return the error and the newest warnings, as many as the height allows."""
        room = (_LEAST_FAILURE if self.view.ending else _LEAST_ALERT) + (
            height - _USUAL_HEIGHT
        ) // 3
        block: Block = []
        for kind, style, message, remedy in self._errors_and_alerts():
            texts = [Text.assemble((f"{kind}: ", style), message)]
            if remedy:
                texts.append(Text.assemble(("help: ", "bold cyan"), remedy))
            lines = [line for text in texts for line in _wrapped(text, width, console)]
            block += lines if len(block) + len(lines) <= room else texts  # cut to one line each
        return block[: max(0, room)]

    def _errors_and_alerts(self) -> list[tuple[str, str, str, str]]:
        """Return kind, style, message and remedy, the most important first."""
        found = [("error", "bold red", *failed)] if (failed := failure(self.view)) else []
        if verdict := verdict_of(self.view):
            found.append(("worse", "bold red", verdict.message, verdict.remedy))
        found += [
            (title, "bold yellow", alert.message, alert.remedy)
            for title, alert in reversed(titled_alerts(self.view))
        ]
        return [(kind, style, one_line(m), one_line(remedy)) for kind, style, m, remedy in found]

    def _footer(self, width: int) -> Text:
        """Return notice and keys or, for a finished run, the next command."""
        notice = Text(self.notice, style="bold")
        if not self.keys:
            return notice or self._next_command()
        offered = [Text.assemble((key, "bold cyan"), f" {word}") for key, word in self.keys.items()]
        keys = Text("   ").join(offered)
        fits = notice.cell_len + keys.cell_len < width
        return justify(notice, keys, width) if fits else notice or keys

    def _next_command(self) -> Text:
        match self.state:
            case RunState.COMPLETED:
                return export_line(self.view, self.designation)
            case RunState.STOPPED | RunState.FAILED | RunState.KILLED:
                command = "resume"
            case _:
                return Text()
        return Text.assemble((f"{command}: ", "dim"), dpo_command(command, self.designation))


def _time_left(view: RunView, now: float) -> str:
    """Return the time left or, after the last step, what the run still does."""
    if view.is_at_the_end and view.ending is None:
        return "last evaluation" if view.state is RunState.EVALUATING else "saving"
    left = view.seconds_left(now)
    return f"{format_duration(left)} left" if left is not None else ""


def _evaluation_line(phase: Progress, elapsed: str, width: int) -> Text:
    """Return the progress of an evaluation between two steps."""
    share = phase.done / phase.total if phase.total else 0.0
    label = f"{phase.phase} {format_progress(phase.done, phase.total)} {phase.unit}"
    return _progress_line(label, share, elapsed, width)


def _progress_line(label: str, share: float, remark: str, width: int) -> Text:
    inner = max(0, width - _PROGRESS_LABEL_WIDTH - _PROGRESS_REMARK_WIDTH - 7)
    return Text.assemble(
        fit(Text(label), _PROGRESS_LABEL_WIDTH),
        bar(share, inner, "cyan"),
        f" {format_percent(share, 0):>5} ",
        remark.rjust(_PROGRESS_REMARK_WIDTH),
    )


def _help_lines(width: int, console: Console) -> Block:
    lines: Block = []
    for word, meaning in (*_KEYS_HELP, *_METRICS_HELP):
        text = Text.assemble((word.ljust(_HELP_LABEL_WIDTH), "dim"), meaning)
        lines += _hanging(text, _HELP_LABEL_WIDTH, width - 4, console)
    return lines


def _hanging(line: Text, label_width: int, width: int, console: Console) -> Block:
    """Wrap a line that begins with a label; indent the continuation lines below the text."""
    label, rest = line.divide([label_width])
    first, *others = _wrapped(rest, width - label_width, console)
    indent = " " * label_width
    return [Text.assemble(label, first), *(Text.assemble(indent, other) for other in others)]


def _wrapped(text: Text, width: int, console: Console) -> Block:
    return list(text.wrap(console, max(1, width)))

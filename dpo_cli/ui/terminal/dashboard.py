"""The panel: a picture of a run at one moment, as a value that rich can print at any size.

Only the terminal's own sixteen colors and its own background are used, so that it looks right on
dark and light themes alike; what color tells is told by shape or word as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from dpo_cli.formatting import format_duration
from dpo_cli.run.view import RunState, RunView
from dpo_cli.ui.terminal.ending import failure
from dpo_cli.ui.terminal.layout import Block, bar, beside, ends, fit, framed, one_line, pile
from dpo_cli.ui.terminal.metrics import (
    GROUPS_TITLE,
    LABEL_WIDTH,
    TITLE,
    figures,
    group_lines,
    metrics_table,
)
from dpo_cli.ui.terminal.plain import plan_lines
from dpo_cli.ui.terminal.plots import charts
from dpo_cli.ui.terminal.ranks import ranks_frame

_STATE_STYLES = {
    RunState.TRAINING: "bold green",
    RunState.COMPLETED: "bold green",
    RunState.STOPPING: "bold yellow",
    RunState.STOPPED: "bold yellow",
    RunState.FAILED: "bold red",
    RunState.KILLED: "bold red",
}
_NUMBERS_WIDTH, _WIDE_NUMBERS_WIDTH, _WIDE = 38, 50, 130
_LEAST_CHARTS_WIDTH, _LEAST_CHARTS_HEIGHT = 32, 8
_USUAL_HEIGHT = 24
_LEAST_ALERT, _LEAST_FAILURE = 2, 5
"""Lines on a terminal of the usual height."""
_PROGRESS_LABEL_WIDTH, _PROGRESS_REMARK_WIDTH = 20, 17

_KEYS_HELP = (
    ("s", "save the training state after this step"),
    ("e", "evaluate on the held-out pairs after this step"),
    ("q", "twice: save and stop, as Ctrl-C does; `dpo resume` goes on from there"),
    ("d", "leave the panel; training goes on, `dpo watch` comes back to it"),
    ("?", "this page, and back"),
)
_WORDS = (
    ("loss", "with DPO ln 2 = 0.693 until policy and reference can be told apart"),
    ("accuracy", "share of pairs whose chosen answer has the higher reward; a tie is none"),
    ("reward", "beta times how much likelier the policy finds an answer than the reference does"),
    ("margin", "reward of the chosen answer minus that of the rejected one"),
    ("margin/token", "how far the two answers moved apart, in nats per token, whatever beta is"),
    ("KL", "how far the policy moved from the reference, in nats per token"),
    ("likelier", "share of held-out pairs with chosen the likelier answer"),
    ("clipped", "share of steps whose gradient was longer than grad_clip"),
    ("moved", "share of weights whose 16-bit value is no longer the checkpoint's"),
)


@dataclass(frozen=True)
class Disk:
    """What the run's directory tells beside its events."""

    free_bytes: int
    checkpoints: int


@dataclass(frozen=True)
class Dashboard:
    """A run as it stands at `now`; the same arguments give the same picture.

    Args:
        view: what the events came to.
        designation: what the user types to name the run.
        directory: the run's directory.
        now: wall-clock seconds, for what goes on between two events.
        is_alive: whether anybody trains it.
        disk: None if that is not known, as of a moment in the past.
        notice: an answer to the user.
        keys: that can be pressed, and what each does.
        shows_help: whether to explain instead of drawing charts.
        headline: of what the run is a part of.
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
        """Fill the given width and height."""
        for line in self.lines(console, options.max_width, options.height or console.height):
            yield from line.render(console, end="\n")  # laid out already: nothing to wrap or pad

    def lines(self, console: Console, width: int, height: int) -> Block:
        """The picture: `height` lines of `width` cells."""
        top = [self._title(width), *self._progress(width)]
        if self.headline is not None:
            top = [ends(*self.headline, width), *top]
        messages = self._messages(console, width, height)
        body = self._body(console, width, height - len(top) - len(messages) - 1)
        return pile([*top, *body, *messages, self._footer(width)], width, height)

    @property
    def state(self) -> RunState:
        """What the run is doing; what nobody trains, and did not say how it ended, was killed."""
        has_ended = self.view.ending is not None
        return self.view.state if has_ended or self.is_alive else RunState.KILLED

    # --- its parts, from top to bottom -----------------------------------------------------------

    def _title(self, width: int) -> Text:
        words = Text.assemble((one_line(self.directory.name), "bold"))
        if self.view.worker:
            ranks = len(self.view.worker.hosts)
            several = f"{ranks} x " if ranks > 1 else ""
            words.append(f"  {several}{self.view.worker.device} {self.view.worker.dtype}")
        if self.view.plan:
            words.append(f"  {one_line(self.view.plan.model.description)}")
        state = Text(f"  {self.state}", style=_STATE_STYLES.get(self.state, "bold cyan"))
        return ends(words, state, width)

    def _progress(self, width: int) -> Block:
        """Two bars: of the run and the epoch, or before training of a phase."""
        view, now = self.view, self.now if self.is_alive else self.view.time
        elapsed = f"{format_duration(view.elapsed_seconds(now))} elapsed"
        if view.plan is None or not view.is_under_way:
            phase = view.phase
            if phase is None:
                return [_progress_line(str(self.state), 0.0, elapsed, width), Text()]
            share = phase.done / phase.total if phase.total else 0.0
            done = f"{phase.done:,} of {phase.total:,} {phase.unit}"
            return [_progress_line(phase.phase, share, elapsed, width), Text(done, style="dim")]
        left = view.seconds_left(now)
        per_epoch = view.plan.steps.micro_batches_per_epoch
        epoch = max(1, -(-view.step // per_epoch))
        return [
            _progress_line(
                f"step {view.step:,}/{view.total_steps:,}",
                view.step / view.total_steps,
                f"{format_duration(left)} left" if left is not None else "",
                width,
            ),
            _progress_line(
                f"epoch {epoch}/{view.plan.setting('train.epochs')}",
                (view.step - (epoch - 1) * per_epoch) / per_epoch,
                elapsed,
                width,
            ),
        ]

    def _body(self, console: Console, width: int, height: int) -> Block:
        """Charts, or what there is to say before there are any, beside the numbers."""
        numbers_width = _WIDE_NUMBERS_WIDTH if width >= _WIDE else _NUMBERS_WIDTH
        charts_width = width - numbers_width
        if self.shows_help:
            return framed("help", _defined([*_KEYS_HELP, *_WORDS], width, console), width, height)
        if charts_width < _LEAST_CHARTS_WIDTH:
            return self._numbers(width, height)
        if self.view.step:
            ranks = ranks_frame(self.view.recent, charts_width)
            below = ranks if height - len(ranks) >= _LEAST_CHARTS_HEIGHT else []
            left = charts(self.view, charts_width, height - len(below)) + below
        else:
            left = self._plan(console, charts_width, height)
        return beside(left, self._beside_charts(console, numbers_width, height))

    def _beside_charts(self, console: Console, width: int, height: int) -> Block:
        """The numbers, and below them the plan where there is room for it."""
        whole = len(self._number_lines(width, gap=True)) + 2
        groups = group_lines(self.view.held_out, width - 4)
        rest = height - whole
        if not self.view.step or rest < len(self._plan_lines(console, width)) + 2:
            return self._numbers(width, height)
        block = self._numbers(width, whole)
        if groups and rest - len(groups) - 2 >= len(self._plan_lines(console, width)) + 2:
            block += framed(GROUPS_TITLE, groups, width, len(groups) + 2)
        return block + self._plan(console, width, height - len(block))

    def _numbers(self, width: int, height: int) -> Block:
        gap = height >= len(self._number_lines(width, gap=True)) + 2
        return framed(TITLE, self._number_lines(width, gap=gap), width, height)

    def _number_lines(self, width: int, *, gap: bool) -> Block:
        table = metrics_table(self.view, width - 4)
        disk = (self.disk.free_bytes, self.disk.checkpoints) if self.disk else None
        return [*table, *([Text()] if gap else []), *figures(self.view, self.now, disk)]

    def _plan(self, console: Console, width: int, height: int) -> Block:
        return framed("plan", self._plan_lines(console, width), width, height)

    def _plan_lines(self, console: Console, width: int) -> Block:
        """What was decided before the first step, for a frame of `width` cells."""
        if self.view.plan is None:
            return [Text("reading the model and the data", style="dim")]
        lines = plan_lines(self.view.plan, Path())  # its path would not fit
        return [part for line in lines for part in _hanging(line, width - 4, console)]

    def _messages(self, console: Console, width: int, height: int) -> Block:
        """How it failed, and warnings from the newest on; more of them where there is more room."""
        room = (_LEAST_FAILURE if self.view.ending else _LEAST_ALERT) + (
            height - _USUAL_HEIGHT
        ) // 3
        block: Block = []
        for kind, style, message, remedy in self._told():
            texts = [Text.assemble((f"{kind}: ", style), message)]
            if remedy:
                texts.append(Text.assemble(("help: ", "bold cyan"), remedy))
            lines = [line for text in texts for line in _wrapped(text, width, console)]
            block += lines if len(block) + len(lines) <= room else texts  # those are cut to a line
        return block[: max(0, room)]

    def _told(self) -> list[tuple[str, str, str, str]]:
        """Kind, its style, message and remedy of what is to be read, the most important first."""
        told = [("error", "bold red", *failed)] if (failed := failure(self.view)) else []
        told += [
            ("warning", "bold yellow", alert.message, alert.remedy)
            for alert in reversed(self.view.alerts.values())
        ]
        return [(kind, style, one_line(m), one_line(remedy)) for kind, style, m, remedy in told]

    def _footer(self, width: int) -> Text:
        """What is answered, and the keys; of a run that is over, the next command."""
        notice = Text(self.notice, style="bold")
        if not self.keys:
            return notice or self._what_next()
        offered = [Text.assemble((key, "bold cyan"), f" {word}") for key, word in self.keys.items()]
        keys = Text("   ").join(offered)
        return (
            ends(notice, keys, width) if notice.cell_len + keys.cell_len < width else notice or keys
        )

    def _what_next(self) -> Text:
        match self.state:
            case RunState.COMPLETED:
                command = "export"
            case RunState.STOPPED | RunState.FAILED | RunState.KILLED:
                command = "resume"
            case _:
                return Text()
        return Text.assemble((f"{command}: ", "dim"), f"dpo {command} {self.designation}")


def _progress_line(label: str, share: float, remark: str, width: int) -> Text:
    inner = max(0, width - _PROGRESS_LABEL_WIDTH - _PROGRESS_REMARK_WIDTH - 6)
    return Text.assemble(
        fit(Text(label), _PROGRESS_LABEL_WIDTH),
        bar(share, inner, "cyan"),
        f" {share:4.0%} ",
        remark.rjust(_PROGRESS_REMARK_WIDTH),
    )


def _defined(words: Iterable[tuple[str, str]], width: int, console: Console) -> Block:
    """Words and their meanings, for a frame of `width` cells."""
    lines: Block = []
    for word, meaning in words:
        text = Text.assemble((word.ljust(LABEL_WIDTH), "dim"), meaning)
        lines += _hanging(text, width - 4, console)
    return lines


def _hanging(line: Text, width: int, console: Console) -> Block:
    """A line that begins with a label, wrapped so that the label stands alone on the left."""
    label, rest = line.divide([LABEL_WIDTH])
    first, *others = _wrapped(rest, width - LABEL_WIDTH, console)
    indent = " " * LABEL_WIDTH
    return [Text.assemble(label, first), *(Text.assemble(indent, other) for other in others)]


def _wrapped(text: Text, width: int, console: Console) -> Block:
    return list(text.wrap(console, max(1, width)))

"""Section of a page about one run: groups of pairs, alerts, samples, data and plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_cli.export.usage import export_commands
from dpo_cli.formatting import format_count, format_number, format_percent, format_with_interval
from dpo_cli.intervals import HIGH, LOW
from dpo_cli.run.events import (
    ACCURACY,
    RANKING,
    Event,
    Exported,
    Failed,
    RankEnded,
    Sampled,
    WorkerStarted,
)
from dpo_cli.run.plan import PlannedPairs, part_of
from dpo_cli.ui.comparison import ComparedRun
from dpo_cli.ui.html.markup import Writer, details
from dpo_cli.ui.html.redaction import without_quotations
from dpo_cli.ui.significance import ACCURACY_MEANING, RANKING_MEANING
from dpo_cli.ui.terminal.plain import plan_facts, titled_alerts

FIGURES = (
    ("loss", "loss", ".4f"),
    ("margin", "rewards/margins", "+.3g"),
    ("margin/token", "margin_per_token", "+.3g"),
    ("KL", "kl", ".3g"),
)
"""Name, metric and format of held-out metrics, besides the accuracy."""
UNITS = "margin/token and KL in nats per token"

_MOST_ROWS = 20


@dataclass(frozen=True)
class StepTotals:
    """Sums over all steps of a run; see `StepDone`."""

    pairs: int
    tokens: int
    padding_tokens: int


@dataclass(frozen=True)
class ReportRun:
    """Run with the data for its section.

    Attributes:
        run: view, summary and settings.
        events: events of the run, without most steps if there are many.
        totals: sums over all steps.
        skipped_rows: rows of `skipped_rows.jsonl`.
    """

    run: ComparedRun
    events: Sequence[Event]
    totals: StepTotals
    skipped_rows: Sequence[Mapping[str, Any]]

    @property
    def hosts(self) -> set[str]:
        """Names of the machines in the event stream."""
        names = {event.host for event in self.events if isinstance(event, RankEnded)}
        for event in self.events:
            if isinstance(event, WorkerStarted):
                names.update(event.hosts)
        return names


class RunSection:
    """Section of a page about one run.

    Args:
        report_run: the run.
        write: builder of HTML elements.
        redact: leave out texts of data and models.
    """

    def __init__(self, report_run: ReportRun, write: Writer, *, redact: bool) -> None:
        self._report_run, self._run = report_run, report_run.run
        self._write, self._redact = write, redact

    def all(self) -> Iterator[str]:
        """Yield the parts; a part without content is empty."""
        yield self._groups()
        yield self._messages()
        yield self._samples()
        yield self._use()
        yield self._data()
        yield self._plan()

    def _groups(self) -> str:
        groups = self._run.view.held_out.groups if self._run.view.held_out else {}
        rows = []
        for name, figures in groups.items():
            rows.append(
                [
                    name,
                    f"{figures['pairs']:,.0f}",
                    _share(figures, ACCURACY),
                    _share(figures, RANKING),
                    *(format_number(figures.get(key), form) for _, key, form in FIGURES),
                ]
            )
        if not rows:
            return ""
        heads = ["group", "pairs", "accuracy (95 %)", "ranking (95 %)"]
        heads += [name for name, _, _ in FIGURES]
        return "<h3>Held-out pairs by group</h3>" + self._write.table(
            heads,
            rows,
            f"{ACCURACY_MEANING}; {RANKING_MEANING}; {UNITS}",
            "figures",
        )

    def _messages(self) -> str:
        """Return alerts and, for a failed run, the error."""
        parts = []
        for title, alert in titled_alerts(self._run.view):
            message = alert.message if title == "warning" else f"{title}: {alert.message}"
            parts.append(self._message("alert", message, alert.remedy))
        if isinstance(self._run.view.ending, Failed):
            failed = self._run.view.ending
            rest = "" if self._redact else "\n".join(failed.details)
            parts.append(self._message("alert failed", failed.message, failed.remedy, rest))
        if self._run.view.skipped_steps:
            skipped = format_count(len(self._run.view.skipped_steps), "step")
            parts.append(self._message("alert", f"{skipped} skipped: gradient not finite", ""))
        return "<h3>Alerts</h3>" + "".join(parts) if parts else ""

    def _message(self, css: str, *texts: str) -> str:
        quoted = [without_quotations(text) if self._redact else text for text in texts]
        words = "".join(self._write.tag("p", text, "words") for text in quoted if text)
        return f'<div class="{css}">{words}</div>'

    def _samples(self) -> str:
        """Return the last samples of policy and reference."""
        sampled = [event for event in self._report_run.events if isinstance(event, Sampled)]
        if not sampled or self._redact:
            return ""
        write, last = self._write, sampled[-1]
        parts = []
        for sample in last.samples:
            answers = "".join(
                f"<div>{write.tag('b', name)}{write.tag('p', text, 'words')}</div>"
                for name, text in (
                    (f"policy, after step {last.optimizer_step:,}", sample["policy"]),
                    ("reference", sample["reference"]),
                )
            )
            prompt = details(f"prompt of {sample['place']}", write.tag("pre", sample["prompt"]))
            parts.append(f'<div class="sample">{prompt}<div class="answers">{answers}</div></div>')
        return "<h3>Samples</h3>" + "".join(parts)

    def _use(self) -> str:
        """Return the commands that use each export with its stop tokens, and those that export."""
        exports = {e.path: e for e in self._report_run.events if isinstance(e, Exported)}
        if self._redact or not (exports or self._run.plan):
            return ""
        parts = []
        for path, export in exports.items():
            facts = list(export.commands.items())
            if export.stops:
                facts.append(("an answer ends with", " or ".join(export.stops)))
            lead = f"{path}: {export.dtype}, after step {export.optimizer_step:,}"
            parts.append(self._write.tag("p", lead) + self._write.facts(facts))
        shape = self._run.plan.model.shape if self._run.plan else {}
        commands = export_commands(self._run.name, is_minimind="config" not in shape)
        return "<h3>Use</h3>" + "".join(parts) + self._write.facts(commands.items())

    def _data(self) -> str:
        plan = self._run.plan
        if plan is None:
            return ""
        totals = self._report_run.totals
        facts: list[tuple[str, object]] = [
            ("pairs kept", f"{plan.pairs.kept:,}"),
            ("held-out pairs", f"{plan.pairs.held_out:,}"),
            ("skipped rows", f"{plan.pairs.skipped_rows:,}"),
            *_truncation_and_leak(plan.pairs),
            ("columns not read", ", ".join(plan.pairs.unread_columns) or "none"),
            ("data.max_seq_len", f"{plan.setting('data.max_seq_len'):,} tokens"),
        ]
        tokens, trained = totals.tokens, totals.pairs
        if tokens and trained:
            padding = totals.padding_tokens / tokens
            facts.append(("computed", f"{tokens:,} tokens over {format_count(trained, 'pair')}"))
            share = f"{format_percent(padding, 1)} padding"
            facts.append(("per pair", f"{tokens / trained:,.0f} tokens, {share}"))
        problems = Counter(str(row.get("problem", "")) for row in self._report_run.skipped_rows)
        facts += [(f"skipped: {problem}", f"{number:,}") for problem, number in problems.items()]
        body = self._write.facts(facts)
        if self._report_run.skipped_rows and not self._redact:
            shown = self._report_run.skipped_rows[:_MOST_ROWS]
            rows = [[_place(row), row.get("problem"), row.get("reason")] for row in shown]
            caption = f"the first {len(shown)} of {len(self._report_run.skipped_rows):,}"
            body += details(
                "Skipped rows",
                self._write.table(["row", "problem", "reason"], rows, caption),
            )
        return "<h3>Data</h3>" + body

    def _plan(self) -> str:
        plan = self._run.plan
        if plan is None:
            return ""
        write, worker = self._write, self._run.view.worker
        machine: list[tuple[str, object]] = [
            (name.replace("_", " "), value) for name, value in plan.environment.items()
        ]
        if worker is not None:
            machine.append(("device", f"{worker.device} {worker.device_name}"))
            machine += list(worker.versions.items())
            if worker.hosts and not self._redact:
                machine.append(("hosts", ", ".join(dict.fromkeys(worker.hosts))))
        prints = plan.fingerprints
        return "".join(
            [
                "<h3>Plan</h3>",
                write.facts(plan_facts(plan, Path(self._run.name))),
                details(
                    "Profile",
                    write.tag("pre", _toml(self._run.settings)) if self._run.settings else "",
                ),
                details("Environment", write.facts(dict(machine).items()) if machine else ""),
                details("SHA-256 of the inputs", write.facts(prints.items()) if prints else ""),
            ]
        )


def _truncation_and_leak(pairs: PlannedPairs) -> Iterator[tuple[str, str]]:
    if pairs.truncated is not None:
        yield "truncated pairs", part_of(pairs.truncated, pairs.kept)
    if pairs.held_out and pairs.held_out_truncated is not None:
        yield "truncated held-out pairs", part_of(pairs.held_out_truncated, pairs.held_out)
        yield "held-out prompts also trained on", part_of(pairs.held_out_known, pairs.held_out)


def _share(figures: Mapping[str, float], name: str) -> str:
    if name + LOW not in figures:
        return format_number(figures.get(name), ".2f")
    return format_with_interval(figures[name], figures[name + LOW], figures[name + HIGH])


def _toml(settings: Mapping[str, Any]) -> str:
    import tomli_w

    return tomli_w.dumps(settings)


def _place(row: Mapping[str, Any]) -> str:
    """Return line and, with several files, the file of a skipped row."""
    return " of ".join(str(row[name]) for name in ("line", "file") if name in row)

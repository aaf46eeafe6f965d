"""Report as one HTML file that needs no network, no other file and no script."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from dpo_cli import __version__
from dpo_cli.formatting import (
    MISSING,
    format_duration,
    format_number,
    format_progress,
    format_with_interval,
)
from dpo_cli.run.events import ACCURACY
from dpo_cli.run.verdict import verdict_of
from dpo_cli.ui.comparison import ComparedRun, differences, notes
from dpo_cli.ui.html.charts import COLORS, Chart, charts_of
from dpo_cli.ui.html.markup import Writer, section
from dpo_cli.ui.html.redaction import Redactor, file_names, without_quotations
from dpo_cli.ui.html.run_section import FIGURES, UNITS, ReportRun, RunSection
from dpo_cli.ui.html.svg import HEIGHT, STYLE, WIDTH, Frame, chart_markup, summary
from dpo_cli.ui.outcome import outcome
from dpo_cli.ui.terminal.plain import step_name


def page(
    runs: Sequence[ReportRun],
    findings: Sequence[Mapping[str, Any]] = (),
    *,
    redact: bool = False,
    hosts: Sequence[str] = (),
) -> str:
    """Return the content of the HTML file.

    Args:
        runs: at least one run.
        findings: output of `dpo check --json`.
        redact: remove paths, host names and texts.
        hosts: names of machines to remove, in addition to those in the event streams.
    """
    return _Page(runs, findings, redact, hosts).whole()


class _Page:
    def __init__(
        self,
        runs: Sequence[ReportRun],
        findings: Sequence[Mapping[str, Any]],
        redact: bool,
        hosts: Sequence[str],
    ) -> None:
        self._report_runs, self._findings, self._redact = runs, findings, redact
        self._runs = [each.run for each in runs]
        self._verdicts = {run.letter: verdict_of(run.view) for run in self._runs}
        self._write = Writer(Redactor(self._secrets(hosts)) if redact else lambda text: text)

    def whole(self) -> str:
        write = self._write
        script = files("dpo_cli.ui.html").joinpath("page.js").read_text(encoding="utf-8")
        style = files("dpo_cli.ui.html").joinpath("page.css").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        # The page may contain texts from data and models. The policy allows only this script, so
        # that nothing else runs or is loaded, even if an escape were missing.
        policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        title = f"dpo: {', '.join(run.name for run in self._runs)}"
        charts = charts_of(self._runs)
        return "".join(
            [
                '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                write.tag("title", title),
                f"<style>\n{STYLE}\n{style}</style></head><body>",
                f"<header>{self._header()}</header><main>",
                *self._body(charts),
                f"</main><footer>written by dpo {__version__}"
                f"{'; paths, host names and texts were removed' if self._redact else ''}</footer>",
                write.data("curves", [_chart_data(chart) for chart in charts]),
                f"<script>{script}</script></body></html>\n",
            ]
        )

    def _body(self, charts: Sequence[Chart]) -> Iterator[str]:
        if len(self._runs) > 1:
            yield section("Figures", self._figures(), self._notes())
            yield section("Differences", self._differences())
        yield section("Curves", self._curves(charts))
        if self._findings:
            yield section("Check", self._checks())
        for report_run in self._report_runs:
            run, several = report_run.run, len(self._report_runs) > 1
            name = f"Run {run.letter}: {self._hidden(run.name)}" if several else "Run"
            yield section(
                name,
                *RunSection(report_run, self._write, redact=self._redact).all(),
            )

    # --- parts -----------------------------------------------------------------------------------

    def _header(self) -> str:
        write, [first, *others] = self._write, self._report_runs
        if not others:
            run = first.run
            model = run.model or "no plan"
            lead = f"{model} · {run.summary.state}{_when(run)}"
            parts = [write.tag("h1", run.name), write.tag("p", lead, "lead"), self._cards(first)]
            return "".join([*parts, self._verdict(run), self._outcome(run)])
        items = []
        for number, run in enumerate(self._runs):
            model = run.model or "no plan"
            mark = f'<circle class="d{number % COLORS}" cx="6" cy="6" r="6"/>'
            words = f" · {model} · {run.summary.state}{_when(run)}"
            items.append(
                f'<li><svg class="chart" viewBox="0 0 12 12" aria-hidden="true">{mark}</svg>'
                f"<b>{run.letter} {write.text(run.name)}</b>{write.text(words)}</li>"
            )
        verdicts = "".join(map(self._verdict, self._runs))
        return f'<h1>{len(self._runs)} runs</h1><ul class="legend">{"".join(items)}</ul>{verdicts}'

    def _verdict(self, run: ComparedRun) -> str:
        """Return the harm that a run did, and what to try."""
        verdict = self._verdicts[run.letter]
        if verdict is None:
            return ""
        name = f"{run.letter}: worse" if len(self._runs) > 1 else "Worse"
        message = self._write.tag("p", f"{name}: {verdict.message}", "error")
        return f'<div class="alert failed">{message}{self._write.tag("p", verdict.remedy)}</div>'

    def _cards(self, report_run: ReportRun) -> str:
        run, write = report_run.run, self._write
        cards = [
            (format_progress(run.summary.step, run.summary.total_steps), f"{step_name(run.plan)}s"),
            (format_number(run.view.recent_mean("loss"), ".4f"), "training loss, last steps"),
        ]
        if run.view.held_out is not None:
            metrics = run.view.held_out.metrics
            share = metrics.get(ACCURACY)
            cards.append((format_number(share, ".2f"), "held-out accuracy"))
            cards += [
                (format_number(metrics.get(key), form), f"held-out {name}")
                for name, key, form in FIGURES
            ]
        cards.append((format_duration(run.summary.seconds), "training time"))
        body = "".join(
            f"<div>{write.tag('b', value)}{write.tag('span', name)}</div>" for value, name in cards
        )
        return f'<div class="cards">{body}</div>'

    def _outcome(self, run: ComparedRun) -> str:
        """Return sentences on what the run has learned, unless the verdict has said more."""
        sentences = outcome(run) if self._verdicts[run.letter] is None else []
        return self._write.tag("p", " ".join(sentences), "note") if sentences else ""

    def _figures(self) -> str:
        steps = f"{step_name(*(run.plan for run in self._runs))}s"
        heads = ["run", steps, "training loss", "accuracy (95 %)", "pairs"]
        heads += [name for name, _, _ in FIGURES] + ["time"]
        rows = []
        for run in self._runs:
            held_out = run.view.held_out
            metrics = held_out.metrics if held_out else {}
            rows.append(
                [
                    run.letter,
                    format_progress(run.summary.step, run.summary.total_steps),
                    format_number(run.view.recent_mean("loss"), ".4f"),
                    _accuracy(run),
                    f"{held_out.pairs:,}" if held_out else MISSING,
                    *(format_number(metrics.get(key), form) for _, key, form in FIGURES),
                    format_duration(run.summary.seconds),
                ]
            )
        return self._write.table(
            heads,
            rows,
            f"on the held-out pairs, except the training loss (last steps); {UNITS}",
            "figures",
        )

    def _notes(self) -> str:
        return "".join(self._write.tag("p", note, "note") for note in notes(self._runs))

    def _differences(self) -> str:
        letters = [run.letter for run in self._runs]
        rows = []
        for each in differences(self._runs):
            groups = each.groups(letters).items()
            values = [f"{' '.join(group)}: {value}" for value, group in groups]
            rows.append([each.key, " · ".join(values)])
        if not rows:
            return self._write.tag("p", "none: profiles, files, devices and versions are identical")
        return self._write.table(["key", "runs: value"], rows, "settings and facts that differ")

    def _curves(self, charts: Sequence[Chart]) -> str:
        write = self._write
        drawn = []
        for number, chart in enumerate(charts):
            description, title = write.text(summary(chart)), write.text(chart.title)
            drawn.append(
                f'<figure data-chart="{number}" tabindex="0" aria-label="{title}">'
                f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" '
                f'aria-label="{description}">'
                f"{chart_markup(chart)}</svg></figure>"
            )
        if not drawn:
            return write.tag("p", "not enough steps for a curve", "lead")
        if len(self._runs) > 1:
            words = "One color per run; curves over training pairs are smoothed."
        else:
            words = "Thick lines are smoothed; thin lines are the measured values."
        if any(line.intervals for chart in charts for line in chart.lines):
            words += " Bars are 95 % intervals."
        return f'{write.tag("p", words, "lead")}<div class="charts">{"".join(drawn)}</div>'

    def _checks(self) -> str:
        write, parts = self._write, []
        for finding in self._findings:
            level, code = str(finding.get("level", "")), str(finding.get("code", ""))
            texts = [str(finding.get(key, "")) for key in ("subject", "message", "remedy")]
            css = level if level in ("ok", "warn", "error", "skip") else ""
            if self._redact:
                texts = [without_quotations(text) for text in texts]
            words = " · ".join(filter(None, texts))
            parts.append(f"<dt>{write.tag('b', level, css)} {write.text(code)}</dt>")
            parts.append(write.tag("dd", words))
        return f"<dl>{''.join(parts)}</dl>"

    # --- redaction -------------------------------------------------------------------------------

    def _hidden(self, text: str) -> str:
        return Redactor(())(text) if self._redact else text

    def _secrets(self, hosts: Sequence[str]) -> Iterator[str]:
        yield from hosts
        for report_run in self._report_runs:
            yield from report_run.hosts
            for table in report_run.run.settings.values():
                yield from file_names(table.values())
            if (plan := report_run.run.plan) is not None:
                yield from file_names([plan.model.weights_file])


def _chart_data(chart: Chart) -> dict[str, Any]:
    """Return the values that the script shows under the pointer."""
    lines = []
    for line in chart.lines:
        data: dict[str, Any] = {
            "name": f"{line.letter} {line.name}".strip(),
            "color": line.color,
            "points": [[_short(step), _short(value)] for step, value in line.points],
        }
        if line.raw:
            data["raw"] = [_short(value) for value in line.raw]
        if line.intervals:
            data["intervals"] = [[_short(end) for end in ends] for ends in line.intervals]
        lines.append(data)
    return {**Frame.of(chart).box(), "x_name": chart.x_name, "lines": lines}


def _short(value: float) -> float:  # six digits are enough for a page and keep it small
    return float(f"{value:.6g}")


def _accuracy(run: ComparedRun) -> str:
    if run.accuracy is None:
        return MISSING
    share, (low, high) = run.accuracy
    return format_with_interval(share, low, high)


def _when(run: ComparedRun) -> str:
    if run.summary.started is None:
        return ""
    return time.strftime(", started %Y-%m-%d %H:%M UTC", time.gmtime(run.summary.started))

"""A report as one HTML file: it needs no network, no other file, and no script to be read."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from dpo_cli import __version__
from dpo_cli.formatting import (
    format_count,
    format_duration,
    format_number,
    format_progress,
    format_with_interval,
)
from dpo_cli.ui.comparison import ComparedRun, differences, notes
from dpo_cli.ui.html.charts import COLORS, Chart, charts_of
from dpo_cli.ui.html.markup import Writer, section
from dpo_cli.ui.html.redaction import Redactor, file_names, without_quotations
from dpo_cli.ui.html.run_section import FIGURES, UNITS, ReportRun, RunSection
from dpo_cli.ui.html.svg import HEIGHT, STYLE, WIDTH, Frame, chart_markup, summary

_FEW_PAIRS = 200
"""Of fewer held-out pairs the interval is worth a sentence."""


def page(
    dossiers: Sequence[ReportRun],
    findings: Sequence[Mapping[str, Any]] = (),
    *,
    redact: bool = False,
    hosts: Sequence[str] = (),
) -> str:
    """The whole file.

    Args:
        dossiers: of the runs, at least one.
        findings: of `dpo check --json`.
        redact: leave out paths, host names and texts.
        hosts: names of machines to leave out, beside those that the streams name.
    """
    return _Page(dossiers, findings, redact, hosts).whole()


class _Page:
    def __init__(
        self,
        dossiers: Sequence[ReportRun],
        findings: Sequence[Mapping[str, Any]],
        redact: bool,
        hosts: Sequence[str],
    ) -> None:
        self._dossiers, self._findings, self._redact = dossiers, findings, redact
        self._runs = [dossier.run for dossier in dossiers]
        self._write = Writer(Redactor(self._secrets(hosts)) if redact else lambda text: text)

    def whole(self) -> str:
        write = self._write
        script = files("dpo_cli.ui.html").joinpath("page.js").read_text(encoding="utf-8")
        style = files("dpo_cli.ui.html").joinpath("page.css").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
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
                f"{'; paths, host names and texts are left out' if self._redact else ''}</footer>",
                write.data("curves", [_chart_data(chart) for chart in charts]),
                f"<script>{script}</script></body></html>\n",
            ]
        )

    def _body(self, charts: Sequence[Chart]) -> Iterator[str]:
        if len(self._runs) > 1:
            yield section("Figures", self._figures(), self._notes())
            yield section("What differs", self._differences())
        yield section("Curves", self._curves(charts))
        if self._findings:
            yield section("What the check found", self._checks())
        for dossier in self._dossiers:
            run, several = dossier.run, len(self._dossiers) > 1
            name = f"Run {run.letter}: {self._hidden(run.name)}" if several else "The run"
            yield section(
                name,
                *RunSection(dossier, self._write, redact=self._redact).all(),
            )

    # --- parts -----------------------------------------------------------------------------------

    def _header(self) -> str:
        write, [first, *others] = self._write, self._dossiers
        if not others:
            run = first.run
            model = run.model or "never planned"
            lead = f"{model} · {run.summary.state}{_when(run)}"
            parts = [write.tag("h1", run.name), write.tag("p", lead, "lead"), self._cards(first)]
            return "".join([*parts, self._caution(run)])
        items = []
        for number, run in enumerate(self._runs):
            model = run.model or "never planned"
            mark = f'<circle class="d{number % COLORS}" cx="6" cy="6" r="6"/>'
            words = f" · {model} · {run.summary.state}{_when(run)}"
            items.append(
                f'<li><svg class="chart" viewBox="0 0 12 12" aria-hidden="true">{mark}</svg>'
                f"<b>{run.letter} {write.text(run.name)}</b>{write.text(words)}</li>"
            )
        return f'<h1>{len(self._runs)} runs</h1><ul class="legend">{"".join(items)}</ul>'

    def _cards(self, dossier: ReportRun) -> str:
        run, write = dossier.run, self._write
        total = run.summary.total_steps
        cards = [
            (f"{run.summary.step:,} / {'?' if total is None else f'{total:,}'}", "steps"),
            (format_number(run.view.recent_mean("loss"), ".4f"), "training loss, last steps"),
        ]
        if run.view.held_out is not None:
            metrics, pairs = run.view.held_out.metrics, run.view.held_out.pairs
            if run.accuracy is not None:
                share, (low, high) = run.accuracy
                over = f"{low:.2f} to {high:.2f} at 95 %, {format_count(pairs, 'pair')}"
                cards.append((f"{share:.2f}", f"held-out accuracy: {over}"))
            cards += [
                (format_number(metrics.get(key), form), f"held-out {name}")
                for name, key, form in FIGURES
            ]
        if run.view.weights_moved is not None:
            cards.append((f"{run.view.weights_moved:.1%}", "of weights changed in half precision"))
        cards.append((format_duration(run.summary.seconds), "of training"))
        body = "".join(
            f"<div>{write.tag('b', value)}{write.tag('span', name)}</div>" for value, name in cards
        )
        return f'<div class="cards">{body}</div>'

    def _caution(self, run: ComparedRun) -> str:
        if run.accuracy is None or run.view.held_out is None:
            return ""
        pairs = run.view.held_out.pairs
        if pairs >= _FEW_PAIRS:
            return ""
        share, (low, high) = run.accuracy
        return self._write.tag(
            "p",
            f"Only {format_count(pairs, 'held-out pair')}: an accuracy of {share:.2f} over so few"
            f" means something between {low:.2f} and {high:.2f} (95 %, Wilson).",
            "note",
        )

    def _figures(self) -> str:
        heads = ["run", "steps", "training loss", "accuracy (95 %)", "pairs"]
        heads += [name for name, _, _ in FIGURES] + ["time"]
        rows = []
        for run in self._runs:
            held_out = run.view.held_out
            metrics = held_out.metrics if held_out else {}
            total = run.summary.total_steps
            rows.append(
                [
                    run.letter,
                    format_progress(run.summary.step, total),
                    format_number(run.view.recent_mean("loss"), ".4f"),
                    _accuracy(run),
                    f"{held_out.pairs:,}" if held_out else "–",
                    *(format_number(metrics.get(key), form) for _, key, form in FIGURES),
                    format_duration(run.summary.seconds),
                ]
            )
        return self._write.table(
            heads,
            rows,
            f"over the held-out pairs but for the training loss (last steps); {UNITS}",
            "figures",
        )

    def _notes(self) -> str:
        return "".join(self._write.tag("p", note, "note") for note in notes(self._runs))

    def _differences(self) -> str:
        letters = [run.letter for run in self._runs]
        rows = []
        for each in differences(self._runs):
            its = [f"{' '.join(who)}: {value}" for value, who in each.groups(letters).items()]
            rows.append([each.key, " · ".join(its)])
        if not rows:
            return self._write.tag("p", "nothing: profiles, files, devices and versions are one")
        return self._write.table(["key", "runs: value"], rows, "values that not all runs have")

    def _curves(self, charts: Sequence[Chart]) -> str:
        write = self._write
        drawn = []
        for number, chart in enumerate(charts):
            told, title = write.text(summary(chart)), write.text(chart.title)
            drawn.append(
                f'<figure data-chart="{number}" tabindex="0" aria-label="{title}">'
                f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="{told}">'
                f"{chart_markup(chart)}</svg></figure>"
            )
        if not drawn:
            return write.tag("p", "too few steps are done for a curve", "lead")
        if len(self._runs) > 1:
            words = "One color a run; lines over training pairs are smoothed."
        else:
            words = "Thick lines are smoothed, thin ones are what was measured."
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

    # --- what is left out ------------------------------------------------------------------------

    def _hidden(self, text: str) -> str:
        return Redactor(())(text) if self._redact else text

    def _secrets(self, hosts: Sequence[str]) -> Iterator[str]:
        yield from hosts
        for dossier in self._dossiers:
            yield from dossier.hosts
            for table in dossier.run.settings.values():
                yield from file_names(table.values())
            if (plan := dossier.run.plan) is not None:
                yield from file_names([plan.model.weights_file])


def _chart_data(chart: Chart) -> dict[str, Any]:
    """What the script needs to find the values under the pointer."""
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
    return {**Frame.of(chart).box(), "lines": lines}


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _accuracy(run: ComparedRun) -> str:
    if run.accuracy is None:
        return "–"
    share, (low, high) = run.accuracy
    return format_with_interval(share, low, high)


def _when(run: ComparedRun) -> str:
    if run.summary.started is None:
        return ""
    return time.strftime(", started %Y-%m-%d %H:%M UTC", time.gmtime(run.summary.started))

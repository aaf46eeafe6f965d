"""The README.md of an exported directory: what the model is, and how it came about.

Everything in it is a figure or a setting; no path, host name or text of anybody's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dpo_cli import __version__
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.profile.schema import KEYS
from dpo_cli.profile.table import Kind
from dpo_cli.profile.text import show_value
from dpo_cli.run.events import Evaluated, Event
from dpo_cli.run.plan import Plan

MARK = "<!-- written by dpo export -->"
"""By which a card of ours is known."""
_FIGURES = {
    "loss": "loss",
    "rewards/accuracies": "share of pairs told apart",
    "rewards/margins": "reward margin",
    "margin_per_token": "gap between chosen and rejected, nats a token",
    "kl": "KL from the reference, nats a token",
}
_UNSAID = ("launch.", "export.", "eval.num_samples")
"""What says nothing of the model."""


def model_card(
    plan: Plan,
    events: Sequence[Event],
    architecture: HuggingFace,
    dtype: str,
    optimizer_step: int,
) -> str:
    """The text.

    Args:
        plan: of the run.
        events: its stream.
        architecture: as the directory states it.
        dtype: of the weights.
        optimizer_step: after which they were taken.
    """
    return "\n".join(_lines(plan, events, architecture, dtype, optimizer_step)) + "\n"


def _lines(
    plan: Plan,
    events: Sequence[Event],
    architecture: HuggingFace,
    dtype: str,
    optimizer_step: int,
) -> Iterator[str]:
    pairs = plan.pairs
    yield from ("---", "library_name: transformers", "pipeline_tag: text-generation")
    yield from ("tags:", "- dpo", "---", "", MARK, "")
    yield f"# {architecture.class_name}, trained on preferences"
    yield ""
    yield (
        f"{plan.model.description}: {plan.model.parameters:,} parameters in {dtype}, after"
        f" {optimizer_step:,} of {plan.steps.optimizer_steps:,} updates by `dpo` {__version__}."
    )
    yield from ("", "## Data", "")
    yield (
        f"{pairs.kept:,} preference pairs, of at most {plan.setting('data.max_seq_len'):,} tokens a"
        f" side; {pairs.skipped_rows:,} rows set aside, {pairs.held_out:,} pairs held out."
    )
    yield from ("", "SHA-256 of what went in:", "")
    for name, digest in plan.fingerprints.items():
        yield f"- {name.replace('_', ' ')}: `{digest}`"
    yield from ("", "## Results", "")
    yield from _results(events, optimizer_step)
    yield from ("", "## Profile", "", "```toml")
    for table, settings in plan.settings.items():
        told = {key: its for key, its in settings.items() if _is_told(f"{table}.{key}")}
        if told:
            yield f"[{table}]"
            yield from (f"{key} = {show_value(its)}" for key, its in told.items())
    yield "```"
    versions = plan.environment
    yield from ("", f"torch {versions['torch']}, transformers {versions['transformers']}.")


def _results(events: Sequence[Event], optimizer_step: int) -> Iterator[str]:
    """The held-out figures before the first update, and those nearest to the exported state."""
    evaluations = [
        event
        for event in events
        if isinstance(event, Evaluated) and event.optimizer_step <= optimizer_step
    ]
    if not evaluations:
        yield "No pairs were held out: nothing is known of pairs that it has not seen."
        return
    first, last = evaluations[0], evaluations[-1]
    yield f"On {last.pairs:,} held-out pairs, before and after update {last.optimizer_step:,}:"
    yield from ("", "| figure | before | after |", "|---|---|---|")
    for metric, words in _FIGURES.items():
        if metric in last.metrics:
            yield f"| {words} | {first.metrics[metric]:.4g} | {last.metrics[metric]:.4g} |"


def _is_told(key: str) -> bool:
    return KEYS[key].kind is Kind.PLAIN and not key.startswith(_UNSAID)

"""Model card (README.md) of an exported directory.

It has figures and settings only, because it may be published: no path, host name or user text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dpo_cli import __version__
from dpo_cli.formatting import format_number
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.spec import architecture_of
from dpo_cli.profile.schema import KEYS
from dpo_cli.profile.table import Kind
from dpo_cli.profile.text import show_value
from dpo_cli.run.events import ACCURACY, Evaluated, Event
from dpo_cli.run.plan import Plan

MARK = "<!-- written by dpo export -->"
"""Comment by which a later export recognizes the card."""
_METRICS = {
    "loss": "loss",
    ACCURACY: "accuracy",
    "rewards/margins": "reward margin",
    "margin_per_token": "margin per token, nats",
    "kl": "KL from the reference, nats per token",
}
_OMITTED = ("launch.", "export.", "eval.num_samples")
"""Keys without an influence on the model."""


def model_card(
    plan: Plan,
    events: Sequence[Event],
    architecture: HuggingFace,
    dtype: str,
    optimizer_step: int,
) -> str:
    """Format the model card of the checkpoint at `optimizer_step`.

    Args:
        plan, events: plan and events of the run.
        architecture, dtype: architecture and dtype of the exported directory.
        optimizer_step: step of the exported checkpoint.
    """
    # Not the plan's own description, which may name prefixes from the user's file.
    trained = architecture_of(plan.model.shape)
    pairs, versions = plan.pairs, plan.environment
    lines = [
        *("---", "library_name: transformers", "pipeline_tag: text-generation"),
        *("tags:", "- dpo", "---", "", MARK, ""),
        f"# {architecture.name}, trained with direct preference optimization",
        "",
        f"{trained.description}: {plan.model.parameters:,} parameters in {dtype}, after"
        f" {optimizer_step:,} of {plan.steps.optimizer_steps:,} steps with `dpo` {__version__}.",
        *("", "## Data", ""),
        f"{pairs.kept:,} preference pairs with at most {plan.setting('data.max_seq_len'):,} tokens"
        f" per side; {pairs.skipped_rows:,} rows skipped, {pairs.held_out:,} pairs held out.",
        *(f"\n{caveat}." for caveat in pairs.caveats()),
        *("", "SHA-256 of the inputs:", ""),
        *(f"- {name.replace('_', ' ')}: `{digest}`" for name, digest in plan.fingerprints.items()),
        *("", "## Results", "", *_results(events, optimizer_step)),
        *("", "## Profile", "", "```toml", *_settings(plan), "```"),
        *("", f"torch {versions['torch']}, transformers {versions['transformers']}."),
    ]
    return "\n".join(lines) + "\n"


def _results(events: Sequence[Event], optimizer_step: int) -> Iterator[str]:
    """Format the held-out metrics at step 0, and the last ones before the exported checkpoint."""
    evaluations = [
        event
        for event in events
        if isinstance(event, Evaluated) and event.optimizer_step <= optimizer_step
    ]
    if not evaluations:
        yield "No pairs were held out, so there are no results on unseen pairs."
        return
    first, last = evaluations[0], evaluations[-1]
    yield f"On {last.pairs:,} held-out pairs, before and after step {last.optimizer_step:,}:"
    yield from ("", "| metric | before | after |", "|---|---|---|")
    for metric, title in _METRICS.items():
        if metric in last.metrics:
            before = format_number(first.metrics.get(metric), ".4g")
            yield f"| {title} | {before} | {last.metrics[metric]:.4g} |"


def _settings(plan: Plan) -> Iterator[str]:
    """Format the settings as TOML, without paths and without keys that do not affect the model."""
    for table, settings in plan.settings.items():
        if table == "lora" and plan.model.trained_parameters is None:
            continue
        lines = [
            f"{key} = {show_value(value)}"
            for key, value in settings.items()
            if KEYS[f"{table}.{key}"].kind is Kind.PLAIN
            and not f"{table}.{key}".startswith(_OMITTED)
        ]
        if lines:
            yield from (f"[{table}]", *lines)

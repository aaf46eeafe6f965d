"""Model card (README.md) of an exported model.

It has figures and settings only, because it may be published: no path, host name or user text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_cli import __version__
from dpo_cli.export.try_command import try_command
from dpo_cli.export.update_retention import UpdateRetention
from dpo_cli.export.usage import card_section
from dpo_cli.formatting import format_number, format_percent
from dpo_cli.hub.download import PREFIX, is_on_hub
from dpo_cli.intervals import HIGH, LOW
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.minimind import MiniMind
from dpo_cli.models.rounding import Rounding
from dpo_cli.models.spec import Architecture, architecture_of
from dpo_cli.profile.schema import KEYS
from dpo_cli.profile.table import Kind
from dpo_cli.profile.text import show_value
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import ACCURACY, Evaluated, history
from dpo_cli.run.held_out_scores import loss_change, read_scores
from dpo_cli.run.plan import Plan

MARK = "<!-- written by dpo export -->"
"""Comment by which a later export, or an upload, recognizes the card."""
_METRICS = {
    "loss": "loss",
    ACCURACY: "accuracy",
    "rewards/margins": "reward margin",
    "margin_per_token": "margin per token, nats",
    "kl": "KL from the reference, nats per token",
}
_OMITTED = ("launch.", "export.", "eval.num_samples")
"""Keys without an influence on the model."""


@dataclass(frozen=True)
class ExportedWeights:
    """Exported weights, as the card describes them.

    Attributes:
        architecture: architecture of the directory or file.
        dtype, rounding, seed: precision of the weights; see `dpo_cli.export.export.ExportReport`.
        optimizer_step: step of the exported checkpoint.
        retention: share of the update in the weights; None if it is not known.
        mean_logp_difference: mean difference of the log-probs from the training state, in nats per
            token; None if it is not known.
        stops: texts of the tokens at which generation stops; empty if they are not known.
        stop_warning: why answers would not end there; "" if they do.
    """

    architecture: Architecture
    dtype: str
    rounding: Rounding
    seed: int | None
    optimizer_step: int
    retention: UpdateRetention | None = None
    mean_logp_difference: float | None = None
    stops: tuple[str, ...] = ()
    stop_warning: str = ""


def model_card(run: RunDirectory, plan: Plan, weights: ExportedWeights) -> str:
    """Format the model card of exported weights.

    Args:
        run, plan: the run, and its plan.
        weights: the exported weights.
    """
    # Not the plan's own description, which may name prefixes from the user's file.
    trained = architecture_of(plan.model.shape)
    pairs, versions = plan.pairs, plan.environment
    is_directory = isinstance(weights.architecture, HuggingFace)
    library = ("library_name: transformers",) if is_directory else ()
    step = weights.optimizer_step
    base, data_sets = _hub_model(plan), _hub_data_sets(plan)
    title = base.partition("/")[2] if base else weights.architecture.name
    lines = [
        *("---", *library, *_origin_header(base, data_sets), "pipeline_tag: text-generation"),
        *("tags:", "- dpo", *(() if is_directory else ("- minimind",)), "---", "", MARK, ""),
        f"# {title}, trained with direct preference optimization",
        *_starting_weights(base),
        "",
        f"{trained.description}: {plan.model.parameters:,} parameters in {weights.dtype}, after"
        f" {step:,} of {plan.steps.optimizer_steps:,} steps with `dpo` {__version__}.",
        *("", "## Use", "", *_use(weights)),
        *("", "## Data", ""),
        f"{pairs.kept:,} preference pairs with at most {plan.setting('data.max_seq_len'):,} tokens"
        f" per side; {pairs.skipped_rows:,} rows skipped, {pairs.held_out:,} pairs held out.",
        *(f"\n{caveat}." for caveat in pairs.caveats()),
        *(f"\nThey are from {_linked(data_sets)}." for _ in data_sets[:1]),
        *("", "SHA-256 of the inputs:", ""),
        *(f"- {name.replace('_', ' ')}: `{digest}`" for name, digest in plan.fingerprints.items()),
        *("", "## Results", "", *_results(run, step)),
        *("", "## Precision", "", *_precision(weights)),
        *("", "## Profile", "", "```toml", *_settings(plan), "```"),
        *("", "With this profile as `profile.toml`, and the paths of the inputs in it:"),
        *("", "```", "dpo train profile.toml", _export_command(weights), "```"),
        *("", f"torch {versions['torch']}, transformers {versions['transformers']}."),
    ]
    return "\n".join(lines) + "\n"


def _hub_model(plan: Plan) -> str:
    """Return ORG/NAME of the starting weights; "" if they are not from the Hub."""
    name = plan.setting("model.weights")
    return _repository(name) if is_on_hub(name) else ""


def _hub_data_sets(plan: Plan) -> list[str]:
    """Return ORG/NAME of each data set on the Hub, without repetition; none for local files."""
    paths = plan.setting("data.data_path")
    names = [*(paths if isinstance(paths, list) else [paths]), plan.setting("eval.path")]
    return list(dict.fromkeys(_repository(name) for name in names if is_on_hub(name)))


def _repository(name: str) -> str:
    return name.removeprefix(PREFIX).partition("@")[0].partition(":")[0]


def _origin_header(base: str, data_sets: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the header by which the Hub links model and data sets."""
    if base:
        yield f"base_model: {base}"
    if data_sets:
        yield from ("datasets:", *(f"- {name}" for name in data_sets))


def _starting_weights(base: str) -> Iterator[str]:
    if base:
        yield from ("", f"The starting weights are [`{base}`](https://huggingface.co/{base}).")


def _linked(data_sets: Sequence[str]) -> str:
    return ", ".join(f"[`{name}`](https://huggingface.co/datasets/{name})" for name in data_sets)


def _use(weights: ExportedWeights) -> Iterator[str]:
    minimind = None
    if isinstance(weights.architecture, MiniMind):
        file = Path("out") / weights.architecture.file_name("rlhf")
        command = try_command(file, weights.architecture)
        minimind = command.text if command else "python eval_llm.py"
    yield from card_section(weights.stops, weights.stop_warning, minimind)


def _results(run: RunDirectory, optimizer_step: int) -> Iterator[str]:
    """Format the held-out metrics at step 0, and the last ones before the exported checkpoint."""
    evaluations = [
        event
        for event in history(run.events_path)
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
            before, after = (_value(each, metric) for each in (first, last))
            yield f"| {title} | {before} | {after} |"
    start, now = (read_scores(run.held_out_path, each.optimizer_step) for each in (first, last))
    if last is not first and (change := loss_change(now, start)):
        yield ""
        yield (
            f"The loss changed by {change.mean:+.4f} (95 %: {change.low:+.4f} to"
            f" {change.high:+.4f}), pair by pair."
        )


def _value(evaluation: Evaluated, metric: str) -> str:
    """Format a metric; the accuracy with its 95 % interval."""
    text = format_number(evaluation.metrics.get(metric), ".4g")
    ends = evaluation.groups.get("all", {})
    if metric != ACCURACY or metric + LOW not in ends:
        return text
    return f"{text} (95 %: {ends[metric + LOW]:.2f} to {ends[metric + HIGH]:.2f})"


def _precision(weights: ExportedWeights) -> Iterator[str]:
    """Format what the file keeps of the training state."""
    text = f"The weights are {weights.dtype}"
    if weights.dtype == "float32":
        yield f"{text}, the precision of training."
    else:
        how = "to nearest" if weights.seed is None else f"stochastically, seed {weights.seed}"
        yield f"{text}, rounded {how}."
    if retention := weights.retention:
        yield (
            f"{format_percent(retention.changed)} of them differ from the starting weights; they"
            f" have {format_percent(retention.kept)} of what training changed, with rounding errors"
            f" {retention.relative_error:.3g} times as large as the change."
        )
    if weights.mean_logp_difference is not None:
        yield (
            "The log-probs of response tokens differ from those of the training state by"
            f" {weights.mean_logp_difference:.2g} nats on average."
        )


def _export_command(weights: ExportedWeights) -> str:
    form = "hf" if isinstance(weights.architecture, HuggingFace) else "pth"
    words = ["dpo export", f"--format {form}", f"--dtype {weights.dtype}"]
    if weights.dtype != "float32":
        words.append(f"--rounding {weights.rounding}")
    if weights.seed is not None:
        words.append(f"--seed {weights.seed}")
    return " ".join(words)


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

"""Metrics of each held-out pair, stored beside an evaluation so that runs compare pair by pair.

runs/<run>/held_out/step-00000400.json has the label of each pair's prompt and a list of values for
each metric: about 50 bytes a pair.
"""

from __future__ import annotations

import json
from pathlib import Path

from dpo_cli.files import read_regular, write_text_atomically
from dpo_cli.paired import ModelScores
from dpo_cli.run.view import RunView

_DIGITS = 7
"""Significant digits of a value, as many as float32 has."""


def write_scores(directory: Path, optimizer_step: int, scores: ModelScores) -> None:
    """Write the scores of the evaluation after a step; replaces those of a step that is repeated.

    Args:
        directory: directory of the scores, which is made if it does not exist.
        optimizer_step: step of the evaluation.
        scores: metrics of each held-out pair.
    """
    directory.mkdir(exist_ok=True)
    metrics = {
        name: [float(f"{value:.{_DIGITS}g}") for value in values]
        for name, values in scores.metrics.items()
    }
    text = json.dumps({"prompts": list(scores.prompts), "metrics": metrics})
    write_text_atomically(_path(directory, optimizer_step), text + "\n")


def read_scores(directory: Path, optimizer_step: int) -> ModelScores | None:
    """Read the scores of the evaluation after a step; None if they are missing or damaged."""
    try:
        content = json.loads(read_regular(_path(directory, optimizer_step)))
        prompts = [int(label) for label in content["prompts"]]
        metrics = {
            str(name): [float(value) for value in values]
            for name, values in content["metrics"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not prompts or any(len(values) != len(prompts) for values in metrics.values()):
        return None
    return ModelScores(metrics, prompts)


def read_ends(directory: Path, view: RunView) -> tuple[ModelScores | None, ModelScores | None]:
    """Read the scores of a run's last and first evaluation; see `read_scores`."""
    now, start = (
        read_scores(directory, evaluation.optimizer_step) if evaluation else None
        for evaluation in (view.held_out, view.held_out_start)
    )
    return now, start


def _path(directory: Path, optimizer_step: int) -> Path:
    return directory / f"step-{optimizer_step:08d}.json"

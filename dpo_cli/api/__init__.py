"""Train, follow, evaluate and export from Python.

Example::

    import dpo_cli as dpo

    run = dpo.train("profiles/my.toml", {"dpo.beta": 5.0})
    run.evaluate("test.jsonl")
    run.export("my-model", format="hf")

Training runs in a child process with the worker, run directory, lock and checkpoints of the command
line: `dpo watch` shows a run that a script started, and a script can resume a run of the command
line. Every failure is a `DpoError` with a message, a remedy and details.

This module loads no torch. Functions that compute with a model import it when they are called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dpo_cli.api.arguments import (
    OnProgress,
    Settings,
    as_overrides,
    ignore_progress,
    refuse_ranks,
    root_of,
)
from dpo_cli.api.evaluation import evaluate_named
from dpo_cli.api.run import Run
from dpo_cli.checks.check import run_checks
from dpo_cli.findings import Diagnosis
from dpo_cli.profile import load
from dpo_cli.profile.load import LoadedProfile
from dpo_cli.profile.source import find_profile
from dpo_cli.run.lookup import find_run, find_runs
from dpo_cli.run.models import NamedModel, find_model
from dpo_cli.run.start import new_run

if TYPE_CHECKING:
    from dpo_cli.inference.evaluate import Evaluation


def train(
    profile: str | Path,
    settings: Settings | None = None,
    *,
    name: str | None = None,
    runs_dir: str | Path | None = None,
    wait: bool = True,
    show: bool = True,
) -> Run:
    """Train a model on preference pairs as a profile describes.

    Args:
        profile: path of a TOML file, or the name of a shipped profile.
        settings: values that replace those of the profile. Relative paths start at the working
            directory.
        name: name of the run; by default the profile's.
        runs_dir: directory of the runs; by default DPO_RUNS_DIR, else "runs".
        wait: return when training ends; else at once, while training continues in the background.
        show: print progress, or draw the live panel in a notebook.

    Raises:
        UsageError: the profile is wrong or an input is missing; `details` lists everything.
        DpoError: training failed.
        KeyboardInterrupt: Ctrl-C, after the run has saved.

    Example::

        run = dpo.train("demo", {"train.epochs": 2}, wait=False)
        for event in run.events(follow=True):
            ...
    """
    refuse_ranks()
    loaded = load_profile(profile, settings)
    with new_run(loaded, root_of(runs_dir), name, keep_refused=not wait) as start:
        run = Run(start.run)
        run.launch(start)
    if wait:
        run.wait(show=show)
    return run


def open_run(name: str | Path | None = None, *, runs_dir: str | Path | None = None) -> Run:
    """Open an existing run.

    Args:
        name: directory name, a unique beginning of it, the profile's name (its newest run), or a
            path, which contains a slash. By default the newest run.
        runs_dir: directory of the runs; by default DPO_RUNS_DIR, else "runs".

    Raises:
        UsageError: there is no such run, or there are several.
        OtherVersionError: another version of dpo wrote the run.

    Example::

        dpo.open_run("my-run").resume()
    """
    return Run(find_run(root_of(runs_dir), None if name is None else str(name)))


def runs(*, runs_dir: str | Path | None = None) -> list[Run]:
    """List all runs, the newest first.

    Example::

        [run.name for run in dpo.runs() if run.view.state == "completed"]
    """
    return [Run(directory) for directory in find_runs(root_of(runs_dir))]


def load_profile(profile: str | Path, settings: Settings | None = None) -> LoadedProfile:
    """Read and validate a profile.

    Args:
        profile: path of a TOML file, or the name of a shipped profile.
        settings: values that replace those of the profile.

    Returns:
        The profile, and where each value is set.

    Raises:
        UsageError: the profile is wrong; `details` lists every wrong key.

    Example::

        dpo.load_profile("dense", {"train.epochs": 1}).profile.train.epochs
    """
    return load.load_profile(Path(profile), as_overrides(settings))


def check(
    profile: str | Path,
    settings: Settings | None = None,
    *,
    pair: str | None = None,
    quick: bool = False,
    runs_dir: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> Diagnosis:
    """Check everything a run needs before it starts; writes nothing.

    Args:
        profile: path of a TOML file, or the name of a shipped profile.
        settings: values that replace those of the profile.
        pair: row to preview, as "7" or "file.jsonl:7"; by default the first that is kept.
        quick: take no real steps; these take most of the time.
        runs_dir: directory of the runs.
        on_progress: called with phase, done, total and unit.

    Returns:
        Findings, each with level, message and remedy; `is_clean` if training may start.

    Raises:
        UsageError: there is no such profile.

    Example::

        for finding in dpo.check("profiles/my.toml").findings:
            print(finding.level, finding.message)
    """
    return run_checks(
        find_profile(Path(profile), str(profile)),
        as_overrides(settings),
        root_of(runs_dir),
        pair,
        on_progress or ignore_progress,
        takes_steps=not quick,
    )


def evaluate(
    model: str | Path | Run,
    data: str | Path | None = None,
    *,
    reference: str | Path | None = None,
    profile: str | Path | None = None,
    tokenizer: str | Path | None = None,
    best: bool = False,
    settings: Settings | None = None,
    runs_dir: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Evaluate any model on preference pairs, as a run's own evaluations do.

    Args:
        model: run, weights file, or Hugging Face directory.
        data: file or folder of pairs, or hf:ORG/NAME; by default the held-out pairs of the run or
            profile.
        reference: model to compare with; by default the reference of the run or profile.
        profile: profile for weights that belong to no run.
        tokenizer: directory of the tokenizer; by default that of the run, profile or model.
        best: use the checkpoint with the lowest held-out loss, not the newest.
        settings: changed profile values.
        runs_dir: directory of the runs.
        on_progress: called with phase, done, total and unit.

    Returns:
        Metrics by group of pairs ("all", languages, lengths) for the model.

    Raises:
        UsageError: the model or the pairs are missing, or options contradict each other.
        DpoError: an input is damaged or does not fit the others.

    Example::

        dpo.evaluate("out/rlhf_512.pth", "test.jsonl", tokenizer="model")
    """
    if isinstance(model, Run):
        named = NamedModel(model.path, model.directory)
    else:
        named = find_model(str(model), root_of(runs_dir))
    return evaluate_named(
        named,
        data,
        reference=reference,
        profile=profile,
        tokenizer=tokenizer,
        best=best,
        settings=settings,
        runs_dir=runs_dir,
        on_progress=on_progress,
    )

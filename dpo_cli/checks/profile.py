"""Checks that need only the profile and the file system; they are fast and load no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpo_cli.checks.reporter import Reporter
from dpo_cli.errors import UsageError
from dpo_cli.hub.download import is_on_hub
from dpo_cli.profile import hub
from dpo_cli.profile.inputs import INPUTS, Input, find_problems
from dpo_cli.profile.load import LoadedProfile, Problem, read_profile
from dpo_cli.profile.model_kind import KIND_TITLES
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.text import show_path
from dpo_cli.run.tracking.registry import TITLES, missing_trackers, requested_trackers

_KEYS: dict[Input, tuple[str, ...]] = {
    "data": ("data.data_path",),
    "tokenizer": ("model.tokenizer",),
    "weights": ("model.out_dir", "model.weights"),
    "reference": ("model.out_dir", "model.reference"),
    "held_out": ("eval.path",),
}
"""Keys that name the file of each input."""


def check_profile(
    reporter: Reporter, path: Path, overrides: Sequence[str]
) -> tuple[LoadedProfile, set[str]] | None:
    """Read the profile.

    Returns:
        The profile, with the default in place of each wrong value, and the keys of these; None if
        the file is not valid TOML.
    """
    subject = show_path(path)
    try:
        loaded, problems = read_profile(path, overrides)
    except UsageError as error:
        message = "\n".join([error.message, *error.details])
        reporter.error("profile-unreadable", subject, message, error.remedy)
        return None
    for problem in problems:
        _report(reporter, "profile-key", problem, problem.statement)
    if not problems:
        explicit = sum(origin != "default" for origin in loaded.origins.values())
        message = f"{explicit} keys set, {len(loaded.origins) - explicit} default"
        if loaded.kind_defaults:
            values = ", ".join(f"{key} = {each}" for key, each in loaded.kind_defaults.items())
            message += f"; defaults for {KIND_TITLES[loaded.kind]}: {values}"
        reporter.ok("profile", subject, message)
    return loaded, {problem.key for problem in problems}


def check_files(
    reporter: Reporter, loaded: LoadedProfile, wrong_keys: set[str], *, downloads: bool = True
) -> set[Input]:
    """Check that the files of the profile exist; return the inputs that cannot be used.

    Args:
        reporter: gets the findings.
        loaded: the profile.
        wrong_keys: keys of wrong values.
        downloads: download models of the Hub; otherwise those that are not cached are left out.
    """
    unknown = {name for name, keys in _KEYS.items() if not wrong_keys.isdisjoint(keys)}
    absent = set() if downloads else _not_downloaded(loaded.profile)
    if absent:
        reporter.skip("files", "models of the Hub, which --quick does not download")
    needed = set(INPUTS) - absent
    problems = {
        name: problem
        for name, problem in find_problems(loaded, needed).items()
        if name not in unknown
    }
    unknown |= absent
    # dict.fromkeys: weights and reference may fail for the same reason, which is reported once.
    for problem in dict.fromkeys(problems.values()):
        _report(reporter, "file-unusable", problem, problem.key)
    if not problems and not unknown:
        reporter.ok("files", "", "weights, tokenizer and pairs exist")
    return unknown | problems.keys()


def _not_downloaded(profile: Profile) -> set[Input]:
    """Return the inputs that are models of the Hub and are not in the cache."""
    model = profile.model
    absent: set[Input] = set()
    if model.weights and is_on_hub(model.weights) and not hub.cached(model.weights):
        absent.add("weights")
        if model.tokenizer is None:
            absent.add("tokenizer")
    if model.reference and is_on_hub(model.reference) and not hub.cached(model.reference):
        absent.add("reference")
    return absent


def check_trackers(reporter: Reporter, profile: Profile) -> None:
    """Check that the trackers in the profile are installed."""
    missing = missing_trackers(profile)
    for error in missing:
        key, _, message = error.message.partition(": ")
        reporter.error("tracker-missing", key, message, error.remedy)
    if (requested := requested_trackers(profile)) and not missing:
        reporter.ok("trackers", "", f"{', '.join(TITLES[name] for name in requested)}: installed")


def _report(reporter: Reporter, code: str, problem: Problem, statement: str) -> None:
    # `Problem.reason` has its remedy, if any, after the first "; ".
    message, _, remedy = problem.reason.partition("; ")
    subject = f"{problem.origin}  {statement}"
    reporter.error(code, subject, message, remedy or f"Correct {problem.key}, or the file.")

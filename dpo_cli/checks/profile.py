"""What needs nothing but the profile and a look at the file system: no torch, no waiting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpo_cli.checks.reporter import Reporter
from dpo_cli.errors import UsageError
from dpo_cli.profile.inputs import Input, find_problems
from dpo_cli.profile.load import LoadedProfile, Problem, read_profile
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
"""The keys that say which file an input is."""


def check_profile(
    reporter: Reporter, path: Path, overrides: Sequence[str]
) -> tuple[LoadedProfile, set[str]] | None:
    """Read the profile.

    Returns:
        The profile, with defaults in the place of wrong values, and the keys of those; None if it
        is no TOML.
    """
    subject = show_path(path)
    try:
        loaded, problems = read_profile(path, overrides)
    except UsageError as error:
        message = "\n".join([error.message, *error.details])
        reporter.error("profile-unreadable", subject, message, error.remedy)
        return None
    for problem in problems:
        _note(reporter, "profile-key", problem, problem.statement)
    if not problems:
        stated = sum(origin != "default" for origin in loaded.origins.values())
        reporter.ok(
            "profile", subject, f"{stated} keys stated, {len(loaded.origins) - stated} default"
        )
    return loaded, {problem.key for problem in problems}


def check_files(reporter: Reporter, loaded: LoadedProfile, wrong_keys: set[str]) -> set[Input]:
    """Look whether the files of the profile are there; gives those that cannot be used."""
    unknown = {name for name, keys in _KEYS.items() if not wrong_keys.isdisjoint(keys)}
    problems = {
        name: problem for name, problem in find_problems(loaded).items() if name not in unknown
    }
    # Checkpoint and reference may fail for one reason.
    for problem in dict.fromkeys(problems.values()):
        _note(reporter, "file-unusable", problem, problem.key)
    if not problems and not unknown:
        reporter.ok("files", "", "weights, tokenizer and pairs are where the profile says")
    return unknown | problems.keys()


def check_trackers(reporter: Reporter, profile: Profile) -> None:
    """Look whether the trackers are installed that the profile asks for."""
    missing = missing_trackers(profile)
    for error in missing:
        key, _, message = error.message.partition(": ")
        reporter.error("tracker-missing", key, message, error.remedy)
    if (asked := requested_trackers(profile)) and not missing:
        reporter.ok("trackers", "", f"{', '.join(TITLES[name] for name in asked)}: installed")


def _note(reporter: Reporter, code: str, problem: Problem, what: str) -> None:
    """A problem's reason says what to do after its first "; ", if it does."""
    found, _, remedy = problem.reason.partition("; ")
    subject = f"{problem.origin}  {what}"
    reporter.error(code, subject, found, remedy or f"mend {problem.key}, or what it names")

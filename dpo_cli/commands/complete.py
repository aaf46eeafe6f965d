"""Shell completion of profiles, runs and models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import typer

from dpo_cli.files import expanded
from dpo_cli.printable import one_line
from dpo_cli.profile.source import shipped_profiles
from dpo_cli.run.directory import runs_root
from dpo_cli.run.lookup import find_runs


def complete_profile(incomplete: str) -> list[str]:
    """Return shipped profiles, and TOML files in this directory and one level below."""
    names = [*shipped_profiles(), *_files(incomplete, "*.toml", "*/*.toml")]
    return _offered(names, incomplete)


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the runs, the newest first."""
    option = context.params.get("runs_dir")
    runs = find_runs(runs_root(Path(option) if option else None))
    return _offered((run.name for run in runs), incomplete)


def complete_model(context: typer.Context, incomplete: str) -> list[str]:
    """Return runs, and weights files and Hugging Face directories here and one level below."""
    files = _files(incomplete, "*.pth", "*/*.pth")
    folders = _files(incomplete, "*/config.json")
    paths = [*files, *(path.removesuffix("/config.json") for path in folders)]
    return [*complete_run(context, incomplete), *_offered(paths, incomplete)]


def _offered(names: Iterable[str], incomplete: str) -> list[str]:
    """Return the names that begin with `incomplete` and are safe to print."""
    return [name for name in names if name.startswith(incomplete) and one_line(name) == name]


def _files(incomplete: str, *patterns: str) -> Iterator[str]:
    """Yield paths that begin as the user typed them: ./x stays ./x."""
    typed = incomplete[: incomplete.rfind("/") + 1]
    folder = expanded(typed)
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            if path.name != "pyproject.toml" and not path.parent.name.startswith("."):
                yield typed + path.relative_to(folder).as_posix()

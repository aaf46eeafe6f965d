"""What the shell offers after TAB: called at every press, so nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer


def complete_profile(incomplete: str) -> list[str]:
    """Shipped profiles by name, and the TOML files here and one folder below."""
    from dpo_cli.profile.source import shipped_profiles

    names = [*shipped_profiles(), *_toml_files(incomplete)]
    return [name for name in names if name.startswith(incomplete)]


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Runs by the name of their directory, the newest first."""
    from dpo_cli.run.store import find_runs, runs_root

    option = context.params.get("runs_dir")
    runs = find_runs(runs_root(Path(option) if option else None))
    return [run.name for run in runs if run.name.startswith(incomplete)]


def complete_model(context: typer.Context, incomplete: str) -> list[str]:
    """Runs, and the weights and folders of models here and one folder below."""
    return [*complete_run(context, incomplete), *_models(incomplete)]


def _models(incomplete: str) -> Iterator[str]:
    typed = incomplete[: incomplete.rfind("/") + 1]
    folder = Path(typed).expanduser()
    for pattern in ("*.pth", "*.safetensors", "*/config.json"):
        for path in sorted(folder.glob(pattern)):
            own = path.parent if path.name == "config.json" else path
            name = typed + own.relative_to(folder).as_posix()
            if name.startswith(incomplete):
                yield name


def _toml_files(incomplete: str) -> Iterator[str]:
    """Paths begin as they were typed: ./x stays ./x."""
    typed = incomplete[: incomplete.rfind("/") + 1]
    folder = Path(typed).expanduser()
    for pattern in ("*.toml", "*/*.toml"):
        for path in sorted(folder.glob(pattern)):
            if path.name != "pyproject.toml" and not path.parent.name.startswith("."):
                yield typed + path.relative_to(folder).as_posix()

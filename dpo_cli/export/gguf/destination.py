"""Directory of an export to GGUF: its name, and whether it may be replaced."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dpo_cli.export import verified_write
from dpo_cli.export.destination import not_ours
from dpo_cli.export.gguf.modelfile import MODELFILE
from dpo_cli.files import sha256_file
from dpo_cli.profile.schema import Profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Exported, history


def default_directory(run: RunDirectory, profile: Profile, name: str) -> Path:
    """Return the directory for a model whose weights file or directory would be called `name`."""
    parent = profile.model.out_dir or run.path
    return parent / f"{name.removesuffix('.pth')}-gguf"


def check_directory(run: RunDirectory, path: Path, *, force: bool) -> None:
    """Refuse a destination that cannot be written, or that has files of another origin.

    Args:
        run: the run that is exported.
        path: absolute path of the directory.
        force: replace a directory of another run.

    Raises:
        DpoError: the destination is refused.
    """
    names = {each.name for each in path.iterdir()} if path.is_dir() else set()
    verified_write.check_directory(
        path, (name for name in names if name != MODELFILE and not name.endswith(".gguf"))
    )
    written = {event.sha256 for event in history(run.events_path) if isinstance(event, Exported)}
    if names and not force and fingerprint(path) not in written:
        raise not_ours(run, path)


def fingerprint(directory: Path) -> str:
    """Return a SHA-256 over the names and the content of all files."""
    hashes = [f"{file.name} {sha256_file(file)}\n" for file in sorted(directory.iterdir())]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()

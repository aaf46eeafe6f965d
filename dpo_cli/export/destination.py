"""Destination of an export: whether this run may replace what is there."""

from __future__ import annotations

from pathlib import Path

from dpo_cli.errors import DpoError
from dpo_cli.export.adapter_export import ADAPTER_FILES, check_adapter_destination
from dpo_cli.export.model_card import MARK
from dpo_cli.export.verified_write import check_destination
from dpo_cli.models.loading import hash_weights
from dpo_cli.models.spec import Architecture
from dpo_cli.profile import adapter_config, folder
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Exported, history
from dpo_cli.run.lookup import find_runs


def checked_destination(
    run: RunDirectory,
    destination: Path,
    written: Architecture,
    force: bool,
    *,
    is_adapter: bool = False,
) -> Path:
    """Return the absolute path; refuse to replace files that this run did not write.

    Raises:
        DpoError: the destination is refused.
    """
    destination = destination.absolute()
    if is_adapter:
        check_adapter_destination(destination)
    else:
        check_destination(destination, written)
    if not force and destination.exists() and not _is_replaceable(run, destination):
        raise not_ours(run, destination)
    return destination


def not_ours(run: RunDirectory, destination: Path) -> DpoError:
    """Return the error for a destination with files that `run` did not write.

    It names the run that wrote them, if that run is beside this one.
    """
    writer = _writer(run, destination)
    origin = "this run did not write it"
    if writer is not None:
        origin = f"{writer.designation} was exported to it, not this run"
    return DpoError(
        f"{destination} exists, and {origin}",
        "Write elsewhere with --to PATH, or replace it with --force (force=True in Python).",
    )


def _writer(run: RunDirectory, destination: Path) -> RunDirectory | None:
    """Return the run that exported to this path last; None if no run beside `run` did."""
    newest: tuple[float, RunDirectory] | None = None
    for other in find_runs(run.path.parent):
        try:
            times = [
                event.time
                for event in history(other.events_path)
                if isinstance(event, Exported) and Path(event.path) == destination
            ]
        except (DpoError, OSError):  # a run of another version, or a damaged one
            continue
        if times and other.path != run.path and (newest is None or times[-1] > newest[0]):
            newest = times[-1], other
    return newest[1] if newest else None


def _is_replaceable(run: RunDirectory, destination: Path) -> bool:
    """Return True if the destination contains only files of an earlier export of this run."""
    if destination.parent.resolve() == run.path.resolve():
        return True
    if destination.is_dir():
        names = {path.name for path in destination.iterdir()}
        card = destination / folder.CARD
        if not (names <= folder.WRITTEN or names <= ADAPTER_FILES):
            return False
        # A card that the user has rewritten must not be replaced.
        if card.exists() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
            return False
        if not names:
            return True
    written = {event.sha256 for event in history(run.events_path) if isinstance(event, Exported)}
    try:
        adapter = destination / adapter_config.WEIGHTS
        return hash_weights(adapter if adapter.is_file() else destination) in written
    except DpoError:  # a directory with no weights in it
        return False

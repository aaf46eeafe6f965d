"""`dpo push`: uploads an exported model of a run to the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_cli.errors import DpoError, UsageError
from dpo_cli.export.export import export_run
from dpo_cli.export.model_card import MARK, ExportedWeights, model_card
from dpo_cli.hub.upload import find_place, upload
from dpo_cli.models.loading import hash_weights
from dpo_cli.models.rounding import Rounding
from dpo_cli.models.spec import architecture_of
from dpo_cli.profile import folder
from dpo_cli.run import checkpoints
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Exported, history

DIRECTORY = "hub"
"""Directory in the run that gets the export of a push."""
_SETTINGS = (folder.CONFIG, folder.GENERATION_CONFIG, "tokenizer_config.json")
"""JSON files in which some tools write the path that a model was loaded from."""
_PATH = re.compile(r"(~|[A-Za-z]:)?([/\\][^/\\\s]+){2,}[/\\]?")


@dataclass(frozen=True)
class PushReport:
    """Model that was pushed.

    Attributes:
        repository, url, commit: name of the repository, its page, and the commit.
        path: exported directory or file.
        is_new_export: the push has exported it.
        optimizer_step: step of the exported checkpoint.
        newest_step: step of the run's newest checkpoint; None if there is none any more.
        files: paths in the repository.
        size_bytes: size of these files.
        is_public: everybody sees the model.
    """

    repository: str
    url: str
    commit: str
    path: Path
    is_new_export: bool
    optimizer_step: int
    newest_step: int | None
    files: tuple[str, ...]
    size_bytes: int
    is_public: bool


def push_run(
    run: RunDirectory,
    repository: str,
    source: Path | None = None,
    *,
    is_public: bool = False,
    overrides: Sequence[str] = (),
) -> PushReport:
    """Upload an exported model of a run to the Hub.

    Args:
        run: the run.
        repository: ORG/NAME.
        source: directory or file of an earlier export; by default the newest exported directory
            that is unchanged, or a new one in the run.
        is_public: make a new repository public; by default it is private.
        overrides: `KEY=VALUE` for keys of the profile, for a new export.

    Raises:
        UsageError: the name is not ORG/NAME.
        DpoError: nothing can be exported, the source is no export of this run, it contains a path
            of this machine, or the Hub refuses the push.
    """
    if source is not None:
        exported = _recorded(run, source.absolute())
    # Before the export, which may take minutes.
    place = find_place(repository, is_public=is_public, mark=MARK)
    is_new = False
    if source is None:
        found = _newest_directory(run)
        if found is None:
            path = run.path / DIRECTORY
            export_run(run, path, None, False, overrides, export_format="hf")
            is_new, found = True, _recorded(run, path)
        exported = found
    path = Path(exported.path) if source is None else source.absolute()
    files = _files(run, path, exported)
    _require_no_paths(files)
    # A file of an earlier push that this export does not have, such as a chat template, would
    # change the model.
    obsolete = tuple(
        each
        for each in place.files
        if each not in files and each.partition("/")[0] in folder.WRITTEN
    )
    step = exported.optimizer_step
    done = upload(
        place,
        files,
        obsolete,
        is_public=is_public,
        message=f"Add the model after step {step:,}",
    )
    saved = checkpoints.list_checkpoints(run.checkpoints_path)
    return PushReport(
        repository=repository,
        url=done.url,
        commit=done.commit,
        path=path,
        is_new_export=is_new,
        optimizer_step=step,
        newest_step=saved[0].optimizer_step if saved else None,
        files=tuple(files),
        size_bytes=sum(_size(content) for content in files.values()),
        is_public=is_public,
    )


def _exports(run: RunDirectory) -> list[Exported]:
    """Return the recorded exports of a run, the newest first."""
    return [event for event in history(run.events_path) if isinstance(event, Exported)][::-1]


def _newest_directory(run: RunDirectory) -> Exported | None:
    """Return the newest export that is a directory and is unchanged."""
    for event in _exports(run):
        path = Path(event.path)
        if folder.is_model(path) and _hash(path) == event.sha256:
            return event
    return None


def _recorded(run: RunDirectory, path: Path) -> Exported:
    """Return the event of the export that wrote the weights at `path`."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or directory", "Write the path of an export.")
    if not folder.is_model(path) and path.suffix != ".pth":
        raise UsageError(
            f"{path} is neither a Hugging Face directory nor a MiniMind weights file",
            "Push another export of the run.",
        )
    fingerprint = _hash(path)
    for event in _exports(run):
        if event.sha256 == fingerprint:
            return event
    raise DpoError(
        f"{path} is not an export of {run.name}, or its weights have changed since",
        f"Export the run again: dpo export {run.name} --format hf --to {path}.new",
    )


def _hash(path: Path) -> str | None:
    try:
        return hash_weights(path)
    except DpoError:  # a directory without weights
        return None


def _files(run: RunDirectory, path: Path, exported: Exported) -> dict[str, Path | bytes]:
    """Return the files to upload, by their paths in the repository.

    A directory is uploaded without files that no export writes. A MiniMind file gets a model card.
    """
    if not path.is_dir():
        return {path.name: path, folder.CARD: _card(run, exported).encode()}
    names = sorted(each.relative_to(path).as_posix() for each in path.rglob("*") if each.is_file())
    files: dict[str, Path | bytes] = {
        name: path / name for name in names if name.partition("/")[0] in folder.WRITTEN
    }
    if folder.CARD not in files or MARK not in _text(files[folder.CARD]):
        raise DpoError(
            f"{path / folder.CARD} is not the model card that dpo export wrote",
            f"Add the line {MARK} to it if this is your own card, or export again.",
        )
    return files


def _card(run: RunDirectory, exported: Exported) -> str:
    plan = run.read_plan()
    if plan is None:
        raise DpoError(f"{run.name} has no plan", "Push a run that has started to train.")
    rounding: Rounding = "stochastic" if exported.rounding == "stochastic" else "nearest"
    weights = ExportedWeights(
        architecture_of(plan.model.shape),
        exported.dtype,
        rounding,
        exported.seed,
        exported.optimizer_step,
        stops=exported.stops,
    )
    return model_card(run, plan, weights)


def _require_no_paths(files: Mapping[str, Path | bytes]) -> None:
    """Refuse settings with a path of this machine, such as `name_or_path` in older tokenizers.

    Raises:
        DpoError: names the file, the key and the value.
    """
    for name in _SETTINGS:
        path = files.get(name)
        if not isinstance(path, Path):
            continue
        for key, value in _strings(folder.read_json(path)):
            if _PATH.fullmatch(value):
                raise DpoError(
                    f"{path}: {key} = {value!r} is a path of this machine, and would be published",
                    f"Remove {key} from the file, then push this export: {path.parent}",
                )


def _strings(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the texts in a table and the tables in it, with their dotted keys."""
    for key, value in values.items():
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", text) for inner, text in _strings(value))


def _text(content: Path | bytes) -> str:
    raw = content if isinstance(content, bytes) else content.read_bytes()
    return raw.decode("utf-8", errors="replace")


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size

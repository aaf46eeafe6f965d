"""Protection of the files that a run needs from commands that replace files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dpo_cli.errors import DpoError, UsageError
from dpo_cli.files import pair_files, would_replace
from dpo_cli.hub.download import is_on_hub
from dpo_cli.profile import folder
from dpo_cli.profile.inputs import resolve_weights
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.text import show_path
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.models import NamedModel

_SUFFIXES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")
"""Endings of the files that a model or a tokenizer consists of."""

Protected = tuple[str, Path]
"""Name of a path for messages, for example "model.weights of this run", and the path."""


def require_free_of_inputs(destination: Path, protected: Iterable[Protected], option: str) -> None:
    """Refuse a destination that is, or contains, a file that must remain.

    Links and other spellings of a path do not matter: the files themselves are compared.

    Args:
        destination: file or directory to write, which may exist.
        protected: see `inputs_of_run` and `files_of_model`.
        option: option that names the destination, for the message.

    Raises:
        UsageError: the destination is refused.
    """
    for name, path in protected:
        if not would_replace(destination, path):
            continue
        is_same = os.path.exists(path) and os.path.samefile(destination, path)
        verb = f"is {name}" if is_same else f"contains {name} ({show_path(path)})"
        whole = Path(os.path.abspath(destination))
        other = whole.parent / f"{whole.stem}-dpo{whole.suffix}"
        raise UsageError(
            f"{show_path(destination)} {verb}",
            f"Choose another path, for example {option} {show_path(other)}",
        )


def inputs_of_run(run: RunDirectory, settings: Sequence[str] = ()) -> Iterator[Protected]:
    """Yield the inputs and the files of a run that a resume, an export or an evaluation reads.

    Args:
        run: the run.
        settings: changed keys of its profile, as KEY=VALUE.
    """
    with contextlib.suppress(DpoError):  # a profile of another version names nothing
        profile = load_profile(run.profile_path, settings).profile
        yield from inputs_of_profile(profile, "of this run")
    own = [run.profile_path, run.plan_path, run.events_path, run.completed_path]
    own += [*run.path.glob("*.jsonl"), *run.path.glob("*.safetensors"), *run.path.glob("*.json")]
    own += [run.held_out_path, *run.checkpoints_path.rglob("*"), run.checkpoints_path]
    for path in own:
        yield "a file of this run", path


def inputs_of_profile(profile: Profile, owner: str) -> Iterator[Protected]:
    """Yield the local inputs that a profile names: weights, tokenizer, adapter and pairs.

    Args:
        profile: names the inputs.
        owner: whose inputs they are, for messages, for example "of this run".
    """
    model = profile.model
    for key, named in (("weights", model.weights), ("reference", model.reference)):
        if (named is None and key == "reference") or is_on_hub(named):
            continue
        try:
            path = Path(resolve_weights(profile, "weights" if key == "weights" else "reference"))
        except DpoError:  # missing, so nothing can be replaced
            continue
        yield from files_of_model(path, f"model.{key} {owner}")
    if model.tokenizer is not None:
        yield from files_of_model(model.tokenizer, f"model.tokenizer {owner}")
    if model.adapter is not None:
        yield from files_of_model(model.adapter, f"model.adapter {owner}")
    yield from _files_of_pairs(profile.data.paths, f"data.data_path {owner}")
    if profile.eval.path is not None:
        yield from _files_of_pairs([profile.eval.path], f"eval.path {owner}")


def files_of_model(path: Path, name: str) -> Iterator[Protected]:
    """Yield a weights file, or a directory and the files of model, tokenizer and adapter in it."""
    yield name, path
    if not path.is_dir():
        return
    for file in (*path.iterdir(), *(path / folder.TEMPLATES).glob("*")):
        if file.suffix in _SUFFIXES or file.name in folder.WRITTEN:
            yield f"a file of {name}", file


def inputs_of_model(model: NamedModel) -> Iterator[Protected]:
    """Yield the files of a model that a user named, and the inputs of its run."""
    if model.run is None:
        yield from files_of_model(model.path, "a model of this command")
    else:
        yield from inputs_of_run(model.run)


def _files_of_pairs(paths: Iterable[Path], name: str) -> Iterator[Protected]:
    for path in paths:
        if is_on_hub(path):
            continue
        yield name, path
        if path.is_dir():
            for file in pair_files(path):
                yield f"a file of {name}", file

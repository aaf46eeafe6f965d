"""Models on the command line: a run, a weights file, or a Hugging Face folder.

This module finds the path only; `dpo_cli.inference.open_model` reads the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.errors import DpoError, UsageError
from dpo_cli.files import expanded
from dpo_cli.profile import folder
from dpo_cli.profile.discover import discover_in
from dpo_cli.profile.inputs import check_tokenizer, resolve_tokenizer
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.text import near_path, show_model, show_path
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import exported_paths
from dpo_cli.run.lookup import find_runs, find_saved_run
from dpo_cli.shell import quote

_WEIGHTS = (".pth", ".safetensors")


@dataclass(frozen=True)
class NamedModel:
    """Model that a user named.

    Attributes:
        path: the weights file, the Hugging Face folder, or the run directory.
        run: the run, if the model is one.
    """

    path: Path
    run: RunDirectory | None = None

    @property
    def title(self) -> str:
        """Name for users."""
        return self.run.name if self.run else show_model(self.path)

    def tokenizer(self, settings: Sequence[str] = ()) -> Path | None:
        """Return the folder of the model's tokenizer; None for a weights file, which has none.

        Args:
            settings: changed keys of a run's profile, as KEY=VALUE.
        """
        if self.run is not None:
            return resolve_tokenizer(load_profile(self.run.profile_path, settings).profile)
        return self.path if (self.path / folder.TOKENIZER[0]).is_file() else None


def find_model(
    name: str, runs_root: Path, say: Callable[[str], None] = lambda line: None
) -> NamedModel:
    """Find the model at a path, or else the run with that name.

    Args:
        name: name of a run (see `find_saved_run`), or the path of a run directory, a weights file
            or a Hugging Face folder. A path takes precedence over a run with the same name.
        runs_root: directory of the runs.
        say: see `find_saved_run`.

    Raises:
        UsageError: there is no such model.
        DpoError: the folder holds an adapter.
        OtherVersionError: another version of dpo wrote the run.
    """
    path = expanded(name)
    if (path / "profile.toml").is_file():
        run = RunDirectory(path)
        run.require_this_version()
        return NamedModel(path, run)
    if path.is_file() or folder.is_model(path):
        return NamedModel(path)
    if folder.is_adapter(path):
        raise folder.missing_weights(path)
    if path.suffix in _WEIGHTS:
        raise UsageError(f"{name}: no such file{near_path(path)}", _near(path))
    if len(path.parts) > 1 or name.endswith("/"):
        if not path.is_dir():
            raise UsageError(f"{name}: no such file or folder{near_path(path)}", _near(path))
        raise UsageError(
            f"{name} is neither a run nor a model: it has no profile.toml and no {folder.CONFIG}",
            f"Name a file in it: {_listed(path)}" if _listed(path) else "",
        )
    run = find_saved_run(runs_root, name, say)
    return NamedModel(run.path, run)


def tokenizer_of(
    models: Sequence[NamedModel],
    given: Path | None,
    runs_root: Path,
    settings: Sequence[str] = (),
) -> Path:
    """Find the folder of the tokenizer for some models.

    Args:
        models: the first model that has a tokenizer decides; without one, the first weights file
            in a run directory or written by `dpo export`, which has the tokenizer of that run.
        given: the option `--tokenizer`, which takes precedence.
        runs_root: directory of the runs.
        settings: see `NamedModel.tokenizer`.

    Raises:
        UsageError: no model has a tokenizer, or the folder has none.
        DpoError: the model has a tokenizer in files that are not read.
    """
    own = (model.tokenizer(settings) for model in models)
    tokenizer = given or next((path for path in own if path is not None), None)
    if tokenizer is None:
        writers = (_writer(model.path, runs_root) for model in models)
        of_runs = (NamedModel(run.path, run).tokenizer(settings) for run in writers if run)
        tokenizer = next(of_runs, None)
    for model in models if tokenizer is None else ():
        if other := folder.missing_tokenizer(model.path):
            raise other
    if tokenizer is None:
        raise UsageError(
            f"{models[0].title}: the tokenizer of these weights is unknown",
            _tokenizers_near(models[0].path),
        )
    check_tokenizer("--tokenizer" if given else "model.tokenizer", tokenizer)
    return tokenizer


def _writer(weights: Path, runs_root: Path) -> RunDirectory | None:
    """Return the run that wrote a weights file: into its own directory, or by an export."""
    path = weights.resolve()
    for parent in path.parents:
        if (parent / "profile.toml").is_file():
            return RunDirectory(parent)
    for run in find_runs(runs_root):
        # A run that was never planned has no event stream; a damaged one cannot be asked.
        with suppress(DpoError, OSError):
            if path in {written.resolve() for written in exported_paths(run.events_path)}:
                return run
    return None


def _tokenizers_near(weights: Path) -> str:
    """Return the remedy for weights without a tokenizer, with the tokenizers that are near."""
    folders = dict.fromkeys((Path.cwd(), weights.absolute().parent.parent))
    found = list(dict.fromkeys(discover_in(folders, lambda _: False).tokenizers))
    if not found:
        return "Name its folder (for MiniMind weights, MiniMind's model/): --tokenizer DIR"
    options = " or ".join(f"--tokenizer {quote(show_path(path))}" for path in found[:3])
    return f"Add the tokenizer that these weights were trained with: {options}"


def _near(path: Path) -> str:
    names = _listed(path.parent)
    return f"{show_path(path.parent)} contains {names}." if names else ""


def _listed(directory: Path) -> str:
    """List the weights files in a directory."""
    names = sorted(file.name for suffix in _WEIGHTS for file in directory.glob(f"*{suffix}"))
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")

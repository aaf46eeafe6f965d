"""Models on the command line: a run, a weights file, or a Hugging Face folder.

This module finds the path only; `dpo_cli.inference.open_model` reads the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.errors import UsageError
from dpo_cli.files import expanded
from dpo_cli.profile import folder
from dpo_cli.profile.inputs import check_tokenizer, resolve_tokenizer
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.text import show_path
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.lookup import find_run

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
        return self.run.name if self.run else show_path(self.path)

    def tokenizer(self, settings: Sequence[str] = ()) -> Path | None:
        """Return the folder of the model's tokenizer; None for a weights file, which has none.

        Args:
            settings: changed keys of a run's profile, as KEY=VALUE.
        """
        if self.run is not None:
            return resolve_tokenizer(load_profile(self.run.profile_path, settings).profile)
        return self.path if (self.path / folder.TOKENIZER[0]).is_file() else None


def find_model(name: str, runs_root: Path) -> NamedModel:
    """Find the model at a path, or else the run with that name.

    Args:
        name: name of a run (see `find_run`), or the path of a run directory, a weights file or a
            Hugging Face folder. A path takes precedence over a run with the same name.
        runs_root: directory of the runs.

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
        raise UsageError(f"{name}: no such file", _near(path))
    if len(path.parts) > 1 or name.endswith("/"):
        if not path.is_dir():
            raise UsageError(f"{name}: no such file or folder", _near(path))
        raise UsageError(
            f"{name} is neither a run nor a model: it has no profile.toml and no {folder.CONFIG}",
            f"Name a file in it: {_listed(path)}" if _listed(path) else "",
        )
    run = find_run(runs_root, name)
    return NamedModel(run.path, run)


def tokenizer_of(
    models: Sequence[NamedModel], given: Path | None, settings: Sequence[str] = ()
) -> Path:
    """Find the folder of the tokenizer for some models.

    Args:
        models: the first model that has a tokenizer decides.
        given: the option `--tokenizer`, which takes precedence.
        settings: see `NamedModel.tokenizer`.

    Raises:
        UsageError: no model has a tokenizer, or the folder has none.
        DpoError: the model has a tokenizer in files that are not read.
    """
    own = (model.tokenizer(settings) for model in models)
    tokenizer = given or next((path for path in own if path is not None), None)
    for model in models if tokenizer is None else ():
        if other := folder.missing_tokenizer(model.path):
            raise other
    if tokenizer is None:
        raise UsageError(
            f"{models[0].title}: the tokenizer of these weights is unknown",
            "Name its folder (for MiniMind weights, MiniMind's model/): --tokenizer DIR",
        )
    check_tokenizer("--tokenizer" if given else "model.tokenizer", tokenizer)
    return tokenizer


def _near(path: Path) -> str:
    names = _listed(path.parent)
    return f"{show_path(path.parent)} contains {names}." if names else ""


def _listed(directory: Path) -> str:
    """List the weights files in a directory."""
    names = sorted(file.name for suffix in _WEIGHTS for file in directory.glob(f"*{suffix}"))
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")

"""What a command line calls a model: a run, a weights file, or a Hugging Face folder.

Nothing of it is read here but its kind; `dpo_cli.inference.open_model` reads the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.errors import UsageError
from dpo_cli.profile import folder
from dpo_cli.profile.inputs import check_tokenizer, resolve_tokenizer
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.text import show_path
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.lookup import find_run

_WEIGHTS = (".pth", ".safetensors")


@dataclass(frozen=True)
class NamedModel:
    """A model that a user named.

    Attributes:
        path: the weights file, the Hugging Face folder, or the run's directory.
        run: the run, if it is one.
    """

    path: Path
    run: RunDirectory | None = None

    @property
    def title(self) -> str:
        """What to call it on the screen."""
        return self.run.name if self.run else show_path(self.path)

    def tokenizer(self, settings: Sequence[str] = ()) -> Path | None:
        """The folder of the tokenizer it comes with; a weights file comes with none.

        Args:
            settings: keys of a run's profile that are others here, as `--set` has them.
        """
        if self.run is not None:
            return resolve_tokenizer(load_profile(self.run.profile_path, settings).profile)
        return self.path if (self.path / folder.TOKENIZER[0]).is_file() else None


def find_model(name: str, runs_root: Path) -> NamedModel:
    """The model a user means: what lies at that path, or else a run as `find_run` finds it.

    Args:
        name: of a run, or a path of a run's directory, a weights file or a Hugging Face folder.
        runs_root: where runs lie.

    Raises:
        UsageError: there is none, or the folder holds no model.
    """
    path = Path(name).expanduser()
    if (path / "profile.toml").is_file():
        run = RunDirectory(path)
        run.require_this_version()
        return NamedModel(path, run)
    if path.is_file() or folder.is_model(path):
        return NamedModel(path)
    if path.suffix in _WEIGHTS:
        raise UsageError(f"{name}: no such file", _near(path))
    if len(path.parts) > 1 or name.endswith("/"):
        if not path.is_dir():
            raise UsageError(f"{name}: no such file or folder", _near(path))
        raise UsageError(
            f"{name} is neither a run nor a model: it has no profile.toml and no {folder.CONFIG}",
            f"it holds {_listed(path)}: name one" if _listed(path) else "",
        )
    run = find_run(runs_root, name)
    return NamedModel(run.path, run)


def tokenizer_of(
    models: Sequence[NamedModel], stated: Path | None, settings: Sequence[str] = ()
) -> Path:
    """The folder of the tokenizer to read texts with.

    Args:
        models: that it is for; the first that comes with one has it.
        stated: the option `--tokenizer`, which goes before theirs.
        settings: see `NamedModel.tokenizer`.

    Raises:
        UsageError: nobody names one, or what is named is none.
    """
    own = (model.tokenizer(settings) for model in models)
    place = stated or next((its for its in own if its is not None), None)
    if place is None:
        raise UsageError(
            f"{models[0].title}: nothing says which tokenizer these weights were trained with",
            "name its folder, MiniMind's model/ perhaps: --tokenizer DIR",
        )
    check_tokenizer("--tokenizer" if stated else "model.tokenizer", place)
    return place


def _near(path: Path) -> str:
    found = _listed(path.parent)
    return f"{show_path(path.parent)} holds {found}" if found else ""


def _listed(place: Path) -> str:
    """The weights in a folder, by name."""
    names = sorted(each.name for suffix in _WEIGHTS for each in place.glob(f"*{suffix}"))
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")

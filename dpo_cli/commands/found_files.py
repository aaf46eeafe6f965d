"""Choice of the model, tokenizer and pairs of a new profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from dpo_cli.commands.missing_files import Missing
from dpo_cli.commands.pair_facts import look_at_pairs
from dpo_cli.commands.questions import ask_download, ask_which, is_interactive, remark
from dpo_cli.data.compression import MissingExtraError
from dpo_cli.data.sources import looks_like_pairs
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.files import expanded, pair_files
from dpo_cli.hub.datasets import fetch_data, find_data
from dpo_cli.hub.download import is_on_hub
from dpo_cli.profile import folder
from dpo_cli.profile.discover import (
    FoundFiles,
    discover_around,
    discover_in,
    discover_project,
    is_moe_file,
    is_whole_model,
    minimind_version_of,
)
from dpo_cli.profile.hub import cached, fetch
from dpo_cli.profile.known import parameters_of
from dpo_cli.profile.recipe import Inputs, count_parameters
from dpo_cli.profile.text import near_path, show_path

_WEIGHTS = (".pth", ".safetensors")
_HOW_TO_NAME = (
    "Name a weights file, a Hugging Face directory, hf:ORG/NAME, or the folder of a MiniMind"
    " checkout."
)


@dataclass(frozen=True)
class Wanted:
    """Files that the user has named on the command line.

    Attributes:
        name: of the new profile.
        model: weights file, Hugging Face directory, model on the Hub, or folder to search.
        data: file or folder of pairs, data set on the Hub, or folder to search.
        tokenizer: folder of a tokenizer.
        kind: "hf" or a kind of MiniMind model, as in the names of the shipped profiles; None to
            guess it.
        columns: column names of the pairs, by those of the formats.
        download: download models and data sets on the Hub now; None to ask on a terminal.
    """

    name: str
    model: str | None
    data: Path | None
    tokenizer: Path | None
    kind: str | None
    columns: Mapping[str, str] = field(default_factory=dict)
    download: bool | None = None


@dataclass(frozen=True)
class Chosen:
    """Files of the new profile.

    Attributes:
        inputs: files on this machine, and the pairs.
        hub: name of a model on the Hub, instead of weights on this machine.
        is_huggingface: True unless the model is a MiniMind weights file.
        directory: of a Hugging Face model on this machine; None if there is none yet.
    """

    inputs: Inputs
    hub: str | None
    is_huggingface: bool
    directory: Path | None


@dataclass(frozen=True)
class _Candidates:
    """Candidates for the files of the new profile.

    Attributes:
        hub: name of a model on the Hub, instead of models on this machine.
        models: weights files and Hugging Face directories.
        pairs: files and folders of pairs, or data sets on the Hub.
        tokenizers: folders found beside them; MiniMind's own checkout may have another.
    """

    hub: str | None
    models: Sequence[Path]
    pairs: Sequence[Path]
    tokenizers: Sequence[Path]


@dataclass
class _PairTest:
    """Callable that returns True for a file of pairs, and records the other files that it reads."""

    others: list[Path] = field(default_factory=list)
    unread: dict[str, list[str]] = field(default_factory=dict)
    """Problems of the files that need a missing package, by their remedy."""

    @property
    def problems(self) -> list[str]:
        """One line for each missing package."""
        return [
            f"{first}{f', and {len(others)} more of this kind' if others else ''}. {remedy}"
            for remedy, (first, *others) in self.unread.items()
        ]

    def __call__(self, path: Path) -> bool:
        try:
            if looks_like_pairs(path):
                return True
            self.others.append(path)
        except MissingExtraError as error:
            self.unread.setdefault(error.remedy, []).append(error.message)
        except DpoError:  # damaged, so not offered
            pass
        return False


def choose_files(wanted: Wanted, console: Console) -> Chosen:
    """Choose one file of each kind, print what was found, and look at the pairs.

    A terminal asks where there is a choice, and for what is missing; elsewhere the best is taken
    and the others are listed. Files outside of the working directory are taken only if the user
    names or confirms them.

    Raises:
        UsageError: a named file does not exist, or is of another kind; or there is no model or no
            pairs, and neither a terminal to ask nor a kind of model to start from.
        DpoError: a data set or model on the Hub cannot be read.
    """
    is_pairs = _PairTest()
    candidates = _candidates(wanted, is_pairs)
    hub, models, pairs = candidates.hub, candidates.models, candidates.pairs
    model, pair_file = ask_which("model", models), ask_which("data", pairs)
    is_huggingface = bool(hub or wanted.kind == "hf" or (model and model.is_dir()))
    tokenizers: list[Path] = []
    if not is_huggingface:
        tokenizers = _tokenizers(wanted, model, candidates.tokenizers)
    tokenizer = ask_which("tokenizer", tokenizers)
    if hub:
        console.print(f"model: {hub}")
    else:
        _print_found(console, "model", models, model)
    if not is_huggingface:
        _print_found(console, "tokenizer", tokenizers, tokenizer)
    if pair_file and is_on_hub(pair_file):
        console.print(f"data: {pair_file}")
    else:
        _print_found(console, "data", pairs, pair_file)
    for problem in is_pairs.problems:
        console.print(f"  not read: {problem}")
    directory = _directory_of(hub, model, wanted.download)
    inputs = Inputs(model, tokenizer, pair_file, parameters=_parameters(hub, directory))
    inputs = look_at_pairs(inputs, wanted.columns, directory or tokenizer, console)
    if wanted.download and pair_file and is_on_hub(pair_file):
        fetch_data(str(pair_file))
    return Chosen(inputs, hub, is_huggingface, directory)


def _candidates(wanted: Wanted, is_pairs: _PairTest) -> _Candidates:
    """Search for what the user has not named; a terminal asks for what is nowhere.

    Raises:
        UsageError, DpoError: as in `choose_files`.
    """
    found = discover_project(Path.cwd(), is_pairs)
    named = _named_model(wanted.model, is_pairs)
    hub = wanted.model if wanted.model and is_on_hub(wanted.model) else None
    models = named.models if wanted.model else _of_kind(found.models, wanted.kind)
    pairs = _named_pairs(wanted.data, is_pairs) if wanted.data else found.pairs or named.pairs
    if not (models or hub) or not pairs:
        around = discover_around(Path.cwd(), _PairTest())  # files outside are no problem
        missing = Missing(
            model=not (models or hub),
            pairs=not pairs,
            models_outside=_of_kind(around.models, wanted.kind),
            pairs_outside=around.pairs,
            others=is_pairs.others,
            problems=is_pairs.problems,
            kind=wanted.kind,
        )
        if is_interactive():
            if missing.model:
                answer = missing.ask_model(lambda text: _named_model(text, is_pairs))
                hub = answer if is_on_hub(answer) else None
                named = _named_model(answer, is_pairs)
                models = named.models
                pairs = pairs or named.pairs
            if not pairs:
                answer = missing.ask_pairs(lambda text: _check_pairs(Path(text), is_pairs))
                pairs = _named_pairs(Path(answer), is_pairs)
        elif wanted.kind is None:
            raise missing.error(wanted.name, wanted.model, wanted.data)
    return _Candidates(hub, models, pairs, (*named.tokenizers, *found.tokenizers))


def _directory_of(hub: str | None, model: Path | None, download: bool | None) -> Path | None:
    """Return the directory of a Hugging Face model, if it is on this machine or may be downloaded.

    Raises:
        DpoError: the model cannot be downloaded.
    """
    if hub is None:
        return model if model and model.is_dir() else None
    directory = cached(hub)
    if download is None and directory is None:
        download = is_interactive() and ask_download(hub)
    return fetch(hub) if download else directory


def _parameters(hub: str | None, directory: Path | None) -> int | None:
    if hub is None:
        return None
    return count_parameters(directory) if directory else parameters_of(hub)


def _named_model(name: str | None, is_pairs: _PairTest) -> FoundFiles:
    """Return the models that --model names, and what else a folder of a checkout has.

    Nothing for a model on the Hub, or without a name.

    Raises:
        UsageError: it names no model.
    """
    if name is None or is_on_hub(name):
        return FoundFiles()
    path = expanded(name).absolute()
    if path.is_file() and path.suffix in _WEIGHTS:
        return FoundFiles(models=(path,))
    if is_whole_model(path):
        return FoundFiles(models=(path,))
    if folder.is_model(path) or folder.is_adapter(path):
        error = folder.missing_weights(path)
        raise UsageError(f"--model: {error.message}", error.remedy)
    if path.is_file():
        raise UsageError(f"--model {name} is not a weights file", _HOW_TO_NAME)
    if not path.is_dir():
        raise UsageError(f"--model {name} does not exist{near_path(path)}", _HOW_TO_NAME)
    found = discover_in((path,), is_pairs)
    if not found.models:
        raise UsageError(f"--model {name}: this folder has no model", _HOW_TO_NAME)
    return found


def _named_pairs(path: Path, is_pairs: _PairTest) -> tuple[Path, ...]:
    """Return the file or folder of pairs that --data names, or the pairs in a folder to search.

    Raises:
        UsageError: there are none.
    """
    if is_on_hub(path):
        return (path,)
    named = expanded(path).absolute()
    if named.is_file() or (named.is_dir() and any(map(is_pairs, pair_files(named)))):
        return (named,)
    if not named.exists():
        raise UsageError(
            f"--data {path} does not exist{near_path(expanded(path))}",
            "Name a file or a folder of preference pairs, or hf:ORG/NAME.",
        )
    found = discover_in((named,), is_pairs).pairs
    if not found:
        raise UsageError(
            f"--data {path}: this folder has no preference pairs",
            "Name the file; docs/data.md lists the formats.",
        )
    return found


def _check_pairs(path: Path, is_pairs: _PairTest) -> None:
    """Check that an answer names pairs.

    Raises:
        DpoError: there is no such file, or no such data set on the Hub.
    """
    if is_on_hub(path):
        find_data(str(path))
    _named_pairs(path, is_pairs)


def _of_kind(models: Sequence[Path], kind: str | None) -> Sequence[Path]:
    """Select the models that fit a kind; for MiniMind with experts those with experts."""
    if kind is None:
        # A dense model before one with experts.
        return sorted(models, key=lambda path: path.is_file() and is_moe_file(path))
    if kind == "hf":
        return [path for path in models if path.is_dir()]
    files = [path for path in models if path.is_file()]
    if kind == "minimind2-2510":  # for both
        return sorted(files, key=is_moe_file)
    return [path for path in files if is_moe_file(path) == kind.endswith("moe")]


def _tokenizers(wanted: Wanted, model: Path | None, found: Sequence[Path]) -> list[Path]:
    """Return the tokenizers that a MiniMind model may have, those of its own checkout first.

    Raises:
        UsageError: the named folder is no tokenizer.
    """
    if wanted.tokenizer is not None:
        path = expanded(wanted.tokenizer).absolute()
        if missing := [name for name in folder.TOKENIZER if not (path / name).is_file()]:
            raise UsageError(
                f"--tokenizer {wanted.tokenizer} has no {missing[0]}",
                f"Name a folder with {' and '.join(folder.TOKENIZER)}.",
            )
        return [path]
    own: Sequence[Path] = ()
    if model is not None:
        own = discover_in((model.parent.parent, model.parent), lambda _: False).tokenizers
    tokenizers = list(dict.fromkeys((*own, *found)))
    if wanted.kind is not None:
        version = 3 if wanted.kind.startswith("minimind3") else 2
        fitting = [path for path in tokenizers if minimind_version_of(path) == version]
        return fitting or tokenizers
    return tokenizers


def _print_found(console: Console, what: str, paths: Sequence[Path], taken: Path | None) -> None:
    """Print the files of a kind, with an arrow at the one that was taken."""
    console.print(f"{what}: {len(paths) or 'none'} found")
    for path in paths:
        arrow = "->" if path == taken else "  "
        console.print(f"  {arrow} {show_path(path)}{remark(path)}")
    if len(paths) > 1:
        console.print(f"  for another: --{what} PATH")

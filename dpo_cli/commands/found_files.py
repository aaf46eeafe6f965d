"""Choice of the model, tokenizer and pairs of a new profile."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import typer
from rich.console import Console

from dpo_cli.data.compression import MissingExtraError
from dpo_cli.data.sources import Source, looks_like_pairs
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.files import pair_files
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
from dpo_cli.profile.recipe import Inputs
from dpo_cli.profile.text import show_path
from dpo_cli.ui.terminal.console import echo

_WEIGHTS = (".pth", ".safetensors")
_NAMED = 3
_HOW_TO_NAME = (
    "Name a weights file, a Hugging Face directory, hf:ORG/NAME, or the folder of a MiniMind"
    " checkout."
)


@dataclass(frozen=True)
class Wanted:
    """Files that the user has named on the command line.

    Attributes:
        model: weights file, Hugging Face directory, model on the Hub, or folder to search.
        data: file or folder of pairs, or folder to search.
        tokenizer: folder of a tokenizer.
        kind: "hf" or a kind of MiniMind model, as in the names of the shipped profiles; None to
            guess it.
    """

    model: str | None
    data: Path | None
    tokenizer: Path | None
    kind: str | None


@dataclass(frozen=True)
class Chosen:
    """Files of the new profile.

    Attributes:
        inputs: files on this machine.
        hub: name of a model on the Hub, instead of weights on this machine.
        is_huggingface: True unless the model is a MiniMind weights file.
    """

    inputs: Inputs
    hub: str | None
    is_huggingface: bool


@dataclass
class _PairTest:
    """Callable that returns True for a file of pairs, and records all other files."""

    others: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __call__(self, path: Path) -> bool:
        try:
            if looks_like_pairs(path):
                return True
            self.others.append(path)
        except MissingExtraError as error:
            self.problems.append(f"{error.message}. {error.remedy}")
        except DpoError:  # damaged, so not offered
            pass
        return False


def choose_files(wanted: Wanted, console: Console) -> Chosen:
    """Choose one file of each kind, print what was found, and count the pairs.

    A terminal asks where there is a choice; elsewhere the best is taken and the others are listed.
    Files outside of the working directory are taken only if the user names or confirms them.

    Raises:
        UsageError: a named file does not exist, or is of another kind.
    """
    is_pairs, project = _PairTest(), Path.cwd()
    found = discover_project(project, is_pairs)
    hub = wanted.model if wanted.model and is_on_hub(wanted.model) else None
    named = FoundFiles() if hub or not wanted.model else _named_model(wanted.model, is_pairs)
    pairs = _named_pairs(wanted.data, is_pairs) if wanted.data else found.pairs or named.pairs
    models = named.models if wanted.model else _of_kind(found.models, wanted.kind)
    model, pair_file = _ask("model", models), _ask("data", pairs)
    around = FoundFiles()
    if not (model or hub) or not pair_file:
        around = discover_around(project, is_pairs)
        if not (model or hub):
            models = _of_kind(around.models, wanted.kind)
            model = _ask_outside("model", models)
        if not pair_file:
            pairs = around.pairs
            pair_file = _ask_outside("data", pairs)
    is_huggingface = bool(hub or wanted.kind == "hf" or (model and model.is_dir()))
    tokenizers: list[Path] = []
    if not is_huggingface:
        tokenizers = _tokenizers(wanted, model, (*named.tokenizers, *found.tokenizers))
    inputs = Inputs(model, _ask("tokenizer", tokenizers), pair_file)
    if hub:
        console.print(f"model: {hub}")
    else:
        _print_found(console, "model", models, model)
    if not is_huggingface:
        _print_found(console, "tokenizer", tokenizers, inputs.tokenizer)
    _print_found(console, "data", pairs, pair_file)
    for problem in is_pairs.problems:
        console.print(f"  not read: {problem}")
    if not pairs and is_pairs.others:
        names = ", ".join(map(show_path, is_pairs.others[:_NAMED]))
        more = ", ..." if len(is_pairs.others) > _NAMED else ""
        console.print(f"  no columns of preference pairs: {names}{more}; name a file with --data")
    rows = _count(pair_file, console)
    return Chosen(Inputs(model, inputs.tokenizer, pair_file, rows), hub, is_huggingface)


def _named_model(name: str, is_pairs: _PairTest) -> FoundFiles:
    """Return the models that --model names, and what else a folder of a checkout has.

    Raises:
        UsageError: it names no model.
    """
    path = Path(name).expanduser().absolute()
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
        raise UsageError(f"--model {name} does not exist", _HOW_TO_NAME)
    found = discover_in((path,), is_pairs)
    if not found.models:
        raise UsageError(f"--model {name}: this folder has no model", _HOW_TO_NAME)
    return found


def _named_pairs(path: Path, is_pairs: _PairTest) -> tuple[Path, ...]:
    """Return the file or folder of pairs that --data names, or the pairs in a folder to search.

    Raises:
        UsageError: there are none.
    """
    named = path.expanduser().absolute()
    if named.is_file() or (named.is_dir() and any(map(is_pairs, pair_files(named)))):
        return (named,)
    if not named.exists():
        raise UsageError(
            f"--data {path} does not exist", "Name a file or a folder of preference pairs."
        )
    found = discover_in((named,), is_pairs).pairs
    if not found:
        raise UsageError(
            f"--data {path}: this folder has no preference pairs",
            "Name the file; docs/data.md lists the formats.",
        )
    return found


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
        path = wanted.tokenizer.expanduser().absolute()
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


def _ask(what: str, paths: Sequence[Path]) -> Path | None:
    """Let the user choose one of several paths on a terminal; else return the first."""
    if len(paths) < 2 or not sys.stdin.isatty():
        return paths[0] if paths else None
    echo(f"{what} (--{what} PATH answers this):")
    return paths[_prompt(paths, "which?", lowest=1) - 1]


def _ask_outside(what: str, paths: Sequence[Path]) -> Path | None:
    """Let the user choose a path outside of the project on a terminal; else return None."""
    if not paths or not sys.stdin.isatty():
        return None
    echo(f"{what}: none in this directory; outside of it (--{what} PATH answers this):")
    choice = _prompt(paths, "which? 0 for none", lowest=0)
    return paths[choice - 1] if choice else None


def _prompt(paths: Sequence[Path], question: str, *, lowest: int) -> int:
    """List numbered paths, and ask until the answer is a number from `lowest`, the default, on."""
    for number, path in enumerate(paths, start=1):
        echo(f"  {number}  {show_path(path)}{_remark(path)}")
    while True:
        choice: int = typer.prompt(question, default=lowest, type=int)
        if lowest <= choice <= len(paths):
            return choice


def _remark(path: Path) -> str:
    lacks_template = path.is_dir() and is_whole_model(path) and not folder.has_chat_template(path)
    return "  (no chat template)" if lacks_template else ""


def _print_found(console: Console, what: str, paths: Sequence[Path], taken: Path | None) -> None:
    """Print the files of a kind, with an arrow at the one that was taken."""
    if paths and taken is None:
        console.print(f"{what}: none in this directory. Outside of it, not used:")
        for path in paths:
            console.print(f"     {show_path(path)}{_remark(path)}")
        console.print(f"  to use one: --{what} PATH")
        return
    console.print(f"{what}: {len(paths) or 'none'} found")
    for path in paths:
        arrow = "->" if path == taken else "  "
        console.print(f"  {arrow} {show_path(path)}{_remark(path)}")
    if len(paths) > 1:
        console.print(f"  for another: --{what} PATH")


def _count(pairs: Path | None, console: Console) -> int | None:
    """Print the format of the pairs and return their number, or None if it is unknown."""
    if pairs is None:
        return None
    try:
        places = Source((pairs,)).look()
    except DpoError as error:
        console.print(f"  the pairs cannot be read: {error.message}")
        console.print(f"  {error.remedy}")
        return None
    console.print(f"  {places.numbers:,} rows, read as {places.description}")
    return places.numbers

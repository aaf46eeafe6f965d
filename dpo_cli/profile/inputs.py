"""The files a profile names: found, and checked before anything heavy starts."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal, get_args

from dpo_cli.errors import DpoError, UsageError
from dpo_cli.files import PAIR_SUFFIXES, pair_files
from dpo_cli.profile import folder, hub
from dpo_cli.profile.load import LoadedProfile, Problem
from dpo_cli.profile.schema import Model, Profile
from dpo_cli.profile.source import shipped_profiles
from dpo_cli.profile.text import did_you_mean, show_path, show_value

_SUFFIXES = (".pth", ".safetensors")
_WHERE_FILES_ARE = (
    "a shipped profile cannot know where your files are: say so by --set model.out_dir=out --set"
    " model.tokenizer=model --set data.data_path=dataset/dpo.jsonl, or write one: dpo init NAME"
)
_SFT_STEM = re.compile(r"full_sft_(\d+)(_moe)?")


Input = Literal["data", "tokenizer", "weights", "reference", "held_out"]
INPUTS: tuple[Input, ...] = get_args(Input)


class InputError(UsageError):
    """A file named by the profile's `key` is not there, or is of the wrong kind."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason


def check_inputs(loaded: LoadedProfile, needed: Collection[Input] = INPUTS) -> None:
    """Check that files of the profile are there and of the right kind, without reading them.

    Args:
        loaded: names them.
        needed: which of them.

    Raises:
        UsageError: everything that is wrong, in `details`, each with its key and where that is set.
    """
    # Checkpoint and reference may fail for one reason.
    problems = find_problems(loaded).items()
    details = list(dict.fromkeys(str(problem) for name, problem in problems if name in needed))
    if details:
        count = "1 input" if len(details) == 1 else f"{len(details)} inputs"
        is_shipped = loaded.path in shipped_profiles().values()
        remedy = _WHERE_FILES_ARE if is_shipped else ""
        raise UsageError(f"{show_path(loaded.path)}: {count} cannot be used", remedy, details)


def find_problems(loaded: LoadedProfile) -> dict[Input, Problem]:
    """What is wrong with each file of the profile that cannot be used; nothing is read."""
    profile = loaded.profile
    checks: dict[Input, Callable[[], object]] = {
        "data": lambda: check_pairs("data.data_path", profile.data.paths),
        "tokenizer": lambda: check_tokenizer("model.tokenizer", resolve_tokenizer(profile)),
        "weights": lambda: resolve_weights(profile, "weights"),
    }
    if profile.model.reference is not None:
        checks["reference"] = lambda: resolve_weights(profile, "reference")
    if (held_out := profile.eval.path) is not None:
        checks["held_out"] = lambda: check_pairs("eval.path", (held_out,))
    problems: dict[Input, Problem] = {}
    for name, check in checks.items():
        try:
            check()
        except InputError as error:
            origin = loaded.origins[error.key]
            where = show_path(loaded.path) if origin == "default" else origin
            problems[name] = Problem(error.key, where, error.key, error.reason)
    return problems


def resolve_weights(profile: Profile, which: Literal["weights", "reference"]) -> str:
    """The weights file or Hugging Face directory as an absolute path, or "run:NAME" as stated.

    A model on the Hub is fetched, if it is not here yet. A name without suffix gets the one that
    exists. Without a reference it is the checkpoint; without a checkpoint, that is the only
    full_sft_* in `out_dir`, or the only one whose name agrees with the stated `hidden_size` and
    `use_moe`.

    Raises:
        UsageError: there is no such file, more than one, or it cannot be weights.
    """
    model = profile.model
    if which == "reference" and model.reference is not None:
        return _resolve("model.reference", model.reference, model.out_dir)
    if model.weights is not None:
        return _resolve("model.weights", model.weights, model.out_dir)
    return str(_find_sft(model))


def resolve_tokenizer(profile: Profile) -> Path:
    """The tokenizer's folder: as stated, or the checkpoint's own, where it is a directory.

    Raises:
        UsageError: none is stated, and the checkpoint is no directory.
    """
    if profile.model.tokenizer is not None:
        return profile.model.tokenizer
    model_weights = Path(resolve_weights(profile, "weights"))
    if folder.is_model(model_weights):
        return model_weights
    raise InputError(
        "model.tokenizer",
        "missing, and only a Hugging Face directory has its own; name the folder with"
        f" {' and '.join(folder.TOKENIZER)} that the weights were trained with",
    )


def _resolve(key: str, weights: str, out_dir: Path | None) -> str:
    if weights.startswith("run:"):
        return weights
    if hub.is_on_hub(weights):
        return str(_fetch(key, weights))
    path = Path(weights)
    if not path.is_absolute():
        if out_dir is None:
            raise InputError(
                key,
                f"{weights} is a name in model.out_dir, which is not set; "
                f"set it, or write a path (./{weights})",
            )
        _check_folder("model.out_dir", out_dir)
        path = out_dir / weights
    if not os.path.exists(path):
        named = [path.with_name(path.name + suffix) for suffix in _SUFFIXES]
        existing = [candidate for candidate in named if os.path.exists(candidate)]
        if len(existing) > 1:
            raise InputError(key, f"{weights} may be {_names(existing)}; add the suffix")
        path = existing[0] if existing else path
    if os.path.isdir(path):
        _check_model(key, path)
    else:
        check_file(key, path)
    return str(path)


def _fetch(key: str, weights: str) -> Path:
    try:
        path = hub.fetch(weights)
    except DpoError as error:
        raise InputError(key, f"{error.message}; {error.remedy}") from None
    _check_model(key, path)
    return path


def _check_model(key: str, path: Path) -> None:
    """Look whether a directory holds a model."""
    shown = show_path(path)
    if not folder.is_model(path):
        raise InputError(
            key,
            f"{shown} is a directory; name a weights file in it, or a Hugging Face directory, which"
            f" has a {folder.CONFIG}",
        )
    check_file(key, path / folder.CONFIG)
    if not folder.has_weights(path):
        raise InputError(
            key,
            f"{shown} has a {folder.CONFIG}, but no {folder.WEIGHTS}; was its copy or download"
            " interrupted?",
        )


def _find_sft(model: Model) -> Path:
    """The checkpoint that is meant when none is named."""
    place = model.out_dir
    if place is None:
        raise InputError(
            "model.weights",
            "nothing says which weights to train; set model.weights to a path, "
            "or model.out_dir to the folder that holds full_sft_*.pth",
        )
    _check_folder("model.out_dir", place)
    found = sorted(path for path in place.glob("full_sft_*") if path.suffix in _SUFFIXES)
    if not found:
        raise InputError(
            "model.out_dir",
            f"{show_path(place)} holds no full_sft_*.pth or full_sft_*.safetensors; "
            "point it at the SFT weights, or set model.weights",
        )
    fitting = [path for path in found if _agrees(path, model)] if len(found) > 1 else found
    if len(fitting) != 1:
        raise InputError(
            "model.out_dir",
            f"{show_path(place)} holds {_names(found)}; choose one, "
            f"for example model.weights = {show_value(found[0].name)}",
        )
    check_file("model.out_dir", fitting[0])
    return fitting[0]


def _agrees(path: Path, model: Model) -> bool:
    """Whether the file's name says the stated width and mixture of experts."""
    name = _SFT_STEM.fullmatch(path.stem)
    return (
        name is not None
        and model.hidden_size in (None, int(name[1]))
        and model.use_moe in (None, bool(name[2]))
    )


def check_tokenizer(key: str, path: Path) -> None:
    """Check that a folder holds what a tokenizer is read from.

    Args:
        key: who names it, for the message.
        path: of the folder.

    Raises:
        InputError: it does not.
    """
    if os.path.isfile(path):
        raise InputError(
            key, f"{show_path(path)} is a file; name its folder, {show_path(path.parent)}"
        )
    _check_folder(key, path)
    missing = [name for name in folder.TOKENIZER if not os.path.exists(path / name)]
    if missing:
        raise InputError(
            key,
            f"{show_path(path)} holds no {' and no '.join(missing)}; "
            "name the folder with the tokenizer that the weights were trained with",
        )
    for name in folder.TOKENIZER:
        check_file(key, path / name)


def check_pairs(key: str, paths: Sequence[Path]) -> None:
    """Check that files of pairs, or folders with such files, are there and may be read.

    Args:
        key: who names them, for the message.
        paths: of the files and folders.

    Raises:
        InputError: one of them is not, or is a folder with no such file in it.
    """
    for path in paths:
        if not stat.S_ISDIR(_status(key, path).st_mode):
            check_file(key, path)
            continue
        if not os.access(path, os.R_OK | os.X_OK):
            raise InputError(key, f"{show_path(path)} cannot be read: no permission")
        files = pair_files(path)
        if not files:
            raise InputError(
                key,
                f"{show_path(path)} is a directory; name a file, or a directory that holds files of"
                f" pairs ({', '.join(PAIR_SUFFIXES)})",
            )
        for file in files:
            check_file(key, file)


def _check_folder(key: str, path: Path) -> None:
    if not stat.S_ISDIR(_status(key, path).st_mode):
        raise InputError(key, f"{show_path(path)} is a file; name a folder")


def check_file(key: str, path: Path) -> None:
    """Check that a file is there, is one, holds something and may be read.

    Args:
        key: who names it, for the message.
        path: the file.

    Raises:
        InputError: it is not.
    """
    status = _status(key, path)
    shown = show_path(path)
    if stat.S_ISDIR(status.st_mode):
        raise InputError(key, f"{shown} is a directory; name a file")
    if status.st_size == 0:
        raise InputError(key, f"{shown} is empty; was its copy or download interrupted?")
    if not os.access(path, os.R_OK):
        raise InputError(key, f"{shown} cannot be read: no permission")


def _status(key: str, path: Path) -> os.stat_result:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(key, f"{show_path(path)} does not exist{_near(path)}") from None
    except OSError as error:
        raise InputError(key, f"{show_path(path)} cannot be read: {error.strerror}") from None


def _near(path: Path) -> str:
    """What there is in the place of a file that is not there."""
    parent = path.parent
    if not os.path.isdir(parent):
        return f", nor does its folder {show_path(parent)}"
    names = os.listdir(parent) if os.access(parent, os.R_OK) else []
    return did_you_mean(path.name, names)


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)

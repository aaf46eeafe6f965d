"""Resolution and quick checks of the files that a profile names."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal, get_args

from dpo_cli.errors import DpoError, UsageError, first_line
from dpo_cli.files import PAIR_SUFFIXES, pair_files
from dpo_cli.hub.datasets import HubData, fetch_data
from dpo_cli.hub.download import is_on_hub
from dpo_cli.profile import adapter_config, folder, hub
from dpo_cli.profile.load import LoadedProfile, Problem
from dpo_cli.profile.model import Model
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.source import shipped_profiles
from dpo_cli.profile.text import near_path, show_path, show_value
from dpo_cli.signatures import read_head, recognize, recognize_folder

_SUFFIXES = (".pth", ".safetensors")
_SET_PATHS = (
    "Set the paths of your files: --set model.out_dir=out --set model.tokenizer=model --set"
    " data.data_path=dataset/dpo.jsonl. Or write a profile of your own: dpo init NAME"
)
_SFT_STEM = re.compile(r"full_sft_(\d+)(_moe)?")


Input = Literal["data", "tokenizer", "weights", "reference", "held_out", "adapter"]
_KEYS: dict[Input, str] = {
    "data": "data.data_path",
    "tokenizer": "model.tokenizer",
    "weights": "model.weights",
    "reference": "model.reference",
    "held_out": "eval.path",
    "adapter": "model.adapter",
}
INPUTS: tuple[Input, ...] = get_args(Input)


class InputError(UsageError):
    """The file that `key` names is missing or of the wrong kind."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason


def check_inputs(loaded: LoadedProfile, needed: Collection[Input] = INPUTS) -> None:
    """Check that the profile's files exist and are of the right kind, without reading them.

    Args:
        loaded: profile that names the files.
        needed: inputs to check.

    Raises:
        UsageError: `details` lists all problems, with key and place of the setting.
    """
    # Weights and reference may have the same problem.
    problems = find_problems(loaded, needed).values()
    details = list(dict.fromkeys(map(str, problems)))
    if details:
        count = "1 input" if len(details) == 1 else f"{len(details)} inputs"
        is_shipped = loaded.path in shipped_profiles().values()
        remedy = _SET_PATHS if is_shipped else ""
        raise UsageError(f"{show_path(loaded.path)}: {count} cannot be used", remedy, details)


def find_problems(
    loaded: LoadedProfile, needed: Collection[Input] = INPUTS
) -> dict[Input, Problem]:
    """Return a problem for each needed input that cannot be used, without reading files.

    Models and data sets on the Hub are downloaded.
    """
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
    if profile.lora.is_on or profile.model.adapter is not None or profile.model.quantization:
        checks["adapter"] = lambda: check_adapter(profile)
    problems: dict[Input, Problem] = {}
    for name, check in checks.items():
        if name not in needed:
            continue
        try:
            check()
        except InputError as error:
            origin = loaded.origins[error.key]
            where = show_path(loaded.path) if origin == "default" else origin
            problems[name] = Problem(error.key, where, error.key, error.reason)
        except (OSError, ValueError) as error:  # an impossible name, or an unreadable folder
            key = _KEYS[name]
            problems[name] = Problem(key, loaded.origins[key], key, f"no path: {first_line(error)}")
    return problems


def resolve_weights(profile: Profile, which: Literal["weights", "reference"]) -> str:
    """Resolve the weights to an absolute path, or to "run:NAME" as given.

    The path is a weights file or a Hugging Face directory. A model on the Hub is downloaded if it
    is not cached. A name without suffix gets the suffix that exists. The reference defaults to
    `model.weights`; that defaults to the only full_sft_* in `out_dir`, or the only one whose name
    matches `hidden_size` and `use_moe`.

    Raises:
        UsageError: no file matches, several do, or the match cannot be weights.
    """
    model = profile.model
    if which == "reference" and model.reference is not None:
        return _resolve("model.reference", model.reference, model.out_dir)
    if model.weights is not None:
        return _resolve("model.weights", model.weights, model.out_dir)
    return str(_find_sft(model))


def resolve_tokenizer(profile: Profile) -> Path:
    """Return the tokenizer's folder: `model.tokenizer`, or the Hugging Face directory of weights.

    Raises:
        UsageError: `model.tokenizer` is not set, and the weights are not a directory.
    """
    if profile.model.tokenizer is not None:
        return profile.model.tokenizer
    model_weights = Path(resolve_weights(profile, "weights"))
    if folder.is_model(model_weights):
        return model_weights
    raise InputError(
        "model.tokenizer",
        "missing, and the weights are not a Hugging Face directory with a tokenizer; set it to the"
        f" folder with {' and '.join(folder.TOKENIZER)} that the weights were trained with",
    )


def _resolve(key: str, weights: str, out_dir: Path | None) -> str:
    if weights.startswith("run:"):
        return weights
    if is_on_hub(weights):
        return str(_fetch(key, weights))
    path = Path(weights)
    if not path.is_absolute():
        if out_dir is None:
            raise InputError(
                key,
                f"{weights} does not exist here, and model.out_dir, in which it could be a name, is"
                " not set; write the path of the weights",
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
        raise InputError(key, f"{error.message}; {_as_clause(error.remedy)}") from None
    _check_model(key, path)
    return path


def _check_model(key: str, path: Path) -> None:
    shown = show_path(path)
    if not folder.is_model(path) and folder.is_adapter(path):
        raise _as_input_error(key, path, folder.missing_weights(path))
    if not folder.is_model(path):
        raise InputError(
            key,
            f"{shown} is a directory without a {folder.CONFIG}; name a weights file in it, or a"
            " Hugging Face directory",
        )
    check_file(key, path / folder.CONFIG)
    if not folder.has_weights(path):
        raise _as_input_error(key, path, folder.missing_weights(path))


def _find_sft(model: Model) -> Path:
    """Return the only full_sft_* in `out_dir` that matches the model's settings."""
    out_dir = model.out_dir
    if out_dir is None:
        raise InputError(
            "model.weights",
            "not set; set model.weights to the path of the weights to train, "
            "or model.out_dir to the folder with full_sft_*.pth",
        )
    _check_folder("model.out_dir", out_dir)
    candidates = sorted(path for path in out_dir.glob("full_sft_*") if path.suffix in _SUFFIXES)
    if not candidates:
        raise InputError(
            "model.out_dir",
            f"{show_path(out_dir)} has no full_sft_*.pth or full_sft_*.safetensors; "
            "set it to the folder of the SFT weights, or set model.weights",
        )
    matching = candidates
    if len(candidates) > 1:
        matching = [path for path in candidates if _matches_name(path, model)]
    if len(matching) != 1:
        raise InputError(
            "model.out_dir",
            f"{show_path(out_dir)} has {_names(candidates)}; choose one, "
            f"for example model.weights = {show_value(candidates[0].name)}",
        )
    check_file("model.out_dir", matching[0])
    return matching[0]


def _matches_name(path: Path, model: Model) -> bool:
    """Return True if width and experts in the file name match the model's settings."""
    name = _SFT_STEM.fullmatch(path.stem)
    return (
        name is not None
        and model.hidden_size in (None, int(name[1]))
        and model.use_moe in (None, bool(name[2]))
    )


def check_tokenizer(key: str, path: Path) -> None:
    """Check that a folder has the files of a tokenizer.

    Args:
        key: setting that names the folder, for the message.
        path: of the folder.

    Raises:
        InputError: a file is missing or unreadable.
    """
    if os.path.isfile(path):
        raise InputError(
            key, f"{show_path(path)} is a file; set it to its folder, {show_path(path.parent)}"
        )
    _check_folder(key, path)
    missing = [name for name in folder.TOKENIZER if not os.path.exists(path / name)]
    if missing and (other := folder.missing_tokenizer(path)):
        raise _as_input_error(key, path, other)
    if missing:
        raise InputError(
            key,
            f"{show_path(path)} has no {' and no '.join(missing)}; "
            "set it to the folder with the tokenizer that the weights were trained with",
        )
    for name in folder.TOKENIZER:
        check_file(key, path / name)
        if found := recognize(read_head(path / name)):
            raise _as_input_error(key, path / name, found.error(path / name))


def check_pairs(key: str, paths: Sequence[Path]) -> None:
    """Check that files of pairs, or folders of such files, exist and are readable.

    Args:
        key: setting that names the paths, for the message.
        paths: of files and folders, or names of data sets on the Hub, which are downloaded.

    Raises:
        InputError: a file is missing or unreadable, or a folder has no file of pairs.
    """
    for path in paths:
        if is_on_hub(path):
            for file in resolve_data(key, path).paths:
                check_file(key, file)
            continue
        if not stat.S_ISDIR(_status(key, path).st_mode):
            check_file(key, path)
            continue
        if not os.access(path, os.R_OK | os.X_OK):
            raise InputError(key, f"{show_path(path)} cannot be read: no permission")
        if saved := recognize_folder(path):
            raise _as_input_error(key, path, saved.error(path))
        files = pair_files(path)
        if not files:
            raise InputError(
                key,
                f"{show_path(path)} is a directory without files of pairs; set it to a file, or to"
                f" a directory with such files ({', '.join(PAIR_SUFFIXES)})",
            )
        for file in files:
            check_file(key, file)


def resolve_data(key: str, name: Path) -> HubData:
    """Return a data set on the Hub; download the files that are not cached.

    Raises:
        InputError: see `fetch_data`.
    """
    try:
        return fetch_data(str(name))
    except DpoError as error:
        raise InputError(key, f"{error.message}; {_as_clause(error.remedy)}") from None


def check_adapter(profile: Profile) -> None:
    """Check that peft is installed, and that `model.adapter` is a directory that it saved.

    Quantized weights need an adapter, and bitsandbytes.

    Raises:
        InputError: a check fails.
    """
    adapter, quantization = profile.model.adapter, profile.model.quantization
    key = "model.quantization"
    try:
        if quantization is not None:
            adapter_config.require_quantizer(quantization, profile.lora)
        key = "lora.rank" if adapter is None else "model.adapter"
        adapter_config.require_peft(key)
        if adapter is not None:
            _check_folder(key, adapter)
            adapter_config.read_settings(adapter)
        elif profile.lora.continue_adapter:
            key = "lora.continue_adapter"
            raise DpoError("there is no adapter to continue", "Set model.adapter.")
    except InputError:
        raise
    except DpoError as error:
        reason = error.message.removeprefix(f"{key}: ")
        raise _as_input_error(key, adapter or Path(), DpoError(reason, error.remedy)) from None


def _check_folder(key: str, path: Path) -> None:
    if not stat.S_ISDIR(_status(key, path).st_mode):
        raise InputError(key, f"{show_path(path)} is a file; set it to a folder")


def check_file(key: str, path: Path) -> None:
    """Check that a file exists, is a regular file, is not empty and is readable.

    Args:
        key: setting that names the file, for the message.
        path: of the file.

    Raises:
        InputError: a check fails.
    """
    status = _status(key, path)
    shown = show_path(path)
    if stat.S_ISDIR(status.st_mode):
        raise InputError(key, f"{shown} is a directory; set it to a file")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(
            key, f"{shown} is a pipe or a device; write its content to a file, which is read twice"
        )
    if status.st_size == 0:
        raise InputError(key, f"{shown} is empty; copy or download it again")
    if not os.access(path, os.R_OK):
        raise InputError(key, f"{shown} cannot be read: no permission")


def _as_input_error(key: str, path: Path, error: DpoError) -> InputError:
    """Convert the error about a file to an error about the key that names the file."""
    reason = error.message.replace(str(path), show_path(path), 1)
    return InputError(key, f"{reason}; {_as_clause(error.remedy)}")


def _as_clause(remedy: str) -> str:
    return remedy[:1].lower() + remedy[1:].removesuffix(".")


def _status(key: str, path: Path) -> os.stat_result:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(key, f"{show_path(path)} does not exist{_near(path)}") from None
    except OSError as error:
        raise InputError(key, f"{show_path(path)} cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path
        raise InputError(key, f"{show_path(path)} is no path: {error}") from None


def _near(path: Path) -> str:
    """Describe the surroundings of a missing file, for its error."""
    if hint := near_path(path):
        return hint
    parent = path.parent
    return "" if os.path.isdir(parent) else f", nor does its folder {show_path(parent)}"


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)

"""Rules for the arguments of MiniMind's scripts, which count micro-batches as a profile does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_cli.profile.discover import minimind_version_of
from dpo_cli.profile.folder import TOKENIZER
from dpo_cli.profile.foreign.common import dtype, trackers
from dpo_cli.profile.foreign.rules import (
    Context,
    NoCounterpartError,
    Rule,
    number,
    part_of,
    switch,
    text,
    to,
    whole,
)

SCRIPTS = ("train_dpo.py", "5-dpo_train.py")
_OLDER = frozenset({"out_dir", "ddp", "local_rank", "dim", "n_layers", "report_to"})
_VERSION_3 = frozenset({"beta", "use_compile"})
_SINCE_OCTOBER_2025 = frozenset({"save_dir", "save_weight", "from_weight", "from_resume"})
_OCTOBER_2025 = "minimind2-2510"
_SHIPPED: Mapping[bool, Mapping[int, str]] = {
    True: {2: "moe", 2510: _OCTOBER_2025, 3: "minimind3-moe"},
    False: {2: "dense", 2510: _OCTOBER_2025, 3: "minimind3"},
}
"""Shipped profiles by mixture of experts and version of the script."""
_TITLES: Mapping[int, str] = {
    2: "the script of version 2",
    2510: "the one of October 2025",
    3: "the script of version 3",
}
_TOKENIZERS = ("../model", "../model/minimind_tokenizer")
"""Folders of the tokenizer, relative to trainer/."""


def _path(key: str) -> Rule:
    return Rule((key,), lambda value, context: {key: context.path(text(value))})


def is_older(given: Mapping[str, Any]) -> bool:
    """Return True for the arguments of version 2's script."""
    return bool(_OLDER & given.keys())


def usual_places(folder: Path) -> Mapping[str, tuple[str, ...]]:
    """Return the usual paths of a checkout, relative to the folder of its script, by key.

    Args:
        folder: folder in which the script is run: trainer/, or an older checkout itself.
    """
    top = "" if has_script(folder) else "../"
    return {
        "model.out_dir": (f"{top}out",),
        "model.tokenizer": (f"{top}model/minimind_tokenizer", f"{top}model"),
        "data.data_path": (f"{top}dataset/dpo.jsonl",),
    }


def has_script(folder: Path) -> bool:
    """Return True for an older checkout, which has the script beside its model/ and out/."""
    return folder.name != "trainer" and any((folder / name).is_file() for name in SCRIPTS)


def shipped_profile(given: Mapping[str, Any], folder: Path) -> tuple[str, str]:
    """Return the shipped profile with the defaults of the script, and a remark if it is a guess.

    The arguments decide, then the script itself, then the tokenizer of the checkout, which only
    distinguishes version 3 from the others.

    Args:
        given: arguments of the script.
        folder: folder in which the script is run.
    """
    use_moe = str(given.get("use_moe", 0)).lower() in ("1", "true")
    names = {version: _SHIPPED[use_moe][version] for version in (2, 2510, 3)}
    if is_older(given) or has_script(folder):
        return names[2], ""
    if _VERSION_3 & given.keys():
        return names[3], ""
    if version := _version_of_script(folder):
        return names[version], ""
    version = 3
    places = [folder / each for each in _TOKENIZERS]
    tokenizer = next((each for each in places if (each / TOKENIZER[1]).is_file()), None)
    if tokenizer and minimind_version_of(tokenizer) == 2:
        version = 2510 if _SINCE_OCTOBER_2025 & given.keys() else 2
    others = ", ".join(
        f"{_TITLES[each]} --template {name}" for each, name in names.items() if each != version
    )
    return names[version], f"read as {_TITLES[version]} ({names[version]}); for {others}"


def _version_of_script(folder: Path) -> int | None:
    """Return the version of train_dpo.py in a folder by its arguments; None if it is not there."""
    try:
        script = (folder / SCRIPTS[0]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    arguments = set(re.findall(r"['\"]--(\w+)['\"]", script))
    if _VERSION_3 & arguments:
        return 3
    if _SINCE_OCTOBER_2025 & arguments:
        return 2510
    return 2 if _OLDER & arguments else None


def _from_weight(value: Any, context: Context) -> Mapping[str, Any]:
    size = whole(context.values.get("hidden_size", 768))
    use_moe = str(context.values.get("use_moe", 0)).lower() in ("1", "true")
    return {"model.weights": f"{text(value)}_{size}{'_moe' if use_moe else ''}.pth"}


def _tracker(value: Any, context: Context) -> Mapping[str, Any]:
    # Since October 2025 the script imports SwanLab under the name wandb.
    key = "track.use_wandb" if context.script in ("dense", "moe") else "track.use_swanlab"
    return {key: switch(value)}


def _report_to(value: Any, context: Context) -> Mapping[str, Any]:
    return trackers.convert(value, context) if value else {}


def _resume(value: Any, _: Context) -> Mapping[str, Any]:
    if switch(value):
        raise NoCounterpartError("resume a run of dpo with dpo resume")
    return {}


MINIMIND: Mapping[str, Rule] = {
    "out_dir": _path("model.out_dir"),
    "save_dir": _path("model.out_dir"),
    "from_weight": Rule(("model.weights",), _from_weight),
    "save_weight": to("export.prefix", text),
    "data_path": _path("data.data_path"),
    "max_seq_len": to("data.max_seq_len", whole),
    "num_workers": to("data.num_workers", whole),
    "beta": to("dpo.beta", number),
    "epochs": to("train.epochs", whole),
    "batch_size": to("train.batch_size", whole),
    "accumulation_steps": to("train.accumulation_steps", whole),
    "learning_rate": to("train.learning_rate", number),
    "grad_clip": to("train.grad_clip", number),
    "warmup_iters": to("train.warmup_iters", whole),
    "device": to("train.device", text),
    "dtype": dtype,
    "log_interval": to("train.log_interval", whole),
    "save_interval": to("train.save_interval", whole),
    "use_compile": to("train.compile", switch),
    "hidden_size": to("model.hidden_size", whole),
    "dim": to("model.hidden_size", whole),
    "num_hidden_layers": to("model.num_hidden_layers", whole),
    "n_layers": to("model.num_hidden_layers", whole),
    "use_moe": to("model.use_moe", switch),
    "use_wandb": Rule(("track.use_wandb", "track.use_swanlab"), _tracker),
    "report_to": Rule(trackers.keys, _report_to),
    "wandb_project": to("track.wandb_project", text),
    "project_name": to("track.wandb_project", text),
    "from_resume": Rule((), _resume),
    "ddp": part_of("launch.nproc_per_node"),
    "local_rank": part_of("launch.nproc_per_node"),
}
"""Arguments of train_dpo.py, from version 2 to version 3."""

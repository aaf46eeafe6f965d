"""Choice of the files of a data set: its configurations and splits, by the Hub's conventions.

The `configs` in the metadata of README.md come first. Without them the names of the files decide:
`CONFIG/SPLIT-00000-of-00003.parquet` and `data/SPLIT-...` as push_to_hub writes them,
`CONFIG/SPLIT/0000.parquet` as the Hub converts data sets, or words such as "train" and "test" in
the names of folders and files. No code of a data set is run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from glob import has_magic
from typing import Any

from dpo_cli.errors import DpoError
from dpo_cli.files import PAIR_SUFFIXES

DEFAULT = "default"
"""Name of the configuration of a data set that names none."""
TRAIN = "train"

_COMPRESSED = r"(?:\.gz|\.zst)?"
_SUFFIX = re.compile(rf"({'|'.join(map(re.escape, PAIR_SUFFIXES))}){_COMPRESSED}\Z", re.IGNORECASE)
_PUSHED = re.compile(r"(?:([^/]+)/)?([^/]+?)-\d{5}-of-(\d{5})[^/]*")
_CONVERTED = re.compile(r"([^/]+)/(?:partial-)?([^/]+)/\d{4}\.parquet")
_IS_NO_DATA = frozenset(
    (
        *("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"),
        *("state.json", "metadata.json"),
    )
)
"""Files that describe a data set, or that `save_to_disk` writes beside its Arrow files."""
_WORDS: Mapping[str, tuple[str, ...]] = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_HELD_OUT_WORDS = (*_WORDS["test"], *_WORDS["validation"])
_EDGE = r"[-._ 0-9/]"
_PREFERENCE = ("pref", "dpo")
_MOST_NAMED = 12

Splits = dict[str, list[str]]
"""Files of a configuration by split."""


@dataclass(frozen=True)
class Selection:
    """Files of one split of one configuration, in the order in which they are read."""

    config: str
    split: str
    files: tuple[str, ...]
    held_out: str | None = field(default=None, compare=False)
    """Split of the same configuration that is meant for an evaluation of this one, if any."""


def select_files(
    name: str, files: Collection[str], metadata: Mapping[str, Any], config: str, split: str
) -> Selection:
    """Choose the files of a split.

    Args:
        name: hf:ORG/NAME, with the revision if one is given, for messages.
        files: paths of all files of the repository.
        metadata: metadata of README.md.
        config: name of a configuration; "" for the default one, or the only one.
        split: name of a split; "" for "train", or the only one that is meant for training.

    Raises:
        DpoError: there is no such configuration or split, several could be meant, or no file has
            rows.
    """
    rows = sorted(path for path in files if _has_rows(path))
    if not rows:
        raise _no_rows(name, files)
    configs = _stated_configs(name, rows, metadata) or _configs_by_name(rows)
    if configs is None:
        config = config or DEFAULT
        base = "" if config == DEFAULT else f"{config}/"
        inside = [path for path in rows if path.startswith(base)]
        configs = {config: _splits_by_words(inside, base)}
        if not inside:
            folders: dict[str, Splits] = {path.split("/")[0]: {} for path in rows if "/" in path}
            whole = {DEFAULT: _splits_by_words(rows, "")}
            raise _no_choice(name, "configuration", config, {**whole, **folders})
    else:
        config = _choose_config(name, config, configs, metadata)
    splits = configs[config]
    split = _choose_split(f"{name}:{config}", split, splits)
    return Selection(config, split, tuple(splits[split]), _held_out_split(split, splits))


def stated_rows(metadata: Mapping[str, Any], selection: Selection) -> int | None:
    """Return the number of rows that README.md states for a split; None if it states none."""
    tables = _list_of_tables(metadata.get("dataset_info"))
    for info in tables:
        if len(tables) > 1 and str(info.get("config_name", DEFAULT)) != selection.config:
            continue
        for split in _list_of_tables(info.get("splits")):
            rows = split.get("num_examples")
            if str(split.get("name")) == selection.split and isinstance(rows, int):
                return rows
    return None


def missing_shards(files: Sequence[str]) -> int:
    """Return how many files are missing, by the "-of-00003" in the names of the others."""
    shards: dict[tuple[str | None, str], tuple[int, int]] = {}
    for path in files:
        if match := _PUSHED.fullmatch(path):
            found, _ = shards.get((match[1], match[2]), (0, 0))
            shards[match[1], match[2]] = found + 1, int(match[3])
    return sum(max(0, wanted - found) for found, wanted in shards.values())


def _has_rows(path: str) -> bool:
    parts = path.split("/")
    is_hidden = any(part.startswith((".", "__")) or part == "" for part in parts)
    return bool(_SUFFIX.search(path)) and not is_hidden and parts[-1].lower() not in _IS_NO_DATA


def _stated_configs(
    name: str, rows: Sequence[str], metadata: Mapping[str, Any]
) -> dict[str, Splits] | None:
    """Return the configurations of README.md; None if it has none.

    Raises:
        DpoError: a pattern leads out of the repository.
    """
    configs: dict[str, Splits] = {}
    known = {*rows}
    for table in _list_of_tables(metadata.get("configs")):
        config = str(table.get("config_name", DEFAULT))
        base = _folder(table.get("data_dir"))
        if "data_files" not in table:
            inside = [path for path in rows if path.startswith(base)]
            configs[config] = _splits_by_words(inside, base)
            continue
        splits: dict[str, dict[str, None]] = {}  # files in order, each once
        for split, pattern in _patterns(table["data_files"]):
            if "://" in pattern or ".." in pattern.split("/"):
                raise DpoError(
                    f"{name}: README.md names files outside of the data set: {pattern}",
                    "Download them yourself, and write their path.",
                )
            pattern = base + pattern.removeprefix("./")
            found = splits.setdefault(split, {})
            if has_magic(pattern):
                found |= dict.fromkeys(path for path in rows if _matches(path, pattern))
            elif pattern in known:
                found[pattern] = None
        configs[config] = {split: list(paths) for split, paths in splits.items()}
    return configs or None


def _patterns(data_files: Any) -> Iterator[tuple[str, str]]:
    """Yield each split with one of its patterns, from any form of `data_files`."""
    if isinstance(data_files, dict):
        data_files = [{"split": split, "path": paths} for split, paths in data_files.items()]
    for each in data_files if isinstance(data_files, list) else [data_files]:
        table = each if isinstance(each, dict) else {"path": each}
        paths = table.get("path")
        for path in paths if isinstance(paths, list) else [paths]:
            if isinstance(path, str):
                yield str(table.get("split", TRAIN)), path


def _configs_by_name(rows: Sequence[str]) -> dict[str, Splits] | None:
    """Return the configurations by the names that push_to_hub or the Hub's conversion gives.

    None if no file has such a name.
    """
    pushed = [(path, _PUSHED.fullmatch(path)) for path in rows]
    if not any(match for _, match in pushed):
        pushed = [(path, _CONVERTED.fullmatch(path)) for path in rows]
    configs: dict[str, Splits] = {}
    for path, match in pushed:
        if match:
            config = DEFAULT if match[1] in (None, "data") else match[1]
            configs.setdefault(config, {}).setdefault(match[2], []).append(path)
    return configs or None


def _splits_by_words(rows: Iterable[str], base: str) -> Splits:
    """Sort files by words in the names of their folders, or else of the files.

    If no name has such a word, all files are for training. Of several kinds of files in a split
    only the most frequent is kept: data sets often have the same rows twice, as JSON and Parquet.
    """
    rows = list(rows)
    by_folder = _by_word(rows, base, lambda path: path.rpartition("/")[0])
    splits = by_folder or _by_word(rows, base, lambda path: path.rpartition("/")[2])
    return {split: _of_one_kind(paths) for split, paths in (splits or {TRAIN: rows}).items()}


def _by_word(rows: Iterable[str], base: str, part_of: Any) -> Splits:
    splits: Splits = {}
    for path in rows:
        part = part_of(path[len(base) :]).lower()
        for split, words in _WORDS.items():
            if re.search(rf"(?:^|{_EDGE})(?:{'|'.join(words)})(?:$|{_EDGE})", part):
                splits.setdefault(split, []).append(path)
                break
    return splits


def _of_one_kind(paths: Sequence[str]) -> list[str]:
    kinds = [match[1].lower() for path in paths if (match := _SUFFIX.search(path))]
    most = Counter(sorted(kinds, reverse=True)).most_common(1)
    return [path for path, kind in zip(paths, kinds, strict=True) if kind == most[0][0]]


def _choose_config(
    name: str, wanted: str, configs: Mapping[str, Splits], metadata: Mapping[str, Any]
) -> str:
    if wanted:
        if wanted in configs:
            return wanted
        raise _no_choice(name, "configuration", wanted, configs)
    if len(configs) == 1:
        return next(iter(configs))
    for table in _list_of_tables(metadata.get("configs")):
        if table.get("default") is True:
            return str(table.get("config_name", DEFAULT))
    if DEFAULT in configs:
        return DEFAULT
    raise DpoError(
        f"{name} has several configurations: {_shown(configs)}",
        f"Add the name of one, for example {name}:{next(iter(configs))}",
    )


def _choose_split(name: str, wanted: str, splits: Splits) -> str:
    choices = {split: paths for split, paths in splits.items() if paths}
    if not choices:
        raise DpoError(
            f"{name}: no file that README.md names for this configuration exists, or has a known"
            f" suffix ({', '.join(PAIR_SUFFIXES)})",
            "Use another configuration, or download the files and write their path.",
        )
    if wanted:
        if wanted not in choices:
            raise _no_choice(name, "split", wanted, choices, "/")
        return wanted
    if TRAIN in choices or len(choices) == 1:
        return TRAIN if TRAIN in choices else next(iter(choices))
    training = [split for split in choices if TRAIN in split.lower()]
    of_pairs = [split for split in training if any(part in split for part in _PREFERENCE)]
    for candidates in (training, of_pairs):
        if len(candidates) == 1:
            return candidates[0]
    raise DpoError(
        f"{name} has several splits: {_shown(choices)}",
        f"Add the name of one, for example {name}/{(training or list(choices))[0]}",
    )


def _held_out_split(split: str, splits: Splits) -> str | None:
    """Return the split named as `split` is, but for evaluation: test_prefs for train_prefs."""
    names = (split.replace(TRAIN, word) for word in _HELD_OUT_WORDS if TRAIN in split)
    return next((name for name in names if splits.get(name)), None)


def _no_choice(
    name: str, what: str, wanted: str, choices: Mapping[str, Collection[str]], separator: str = ":"
) -> DpoError:
    """Build the error for an unknown configuration or split, each with what is in it."""
    example = f"{name}{separator}{next(iter(choices))}"
    for config, splits in choices.items():
        if what == "configuration" and wanted in splits:  # a split without its configuration
            example = f"{name}:{config}/{wanted}"
    return DpoError(
        f"{name} has no {what} {wanted!r}",
        f"Choose from {_shown(choices)}; for example {example}",
    )


def _no_rows(name: str, files: Collection[str]) -> DpoError:
    repository = name.split("@")[0]
    script = f"{repository.rpartition('/')[2]}.py"
    if script in files:
        return DpoError(
            f"{name} has only a script ({script}), which dpo does not run",
            f"Try the Hub's conversion to Parquet: {repository}@refs/convert/parquet",
        )
    return DpoError(
        f"{name} has no file of pairs; it has {_shown(sorted(files)) or 'no files'}",
        f"Use a data set with files that end in {', '.join(PAIR_SUFFIXES)}.",
    )


def _shown(names: Collection[str]) -> str:
    more = ", ..." if len(names) > _MOST_NAMED else ""
    return ", ".join(list(names)[:_MOST_NAMED]) + more


def _folder(data_dir: Any) -> str:
    folder = str(data_dir or "").removeprefix("./").strip("/")
    return f"{folder}/" if folder else ""


def _list_of_tables(value: Any) -> list[dict[str, Any]]:
    """Return the tables in a list; also a single table, and nothing for any other value."""
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, dict)]


def _matches(path: str, pattern: str) -> bool:
    """Match a path with a pattern of README.md: * stays within a folder, ** crosses folders.

    Folder by folder, because one regular expression of a hostile pattern could take hours.
    """
    names = path.split("/")
    reached = {0}
    for part in pattern.split("/"):
        if part == "**":
            reached = {n for start in reached for n in range(start, len(names) + 1)}
        else:
            reached = {n + 1 for n in reached if n < len(names) and fnmatchcase(names[n], part)}
    return len(names) in reached

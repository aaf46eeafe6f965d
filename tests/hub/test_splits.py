"""Tests of the files of a configuration and a split, by README.md or by file names."""

from __future__ import annotations

import time
from typing import Any

import pytest

from dpo_cli.errors import DpoError
from dpo_cli.hub.splits import Selection, missing_shards, select_files, stated_rows

NAME = "hf:them/set"
ULTRA = [
    f"data/{split}-00000-of-0000{shards}.parquet"
    for split, shards in (("train_prefs", 1), ("train_sft", 1), ("test_prefs", 1), ("train_gen", 1))
]
HH = [
    *(f"{folder}/{split}.jsonl.gz" for folder in ("harmless-base", "helpful-base")
      for split in ("test", "train")),
    "red-team-attempts/red_team_attempts.jsonl.gz",
]  # fmt: skip


def config(name: str, data_files: Any = None, **more: Any) -> dict[str, Any]:
    files = {} if data_files is None else {"data_files": data_files}
    return {"config_name": name, **files, **more}


CASES: dict[str, tuple[list[str], dict[str, Any], str, Selection]] = {
    "preferences among several training splits": (
        ULTRA, {}, "", Selection("default", "train_prefs", tuple(ULTRA[:1])),
    ),
    "a split of the default configuration": (
        ULTRA, {}, "default/test_prefs", Selection("default", "test_prefs", (ULTRA[2],)),
    ),
    "words in file names, of all folders": (
        HH, {}, "",
        Selection(
            "default", "train", ("harmless-base/train.jsonl.gz", "helpful-base/train.jsonl.gz")
        ),
    ),
    "one folder": (
        HH, {}, "harmless-base",
        Selection("harmless-base", "train", ("harmless-base/train.jsonl.gz",)),
    ),
    "another split of one folder": (
        HH, {}, "helpful-base/test",
        Selection("helpful-base", "test", ("helpful-base/test.jsonl.gz",)),
    ),
    "a folder without such words": (
        HH, {}, "red-team-attempts", Selection("red-team-attempts", "train", (HH[-1],)),
    ),
    "words in folders": (
        ["valid/a.json", "training/b.json", "training/train-a.json"], {}, "",
        Selection("default", "train", ("training/b.json", "training/train-a.json")),
    ),
    "no words at all": (
        ["orca.jsonl", "README.md", "dataset_infos.json", ".cache/x.json"], {}, "",
        Selection("default", "train", ("orca.jsonl",)),
    ),
    "a word within a word is none": (
        ["constrained.jsonl", "latest.jsonl"], {}, "",
        Selection("default", "train", ("constrained.jsonl", "latest.jsonl")),
    ),
    "the same rows as JSON and as Parquet": (
        ["train.jsonl", "train.parquet"], {}, "",
        Selection("default", "train", ("train.parquet",)),
    ),
    "configurations as push_to_hub writes them": (
        ["en/train-00000-of-00002.parquet", "en/train-00001-of-00002.parquet",
         "zh/train-00000-of-00001.parquet"], {}, "en",
        Selection("en", "train", ("en/train-00000-of-00002.parquet",
                                  "en/train-00001-of-00002.parquet")),
    ),
    "the Hub's conversion": (
        ["default/train_prefs/0000.parquet", "default/train_prefs/0001.parquet",
         "default/test_prefs/0000.parquet"], {}, "",
        Selection("default", "train_prefs", ("default/train_prefs/0000.parquet",
                                             "default/train_prefs/0001.parquet")),
    ),
    "README.md before names": (
        ["train.jsonl", "b/x.jsonl", "b/y.jsonl", "b/c/z.jsonl"],
        {"configs": [config("default", [{"split": "train", "path": "b/*"}])]}, "",
        Selection("default", "train", ("b/x.jsonl", "b/y.jsonl")),
    ),
    "patterns in their order, a file once": (
        ["1.jsonl", "2.jsonl", "d/3.jsonl"],
        {"configs": [config("default", ["2.jsonl", "**/[0-9].jsonl"])]}, "",
        Selection("default", "train", ("2.jsonl", "1.jsonl", "d/3.jsonl")),
    ),
    "the configuration that is marked": (
        ["en.json", "zh.json"],
        {"configs": [config("en", "en.json"), config("zh", "zh.json", default=True)]}, "",
        Selection("zh", "train", ("zh.json",)),
    ),
    "splits as a table": (
        ["a.csv", "b.csv"],
        {"configs": [config("x", {"test": ["a.csv"], "train": "./b.csv"})]}, "",
        Selection("x", "train", ("b.csv",)),
    ),
    "a folder in README.md": (
        ["pref/train.json", "pref/test.json", "other/train.json"],
        {"configs": [config("pref", data_dir="pref")]}, "pref/test",
        Selection("pref", "test", ("pref/test.json",)),
    ),
    "a folder with patterns": (
        ["pref/a.json", "a.json"],
        {"configs": [config("pref", "a.json", data_dir="./pref/")]}, "",
        Selection("pref", "train", ("pref/a.json",)),
    ),
    "names that YAML reads as numbers": (
        ["a.json", "b.json"],
        {"configs": [config(2024, "a.json"), config(2025, "b.json")]}, "2025",  # type: ignore[arg-type]
        Selection("2025", "train", ("b.json",)),
    ),
    "the only split, whatever its name": (
        ["a.json"], {"configs": [config("x", [{"split": "judged", "path": "a.json"}])]}, "",
        Selection("x", "judged", ("a.json",)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_files_of_a_split(case: str) -> None:
    files, metadata, name, expected = CASES[case]
    wanted, _, split = name.partition("/")
    assert select_files(NAME, files, metadata, wanted, split) == expected
    # The full name always means the same files.
    again = select_files(NAME, [*files, "new.txt"], metadata, expected.config, expected.split)
    assert again == expected


@pytest.mark.parametrize(
    ("splits", "split", "held_out"),
    [
        (["train", "test"], "train", "test"),
        (["train", "validation"], "train", "validation"),
        (["train_prefs", "train_sft", "test_prefs", "test_sft"], "train_prefs", "test_prefs"),
        (["train", "test_sft"], "train", None),
        (["train", "test"], "test", None),
        (["judged"], "judged", None),
    ],
)
def test_the_split_for_evaluation(splits: list[str], split: str, held_out: str | None) -> None:
    files = [f"{name}.json" for name in splits]
    stated = [{"split": name, "path": f"{name}.json"} for name in splits]
    metadata = {"configs": [config("default", stated)]}
    assert select_files(NAME, files, metadata, "", split).held_out == held_out


ERRORS: dict[str, tuple[list[str], dict[str, Any], str, str, str]] = {
    "several configurations": (
        ["en.json", "zh.json"], {"configs": [config("en", "en.json"), config("zh", "zh.json")]}, "",
        "hf:them/set has several configurations: en, zh", "hf:them/set:en",
    ),
    "an unknown configuration": (
        ["en.json"], {"configs": [config("en", "en.json")]}, "de",
        "hf:them/set has no configuration 'de'", "Choose from en; for example hf:them/set:en",
    ),
    "a split in the place of a configuration": (
        ULTRA, {}, "test_prefs",
        "hf:them/set has no configuration 'test_prefs'",
        "for example hf:them/set:default/test_prefs",
    ),
    "the same without README.md": (
        HH, {}, "test", "hf:them/set has no configuration 'test'",
        "Choose from default, harmless-base, helpful-base, red-team-attempts; for example "
        "hf:them/set:default/test",
    ),
    "an unknown split": (
        ULTRA, {}, "default/dev", "hf:them/set:default has no split 'dev'",
        "Choose from test_prefs, train_gen, train_prefs, train_sft",
    ),
    "several splits for training": (
        [ULTRA[1], ULTRA[3]], {}, "",
        "hf:them/set:default has several splits: train_gen, train_sft",
        "hf:them/set:default/train_gen",
    ),
    "no split for training": (
        ["test.json", "dev.json"], {}, "",
        "hf:them/set:default has several splits: validation, test",
        "hf:them/set:default/validation",
    ),
    "only a script": (
        ["set.py", "README.md"], {}, "",
        "hf:them/set has only a script (set.py), which dpo does not run",
        "hf:them/set@refs/convert/parquet",
    ),
    "no rows": (
        ["README.md", "images.zip"], {}, "",
        "hf:them/set has no file of pairs; it has README.md, images.zip", ".parquet",
    ),
    "patterns without files": (
        ["a.json"], {"configs": [config("x", "b.json")]}, "",
        "hf:them/set:x: no file that README.md names", "",
    ),
    "files of somebody else": (
        ["a.json"], {"configs": [config("x", "hf://datasets/other/a.json")]}, "",
        "README.md names files outside of the data set: hf://datasets/other/a.json", "",
    ),
    "files above the data set": (
        ["a.json"], {"configs": [config("x", "../../secret.json")]}, "",
        "README.md names files outside of the data set", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_wrong_selections_are_errors_with_a_remedy(case: str) -> None:
    files, metadata, name, message, remedy = ERRORS[case]
    wanted, _, split = name.partition("/")
    with pytest.raises(DpoError) as caught:
        select_files(NAME, files, metadata, wanted, split)
    assert message in caught.value.message
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    "metadata",
    [
        {"configs": "x"},
        {"configs": [3, None, []]},
        {"configs": {}, "dataset_info": [{}]},
        {"configs": None, "dataset_info": {"splits": "many"}},
    ],
)
def test_metadata_of_other_kinds_is_passed_over(metadata: dict[str, Any]) -> None:
    selection = Selection("default", "train", ("train.json",))
    assert select_files(NAME, ["train.json"], metadata, "", "") == selection
    assert stated_rows(metadata, selection) is None


def test_rows_that_readme_states() -> None:
    def info(name: str, rows: int) -> dict[str, Any]:
        return {"config_name": name, "splits": [{"name": "train", "num_examples": rows}]}

    metadata = {"dataset_info": [info("en", 10), info("zh", 20)]}
    assert stated_rows(metadata, Selection("zh", "train", ())) == 20
    assert stated_rows(metadata, Selection("de", "train", ())) is None
    assert stated_rows({"dataset_info": info("x", 7)}, Selection("default", "train", ())) == 7


def test_shards_that_are_missing() -> None:
    shards = [f"data/train-0000{n}-of-00003.parquet" for n in range(3)]
    assert missing_shards(shards) == 0
    assert missing_shards(shards[1:]) == 1
    assert missing_shards(["train.parquet", *shards[:1]]) == 2


def test_a_hostile_pattern_takes_no_time() -> None:
    pattern = "**/" * 300 + "*a" * 300 + "b"
    metadata = {"configs": [config("x", [pattern, "a.json"])]}
    files = ["/".join("a" * 200 for _ in range(15)) + f"{n}.json" for n in range(20)]
    started = time.process_time()
    assert select_files(NAME, [*files, "a.json"], metadata, "", "").files == ("a.json",)
    assert time.process_time() - started < 20

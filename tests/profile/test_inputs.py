from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_cli.errors import UsageError
from dpo_cli.profile.inputs import check_inputs, resolve_tokenizer, resolve_weights
from dpo_cli.profile.load import LoadedProfile, load_profile
from dpo_cli.profile.schema import Profile

Load = Callable[..., LoadedProfile]
Write = Callable[..., Path]
Complain = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def files(folder: Path) -> None:
    """Write all files of a profile with the required keys, with weights in `out`."""
    for name in (
        "dpo.jsonl",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "out/full_sft_512.pth",
    ):
        put(folder / name)


def put(path: Path, text: str = "x") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


@pytest.fixture
def complain(load: Load) -> Complain:
    """Return the problems that `check_inputs` finds, given overrides."""

    def complain(*overrides: str) -> list[str]:
        try:
            check_inputs(load("", "model.out_dir=out", *overrides))
        except UsageError as error:
            return list(error.details)
        return []

    return complain


def profile_with(load: Load, *overrides: str) -> Profile:
    return load("", "model.out_dir=out", *overrides).profile


class TestFiles:
    def test_valid_inputs(self, complain: Complain) -> None:
        assert complain() == []

    def test_all_problems_are_reported_at_once(self, load: Load) -> None:
        loaded = load(
            "[eval]\npath = 'zzz'\n",
            "data.data_path=pairs",
            "model.tokenizer=gone/deep",
            "model.out_dir=nowhere",
            "model.reference=x",
        )
        with pytest.raises(UsageError) as caught:
            check_inputs(loaded)
        assert caught.value.message == "my.toml: 4 inputs cannot be used"
        assert list(caught.value.details) == [
            "--set  data.data_path: pairs does not exist",
            "--set  model.tokenizer: gone/deep does not exist, nor does its folder gone",
            "--set  model.out_dir: nowhere does not exist",
            "my.toml:7  eval.path: zzz does not exist",
        ]

    def test_a_near_miss_is_suggested(self, complain: Complain) -> None:
        assert complain("data.data_path=dpo.json") == [
            "--set  data.data_path: dpo.json does not exist; did you mean dpo.jsonl?"
        ]

    @pytest.mark.parametrize("key", ["data.data_path", "eval.path", "model.weights"])
    def test_a_directory_or_an_empty_file(self, complain: Complain, folder: Path, key: str) -> None:
        put(folder / "empty", "")
        assert complain(f"{key}=./empty") == [
            f"--set  {key}: empty is empty; copy or download it again"
        ]
        (detail,) = complain(f"{key}=./out")
        assert detail.startswith(f"--set  {key}: out is a directory without ")

    def test_a_folder_of_pairs(self, complain: Complain, folder: Path) -> None:
        put(folder / "shards/one.csv.gz")
        put(folder / "shards/notes.txt", "")
        assert complain("data.data_path=shards") == []
        put(folder / "shards/two.parquet", "")
        (detail,) = complain('data.data_path=["dpo.jsonl", "shards"]')
        assert "shards/two.parquet is empty" in detail

    def test_a_file_without_permission(
        self, complain: Complain, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "dpo.jsonl")
        assert complain() == ["my.toml:5  data.data_path: dpo.jsonl cannot be read: no permission"]

    def test_a_file_below_a_file(self, complain: Complain) -> None:
        assert complain("data.data_path=dpo.jsonl/x") == [
            "--set  data.data_path: dpo.jsonl/x does not exist, nor does its folder dpo.jsonl"
        ]

    def test_a_file_name_that_is_too_long(self, complain: Complain) -> None:
        (detail,) = complain(f"data.data_path={'x' * 300}")
        assert detail.endswith("cannot be read: File name too long")


class TestTokenizer:
    def test_the_file_instead_of_its_folder(self, complain: Complain) -> None:
        assert complain("model.tokenizer=model/tokenizer.json") == [
            "--set  model.tokenizer: model/tokenizer.json is a file; set it to its folder, model"
        ]

    def test_a_folder_without_a_tokenizer(self, complain: Complain, folder: Path) -> None:
        (detail,) = complain("model.tokenizer=out")
        assert "out has no tokenizer.json and no tokenizer_config.json; set it" in detail
        (folder / "model/tokenizer_config.json").unlink()
        (detail,) = complain()
        assert "my.toml:2  model.tokenizer: model has no tokenizer_config.json; set it" in detail

    def test_an_empty_tokenizer(self, complain: Complain, folder: Path) -> None:
        put(folder / "model/tokenizer.json", "")
        (detail,) = complain()
        assert "model.tokenizer: model/tokenizer.json is empty" in detail


class TestWeights:
    def test_a_bare_name_is_in_out_dir(self, load: Load, folder: Path) -> None:
        put(folder / "out/mine.safetensors")
        expected = str(folder / "out/mine.safetensors")
        for name in ("mine.safetensors", "mine"):
            profile = profile_with(load, f"model.weights={name}")
            assert resolve_weights(profile, "weights") == expected

    def test_a_path_is_kept(self, load: Load, folder: Path) -> None:
        put(folder / "mine.pth")
        for path in ("./mine.pth", "./mine", str(folder / "mine.pth")):
            profile = profile_with(load, f"model.weights={path}")
            assert resolve_weights(profile, "weights") == str(folder / "mine.pth")

    def test_a_run_name_is_not_resolved(self, load: Load) -> None:
        profile = profile_with(load, "model.weights=run:first")
        assert resolve_weights(profile, "weights") == "run:first"
        assert resolve_weights(profile, "reference") == "run:first"

    def test_the_reference_defaults_to_the_weights(self, load: Load, folder: Path) -> None:
        put(folder / "out/other.pth")
        model_weights = str(folder / "out/full_sft_512.pth")
        assert resolve_weights(profile_with(load), "reference") == model_weights
        profile = profile_with(load, "model.reference=other.pth")
        assert resolve_weights(profile, "weights") == model_weights
        assert resolve_weights(profile, "reference") == str(folder / "out/other.pth")

    def test_a_missing_one_gets_a_suggestion(self, complain: Complain) -> None:
        for name in ("full_sft_521.pth", "full_sft_521"):
            assert complain(f"model.weights={name}") == [
                f"--set  model.weights: out/{name} does not exist;"
                f" did you mean out/full_sft_512.pth?"
            ]

    def test_a_name_for_two_files(self, complain: Complain, folder: Path) -> None:
        put(folder / "out/full_sft_512.safetensors")
        assert complain("model.weights=full_sft_512") == [
            "--set  model.weights: full_sft_512 may be full_sft_512.pth, "
            "full_sft_512.safetensors; add the suffix"
        ]

    def test_a_hugging_face_directory(self, complain: Complain, load: Load, folder: Path) -> None:
        assert complain("model.weights=./model") == [
            "--set  model.weights: model is a directory without a config.json; name a weights file "
            "in it, or a Hugging Face directory"
        ]
        put(folder / "model/config.json")
        assert complain("model.weights=./model") == [
            "--set  model.weights: model has a config.json, but no model.safetensors; copy or "
            "download it again"
        ]
        for name in ("model.safetensors", "pytorch_model.bin.index.json"):
            put(folder / "model" / name)
            assert complain("model.weights=./model") == []
            (folder / "model" / name).unlink()
        put(folder / "out/mine/config.json")
        put(folder / "out/mine/model.safetensors")
        profile = profile_with(load, "model.weights=mine")
        assert resolve_weights(profile, "weights") == str(folder / "out/mine")

    def test_the_tokenizer_of_a_directory_is_its_own(self, write: Write, folder: Path) -> None:
        path = write(required='model.weights = "./model"\ndata.data_path = "dpo.jsonl"\n')
        for name in ("config.json", "model.safetensors"):
            put(folder / "model" / name)
        loaded = load_profile(path)
        check_inputs(loaded)
        assert resolve_tokenizer(loaded.profile) == folder / "model"
        (folder / "model/tokenizer.json").unlink()
        with pytest.raises(UsageError) as caught:
            check_inputs(loaded)
        assert caught.value.details == (
            "my.toml  model.tokenizer: model has no tokenizer.json; set it to the folder with the"
            " tokenizer that the weights were trained with",
        )
        with pytest.raises(UsageError) as caught:
            check_inputs(load_profile(path, ["model.weights=./out/full_sft_512.pth"]))
        (detail,) = caught.value.details
        assert "model.tokenizer: missing, and the weights are not a Hugging Face" in detail

    def test_a_bare_name_without_out_dir(self, load: Load) -> None:
        profile = load("", "model.weights=x.pth").profile
        with pytest.raises(UsageError, match=r"x.pth does not exist here, and model.out_dir"):
            resolve_weights(profile, "weights")

    def test_a_bare_name_is_a_path_too(
        self, write: Write, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In a profile the path is relative to the profile, in --set to the working directory."""
        path = write(required='model.weights = "tiny"\ndata.data_path = "dpo.jsonl"\n')
        here = tmp_path / "elsewhere"
        here.mkdir()
        for place in (folder / "tiny", here / "tiny", here / "other"):
            put(place / "config.json", '{"model_type": "llama"}')
            put(place / "model.safetensors")
        monkeypatch.chdir(here)
        assert load_profile(path).profile.model.weights == str(folder / "tiny")
        assert load_profile(path).kind == "huggingface"
        for key in ("weights", "reference"):
            loaded = load_profile(path, [f"model.{key}=other"]).profile
            assert getattr(loaded.model, key) == str(here / "other")
        # A name in out_dir takes precedence.
        put(folder / "out/other.pth")
        both = ["model.weights=other", f"model.out_dir={folder / 'out'}"]
        profile = load_profile(path, both).profile
        assert resolve_weights(profile, "weights") == str(folder / "out/other.pth")
        assert load_profile(path, ["model.weights=run:tiny"]).profile.model.weights == "run:tiny"

    def test_no_weights_are_set(self, load: Load) -> None:
        with pytest.raises(UsageError) as caught:
            check_inputs(load())
        (detail,) = caught.value.details
        assert detail.startswith("my.toml  model.weights: not set; set model.weights to the path")


class TestTheOnlySft:
    def test_it_is_found(self, load: Load, folder: Path) -> None:
        put(folder / "out/full_sft_512.txt")
        put(folder / "out/rlhf_512.pth")
        path = resolve_weights(profile_with(load), "weights")
        assert path == str(folder / "out/full_sft_512.pth")

    def test_a_single_file_is_used_despite_its_name(self, load: Load, folder: Path) -> None:
        """The weights are compared with model.hidden_size when they are loaded."""
        path = resolve_weights(profile_with(load, "model.hidden_size=768"), "weights")
        assert path == str(folder / "out/full_sft_512.pth")

    def test_there_is_none(self, complain: Complain, folder: Path) -> None:
        (folder / "out/full_sft_512.pth").unlink()
        (detail,) = complain()
        assert "model.out_dir: out has no full_sft_*.pth or full_sft_*.safetensors" in detail

    def test_out_dir_is_a_file(self, complain: Complain) -> None:
        assert complain("model.out_dir=dpo.jsonl") == [
            "--set  model.out_dir: dpo.jsonl is a file; set it to a folder"
        ]

    def test_it_is_empty(self, complain: Complain, folder: Path) -> None:
        put(folder / "out/full_sft_512.pth", "")
        (detail,) = complain()
        assert "model.out_dir: out/full_sft_512.pth is empty" in detail

    @pytest.fixture
    def several(self, folder: Path) -> None:
        for name in ("full_sft_512_moe.pth", "full_sft_768.safetensors", "full_sft_best.pth"):
            put(folder / "out" / name)

    @pytest.mark.parametrize(
        ("overrides", "name"),
        [
            (["model.hidden_size=768"], "full_sft_768.safetensors"),
            (["model.hidden_size=512", "model.use_moe=false"], "full_sft_512.pth"),
            (["model.use_moe=true"], "full_sft_512_moe.pth"),
        ],
    )
    @pytest.mark.usefixtures("several")
    def test_the_model_settings_choose_by_name(
        self, load: Load, folder: Path, overrides: list[str], name: str
    ) -> None:
        path = resolve_weights(profile_with(load, *overrides), "weights")
        assert path == str(folder / "out" / name)

    @pytest.mark.parametrize(
        "overrides", [[], ["model.hidden_size=512"], ["model.hidden_size=640"]]
    )
    @pytest.mark.usefixtures("several")
    def test_several_are_listed(self, complain: Complain, overrides: list[str]) -> None:
        assert complain(*overrides) == [
            "--set  model.out_dir: out has full_sft_512.pth, full_sft_512_moe.pth, "
            "full_sft_768.safetensors, full_sft_best.pth; choose one, "
            'for example model.weights = "full_sft_512.pth"'
        ]

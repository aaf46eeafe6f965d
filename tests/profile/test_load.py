from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_cli.errors import ExitCode, UsageError
from dpo_cli.profile.load import LoadedProfile, load_profile
from dpo_cli.profile.renames import RENAMED_KEYS, RENAMED_VALUES
from dpo_cli.profile.schema import KEYS

Fail = Callable[..., UsageError]
Load = Callable[..., LoadedProfile]
Write = Callable[..., Path]


class TestOrigins:
    def test_file_override_and_default(self, load: Load, folder: Path) -> None:
        loaded = load("[dpo]\nbeta = 0.5\n[train]\nepochs = 3\n", "train.epochs=4")
        assert (loaded.profile.dpo.beta, loaded.profile.train.epochs) == (0.5, 4)
        assert loaded.origins["dpo.beta"] == "my.toml:7"
        assert loaded.origins["train.epochs"] == "--set"
        assert loaded.origins["train.seed"] == "default"
        assert loaded.origins.keys() == KEYS.keys()
        assert (loaded.path, loaded.name) == (folder / "my.toml", "my")

    def test_a_child_overrides_its_parents(self, write: Write) -> None:
        write("[train]\nepochs = 3\nseed = 1\n", name="base.toml")
        child = write('extends = "base.toml"\n[train]\nepochs = 5\n', required="")
        loaded = load_profile(child)
        assert (loaded.profile.train.epochs, loaded.profile.train.seed) == (5, 1)
        assert loaded.origins["train.epochs"] == "my.toml:3"
        assert loaded.origins["train.seed"] == "base.toml:8"

    def test_a_shipped_profile_loads_by_its_name(self) -> None:
        loaded = load_profile(Path("minimind3"))
        assert loaded.name == "minimind3"
        assert loaded.profile.dpo.beta == 0.15


class TestPaths:
    def test_each_file_has_its_own_base(self, write: Write, folder: Path) -> None:
        write('[eval]\npath = "../held.jsonl"\n', name="base/base.toml")
        child = write(
            'extends = "../base/base.toml"\n[model]\nout_dir = "out"\n',
            name="mine/my.toml",
            required="",
        )
        profile = load_profile(child, ["data.data_path=pairs.jsonl"]).profile
        assert profile.model.tokenizer == folder / "base/model"
        assert profile.eval.path == folder / "held.jsonl"
        assert profile.model.out_dir == folder / "mine/out"
        assert profile.data.data_path == folder / "pairs.jsonl"

    def test_variables_and_home(self, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WEIGHTS", "/weights")
        monkeypatch.setenv("HOME", "/home/ann")
        profile = load("[eval]\npath='~/e.jsonl'\n", "model.weights=$WEIGHTS/x.pth").profile
        assert profile.eval.path == Path("/home/ann/e.jsonl")
        assert profile.model.weights == "/weights/x.pth"

    @pytest.mark.parametrize("which", ["weights", "reference"])
    @pytest.mark.parametrize(
        ("value", "resolved"),
        [
            ("full_sft_512.pth", "full_sft_512.pth"),
            ("run:dense-20260101", "run:dense-20260101"),
            ("run:a/$b", "run:a/$b"),
            ("/abs/x.pth", "/abs/x.pth"),
            ("~/x.pth", "/home/ann/x.pth"),
        ],
    )
    def test_weights_with_a_slash_are_paths(
        self,
        load: Load,
        monkeypatch: pytest.MonkeyPatch,
        which: str,
        value: str,
        resolved: str,
    ) -> None:
        monkeypatch.setenv("HOME", "/home/ann")
        profile = load("", f'model.{which}="{value}"').profile
        assert getattr(profile.model, which) == resolved

    def test_relative_weights_are_relative_to_the_file(self, write: Write, folder: Path) -> None:
        path = write('model.weights = "./x.pth"\n', name="sub/my.toml", required="")
        path.write_text(path.read_text() + 'model.tokenizer = "m"\ndata.data_path = "d"\n')
        assert load_profile(path).profile.model.weights == str(folder / "sub/x.pth")

    def test_an_undefined_variable_is_named(self, fail: Fail) -> None:
        (detail,) = fail("[eval]\npath = '$NO_SUCH/e'\n").details
        assert detail == (
            'my.toml:7  eval.path = "$NO_SUCH/e": variable NO_SUCH is not set; export it'
        )


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "key", "value"),
        [
            ("train.learning_rate=4e-8", "learning_rate", 4e-8),
            ("train.epochs = 3", "epochs", 3),
            ("train.deterministic=true", "deterministic", True),
            ("train.device=cpu", "device", "cpu"),
            ('train.device="cuda:1"', "device", "cuda:1"),
            ("train={device='cpu'}", "device", "cpu"),
        ],
    )
    def test_values_are_toml_or_bare_strings(
        self, load: Load, override: str, key: str, value: object
    ) -> None:
        assert getattr(load("", override).profile.train, key) == value

    def test_the_last_override_wins(self, load: Load) -> None:
        assert load("", "train.epochs=3", "train.epochs=4").profile.train.epochs == 4

    def test_an_equals_sign_may_be_part_of_the_value(self, load: Load, folder: Path) -> None:
        assert load("", "eval.path=a=b").profile.eval.path == folder / "a=b"

    @pytest.mark.parametrize(
        ("override", "detail"),
        [
            (
                "train.epochs",
                "--set  train.epochs: needs a value; for example --set train.epochs=1",
            ),
            ("epochs=3", "--set  epochs = 3: unknown key; did you mean train.epochs?"),
            (
                "data.shuffle=False",
                '--set  data.shuffle = "False": must be true or false, without quotes, '
                "not a string; for example data.shuffle = false",
            ),
            (
                "extends=dense",
                '--set  extends = "dense": only a file can extend another profile; '
                "set extends in the file",
            ),
        ],
    )
    def test_mistakes(self, fail: Fail, override: str, detail: str) -> None:
        assert fail("", override).details == (detail,)


class TestErrors:
    def test_all_at_once_with_their_lines(self, fail: Fail) -> None:
        error = fail(
            "[train]\n"
            "learning_rate = -1e-8\n"
            'epochs = "3"\n'
            "lr = 1\n"
            "[dpo]\n"
            "reduction = 'max'\n"
            "[eval]\n"
            "fraction = nan\n",
            "data.max_seq_len=1",
            "oops",
        )
        assert error.message == "my.toml: 7 errors"
        assert error.exit_code is ExitCode.USAGE
        assert [detail.partition(": ")[0] for detail in error.details] == [
            "--set  oops",
            "my.toml:7  train.learning_rate = -1e-8",
            'my.toml:8  train.epochs = "3"',
            "my.toml:9  train.lr = 1",
            'my.toml:11  dpo.reduction = "max"',
            "my.toml:13  eval.fraction = nan",
            "--set  data.max_seq_len = 1",
        ]

    def test_a_single_error(self, fail: Fail) -> None:
        assert fail("[dpo]\nbeta = 0\n").message == "my.toml: 1 error"

    def test_the_parents_file_is_named(self, write: Write) -> None:
        write("[train]\nepochs = 0\n", name="base.toml")
        child = write('extends = "base.toml"\n[dpo]\nbeta = 0\n', required="")
        with pytest.raises(UsageError) as caught:
            load_profile(child)
        assert caught.value.message == "my.toml: 2 errors"
        assert caught.value.details[0].startswith("base.toml:7  train.epochs = 0")
        assert caught.value.details[1].startswith("my.toml:3  dpo.beta = 0")

    @pytest.mark.parametrize(
        ("statement", "problem"),
        [
            ("learning_rate = -1e-8", "must be greater than 0; for example {key} = 1e-8"),
            ("learning_rate = inf", "must be a finite number; for example {key} = 1e-8"),
            ("epochs = true", "must be a whole number, not a boolean; for example {key} = 2"),
            ("epochs = 1.5", "must be a whole number, not a fractional number; for example"),
            ("epochs = [1]", "must be a whole number, not an array; for example"),
            ("epochs = {a = 1}", "must be a whole number, not a table; for example"),
            ("epochs = 2026-01-01", "must be a whole number, not a date or time; for example"),
            ("grad_clip = 'x'", "must be a number, not a string; for example {key} = 1.0"),
            ("nan_policy = 3", "must be 'stop' or 'skip'; for example"),
            ("device = 3", "must be a string in quotes, not a whole number; for example"),
            (
                "device = 'gpu'",
                'has the wrong form; for example {key} = "auto" or "cpu" or "cuda" or "cuda:0"',
            ),
            (
                "aux_loss_tokens = 'all'",
                "the packed layout has no padding to count; set train.layout",
            ),
            (
                "global_batch_size = 6",
                "must be a multiple of train.batch_size, which is 4; for example 4",
            ),
        ],
    )
    def test_each_error_has_an_example(self, fail: Fail, statement: str, problem: str) -> None:
        (detail,) = fail(f"[train]\n{statement}\n").details
        key = f"train.{statement.split()[0]}"
        assert detail.startswith(f"my.toml:7  {key} = ")
        assert f": {problem.format(key=key)}" in detail

    def test_a_place_in_an_array_is_named_by_its_key(self, fail: Fail) -> None:
        (detail,) = fail('[dpo]\nloss = ["sigmoid", "sft"]\nloss_weights = [1.0, "x"]\n').details
        assert detail == (
            'my.toml:8  dpo.loss_weights = [1.0, "x"]: must be a number, not a string;'
            " for example dpo.loss_weights = [1.0]"
        )

    def test_a_parents_value_that_a_childs_loss_contradicts(self, write: Write) -> None:
        write('[dpo]\nreduction = "sum"\n', name="base.toml")
        child = write('extends = "base.toml"\n[dpo]\nloss = "simpo"\n', required="")
        with pytest.raises(UsageError) as caught:
            load_profile(child)
        assert caught.value.details == (
            'base.toml:7  dpo.reduction = "sum": dpo.loss = "simpo" uses the mean over tokens; set'
            ' dpo.reduction = "mean"',
        )

    def test_a_path_must_be_a_string(self, write: Write) -> None:
        path = write('model.tokenizer = 3\ndata.data_path = "d"\n', required="")
        with pytest.raises(UsageError) as caught:
            load_profile(path)
        assert caught.value.details == (
            "my.toml:1  model.tokenizer = 3: must be a path in quotes, not a whole number; "
            'for example model.tokenizer = "../model"',
        )

    @pytest.mark.parametrize(
        ("text", "hint"),
        [
            ("[train]\nbeta = 1\n", "unknown key; did you mean dpo.beta?"),
            ("[train]\nlearning_rat = 1\n", "unknown key; did you mean train.learning_rate?"),
            ("[trian]\nepochs = 1\n", "unknown key; did you mean train.epochs?"),
            ("[dpo]\ndtype = 1\n", "unknown key; did you mean train.dtype or export.dtype?"),
            ("[export]\ndtpye = 1\n", "unknown key; did you mean export.dtype?"),
            ("[trian]\n", "unknown key; did you mean train?"),
            ("[train]\nextends = 'x'\n", "unknown key; did you mean extends?"),
            ("[dpo]\nqqq = 1\n", "unknown key; [dpo] has loss, loss_weights, beta, reduction"),
            ("[qqq]\nzzz = 1\n", "unknown key; the tables are model, data, dpo, train"),
        ],
    )
    def test_an_unknown_key_gets_a_suggestion_from_any_table(
        self, fail: Fail, text: str, hint: str
    ) -> None:
        (detail,) = fail(text).details
        assert f": {hint}" in detail

    def test_a_key_without_its_table(self, write: Write) -> None:
        path = write("learning_rate = 1e-8\n", required="")
        path.write_text(path.read_text() + 'model.tokenizer = "m"\ndata.data_path = "d"\n')
        with pytest.raises(UsageError) as caught:
            load_profile(path)
        assert caught.value.details == (
            "my.toml:1  learning_rate = 1e-8: unknown key; did you mean train.learning_rate?",
        )

    @pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
    def test_a_renamed_key_names_the_new_one(
        self, write: Write, fail: Fail, old: str, new: str
    ) -> None:
        assert new in KEYS
        assert old not in KEYS
        reason = f"{old} = 1: {old} is now {new}; rename it"
        assert fail("", f"{old}=1").details == (f"--set  {reason}",)
        path = write(f'model.tokenizer = "m"\ndata.data_path = "d"\n{old} = 1\n', required="")
        with pytest.raises(UsageError) as caught:
            load_profile(path)
        assert caught.value.details == (f"my.toml:3  {reason}",)

    @pytest.mark.parametrize(("old", "new"), RENAMED_VALUES.items())
    def test_a_renamed_value_names_the_new_one(
        self, fail: Fail, old: tuple[str, str], new: str
    ) -> None:
        key, value = old
        assert fail("", f"{key}={value}").details == (
            f'--set  {key} = "{value}": "{value}" is now "{new}"; set {key} = "{new}"',
        )

    def test_a_value_for_a_table(self, write: Write) -> None:
        path = write('train = 3\nmodel.tokenizer = "m"\ndata.data_path = "d"\n', required="")
        with pytest.raises(UsageError) as caught:
            load_profile(path)
        assert caught.value.details == (
            "my.toml:1  train = 3: is a table; write its keys below a line [train]",
        )

    def test_an_empty_file_lacks_what_is_required(self, write: Write) -> None:
        with pytest.raises(UsageError) as caught:
            load_profile(write(required=""))
        (data_path,) = caught.value.details
        assert data_path.startswith("my.toml  data.data_path: missing. Preference pairs")
        assert '; for example data.data_path = "../dataset/dpo.jsonl"' in data_path

    def test_an_invalid_required_key_is_not_also_missing(self, write: Write) -> None:
        path = write('model.tokenizer = "$NO_SUCH"\ndata.data_path = ""\n', required="")
        with pytest.raises(UsageError) as caught:
            load_profile(path)
        assert [detail.partition(": ")[2] for detail in caught.value.details] == [
            "variable NO_SUCH is not set; export it",
            "must not be empty",
        ]

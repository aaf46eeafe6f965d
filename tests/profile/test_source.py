from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_cli.errors import UsageError
from dpo_cli.profile import source
from dpo_cli.profile.source import (
    expand_path,
    find_profile,
    read_chain,
    scan_lines,
    shipped_profiles,
)

Write = Callable[..., Path]


class TestFind:
    def test_a_file_comes_before_a_shipped_profile(self, write: Write, folder: Path) -> None:
        assert find_profile(Path("dense"), "dense") == shipped_profiles()["dense"]
        mine = write(name="dense")
        assert find_profile(mine, "dense") == mine

    def test_a_folder_of_that_name_does_not_hide_a_shipped_profile(self, folder: Path) -> None:
        (folder / "moe").mkdir()
        assert find_profile(Path("moe"), "moe") == shipped_profiles()["moe"]

    def test_a_missing_profile_suggests_similar_names(self, write: Write) -> None:
        write(name="profiles/night.toml")
        with pytest.raises(UsageError) as caught:
            find_profile(Path("profiles/nigth.toml"), "profiles/nigth.toml")
        assert caught.value.message == (
            "no profile profiles/nigth.toml; did you mean profiles/night.toml?"
        )
        assert "dense, " in caught.value.remedy
        with pytest.raises(UsageError, match=r"; did you mean profiles/night\.toml\?"):
            find_profile(Path("profile/night.toml"), "profile/night.toml")
        with pytest.raises(UsageError, match=r"^no profile dens; did you mean dense\?\n"):
            find_profile(Path("dens"), "dens")
        with pytest.raises(UsageError, match=r"^no profile qqq\n"):
            find_profile(Path("qqq"), "qqq")

    def test_a_directory_is_no_profile(self, folder: Path) -> None:
        with pytest.raises(UsageError, match=r"^\. is a directory, not a profile\n"):
            find_profile(folder, str(folder))

    def test_profiles_in_the_wheel_come_first(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "profiles").mkdir()
        (folder / "profiles/repository.toml").touch()
        monkeypatch.setattr(source, "_PACKAGE", folder / "dpo_cli")
        assert list(shipped_profiles()) == ["repository"]
        (folder / "dpo_cli/profiles").mkdir(parents=True)
        (folder / "dpo_cli/profiles/wheel.toml").touch()
        assert list(shipped_profiles()) == ["wheel"]


class TestRead:
    def test_ancestors_come_first(self, write: Write, folder: Path) -> None:
        grandparent = write(name="base.toml")
        parent = write('extends = "../base.toml"', name="sub/parent.toml", required="")
        child = write('extends = "sub/parent.toml"', name="child.toml", required="")
        assert [document.path for document in read_chain(child)] == [grandparent, parent, child]

    def test_a_cycle_is_shown(self, write: Write) -> None:
        write('extends = "b.toml"', name="a.toml", required="")
        start = write('extends = "./a.toml"', name="b.toml", required="")
        with pytest.raises(UsageError, match=r"b\.toml -> a\.toml -> b\.toml\n"):
            read_chain(start)

    def test_a_profile_may_extend_a_shipped_one_by_name(self, write: Write) -> None:
        child = write('extends = "moe"', required="")
        assert [document.path.name for document in read_chain(child)] == [
            "dense.toml",
            "moe.toml",
            "my.toml",
        ]

    @pytest.mark.parametrize(
        ("parent", "problem"),
        [
            ('"dens"', "no profile dens; did you mean dense?"),
            ("3", "must be a path or the name of a shipped profile, in quotes"),
            ('"$NO_SUCH/x"', "variable NO_SUCH is not set; export it"),
        ],
    )
    def test_an_invalid_parent_is_reported_with_its_line(
        self, write: Write, parent: str, problem: str
    ) -> None:
        child = write(f"# a comment\nextends = {parent}\n", required="")
        with pytest.raises(UsageError) as caught:
            read_chain(child)
        assert caught.value.message == f"my.toml:2  extends = {parent}: {problem}"

    def test_invalid_toml_is_reported_with_line_and_column(self, write: Write) -> None:
        with pytest.raises(UsageError) as caught:
            read_chain(write("[data]\nshuffle = False\n", required=""))
        assert caught.value.message == "my.toml:2:11: invalid TOML: Invalid value"
        assert caught.value.details == ("shuffle = False",)
        assert "true and false" in caught.value.remedy

    def test_toml_that_ends_early(self, write: Write) -> None:
        with pytest.raises(UsageError, match=r"^my\.toml: invalid TOML: .*end of document"):
            read_chain(write("[data", required=""))

    def test_a_byte_order_mark_is_accepted(self, folder: Path) -> None:
        path = folder / "bom.toml"
        path.write_bytes(b"\xef\xbb\xbf[dpo]\r\nbeta = 5\r\n")
        (document,) = read_chain(path)
        assert document.values == {"dpo": {"beta": 5}}
        assert document.origin("dpo.beta") == "bom.toml:2"

    def test_other_encodings_are_reported_with_their_line(self, folder: Path) -> None:
        path = folder / "latin.toml"
        path.write_bytes("[model]\n# modèle\n".encode("latin-1"))
        with pytest.raises(UsageError, match=r"^latin.toml:2 is not UTF-8\n"):
            read_chain(path)

    def test_a_file_that_cannot_be_read(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(path: Path, *_: object) -> object:
            raise PermissionError(13, "Permission denied", str(path))

        path = write()
        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(UsageError, match=r"^my.toml cannot be read: Permission denied$"):
            read_chain(path)


class TestLines:
    def test_all_toml_notations_of_a_key(self) -> None:
        text = """\
extends = "dense"
dpo.beta = 0.1
"data" . 'shuffle' = true
eval = { fraction = 0.1, "interval" = 3 }

[train]  # comment
epochs = 1
notes = '''
batch_size = 3
'''
batch_size = 4
  [ "model" ]
tokenizer = "a = b"
"""
        assert scan_lines(text) == {
            "extends": 1,
            "dpo.beta": 2,
            "data.shuffle": 3,
            "eval": 4,
            "eval.fraction": 4,
            "eval.interval": 4,
            "train": 6,
            "train.epochs": 7,
            "train.notes": 8,
            "train.batch_size": 11,
            "model": 12,
            "model.tokenizer": 13,
        }


class TestExpand:
    @pytest.fixture(autouse=True)
    def variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/ann")
        monkeypatch.setenv("DATA", "/data")
        monkeypatch.setenv("SUB", "sub")
        monkeypatch.delenv("NO_SUCH", raising=False)

    @pytest.mark.parametrize(
        ("text", "expanded"),
        [
            ("/a/b", "/a/b"),
            ("a/b", "/base/a/b"),
            ("../a", "/a"),
            (".", "/base"),
            ("~/a", "/home/ann/a"),
            ("~", "/home/ann"),
            ("a/~", "/base/a/~"),
            ("$DATA/x", "/data/x"),
            ("${DATA}x", "/datax"),
            ("$SUB/x", "/base/sub/x"),
            ("a$$b", "/base/a$b"),
        ],
    )
    def test_paths(self, text: str, expanded: str) -> None:
        assert expand_path(text, Path("/base")) == Path(expanded)

    def test_links_keep_their_names(self, folder: Path) -> None:
        (folder / "full_sft_512.pth").symlink_to("blob")
        assert expand_path("full_sft_512.pth", folder).name == "full_sft_512.pth"

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("$NO_SUCH/x", "variable NO_SUCH is not set"),
            ("${NO_SUCH}", "variable NO_SUCH is not set"),
            ("a$/b", r"write \$\$"),
            ("~no-such-user/x", "no home directory ~no-such-user; write"),
            ("", "must not be empty"),
        ],
    )
    def test_paths_that_cannot_be_expanded(self, text: str, problem: str) -> None:
        with pytest.raises(ValueError, match=problem):
            expand_path(text, Path("/base"))

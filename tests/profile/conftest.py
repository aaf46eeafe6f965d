from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_cli.errors import UsageError
from dpo_cli.profile.load import LoadedProfile, load_profile

Write = Callable[..., Path]
Load = Callable[..., LoadedProfile]
Fail = Callable[..., UsageError]

REQUIRED = """\
[model]
tokenizer = "model"

[data]
data_path = "dpo.jsonl"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory, to which paths in messages are relative."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Write:
    """Write a profile, by default with the required keys, and return its path."""

    def write(text: str = "", name: str = "my.toml", required: str = REQUIRED) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(required + text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def load(write: Write) -> Load:
    """Load a profile with the required keys, `text` and overrides."""

    def load(text: str = "", *overrides: str) -> LoadedProfile:
        return load_profile(write(text), overrides)

    return load


@pytest.fixture
def fail(load: Load) -> Fail:
    """Return the error that `load` raises."""

    def fail(text: str = "", *overrides: str) -> UsageError:
        with pytest.raises(UsageError) as caught:
            load(text, *overrides)
        return caught.value

    return fail

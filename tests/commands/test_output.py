"""Tests of output files that users name: special files are refused, streams are written."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import cast

import pytest

from dpo_cli import app
from dpo_cli.commands.console import json_text, write_output
from dpo_cli.errors import DpoError
from dpo_cli.export.verified_write import check_destination
from dpo_cli.models.spec import Architecture


@pytest.mark.parametrize(
    "path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/../dev/stdout"]
)
def test_standard_output_is_written_and_stays_what_it_is(
    capfd: pytest.CaptureFixture[str], path: str
) -> None:
    assert write_output(Path(path), b"content") is False
    assert capfd.readouterr().out == "content"
    assert Path("/dev/stdout").is_symlink()


def test_no_line_about_the_file_is_mixed_into_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert app.main(["schema", "--out", "/dev/stderr"]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("{")
    assert err.endswith("}\n")


def test_devices_and_fifos_are_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, Path("/dev/null"), Path("/dev/full")):
        before = path.stat().st_mode
        with pytest.raises(DpoError, match=f"cannot write {path}: not a regular file"):
            write_output(path, b"content")
        with pytest.raises(DpoError, match=f"{path}: not a regular file"):
            check_destination(path, cast(Architecture, None))
        assert path.stat().st_mode == before


def test_a_file_and_a_link_are_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    assert write_output(link, b"new")
    assert (link.read_text(), target.read_text()) == ("new", "old")
    assert not link.is_symlink()


def test_json_has_no_numbers_that_are_not_finite() -> None:
    value = {"low": -math.inf, "means": (math.nan, 0.5), "more": [{"high": math.inf}]}
    expected = {"low": None, "means": [None, 0.5], "more": [{"high": None}]}
    assert json.loads(json_text(value), parse_constant=pytest.fail) == expected

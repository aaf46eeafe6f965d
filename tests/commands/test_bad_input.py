"""Tests of bad input: one clear message, the right exit code, and no files left.

They run the real `dpo` in its own process.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.cli import DPO, dpo, run_in, set_options
from tests.support.small_runs import good_settings

Change = Callable[[Path, Path, dict[str, Any]], None]
"""Function that damages one input, given the working directory, ../shared and the settings."""


def assert_clear(result: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    said = result.stdout + result.stderr
    assert "Traceback" not in said
    assert "bug in dpo" not in said
    assert result.returncode == code, said
    assert result.stderr.startswith("error: "), said
    # The console wraps no line here, so that the tests can search for names.
    for part in parts:
        assert part in said, said


def assert_nothing_left(cwd: Path) -> None:
    assert not list(cwd.glob("runs/*")), "a refused run leaves no directory"


def key(name: str, value: Any) -> Change:
    def change(cwd: Path, shared: Path, settings: dict[str, Any]) -> None:
        settings[name] = value

    return change


def data(*lines: str) -> Change:
    def change(cwd: Path, shared: Path, settings: dict[str, Any]) -> None:
        good = (shared / "golden/data/train27.jsonl").read_text().splitlines()
        path = cwd / "pairs.jsonl"
        path.write_text("\n".join([*good[:16], *lines, *good[16:]]) + "\n")
        settings["data.data_path"] = path

    return change


def file_for(name: str, write: Callable[[Path, Path], None], file: str) -> Change:
    def change(cwd: Path, shared: Path, settings: dict[str, Any]) -> None:
        write(cwd / file, shared)
        settings[name] = cwd / file

    return change


def cut_off(path: Path, shared: Path) -> None:
    path.write_bytes((shared / "golden/train/seed/full_sft_64.pth").read_bytes()[:200_000])


def code_in_a_pickle(path: Path, shared: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(path.parent / "it-ran"),)

    torch.save({"model.embed_tokens.weight": Bomb()}, path)


def another_vocabulary(cwd: Path, shared: Path, settings: dict[str, Any]) -> None:
    settings["model.weights"] = shared / "golden/arch/seed/full_sft_64.pth"


# The launcher finds these before torch is loaded: in under a second each.
EARLY: dict[str, tuple[Change, int, tuple[str, ...]]] = {
    "missing data": (
        key("data.data_path", "nowhere.jsonl"),
        2,
        ("data.data_path", "nowhere.jsonl"),
    ),
    "a directory for the data": (key("data.data_path", "."), 2, ("data.data_path", "directory")),
    "empty data": (
        file_for("data.data_path", lambda path, _: path.touch(), "empty.jsonl"),
        2,
        ("data.data_path", "empty"),
    ),
    "missing checkpoint": (
        key("model.weights", "./full_sft_51.pth"),
        2,
        ("model.weights", "full_sft_51.pth"),
    ),
    "a directory for the checkpoint": (
        key("model.weights", "./"),
        2,
        ("model.weights", "director"),
    ),
    "empty checkpoint": (
        file_for("model.weights", lambda path, _: path.touch(), "full_sft_64.pth"),
        2,
        ("model.weights", "empty"),
    ),
    "no tokenizer": (key("model.tokenizer", "."), 2, ("model.tokenizer", "tokenizer.json")),
    "unknown key": (key("train.learning_rat", 1e-5), 2, ("did you mean train.learning_rate",)),
    "key of another table": (key("dpo.learning_rate", 1), 2, ("train.learning_rate",)),
    "wrong type": (key("data.shuffle", '"False"'), 2, ("data.shuffle", "true")),
    "negative learning rate": (key("train.learning_rate", -1e-8), 2, ("greater than 0",)),
    "max_seq_len 1": (key("data.max_seq_len", 1), 2, ("data.max_seq_len = 1", "2")),
}

# The worker finds these, because it reads the files.
LATE: dict[str, tuple[Change, int, tuple[str, ...]]] = {
    "cut-off checkpoint": (
        file_for("model.weights", cut_off, "full_sft_64.pth"),
        1,
        ("full_sft_64.pth", "cut off"),
    ),
    "a pickle that would run code": (
        file_for("model.weights", code_in_a_pickle, "full_sft_64.pth"),
        1,
        ("full_sft_64.pth", "not plain weights"),
    ),
    "another vocabulary": (another_vocabulary, 1, ("6400 entries", "320")),
    "contradicting hidden_size": (
        key("model.hidden_size", 512),
        1,
        ("model.hidden_size = 512 in the profile, 64 in the weights",),
    ),
    "a JSON error": (data('{"chosen": ['), 1, ("line 17", "not JSON", "pairs.jsonl")),
    "no rejected": (
        data(json.dumps({"chosen": [{"role": "user", "content": "x"}]})),
        1,
        ("line 17", "no 'rejected'"),
    ),
    "nothing fits": (key("data.max_seq_len", 4), 1, ("no row can be trained on", "max_seq_len")),
    "CUDA where there is none": (key("train.device", "cuda"), 1, ("cuda", "torch")),
}


@pytest.mark.parametrize("name", EARLY)
def test_before_torch(shared: Path, tmp_path: Path, name: str) -> None:
    change, code, parts = EARLY[name]
    settings = good_settings(shared)
    change(tmp_path, shared, settings)
    assert_clear(dpo("train", "dense", *set_options(settings), cwd=tmp_path), code, *parts)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("name", LATE)
def test_in_the_worker(shared: Path, tmp_path: Path, name: str) -> None:
    if name == "CUDA where there is none" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    change, code, parts = LATE[name]
    settings = good_settings(shared)
    change(tmp_path, shared, settings)
    assert_clear(dpo("train", "dense", *set_options(settings), cwd=tmp_path), code, *parts)
    assert_nothing_left(tmp_path)
    assert not (tmp_path / "it-ran").exists()


def test_all_profile_errors_at_once_in_under_a_second(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'extends = "dense"\n[train]\nlearning_rate = -1e-8\nepochs = "two"\nbatchsize = 4\n'
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = dpo("train", "mine.toml", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert_clear(
        result, 2, "mine.toml:3  train.learning_rate", "mine.toml:4", "mine.toml:5", "batch_size"
    )
    assert_nothing_left(tmp_path)
    # Processor time, not wall-clock time: other processes may hold the cores.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_broken_toml(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[train\nepochs = 2\n")
    assert_clear(dpo("train", "mine.toml", cwd=tmp_path), 2, "mine.toml:1")


def test_a_missing_profile(tmp_path: Path) -> None:
    assert_clear(dpo("train", "profiles/mo.toml", cwd=tmp_path), 2, "profiles/mo.toml")


def test_a_read_only_run_directory(shared: Path, tmp_path: Path) -> None:
    """Root ignores permissions, so the test mounts a read-only file system."""
    runs = tmp_path / "runs"
    runs.mkdir(mode=0o555)
    command = shlex.join([*DPO, "train", "dense", *set_options(good_settings(shared))])
    shell = ["bash", "-c", command]
    if os.geteuid() == 0:
        shell = ["unshare", "--mount", "bash", "-c", f"mount -t tmpfs -o ro none runs && {command}"]
        if subprocess.run([*shell[:-1], "mount -t tmpfs -o ro none runs"], cwd=tmp_path).returncode:
            pytest.skip("root may not mount here")
    result = run_in(tmp_path, shell)
    assert_clear(result, 1, "cannot write in", "runs")
    assert_nothing_left(tmp_path)


def test_a_file_for_the_runs_directory(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    result = dpo("train", "dense", *set_options(good_settings(shared)), cwd=tmp_path)
    assert_clear(result, 2, "runs", "a file is in the way")


def test_resume_and_export_without_a_run(tmp_path: Path) -> None:
    for verb in ("resume", "export", "stop"):
        assert_clear(dpo(verb, cwd=tmp_path), 2, "runs")
        assert_clear(dpo(verb, "nosuch", cwd=tmp_path), 2, "no runs")


def test_a_closed_standard_output_does_not_concern_the_run(shared: Path, tmp_path: Path) -> None:
    command = shlex.join([*DPO, "train", "dense", *set_options(good_settings(shared))])
    result = run_in(tmp_path, ["bash", "-c", f"{command} | head -1; exit ${{PIPESTATUS[0]}}"])
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 1
    assert list(tmp_path.glob("runs/*/COMPLETED"))

"""Each command line of the README runs, in order.

The models are tiny, and have the names and places that the README gives them.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from dpo_cli.export.try_command import try_command
from dpo_cli.models.loading import load_model_weights
from tests.support.cli import REPOSITORY, dpo
from tests.support.documented import dpo_words, shell_lines
from tests.support.families import build
from tests.support.family_runs import VOCABULARY

README = REPOSITORY / "README.md"
LINES = shell_lines(README)
NOT_RUN = {
    "make demo": "tests/demo trains and exports the demo",
    "make test": "runs this test",
    "python -m venv .venv && source .venv/bin/activate": "sets up what this test runs in",
    "pip install -c constraints.txt .": "sets up what this test runs in",
}
"""Lines that are not run here, each with the reason."""
FOR_MINIMIND = "python eval_model.py"
PREFERENCES = REPOSITORY / "demo/pairs.jsonl"
QUICK = ("--set", "data.max_seq_len=64", "--set", "train.device=cpu")
"""Settings that make the runs short; the README's own arguments stay."""
TRAINS = ("check", "train")


def run(line: str, cwd: Path) -> str:
    """Run a command line of the README; returns its standard output.

    The weights are random, which is the only error that `dpo check` may find.
    """
    (words,) = dpo_words(line)
    done = dpo(*words, *(QUICK if words[0] in TRAINS else ()), cwd=cwd)
    output = f"{line}\n{done.stdout}\n{done.stderr}"
    if words[0] == "check":
        assert done.returncode == 1, output
        assert re.findall(r"^ERROR +(\S+)", done.stdout, re.MULTILINE) == ["tokenizer-mismatch"]
    else:
        assert done.returncode == 0, output
    return done.stdout


def lines_of(first: str, last: str) -> list[str]:
    start = next(n for n, line in enumerate(LINES) if line.startswith(first))
    end = next(n for n, line in enumerate(LINES) if n >= start and line.startswith(last))
    return LINES[start : end + 1]


def test_every_line_is_run_or_has_a_reason() -> None:
    in_tests = {
        *lines_of("dpo init my-run", "dpo export my-run"),
        *lines_of("dpo init mine", "dpo export mine"),
        "dpo --help",
        next(line for line in LINES if line.startswith(FOR_MINIMIND)),
    }
    assert {*LINES} == in_tests | NOT_RUN.keys()


def test_the_first_lines(tmp_path: Path) -> None:
    assert "Usage: dpo COMMAND" in run("dpo --help", tmp_path)


def test_a_minimind_checkout(golden: Path, shared: Path, tmp_path: Path) -> None:
    for folder in ("out", "dataset"):
        (tmp_path / folder).mkdir()
    shutil.copy(golden / "train/seed/full_sft_64.pth", tmp_path / "out/full_sft_512.pth")
    shutil.copytree(shared / "tokenizer/minimind2", tmp_path / "model")
    rows = (golden / "data/train27.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "dataset/dpo.jsonl").write_text("".join(rows))
    for line in lines_of("dpo init my-run", "dpo export my-run"):
        run(line, tmp_path)
    # The name contains its width; the README's model has 512.
    assert [path.name for path in (tmp_path / "out").glob("rlhf_*")] == ["rlhf_64.pth"]


def test_the_command_for_minimind_is_what_export_prints(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = load_model_weights(golden / "arch/seed/full_sft_64.pth", {}).architecture
    shape = {"vocab_size": 6400, "hidden_size": 512, "num_hidden_layers": 8}
    architecture = dataclasses.replace(tiny, **shape)
    command = try_command(Path("out/rlhf_512.pth"), architecture)
    assert command is not None
    assert command.text in LINES


def test_a_huggingface_model_and_parquet(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    model = tmp_path / "SmolLM2-135M-Instruct"
    build("llama", VOCABULARY).save_pretrained(model)
    shutil.copytree(REPOSITORY / "demo/tokenizer", model, dirs_exist_ok=True)
    rows = [json.loads(line) for line in PREFERENCES.read_text().splitlines()[:40]]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    for line in lines_of("dpo init mine", "dpo export mine"):
        run(line, tmp_path)
    assert (tmp_path / "SmolLM2-mine/model.safetensors").is_file()


def test_the_script_calls_what_exists() -> None:
    """tests/api runs such a script; this test compares each name and argument with the API."""
    import inspect

    import dpo_cli

    [script] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names = {"dpo": dpo_cli, "run": dpo_cli.Run}
    calls = [node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Call)]
    assert len(calls) == 3
    for call in calls:
        assert isinstance(call.func, ast.Attribute)
        assert isinstance(call.func.value, ast.Name)
        function = getattr(names[call.func.value.id], call.func.attr)
        own = [None] if call.func.value.id == "run" else []
        inspect.signature(function).bind(*own, *call.args)


def test_shell_lines_are_found() -> None:
    assert "dpo init my-run" in LINES
    assert all(shlex.split(line) for line in LINES)

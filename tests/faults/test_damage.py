"""Faults 4 to 6, 24b, 29: saved files are damaged, or come from somebody else."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dpo_cli.files import sha256_file
from dpo_cli.integrity import MANIFEST
from dpo_cli.run.checkpoints import Checkpoint, find_problem, list_checkpoints
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import EventReader, Failed, Resumed, Saved, StepDone
from dpo_cli.training.reference import REFERENCE_FILE, load_cached, manifest_name
from tests.faults.conftest import arguments
from tests.support import data_faults, workers
from tests.support.cli import Run, dpo, set_options
from tests.support.run_content import content, new_events, only
from tests.support.small_runs import good_settings
from tests.support.worker_faults import stop_at

FILES = [
    "weights.safetensors",
    "exp_avg.safetensors",
    "exp_avg_sq.safetensors",
    "rng.safetensors",
    "state.json",
    MANIFEST,
]
PAGE = 4096
Harm = Callable[[Path, random.Random], None]


# --- one kind of damage to one file -----------------------------------------------------------


def truncate(path: Path, moments: random.Random) -> None:
    os.truncate(path, moments.randrange(path.stat().st_size))


def flip(path: Path, moments: random.Random) -> None:
    """Flip one bit of a character that is no white space."""
    data = bytearray(path.read_bytes())
    position = moments.choice([n for n, byte in enumerate(data) if byte not in b" \n"][:100_000])
    data[position] ^= 1 << moments.randrange(8)
    path.write_bytes(data)


def zero(path: Path, moments: random.Random) -> None:
    """Zero a page, as a file system may after a crash that lost the data but not the file size."""
    data = bytearray(path.read_bytes())
    start = moments.choice([n for n in range(0, len(data), PAGE) if any(data[n : n + PAGE])])
    data[start : start + PAGE] = bytes(len(data[start : start + PAGE]))
    path.write_bytes(data)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [truncate, flip, zero])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(
    half: RunDirectory, whole: RunDirectory, harm: Harm, file: str
) -> None:
    newest, previous = list_checkpoints(half.checkpoints_path)
    harm(newest.path / file, random.Random(file))
    events = new_events(half, lambda: workers.work(half))
    resumed = only(events, Resumed)
    assert resumed.checkpoint == previous.name
    assert resumed.optimizer_step == previous.optimizer_step == 3
    [reason] = resumed.passed_over
    assert reason.startswith(f"{newest.name} is damaged: ")
    assert ("manifest" if file == MANIFEST else file) in reason
    workers.assert_equal(half, whole)


def test_dpo_resume_names_the_damage_and_goes_on(half: RunDirectory, whole: RunDirectory) -> None:
    newest, _ = list_checkpoints(half.checkpoints_path)
    flip(newest.path / "exp_avg_sq.safetensors", random.Random(1))
    result = dpo("resume", half.path, cwd=half.path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert (
        f"warning: {newest.name} is damaged: the content of exp_avg_sq.safetensors has changed"
        in lines
    )
    assert "resuming after step 3 (micro-step 6)" in lines
    workers.assert_equal(half, whole)


# --- all checkpoints --------------------------------------------------------------------------


def test_where_all_are_damaged_nothing_is_started_over(half: RunDirectory) -> None:
    newest, previous = list_checkpoints(half.checkpoints_path)
    flip(newest.path / "weights.safetensors", random.Random(1))
    truncate(previous.path / MANIFEST, random.Random(2))
    log = ("events.jsonl", "worker.log", "lock")
    before = content(half.path, *log)
    result = dpo("resume", half.path, cwd=half.path)
    assert result.returncode == 1
    assert "all checkpoints are damaged or gone" in result.stderr
    assert f"{newest.name} is damaged: the content of weights.safetensors" in result.stderr
    assert f"{previous.name} is damaged: manifest.json cannot be parsed" in result.stderr
    assert "help: Restore the directory from a backup" in result.stderr
    assert content(half.path, *log) == before
    assert Run(half).steps[-1].optimizer_step == 5


# --- any damage -------------------------------------------------------------------------------


def corruptions(
    checkpoint: Path, other: Path, moments: random.Random
) -> Iterator[Callable[[], str]]:
    """Yield random functions that damage a checkpoint; each returns a description."""
    names = [name for name in FILES if (checkpoint / name).stat().st_size]

    def flips() -> str:
        name, count = moments.choice(names), moments.choice([1, 1, 2, 64])
        data = bytearray((checkpoint / name).read_bytes())
        for _ in range(count):
            data[moments.randrange(len(data))] ^= 1 << moments.randrange(8)
        (checkpoint / name).write_bytes(data)
        return f"{count} bits of {name}"

    def zeros() -> str:
        name = moments.choice(names)
        zero(checkpoint / name, moments)
        return f"a page of {name}"

    def shorter() -> str:
        name = moments.choice(names)
        truncate(checkpoint / name, moments)
        return f"the end of {name}"

    def longer() -> str:
        name = moments.choice(names)
        with (checkpoint / name).open("ab") as file:
            file.write(moments.randbytes(moments.choice([1, 7, PAGE])))
        return f"more after {name}"

    def gone() -> str:
        name = moments.choice(names)
        (checkpoint / name).unlink()
        return f"no {name}"

    def swapped() -> str:
        first, second = moments.sample(names, 2)
        os.rename(checkpoint / first, checkpoint / "aside")
        os.rename(checkpoint / second, checkpoint / first)
        os.rename(checkpoint / "aside", checkpoint / second)
        return f"{first} for {second}"

    def of_another() -> str:
        # Files with equal content in both steps would be no damage.
        name = moments.choice([n for n in names if (other / n).read_bytes() != whole(n)])
        shutil.copyfile(other / name, checkpoint / name)
        return f"{name} of {other.name}"

    def whole(name: str) -> bytes:
        return (checkpoint / name).read_bytes()

    ways = [flips, flips, zeros, shorter, longer, gone, swapped, of_another]
    while True:
        yield moments.choice(ways)


def test_a_thousand_random_damages_are_never_believed(half: RunDirectory, tmp_path: Path) -> None:
    """A flip in the white space of the manifest changes no value, and may pass."""
    newest, previous = list_checkpoints(half.checkpoints_path)
    other = previous.path.rename(tmp_path / previous.name)
    before = content(newest.path)
    manifest = json.loads(before[MANIFEST])
    assert set(before) == set(FILES)
    moments = random.Random(4)
    passed = 0
    corrupt = corruptions(newest.path, other, moments)
    for number in range(1000):
        what = next(corrupt)()
        now = content(newest.path)
        assert now != before, (number, what)
        found, passed_over = half.newest_verified()
        if found == newest:
            assert {n: c for n, c in now.items() if n != MANIFEST} == {
                n: c for n, c in before.items() if n != MANIFEST
            }, (number, what)
            assert json.loads(now[MANIFEST]) == manifest, (number, what)
            passed += 1
        else:
            assert found is None, (number, what)
            [reason] = passed_over
            assert reason.startswith(f"{newest.name} is damaged: "), (number, what)
        for name, data in before.items():
            if now.get(name) != data:
                (newest.path / name).write_bytes(data)
    assert find_problem(newest) is None
    assert passed < 20


# --- the reference's log-probs ----------------------------------------------------------------


def rewrite(path: Path, **changes: Any) -> None:
    """Write the same log-probs under another name, or as other tensors."""
    with safe_open(path, framework="pt") as file:
        logps = file.get_tensor("token_logps")
    tensors = {changes.get("name", "token_logps"): changes.get("logps", lambda x: x)(logps)}
    save_file(tensors, path)


def of_other_weights(path: Path, shared: Path, tmp_path: Path) -> None:
    """Copy the log-probs of a run with other weights: intact, but not for this run."""
    state = torch.load(shared / "golden/train/seed/full_sft_64.pth")
    other = tmp_path / "full_sft_64.pth"
    torch.save({name: tensor * 1.01 for name, tensor in state.items()}, other)
    changed = arguments(shared) + set_options({"model.weights": other})
    run = workers.new_run(tmp_path / "other", changed)
    assert workers.work(run, partial(stop_at, 1)) == 143
    shutil.copyfile(run.path / REFERENCE_FILE, path)


REFERENCES: dict[str, Callable[[Path, Path, Path], object]] = {
    "whole": lambda path, *_: None,
    "flipped": lambda path, *_: flip_at(path, -5),
    "flipped in its header": lambda path, *_: flip_at(path, 40),
    "cut off": lambda path, *_: os.truncate(path, 300),
    "zeros": lambda path, *_: path.write_bytes(bytes(path.stat().st_size)),
    "of other weights": of_other_weights,
    "of another name": lambda path, *_: rewrite(path, name="logps"),
    "of another type": lambda path, *_: rewrite(path, logps=torch.Tensor.bfloat16),
    "other numbers": lambda path, *_: rewrite(path, logps=lambda x: x - 1),
    "without a manifest": lambda path, *_: path.with_name(manifest_name(path)).unlink(),
}


def flip_at(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("what", REFERENCES)
def test_harmed_reference_log_probs_are_computed_again(
    half: RunDirectory, whole: RunDirectory, shared: Path, tmp_path: Path, what: str
) -> None:
    """Negative control: of an intact file, only the values that no step has needed are computed."""
    kept = half.path / REFERENCE_FILE
    before = load_file(kept)["token_logps"].isnan()
    REFERENCES[what](kept, shared, tmp_path)
    computed = tmp_path / "computed"
    arm = partial(data_faults.note_reference_rows, tmp_path / "empty cache", computed)
    events = new_events(half, lambda: workers.work(half, arm))
    assert only(events, Resumed).optimizer_step == 5
    workers.assert_equal(half, whole)
    right = load_file(whole.path / REFERENCE_FILE)["token_logps"]
    assert torch.equal(load_file(kept)["token_logps"], right)
    assert before.any()
    assert not before.all()
    tokens = sum(map(int, computed.read_text().split()))
    assert tokens == (before.sum() if what == "whole" else len(right))


def test_no_damage_to_the_log_probs_is_believed(half: RunDirectory) -> None:
    """The damage can be anywhere in the file, also in header and key; none raises an exception."""
    path = half.path / REFERENCE_FILE
    whole = path.read_bytes()
    key = json.loads(path.with_name(manifest_name(path)).read_bytes())["key"]
    right = load_cached(path, key)
    assert right is not None
    header = int.from_bytes(whole[:8], "little") + 8
    moments = random.Random(29)
    for number in range(1000):
        data = bytearray(whole)
        if number % 4 == 0:
            del data[moments.randrange(len(data)) :]
        else:  # the header is small, and describes the numbers
            end = header if number % 2 else len(data)
            for _ in range(number % 3 + 1):
                data[moments.randrange(end)] ^= 1 << moments.randrange(8)
        path.write_bytes(data)
        found = load_cached(path, key)
        assert found is None or bytes(data) == whole, number  # two flips of one bit


# --- what somebody else put there -------------------------------------------------------------


class Bomb:
    """Object that makes a directory when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def plant(checkpoint: Checkpoint, file: str, marker: Path, zipped: bool) -> None:
    """Put a pickle in place of a file, with a manifest that has its hash."""
    path = checkpoint.path / file
    if zipped:
        torch.save({"model.norm.weight": Bomb(marker)}, path)
    else:
        path.write_bytes(pickle.dumps({"model.norm.weight": Bomb(marker)}))
    manifest = json.loads((checkpoint.path / MANIFEST).read_text())
    manifest["files"][file] = {"size_bytes": path.stat().st_size, "sha256": sha256_file(path)}
    (checkpoint.path / MANIFEST).write_text(json.dumps(manifest))
    assert find_problem(checkpoint) is None


@pytest.mark.parametrize(
    ("file", "zipped"),
    [
        ("weights.safetensors", True),
        ("exp_avg.safetensors", False),
        ("exp_avg_sq.safetensors", True),
        ("rng.safetensors", False),
        ("state.json", True),
    ],
)
def test_a_pickle_in_a_checkpoint_is_not_run(
    half: RunDirectory, tmp_path: Path, file: str, zipped: bool
) -> None:
    newest, _ = list_checkpoints(half.checkpoints_path)
    marker = tmp_path / "it-ran"
    plant(newest, file, marker, zipped)
    before = content(half.checkpoints_path)
    events = new_events(half, lambda: workers.work(half))
    failed = only(events, Failed)
    assert failed.exit_code == 1
    assert str(newest.path / file) in failed.message
    assert "dpo did not write this one" in failed.remedy
    assert not [event for event in events if isinstance(event, StepDone | Saved)]
    assert content(half.checkpoints_path) == before
    assert not marker.exists()
    assert "Traceback" not in half.worker_log_path.read_text()


def test_dpo_resume_runs_no_pickle(half: RunDirectory, tmp_path: Path) -> None:
    newest, _ = list_checkpoints(half.checkpoints_path)
    marker = tmp_path / "it-ran"
    plant(newest, "exp_avg.safetensors", marker, zipped=False)
    result = dpo("resume", half.path, cwd=half.path)
    assert result.returncode == 1
    assert result.stderr.startswith(
        f"error: {newest.path}/exp_avg.safetensors is not a safetensors file"
    )
    assert "Traceback" not in result.stdout + result.stderr
    assert not marker.exists()


def foreign_tokenizer(shared: Path, folder: Path, marker: Path, what: str) -> Path:
    """Write a tokenizer directory that requests its own code, in one of the possible places."""
    shutil.copytree(shared / "tokenizer/minimind2", folder)
    code = f"import os\nos.mkdir({str(marker)!r})\n"
    code += "from transformers import PreTrainedTokenizerFast\n"
    code += "class Evil(PreTrainedTokenizerFast):\n    pass\n"
    (folder / "tokenizer.py").write_text(code)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    if what == "auto_map":
        config["auto_map"] = {"AutoTokenizer": ["tokenizer.Evil", "tokenizer.Evil"]}
        config["tokenizer_class"] = "Evil"
    elif what == "config.json":
        named = {"model_type": "evil", "auto_map": {"AutoTokenizer": "tokenizer.Evil"}}
        (folder / "config.json").write_text(json.dumps(named))
        config["tokenizer_class"] = "Evil"
    else:
        classes = "''.__class__.__mro__[1].__subclasses__()"
        attempt = {
            "attribute": "{{ " + classes + " }}",
            "import": "{% for c in " + classes + " %}{% if c.__name__ == 'Popen' %}"
            "{{ c(['mkdir', '" + str(marker) + "']) }}{% endif %}{% endfor %}",
            "include": "{% include '/etc/passwd' %}",
        }[what]
        config["chat_template"] = attempt + config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("what", ["auto_map", "config.json", "attribute", "import", "include"])
def test_a_tokenizer_with_code_is_not_run(shared: Path, tmp_path: Path, what: str) -> None:
    """The tokenizer is refused or, if its files alone suffice, loaded without the code."""
    marker = tmp_path / "it-ran"
    folder = foreign_tokenizer(shared, tmp_path / "tokenizer", marker, what)
    run = workers.new_run(
        tmp_path / "runs", arguments(shared) + set_options({"model.tokenizer": folder})
    )
    code = workers.work(run, partial(stop_at, 1))
    failed = [e for e in EventReader(run.events_path).read_new() if isinstance(e, Failed)]
    assert not marker.exists()
    assert "Traceback" not in run.worker_log_path.read_text()
    if what in ("auto_map", "config.json"):
        assert (code, len(failed)) in [(143, 0), (1, 1)]
    else:
        assert code == 1
        assert "rows are malformed" in failed[0].message
        assert "the chat template fails" in failed[0].details[0]
    if failed:
        assert failed[0].remedy


def test_dpo_train_runs_no_code_of_a_tokenizer(shared: Path, tmp_path: Path) -> None:
    """`tests.commands.test_bad_input` has the same for the tokenizer of a model directory."""
    marker = tmp_path / "it-ran"
    settings = good_settings(shared)
    settings["model.tokenizer"] = foreign_tokenizer(shared, tmp_path / "folder", marker, "import")
    result = dpo("train", "dense", *set_options(settings), cwd=tmp_path)
    assert result.returncode == 1
    assert re.match(r"error: .* rows are malformed", result.stderr)
    assert "the chat template fails" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert not marker.exists()
    assert not list(tmp_path.glob("runs/*"))

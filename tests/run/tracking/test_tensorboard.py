"""Tests of event files, read back with the reader of TensorBoard."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.tracking.tensorboard import TensorBoard
from tests.support.cli import environment
from tests.support.made_events import saved
from tests.support.tracking_readers import scalars, single
from tests.support.tracking_streams import (
    PLANNED,
    SECRET,
    evaluated,
    feed_to,
    new_run,
    private_words,
    resumed,
    sampled,
    step,
    steps,
    tell,
)

pytest.importorskip("tensorboard", reason="needs the extra tensorboard")


def feed(run: RunDirectory, **track: bool) -> None:
    feed_to("tensorboard", TensorBoard, run, **track)


def test_event_files_have_the_metrics_of_the_stream(run: RunDirectory) -> None:
    tell(run, PLANNED, evaluated(0), *steps([1, 2, 3]), evaluated(3), saved(3))
    feed(run)
    assert scalars(run) == {
        "train/loss": [(n, single(1 / n)) for n in (1, 2, 3)],
        "train/rewards/margins": [(n, 0.25 * n) for n in (1, 2, 3)],
        "train/learning_rate": [(n, single(1e-6 * n)) for n in (1, 2, 3)],
        "train/epoch": [(n, n / 4) for n in (1, 2, 3)],
        "eval/loss": [(n, single(0.6)) for n in (0, 3)],
        "eval/logps/chosen": [(n, -10.0 * n) for n in (0, 3)],
    }


def test_a_resumed_run_reads_as_one(run: RunDirectory) -> None:
    tell(run, PLANNED, *steps(range(1, 6)))
    feed(run)
    tell(run, PLANNED, resumed(2), step(3, loss=9.0), *steps(range(4, 8)), saved(7))
    feed(run)
    losses = scalars(run)["train/loss"]
    assert [number for number, _ in losses] == [1, 2, 3, 4, 5, 6, 7]
    assert losses[2] == (3, 9.0)
    assert len(list((run.path / "tensorboard").iterdir())) == 2


def test_what_a_killed_process_had_written_but_not_noted_counts_once(run: RunDirectory) -> None:
    tell(run, PLANNED, *steps([1, 2, 3]), saved(3))
    feed(run)
    (run.path / "track.json").unlink()
    feed(run)
    assert [number for number, _ in scalars(run)["train/loss"]] == [1, 2, 3]


def test_nothing_private_is_in_names_or_bytes(run: RunDirectory) -> None:
    tell(run, PLANNED, evaluated(0), sampled(0), *steps([1, 2]), saved(2))
    feed(run)
    for file in (run.path / "tensorboard").iterdir():
        content = file.name.encode() + file.read_bytes()
        for private in private_words(run.path.parent):
            assert private not in content


def test_samples_are_a_text_where_the_profile_says_so(run: RunDirectory) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(run, PLANNED, evaluated(0), sampled(0), saved(0))
    feed(run, send_text=True)
    read = EventAccumulator(str(run.path / "tensorboard"))
    read.Reload()
    (event,) = read.Tensors("eval/samples")
    (text,) = event.tensor_proto.string_val
    assert SECRET in text.decode()
    assert "**policy**" in text.decode()


def test_it_needs_no_torch(tmp_path: Path) -> None:
    run = new_run(tmp_path, use_tensorboard=True)
    tell(run, PLANNED, *steps([1, 2]), saved(2))
    code = (
        "import sys; from dpo_cli.run.tracking.feeder import main; main(sys.argv[1:])\n"
        "sys.exit(', '.join({'torch', 'tensorflow'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.path)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0
    assert scalars(run)["train/loss"] == [(1, 1.0), (2, 0.5)]

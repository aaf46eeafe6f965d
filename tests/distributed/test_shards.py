"""Ranks that share one model train as one process does; see `tests.distributed.test_ranks`."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_cli.distributed.process_group import ProcessGroup
from dpo_cli.distributed.shards import own_part, whole
from dpo_cli.errors import UsageError
from dpo_cli.models.loading import read_state_dict
from dpo_cli.models.options import decoder_blocks
from dpo_cli.profile.load import load_profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Alert, EventReader, Sampled
from dpo_cli.run.torchrun import require_shards
from dpo_cli.training.trainer import Trainer
from tests.support import rank_faults, ranks, workers
from tests.support.cli import Run, set_options
from tests.support.small_runs import golden_run, golden_settings
from tests.support.two_layouts import (
    ARCHITECTURES,
    Float64,
    Recorder,
    make_trainer,
    minimind_scorer,
)

FLOAT64 = 1e-10
LOSS, GRAD_NORM, OF_THE_UPDATE = 1e-5, 5e-5, 1e-3
"""Bounds in float32 after updates: AdamW also divides gradients that are rounding errors only."""
OF_THE_SHARE = 0.15
"""Largest error of the memory: tensors are divided by rows, and one rank may have one row more."""

KEYS: dict[str, Any] = {
    "train.epochs": 1,
    "train.batch_size": 1,
    "train.global_batch_size": 6,
    "train.max_tokens_per_forward": 100,
    "eval.interval": 12,
    "eval.num_samples": 1,
    "train.kahan_summation": True,
    "train.activation_checkpointing": True,
}
"""Three steps of six pairs and one of four; ranks have two or three forwards."""


def new_run(shared: Path, root: Path, strategy: str = "shard", **changes: Any) -> RunDirectory:
    keys = {**KEYS, "launch.strategy": strategy, **changes}
    return workers.new_run(root, golden_run(shared, "head", False, **keys))


def train(run: RunDirectory, size: int, *arms: ranks.Arm) -> None:
    codes = ranks.work(run, size, partial(rank_faults.each, arms))
    assert codes == [0] * size, run.worker_log_path.read_text()[-4000:]


def note_bytes(folder: Path, number: int) -> None:
    """Record the bytes of this rank's weights, gradients and moments in its last step."""
    update_weights = Trainer.update_weights

    def watched(self: Trainer, parameters: Any, *arguments: Any) -> None:
        gradients = [parameter.grad for parameter in parameters]
        update_weights(self, parameters, *arguments)
        moments = [
            tensor
            for state in self.optimizer.state.values()
            for tensor in state.values()
            if tensor.ndim
        ]
        # By storage, because the gradients of a block are views of one buffer.
        storages = [
            [own_part(tensor).untyped_storage() for tensor in tensors]
            for tensors in (parameters, gradients, moments)
        ]
        held = [
            sum({each.data_ptr(): each.nbytes() for each in found}.values()) for found in storages
        ]
        (folder / f"bytes-{number}").write_text(json.dumps(held))

    Trainer.update_weights = watched  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def one(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Complete run of one process; read only."""
    run = new_run(shared, tmp_path_factory.mktemp("one"), "replicate")
    train(run, 1, partial(rank_faults.note, run.path), partial(note_bytes, run.path))
    return run


@pytest.fixture(scope="module")
def two(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Complete run of two ranks that share a model; read only."""
    run = new_run(shared, tmp_path_factory.mktemp("two"))
    train(run, 2, partial(rank_faults.note, run.path), partial(note_bytes, run.path))
    return run


def copy_of(run: RunDirectory, root: Path) -> RunDirectory:
    return RunDirectory(Path(shutil.copytree(run.path, root / "runs" / run.name)))


# --- equal to one process -------------------------------------------------------------------------


def test_two_ranks_train_as_one_process(shared: Path, one: RunDirectory, two: RunDirectory) -> None:
    expected, ours = Run(one), Run(two)
    assert ours.losses == pytest.approx(expected.losses, abs=LOSS, rel=0)
    # To the bit, which it is only if policy and reference compute alike.
    assert ours.losses[0] == expected.losses[0] == pytest.approx(math.log(2), abs=1e-15)
    assert ours.grad_norms == pytest.approx(expected.grad_norms, rel=GRAD_NORM)
    assert [step.tokens for step in ours.steps] == [step.tokens for step in expected.steps]
    assert [step.pairs for step in ours.steps] == [step.pairs for step in expected.steps]
    moved, same_moved = (
        [step.metrics["weights_moved"] for step in run.steps if "weights_moved" in step.metrics]
        for run in (ours, expected)
    )
    assert moved == pytest.approx(same_moved, abs=1e-3)
    for (step, metrics), (same, others) in zip(ours.evaluations, expected.evaluations, strict=True):
        assert step == same
        assert metrics == pytest.approx(others, abs=2e-3)
    start = read_state_dict(shared / "golden/train/head/full_sft_64.pth")
    error = update = 0.0
    for name, weight in expected.weights.items():
        error += float((ours.weights[name] - weight).double().square().sum())
        update += float((weight - start[name]).double().square().sum())
    assert (error / update) ** 0.5 < OF_THE_UPDATE
    assert ours.files().keys() == expected.files().keys()


def test_samples_are_those_of_one_process(one: RunDirectory, two: RunDirectory) -> None:
    first, same = (
        [event for event in EventReader(run.events_path).read_new() if isinstance(event, Sampled)]
        for run in (one, two)
    )
    assert [event.samples for event in first] == [event.samples for event in same]
    assert len(first[0].samples) == 1


def test_a_rank_holds_its_share_of_weights_gradients_and_moments(
    one: RunDirectory, two: RunDirectory
) -> None:
    whole_bytes = json.loads((one.path / "bytes-0").read_text())
    assert all(whole_bytes)
    for rank in (0, 1):
        held = json.loads((two.path / f"bytes-{rank}").read_text())
        for own, all_bytes in zip(held, whole_bytes, strict=True):
            assert own == pytest.approx(all_bytes / 2, rel=OF_THE_SHARE)


def _train_in_float64(size: int, folder: Path, hosts: int, number: int) -> None:
    """Train three steps of each architecture and layout on one rank; save losses and weights.

    Args:
        size: number of ranks.
        folder: where results go.
        hosts: number of machines that the ranks pretend to be on.
        number: of this rank.
    """
    torch.set_default_dtype(torch.float64)
    host = number * hosts // size
    socket.gethostname = lambda: f"machine-{host}"
    own = ProcessGroup.from_env()
    own.agree_on_run(str(folder) if number == 0 else None)
    own.init_collectives(torch.device("cpu"), timeout_seconds=60, shards_models=size > 1)
    for name, layout in [*((name, "packed") for name in ARCHITECTURES), ("minimind3", "padded")]:
        hooks = Recorder()
        with Float64():
            trainer = make_trainer(partial(minimind_scorer, name), layout, hooks)  # type: ignore[arg-type]
            profile = trainer.inputs.profile
            changes = {"batch_size": 1, "epochs": 1}
            launch = profile.launch.model_copy(
                update={"strategy": "shard" if size > 1 else "replicate"}
            )
            trainer.inputs = replace(
                trainer.inputs,
                profile=profile.model_copy(
                    update={"train": profile.train.model_copy(update=changes), "launch": launch}
                ),
                accumulation_steps=4,
                world_size=size,
            )
            trainer.group = own
            trainer.reference.complete(own, lambda *_: None)
            if own.is_sharded:
                weights = {key: each.detach() for key, each in trainer.policy.named_parameters()}
                blocks = decoder_blocks(trainer.policy.model)
                own.shard(trainer.policy, blocks, "next_logits", weights)
                assert len(blocks) == 2
                trainer.optimizer = torch.optim.SGD(trainer.policy.parameters(), lr=0.0)
            # Steps of four, four and two pairs: some ranks have none.
            assert trainer.train() is None
        losses = torch.tensor([loss for step in hooks.steps for loss in step.losses])
        norms = torch.tensor([step.metrics["grad_norm"] for step in hooks.steps])
        trained = [whole(each) for each in trainer.policy.parameters()]
        torch.save([losses, norms, *trained], folder / f"{name}-{layout}-{number}")
    own.report_end()
    own.destroy()


def test_in_float64_only_the_order_of_sums_differs(tmp_path: Path) -> None:
    """Two and three ranks of one machine; four on two machines, each with the whole model."""
    for size, hosts in ((1, 1), (2, 1), (3, 1), (4, 2)):
        (folder := tmp_path / f"{size}").mkdir()
        group = ranks.Group(size, partial(_train_in_float64, size, folder, hosts))
        assert group.wait() == [0] * size
    for path in (tmp_path / "1").iterdir():
        alone = torch.load(path)
        assert alone[0].unique().numel() > 2
        for size in (2, 3, 4):
            for number in range(size):
                ours = torch.load(tmp_path / f"{size}" / f"{path.name[:-1]}{number}")
                assert len(ours) == len(alone)
                for tensor, expected in zip(ours, alone, strict=True):
                    assert (tensor - expected).abs().max() < FLOAT64, (path.name, size)


# --- stops, kills, resumes ------------------------------------------------------------------------


def test_a_resume_on_as_many_ranks_has_the_same_bits(
    shared: Path, tmp_path: Path, two: RunDirectory
) -> None:
    run = new_run(shared, tmp_path)
    stop = partial(rank_faults.send_before, 2, signal.SIGTERM)
    train(run, 2, partial(rank_faults.only_on, 1, stop))
    assert not run.is_completed
    train(run, 2)
    workers.assert_equal(run, two)


def test_other_numbers_and_replicas_continue_with_the_same_batches(
    shared: Path, tmp_path: Path, one: RunDirectory
) -> None:
    run = new_run(shared, tmp_path)
    note = partial(rank_faults.note, run.path)
    for size, step in ((2, 1), (3, 3), (2, 99)):
        if step == 99:
            profile = run.profile_path.read_text()
            run.profile_path.write_text(profile.replace('"shard"', '"replicate"'))
        stop = partial(rank_faults.send_before, step, signal.SIGTERM)
        train(run, size, note, partial(rank_faults.only_on, size - 1, stop))
    assert run.is_completed
    assert Run(run).losses == pytest.approx(Run(one).losses, abs=LOSS, rel=0)
    told = [
        re.findall(r"ranks (.*?) -> ([^;]*)", event.message)[0]
        for event in EventReader(run.events_path).read_new()
        if isinstance(event, Alert) and event.code == "other-environment"
    ]
    assert told == [("2, sharded", "3, sharded"), ("3, sharded", "2")]


def test_a_killed_rank_ends_all_and_the_run_resumes(
    shared: Path, tmp_path: Path, two: RunDirectory
) -> None:
    run = new_run(shared, tmp_path)
    kill = partial(rank_faults.send_before, 3, signal.SIGKILL)
    arms = (
        partial(rank_faults.only_on, 1, kill),
        partial(rank_faults.with_error_file, tmp_path),
    )
    assert ranks.work(run, 2, partial(rank_faults.each, arms)) == [1, -signal.SIGKILL]
    told = json.loads((tmp_path / "error-0.json").read_text())["message"]["message"]
    assert re.match(r"rank 0 waited \d+ s for .*: rank 1 on \S+ is stopped or gone", told)
    train(run, 2)
    workers.assert_equal(run, two)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "world_size", "message"),
    [
        ({}, 1, "a single process trains, and shards need two or more"),
        ({"lora.rank": 4}, 2, "does not work with lora.rank"),
        ({"model.weights_dtype": "bfloat16"}, 2, "does not work with model.weights_dtype"),
        ({"train.optimizer": "muon"}, None, 'does not work with train.optimizer = "muon"'),
        ({"train.dtype": "float16"}, 2, 'does not work with train.dtype = "float16"'),
        ({"train.compile": True}, 4, "does not work with train.compile"),
    ],
)
def test_what_cannot_be_sharded_is_refused(
    shared: Path, changes: dict[str, Any], world_size: int | None, message: str
) -> None:
    settings = golden_settings(shared, "head", False, **changes)
    words = [word for word in set_options(settings) if word != "--set"]
    replicas = load_profile(Path("minimind3"), words).profile
    require_shards(replicas, world_size)
    profile = load_profile(Path("minimind3"), [*words, "launch.strategy=shard"]).profile
    with pytest.raises(UsageError, match=re.escape(message)):
        require_shards(profile, world_size)

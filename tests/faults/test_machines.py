"""Tests of two machines: connected network namespaces with a launcher and an agent in each."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo_cli.run.events import Alert, EventReader, RankEnded, Resumed
from tests.faults.conftest import arguments
from tests.support import ranks, workers
from tests.support.cli import DPO, HANG_SECONDS, environment, set_options
from tests.support.process_faults import starts, steps, the_run

FIRST, SECOND = "10.77.0.1", "10.77.0.2"


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Names of two network namespaces that are connected with each other only."""
    names = f"dpo-{os.getpid()}-a", f"dpo-{os.getpid()}-b"
    ip = shutil.which("ip")
    try:
        if ip is None or any(_ip("netns", "add", name) for name in names):
            pytest.skip("needs root and network namespaces")
        first, second = names
        cable = ["name", "e0", "netns", first, "type", "veth", "peer", "name", "e0"]
        assert _ip("link", "add", *cable, "netns", second) == 0
        for name, address in ((first, FIRST), (second, SECOND)):
            assert _ip("-n", name, "addr", "add", f"{address}/24", "dev", "e0") == 0
            for device in ("lo", "e0"):
                assert _ip("-n", name, "link", "set", device, "up") == 0
        yield names
    finally:
        if ip is not None:
            for name in names:
                _ip("netns", "del", name)


def _ip(*words: str) -> int:
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode


@contextlib.contextmanager
def machine(
    name: str, number: int, shared: Path, cwd: Path, output: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `dpo train` on a machine until the block ends."""
    keys = {
        "train.accumulation_steps": 1,
        "train.epochs": 6,
        "launch.nnodes": 2,
        "launch.node_rank": number,
        "launch.rdzv_endpoint": f"{FIRST}:29400",
        "launch.max_restarts": 1,
        # The second machine may start slowly; a broken connection is noticed at once.
        "launch.timeout_seconds": HANG_SECONDS,
    }
    # A lost machine is noticed in nine seconds instead of torchrun's fifteen.
    conf = f"is_host={'false' if number else 'true'},keep_alive_interval=3"
    command = [*DPO, *arguments(shared), *set_options(keys)]
    cwd.mkdir(exist_ok=True)
    with output.open("ab") as file:
        process = subprocess.Popen(
            ["ip", "netns", "exec", name, *command, "--plain", "--", "--rdzv-conf", conf],
            cwd=cwd,
            env=environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_a_machine_is_lost_and_returns(
    shared: Path, tmp_path: Path, machines: tuple[str, str]
) -> None:
    """The machines share no run directory: the second one receives the state from the first."""
    first, second = machines
    places = tmp_path / "first", tmp_path / "second"
    output = tmp_path / "output-0", tmp_path / "output-1"
    with machine(first, 0, shared, places[0], output[0]) as keeper:
        with machine(second, 1, shared, places[1], output[1]):
            run = the_run(places[0])
            workers.until(run, steps(4))
        # The process was killed.
        workers.until(run, lambda events: any(isinstance(e, RankEnded) for e in events))
        with machine(second, 1, shared, places[1], output[1]) as joined:
            workers.until(run, starts(2))
            assert keeper.wait(timeout=HANG_SECONDS) == 0, output[0].read_text()
            assert joined.wait(timeout=HANG_SECONDS) == 0, output[1].read_text()
    assert run.is_completed
    assert not list(places[1].iterdir())
    events = list(EventReader(run.events_path).read_new())
    *_, resumed = (event for event in events if isinstance(event, Resumed))
    assert resumed.optimizer_step >= 3
    [alert] = [e for e in events if isinstance(e, Alert) and e.code == "rank-lost"]
    assert "restart 1 of 1" in alert.message
    assert "machine 1 of 2: 1 rank joins the run of the first machine" in output[1].read_text()

    # The placement of the ranks changes no bit.
    keys = {"train.accumulation_steps": 1, "train.epochs": 6}
    whole = workers.new_run(tmp_path / "whole", arguments(shared) + set_options(keys))
    assert ranks.work(whole, 2) == [0, 0]
    workers.assert_equal(run, whole)

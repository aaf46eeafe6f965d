"""A feeder that may open no connection, in a process that has accounts."""

from __future__ import annotations

import subprocess
import sys

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.tracking.state import read_state
from tests.support.cli import environment
from tests.support.made_events import saved
from tests.support.tracking_streams import PLANNED, steps, tell

CODE = """
import socket, sys
sought = []
def refuse(self, address):
    sought.append(address)
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = refuse
def no_name(host, *_, **__):
    sought.append(host)
    raise socket.gaierror("no network")
socket.getaddrinfo = no_name
from dpo_cli.run.tracking.feeder import main
code = main(sys.argv[1:])
print("torch" in sys.modules, sought)
sys.exit(code or bool(sought) or "torch" in sys.modules)
"""
# Libraries send less in tests and in continuous integration.
SILENCING = ("PYTEST_CURRENT_TEST", "CI", "HF_HUB_OFFLINE", "MLFLOW_DISABLE_TELEMETRY")
ACCOUNT = {"HF_TOKEN": "hf_" + "a" * 34, "TRACKIO_SPACE_ID": "me/space"}


def feed_without_network(run: RunDirectory, name: str, **environment_of_it: str) -> None:
    """Feed a tracker; fail if it looks for a host, connects, or imports torch."""
    tell(run, PLANNED, *steps([1, 2]), saved(2))
    env = environment(**ACCOUNT, **environment_of_it)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(run.path)],
        env={key: value for key, value in env.items() if key not in SILENCING},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_state(run)[name]["sent"] == 2

"""Agent between launcher and ranks: `python -m dpo_cli.distributed.agent --run RUN -- TORCHRUN`.

The arguments after `--` are those of torchrun. The agent is torchrun with three differences: it
dies with the launcher, it relays SIGINT and SIGTERM and lets the ranks end by themselves, and it
writes an event for each rank that failed.
"""

from __future__ import annotations

# Only light imports here: the handlers of signals and of the launcher's death must be installed
# before torch is imported, which takes seconds.
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dpo_cli.distributed.signal_relay import RankSignalRelay
from dpo_cli.run.processes import die_with_parent, hand_down_pid


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the ranks and watch them until they end; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    split = words.index("--")
    parser = argparse.ArgumentParser(prog="dpo_cli.distributed.agent", description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    options = parser.parse_args(words[:split])
    relay = RankSignalRelay()

    from dpo_cli.distributed.elastic import run_ranks

    return run_ranks(options.run, words[split + 1 :], relay)


if __name__ == "__main__":
    die_with_parent()
    hand_down_pid()  # torchrun starts the ranks with this process's environment
    sys.exit(main())

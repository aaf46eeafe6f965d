"""`python -m dpo_cli`, and the console script `dpo`."""

from __future__ import annotations

import sys

from dpo_cli.app import main as run_command_line


def main() -> None:
    """Run `dpo` with the process's arguments and exit with its code."""
    sys.exit(run_command_line())


if __name__ == "__main__":
    main()

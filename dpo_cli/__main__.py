"""`python -m dpo_cli`, and the console script `dpo`."""

from __future__ import annotations

import sys

from dpo_cli.run.child_environment import drop_relative_search_path


def main() -> None:
    """Run `dpo` with the process's arguments and exit with its code."""
    drop_relative_search_path()
    from dpo_cli.app import main as run_command_line

    sys.exit(run_command_line())


if __name__ == "__main__":
    # `python -m` puts the working directory first in the search path: a `torch.py` there, for
    # example beside a downloaded model, must not be imported.
    if not sys.flags.safe_path:
        del sys.path[0]
    main()

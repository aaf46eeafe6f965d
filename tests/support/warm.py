"""The real `dpo`, forked from a server that has the imports, which are most of a command's time.

The command line, the launcher and the worker run as they are. Only the start of a process differs:
`python -m dpo_cli` and the worker's command line are forks, as a sweep's workers are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.forks import forked

# What Python, torch and its libraries read when they start: a fork has read it already.
_READ_AT_THE_START = ("PYTHON", "OMP_", "MKL_", "ATEN_", "KMP_", "GOMP_", "TORCH", "CUDA", "LD_")


def can_run(environment: Mapping[str, str]) -> bool:
    """Return True if a fork with this environment does what a new process would do."""
    return all(
        os.environ.get(name) == environment.get(name)
        for name in {*os.environ, *environment}
        if name.startswith(_READ_AT_THE_START) and name not in ("PYTHONPATH", "OMP_NUM_THREADS")
    ) and environment.get("OMP_NUM_THREADS") == os.environ.get("OMP_NUM_THREADS")


def run(
    arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run `dpo` to its end; exit code, stdout and stderr as `subprocess.run` returns them.

    Raises:
        TimeoutExpired: of subprocess; the process was killed.
    """
    with tempfile.TemporaryDirectory(prefix="dpo-test-") as scratch:
        output, errors = Path(scratch, "stdout"), Path(scratch, "stderr")
        process = forked(_command_line, list(arguments), cwd, dict(environment), output, errors)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["dpo", *arguments], timeout, output.read_bytes())
        return subprocess.CompletedProcess(
            ["dpo", *arguments], process.exitcode, _text(output), _text(errors)
        )


def _text(path: Path) -> str:
    return path.read_bytes().decode().replace("\r\n", "\n")


def _command_line(
    arguments: list[str], cwd: Path, environment: dict[str, str], output: Path, errors: Path
) -> None:
    from dpo_cli import app
    from dpo_cli.run import processes
    from dpo_cli.training.worker import fork_worker

    null = os.open(os.devnull, os.O_RDONLY)
    opened = [os.open(path, os.O_WRONLY | os.O_CREAT, 0o600) for path in (output, errors)]
    for source, target in zip((null, *opened), (0, 1, 2), strict=True):
        os.dup2(source, target)
        os.close(source)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(Path(app.__file__).with_name("__main__.py")), *arguments]
    start_child = processes.start_child

    def start_or_fork(argv: Sequence[str], **options: Any) -> Any:
        if "dpo_cli.training.worker" in argv and "--join" not in argv:
            (lock,) = options["pass_fds"]
            return fork_worker(argv, options["output"], lock)
        return start_child(argv, **options)

    processes.start_child = start_or_fork
    sys.exit(app.main(arguments))

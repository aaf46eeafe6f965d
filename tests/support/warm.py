"""Run the real `dpo` as a fork of a server that has the imports, which take most of the time.

The command line, the launcher and the worker run as they are. Only the start of a process differs:
`python -m dpo_cli` and the worker's command line are forks, as a sweep's workers are.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.forks import forked

# Python, torch and libraries read these variables when they start; a fork has read them already.
_READ_AT_THE_START = ("PYTHON", "OMP_", "MKL_", "ATEN_", "KMP_", "GOMP_", "TORCH", "CUDA", "LD_")


def can_run(environment: Mapping[str, str]) -> bool:
    """Return True if a fork with this environment does what a new process would do."""
    return all(
        os.environ.get(name) == environment.get(name)
        for name in {*os.environ, *environment}
        if name.startswith(_READ_AT_THE_START) and name not in ("PYTHONPATH", "OMP_NUM_THREADS")
    ) and environment.get("OMP_NUM_THREADS") == os.environ.get("OMP_NUM_THREADS")


class Process:
    """A running `dpo`, with the methods of `subprocess.Popen[str]` that tests use.

    Args:
        arguments: arguments of the command line.
        cwd, environment: settings of the process.
        one_output: merge standard error into standard output.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        *,
        one_output: bool,
    ) -> None:
        self.args = ["dpo", *arguments]
        self._scratch = tempfile.TemporaryDirectory(prefix="dpo-test-")
        self._output = Path(self._scratch.name, "stdout")
        self._errors = self._output if one_output else self._output.with_name("stderr")
        outputs = self._output, self._errors
        self._process = forked(_command_line, list(arguments), cwd, dict(environment), outputs)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; return standard output and standard error.

        Raises:
            TimeoutExpired: of subprocess; the process was killed.
        """
        self._process.join(timeout)
        if self.poll() is None:
            self.kill()
            self._process.join()
            raise subprocess.TimeoutExpired(self.args, timeout or 0, self._output.read_bytes())
        texts = _text(self._output), _text(self._errors)
        self._scratch.cleanup()
        return texts


def _text(path: Path) -> str:
    return path.read_bytes().decode().replace("\r\n", "\n")


def _command_line(
    arguments: list[str], cwd: Path, environment: dict[str, str], outputs: tuple[Path, Path]
) -> None:
    from dpo_cli import app
    from dpo_cli.run import processes
    from dpo_cli.training.worker import fork_worker

    null = os.open(os.devnull, os.O_RDONLY)
    # Two descriptors of one file append, so that neither overwrites output of the other.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    opened = [os.open(path, flags, 0o600) for path in outputs]
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

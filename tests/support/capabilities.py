"""Run the tests that compare bits under each instruction set of torch's CPU kernels.

`make test-cpu` runs it. torch reads ATEN_CPU_CAPABILITY once, when it is imported, so each
instruction set needs processes of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import torch

CAPABILITIES = ("default", "avx2", "avx512")
VARIANTS = ({"MKL_ENABLE_INSTRUCTIONS": "AVX2"},)
TESTS = (
    "tests/training/test_exactness.py",
    "tests/training/test_golden_runs.py",
    "tests/training/test_resume.py",
    "tests/training/test_reference.py",
    "tests/checks/test_check.py",
    "tests/models/test_support.py",
    "tests/objective",
)


def supported() -> tuple[str, ...]:
    """Return the instruction sets of this processor; torch does not check that it has one.

    Without the variable torch takes the best one.
    """
    best = torch.backends.cpu.get_cpu_capability().lower()
    return CAPABILITIES[: CAPABILITIES.index(best) + 1] if best in CAPABILITIES else ()


def main(options: list[str]) -> int:
    """Run the tests under each instruction set; `options` are options of pytest."""
    settings = [{"ATEN_CPU_CAPABILITY": name} for name in supported()] + list(VARIANTS)
    failed = []
    for setting in settings:
        print(setting, flush=True)
        command = [sys.executable, "-m", "pytest", "-q", *options, *TESTS]
        if subprocess.run(command, env={**os.environ, **setting}, check=False).returncode:
            failed.append(setting)
    for setting in failed:
        print(f"failed under {setting}")
    return len(failed)


if __name__ == "__main__":
    if "ATEN_CPU_CAPABILITY" in os.environ:
        sys.exit("Unset ATEN_CPU_CAPABILITY: it hides what this processor supports.")
    sys.exit(main(sys.argv[1:]))

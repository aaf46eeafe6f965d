from __future__ import annotations

import os
import subprocess
import sys


def test_first_call_of_a_function_has_the_bits_of_later_calls() -> None:
    """torch's issue 188792.

    Without the fix, 3 to 6 of 100 processes were wrong (MKL 2024.2, two threads), so 60 processes
    show the bug in 84 to 97 % of the runs of this test. A newer MKL has no such bug.
    """
    counted = subprocess.run(
        [sys.executable, "-m", "tests.support.first_calls", "60", "built"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert counted.stdout == "0 of 60\n"

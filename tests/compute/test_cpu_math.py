from __future__ import annotations

import os
import subprocess
import sys


def test_first_call_of_a_function_has_the_bits_of_later_calls() -> None:
    """torch's issue 188792. Without, 3 to 6 of 100 processes had it (MKL 2024.2, two threads), so
    that 60 show it in 84 to 97 of 100 runs of this test; where MKL is newer, none can.
    """
    counted = subprocess.run(
        [sys.executable, "-m", "tests.support.first_calls", "60", "built"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert counted.stdout == "0 of 60\n"

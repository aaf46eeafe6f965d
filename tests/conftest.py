"""Fixtures of all tests: golden files, real data and tokenizers."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

# The thread count changes bits, and two busy test processes share two cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# A shell starts what runs in its background with Ctrl-C ignored, nohup what it runs with the end of
# its terminal ignored, and processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# One cache for all test processes, so that they multiply alike, and never the user's own; tests of
# caching have theirs.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="dpo-test-cache-")
    os.environ["DPO_CACHE_DIR"] = _CACHE.name
    # torch.compile takes kernels from its cache that another ATEN_CPU_CAPABILITY has made, and the
    # gradients become NaN.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(_CACHE.name, "inductor")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder beside the repository with golden numbers, real data, tokenizers and weights."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (golden numbers and real data) beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    return shared / "golden"

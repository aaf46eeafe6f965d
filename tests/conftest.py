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

# A shell starts background processes with Ctrl-C ignored, nohup its process with SIGHUP ignored,
# and child processes inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# All test processes share one cache, so that they choose the same library for products, and never
# use the user's cache. Tests of caching have their own.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="dpo-test-cache-")
    os.environ["DPO_CACHE_DIR"] = _CACHE.name
    # torch.compile reuses cached kernels that were made under another ATEN_CPU_CAPABILITY, and then
    # the gradients become NaN.
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

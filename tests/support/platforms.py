"""`dpo` on a stub of macOS or Windows, which only the project's own modules see."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.cli import HANG_SECONDS, REPOSITORY, environment

STUB = REPOSITORY / "tests/machines/stub"


@dataclass(frozen=True)
class Result:
    """Result of a command or of statements.

    Attributes:
        code: exit code of a command.
        out, err: output of a command.
        raised: name of the exception that statements raised, or "".
        trace: its traceback.
    """

    code: int = 0
    out: str = ""
    err: str = ""
    raised: str = ""
    trace: str = ""


def stub_environment(platform: str) -> dict[str, str]:
    """Return the environment of a Python process on a platform, "darwin" or "win32"."""
    return environment(
        PYTHONPATH=f"{STUB}:{REPOSITORY}",
        PYTHONWARNDEFAULTENCODING="1",
        DPO_TEST_PLATFORM=platform,
    )


def run_on(platform: str, items: Sequence[Sequence[str] | str], cwd: Path) -> list[Result]:
    """Run command lines (lists) and statements of Python (texts) in one process, in order."""
    results = cwd / f"results-{platform}.json"
    described = [
        {"code": item} if isinstance(item, str) else {"words": list(item), "cwd": str(cwd)}
        for item in items
    ]
    process = subprocess.run(
        [sys.executable, "-P", "-m", "tests.machines.commands", str(results)],
        input=json.dumps(described),
        cwd=cwd,
        env=stub_environment(platform),
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return [Result(**result) for result in json.loads(results.read_text(encoding="utf-8"))]

"""Selection of the tests that a change touches; `make quick` runs them.

`python -m tests.support.quick` prints the arguments for pytest.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

REPOSITORY = Path(__file__).resolve().parents[2]

ALWAYS = ("tests/test_architecture.py", "tests/test_docs.py", "tests/test_style.py")

SLOW = {
    "tests/alerts/test_real_runs.py": "trains a run for each alert",
    "tests/commands/test_bad_input.py": "starts `dpo` once for each bad input",
    "tests/commands/test_init_from.py": "trains with the settings of each tool",
    "tests/compute/test_cpu_math.py": "starts a process for each order of first calls",
    "tests/cuda/test_steps.py": "takes real steps on a GPU that only counts",
    "tests/data/test_encoding.py": "encodes all real rows with each tokenizer",
    "tests/demo/test_demo_assets.py": "trains the demo",
    "tests/distributed/test_ranks.py": "trains with two and three ranks",
    "tests/export/test_directories.py": "trains and exports four models",
    "tests/export/test_gguf.py": "trains six models and loads 20 files in llama.cpp",
    "tests/faults/": "kills and resumes runs",
    "tests/hub/test_training.py": "trains on each shape of data",
    "tests/machines/test_platforms.py": "trains, resumes and runs each command on stub platforms",
    "tests/training/test_compile.py": "compiles models",
    "tests/training/test_evaluation.py": "trains a run for each layout and version",
    "tests/training/test_golden_mistakes.py": "trains the golden runs",
    "tests/training/test_golden_runs.py": "trains the golden runs",
    "tests/training/test_losses.py": "trains a run for each loss",
    "tests/training/test_other_models.py": "trains a model of each family",
    "tests/training/test_precision.py": "trains in half precision on the CPU",
    "tests/training/test_resume.py": "stops and resumes runs",
}
"""Files and folders that take more than 10 s on a quiet machine, and the reason.

They run if they changed, or if the module that they mirror changed.
"""


def select(changed: Iterable[str], tests: Mapping[str, str]) -> list[str]:
    """Return the test files to run for a change, sorted.

    Args:
        changed: paths of changed files, relative to the repository; deleted ones included.
        tests: path and text of each test file of the repository.
    """
    selected = {path for path in ALWAYS if path in tests}
    for path in changed:
        if path in tests:
            selected.add(path)
        else:
            selected |= _tests_of(PurePosixPath(path), tests)
    return sorted(selected)


def _tests_of(path: PurePosixPath, tests: Mapping[str, str]) -> set[str]:
    """Return the tests of a file that is not a test."""
    root, *folders = path.parts[:-1] or ("",)
    if path.parts[:2] == ("tests", "support"):
        importer = re.compile(rf"from tests\.support(\.{path.stem}\b| import .*\b{path.stem}\b)")
        return {test for test, text in tests.items() if importer.search(text) and _is_fast(test)}
    if root in ("docs", "website"):
        return {"tests/test_languages.py", "tests/test_website.py"} & tests.keys()
    if root == "profiles":
        root, folders = "tests", ["profile"]
    if root not in ("dpo_cli", "tests"):
        return set()
    # tests/ui has no folders for ui/html and ui/terminal, so look upwards for the mirror.
    for depth in range(len(folders), -1, -1):
        mirror = "/".join(("tests", *folders[:depth], f"test_{path.stem}.py"))
        if root == "dpo_cli" and mirror in tests:
            return {mirror}
    if not folders:
        return set()
    return {test for test in tests if test.startswith(f"tests/{folders[0]}/") and _is_fast(test)}


def _is_fast(test: str) -> bool:
    return not test.startswith(tuple(SLOW))


def changed_files() -> list[str]:
    """List the files changed since the branch left main, on main since the commit before HEAD."""
    base = _git("merge-base", "HEAD", "main")[0]
    if base == _git("rev-parse", "HEAD")[0]:
        base = _git("rev-parse", "HEAD^")[0]
    untracked = _git("ls-files", "--others", "--exclude-standard")
    return [*_git("diff", "--name-only", base), *untracked]


def read_tests() -> dict[str, str]:
    """Read all test files of the repository."""
    return {
        path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
        for path in (REPOSITORY / "tests").rglob("test_*.py")
    }


def _git(*arguments: str) -> list[str]:
    result = subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()


if __name__ == "__main__":
    print(*select(changed_files(), read_tests()))

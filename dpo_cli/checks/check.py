"""All checks in their order: cheap ones first, each that can still run, whatever failed before."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dpo_cli.checks.profile import check_files, check_profile, check_trackers
from dpo_cli.checks.reporter import Reporter
from dpo_cli.findings import Diagnosis

OnProgress = Callable[[str, int, int, str], None]


def run_checks(
    path: Path,
    overrides: Sequence[str],
    runs_root: Path,
    pair: str | None,
    on_progress: OnProgress,
) -> Diagnosis:
    """Look at everything that a run of this profile would stand on. Nothing is written.

    Args:
        path: of the profile; it exists.
        overrides: of `--set`.
        runs_root: where runs are to lie, and where "run:NAME" is looked for.
        pair: the row whose pair is to be shown, as `Places.find` takes it; None for the first that
            is kept.
        on_progress: called with phase, done, total (0 if unknown) and unit.
    """
    reporter = Reporter()
    read = check_profile(reporter, path, overrides)
    if read is None:
        return Diagnosis(tuple(reporter.findings), None, {})
    loaded, wrong_keys = read
    unusable = check_files(reporter, loaded, wrong_keys)
    check_trackers(reporter, loaded.profile)

    on_progress("loading PyTorch", 0, 0, "")
    began = time.perf_counter()
    from dpo_cli.checks.torch_checks import TorchChecks  # imports torch: seconds

    seconds = time.perf_counter() - began
    checks = TorchChecks(
        reporter, loaded.profile, wrong_keys, unusable, runs_root, on_progress, seconds
    )
    return checks.run(pair)

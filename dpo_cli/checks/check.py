"""Entry point of `dpo check`: runs all checks, the fast ones first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dpo_cli.checks.profile import check_files, check_profile, check_trackers
from dpo_cli.checks.reporter import OnFindings, Reporter
from dpo_cli.findings import Diagnosis

OnProgress = Callable[[str, int, int, str], None]


def run_checks(
    path: Path,
    overrides: Sequence[str],
    runs_root: Path,
    pair: str | None,
    on_progress: OnProgress,
    on_findings: OnFindings | None = None,
    *,
    takes_steps: bool = True,
) -> Diagnosis:
    """Check everything that a run of a profile depends on; write nothing.

    Errors of the profile end the checks before torch is loaded. Any other failed check does not end
    the others: only those that need its result are skipped.

    Args:
        path: existing profile.
        overrides: `KEY=VALUE` of each `--set`.
        runs_root: directory of runs, also for weights given as "run:NAME".
        pair: row whose pair is shown, as `Places.find` takes it; None for the first pair.
        on_progress: called with phase, done, total (0 if unknown) and unit.
        on_findings: called before each slow part, and if Ctrl-C ends the checks, with the findings
            since its last call.
        takes_steps: also score pairs and take real steps; these take most of the time.
    """
    reporter = Reporter(on_findings)
    try:
        return _run_checks(
            reporter, path, overrides, runs_root, pair, on_progress, takes_steps=takes_steps
        )
    except KeyboardInterrupt:
        reporter.show()
        raise


def _run_checks(
    reporter: Reporter,
    path: Path,
    overrides: Sequence[str],
    runs_root: Path,
    pair: str | None,
    on_progress: OnProgress,
    *,
    takes_steps: bool,
) -> Diagnosis:
    result = check_profile(reporter, path, overrides)
    if result is None:
        return Diagnosis(tuple(reporter.findings), None, {})
    loaded, wrong_keys = result
    unusable = check_files(reporter, loaded, wrong_keys, downloads=takes_steps)
    check_trackers(reporter, loaded.profile)
    if wrong_keys:  # the rest takes a minute, and would check another profile
        return Diagnosis(tuple(reporter.findings), None, {})

    reporter.show()
    on_progress("loading PyTorch", 0, 0, "")
    start = time.perf_counter()
    from dpo_cli.checks.torch_checks import TorchChecks  # imports torch: seconds

    import_seconds = time.perf_counter() - start
    checks = TorchChecks(
        reporter,
        loaded.profile,
        unusable,
        runs_root,
        on_progress,
        import_seconds,
        takes_steps,
    )
    return checks.run(pair)

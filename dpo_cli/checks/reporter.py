"""Collector of the findings of all checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dpo_cli.errors import DpoError
from dpo_cli.findings import Finding, Level

OnFindings = Callable[[Sequence[Finding]], None]


class Reporter:
    """Findings in the order in which they are reported.

    Args:
        on_findings: called by `show` with the findings since its last call; None for no calls.
    """

    def __init__(self, on_findings: OnFindings | None = None) -> None:
        self.findings: list[Finding] = []
        self._on_findings = on_findings
        self._shown = 0

    def show(self) -> None:
        """Show the findings so far, because slow checks follow."""
        if self._on_findings is not None:
            self._on_findings(self.findings[self._shown :])
        self._shown = len(self.findings)

    def ok(self, code: str, subject: str, message: str) -> None:
        """Report a check that passed."""
        self._add(code, Level.OK, subject, message)

    def warn(self, code: str, subject: str, message: str, remedy: str) -> None:
        """Report a problem with which training would still start."""
        self._add(code, Level.WARN, subject, message, remedy)

    def error(self, code: str, subject: str, message: str, remedy: str) -> None:
        """Report a problem with which training would fail or be pointless."""
        self._add(code, Level.ERROR, subject, message, remedy)

    def skip(self, code: str, missing: str) -> None:
        """Report a check that cannot run without a missing input."""
        self._add(code, Level.SKIP, "", f"needs {missing}")

    @contextmanager
    def errors_as(self, code: str, subject: str, path: object = "") -> Iterator[None]:
        """Report a `DpoError` raised in the block, and suppress it.

        If the message begins with `path`, that prefix is removed, because `subject` names it.
        """
        try:
            yield
        except DpoError as error:
            message = error.message.removeprefix(f"{path}: ")
            self.error(code, subject, "\n".join([message, *error.details]), error.remedy)

    def _add(self, code: str, level: Level, subject: str, message: str, remedy: str = "") -> None:
        self.findings.append(Finding(code, level, subject, message, remedy))

"""Where the checks write down what they find."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from dpo_cli.errors import DpoError
from dpo_cli.findings import Finding, Level


class Notes:
    """Findings in the order in which they were made."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def ok(self, code: str, subject: str, message: str) -> None:
        """All is well."""
        self._add(code, Level.OK, subject, message)

    def warn(self, code: str, subject: str, message: str, remedy: str) -> None:
        """Training would start; the user should know this first."""
        self._add(code, Level.WARN, subject, message, remedy)

    def error(self, code: str, subject: str, message: str, remedy: str) -> None:
        """Training would fail, or be in vain."""
        self._add(code, Level.ERROR, subject, message, remedy)

    def lacks(self, code: str, needs: Mapping[str, object]) -> bool:
        """Whether any of what a check needs is None; if so, the check is noted as skipped."""
        missing = [name for name, value in needs.items() if value is None]
        if missing:
            self._add(code, Level.SKIP, "", f"needs {' and '.join(missing)}")
        return bool(missing)

    @contextmanager
    def errors_as(self, code: str, subject: str) -> Iterator[None]:
        """Note a `DpoError` raised inside, and go on behind the block."""
        try:
            yield
        except DpoError as error:
            message = "\n".join([error.message, *error.details])
            self.error(code, subject, message, error.remedy)

    def _add(self, code: str, level: Level, subject: str, message: str, remedy: str = "") -> None:
        self.findings.append(Finding(code, level, subject, message, remedy))

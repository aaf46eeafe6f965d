"""Where the checks write down what they find."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dpo_cli.errors import DpoError
from dpo_cli.findings import Finding, Level


class Reporter:
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

    def skip(self, code: str, missing: str) -> None:
        """Cannot be looked at without what is missing."""
        self._add(code, Level.SKIP, "", f"needs {missing}")

    @contextmanager
    def errors_as(self, code: str, subject: str, path: object = "") -> Iterator[None]:
        """Note a `DpoError` raised inside, and go on behind the block.

        Where its message begins with the `path` that the subject already names, that is left out.
        """
        try:
            yield
        except DpoError as error:
            message = error.message.removeprefix(f"{path}: ")
            self.error(code, subject, "\n".join([message, *error.details]), error.remedy)

    def _add(self, code: str, level: Level, subject: str, message: str, remedy: str = "") -> None:
        self.findings.append(Finding(code, level, subject, message, remedy))

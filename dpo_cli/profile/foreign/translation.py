"""Result of a translation: the values, and the report about everything else."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dpo_cli.printable import one_line
from dpo_cli.profile.recipe import Draft
from dpo_cli.profile.text import show_value

_WIDTH = 94
_LONGEST_VALUE = 60
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?", re.IGNORECASE)
_OFFERED: Mapping[str, str] = {
    "eval.keep_best": "eval.keep_best = true: keeps the checkpoint with the lowest held-out loss",
    "eval.num_samples": "eval.num_samples = 4: answers four held-out prompts at each evaluation",
}
"""Keys that a profile of `dpo init` has without --from, and what they do."""


@dataclass
class Translation:
    """Draft of a profile from another tool's settings.

    Attributes:
        values: by key.
        origins: setting of each key, for example "trl: beta".
        differences: settings with a counterpart that does not do quite the same.
        missing: settings without a counterpart, with what that changes.
        unknown: settings that no table has.
        without_effect: settings that change nothing in a result, or are switched off.
        unread: parts of the file that are no settings or no literals.
        notes: remarks to print above a key.
        setters: settings that set a key, by key; the last one did.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    without_effect: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    setters: dict[str, list[str]] = field(default_factory=dict)

    def report(self) -> Iterator[str]:
        """Yield the lines about everything that a reader should look at."""
        parts = {
            "Different here:": self.differences,
            "No counterpart:": self.missing,
            "Unknown, not used:": self.unknown,
            "Not read:": self.unread,
        }
        for title, entries in parts.items():
            if entries:
                yield title
                for entry in _by_reason(entries):
                    yield from _wrapped(one_line(entry))
        if unset := [text for key, text in _OFFERED.items() if not self.values.get(key)]:
            yield "Not set, but useful:"
            for each in unset:
                yield from _wrapped(each)
        if self.without_effect:
            yield "Without effect on the result here:"
            yield from _wrapped(one_line(", ".join(dict.fromkeys(self.without_effect))))

    def draft(self) -> Draft:
        """Return the draft, with the report above its keys."""
        return Draft(
            self.values,
            self.notes,
            origins={key: one_line(each) for key, each in self.origins.items()},
            remarks=tuple(self.report()),
        )


def _by_reason(entries: list[str]) -> list[str]:
    """Join entries "NAME = VALUE: REASON" that have the same reason."""
    names: dict[str, list[str]] = {}
    for entry in dict.fromkeys(entries):
        name, colon, reason = entry.partition(": ")
        names.setdefault(reason if colon else entry, []).append(name)
    return [
        f"{', '.join(each)}: {reason}" if each != [reason] else reason
        for reason, each in names.items()
    ]


def shown(value: Any) -> str:
    """Return a setting's value for the report, cut if it is long."""
    # A command line gives numbers as texts.
    text = value if isinstance(value, str) and _NUMBER.fullmatch(value) else show_value(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _wrapped(entry: str) -> list[str]:
    return textwrap.wrap(
        entry,
        _WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )

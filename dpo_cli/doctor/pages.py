"""The rows of a profile's data one after another, as `dpo data` shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.pairs import SetAside
from dpo_cli.data.tokens import Rows
from dpo_cli.doctor.data import look_closely
from dpo_cli.doctor.preview import show_pair, why_not_kept
from dpo_cli.doctor.traits import Traits
from dpo_cli.errors import UsageError
from dpo_cli.findings import PairPreview, Trait
from dpo_cli.profile.inputs import resolve_tokenizer
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.text import show_path
from dpo_cli.training.inputs import OnProgress, encode


@dataclass(frozen=True)
class RejectedRow:
    """A row that is set aside: why, and what it says."""

    line: int
    problem: str
    reason: str
    text: str


@dataclass(frozen=True)
class DataPages:
    """A file of pairs, encoded as a run of the profile would."""

    path: Path
    rows: Rows
    traits: Traits
    tokenizer: ChatTokenizer

    @classmethod
    def open(cls, profile: Profile, on_progress: OnProgress) -> DataPages:
        """Read and encode `data.data_path`.

        Args:
            profile: its files are there.
            on_progress: called with phase, done, total (0 if unknown) and unit.

        Raises:
            DpoError: tokenizer or data cannot be read.
        """
        path, limit = profile.data.data_path, profile.data.max_seq_len
        tokenizer = ChatTokenizer(resolve_tokenizer(profile))
        whole = encode(profile, path, tokenizer, on_progress)
        rows = whole.cut(limit)
        traits = look_closely(path, whole, rows, tokenizer, on_progress)
        return cls(path, rows, traits, tokenizer)

    def pairs(
        self, line: int | None, only: Sequence[Trait]
    ) -> Iterator[tuple[PairPreview, list[str]]]:
        """The pairs that are kept, each with what it has about it.

        Args:
            line: of the one to show; None for all.
            only: show those that have one of these; all, if it is empty.

        Raises:
            UsageError: the row of that line is not kept.
        """
        lines = self.rows.kept.lines.tolist()
        if line is not None and line not in lines:
            raise UsageError(
                f"{show_path(self.path)}, line {line}: {why_not_kept(self.rows, line)}",
                "dpo data --rejected shows the rows that are set aside",
            )
        wanted = {line for trait in only for line in self.traits.lines.get(trait, ())}
        return (
            (show_pair(self.tokenizer, self.rows.kept[index]), self.traits.of(its_line))
            for index, its_line in enumerate(lines)
            if line in (None, its_line) and (not only or its_line in wanted)
        )

    def rejected(self, line: int | None) -> Iterator[RejectedRow]:
        """The rows that are set aside, or the one of a line.

        Raises:
            UsageError: the row of that line is not set aside.
        """
        aside = {row.line: row for row in self.rows.set_aside if line in (None, row.line)}
        if line is not None and not aside:
            raise UsageError(
                f"{show_path(self.path)}, line {line}: this row is not set aside",
                f"dpo data --line {line} shows it, if there is one",
            )
        return self._read(aside)

    def _read(self, aside: Mapping[int, SetAside]) -> Iterator[RejectedRow]:
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if (row := aside.get(number)) is not None:
                    text = raw.decode("utf-8", errors="replace").strip()
                    yield RejectedRow(number, row.problem, row.reason, text)

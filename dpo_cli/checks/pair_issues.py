"""What the texts of a source of pairs have about them, row by row."""

from __future__ import annotations

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dpo_cli.checks.pair_hashes import PairHashes
from dpo_cli.data.formats import Message
from dpo_cli.data.languages import Language, language_of
from dpo_cli.data.pairs import PreferencePair, read_pairs
from dpo_cli.data.sources import Places, Source
from dpo_cli.findings import PairIssue

NEAR_IDENTICAL_SHARE = 0.9
"""Of their words that both sides have in common, from where on they are nearly identical."""
_LEAST_LETTERS = 20
_SAMPLED_ROWS = 32
_PROGRESS_ROWS = 500
_EAST_ASIAN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
_WORD = re.compile(rf"[{_EAST_ASIAN}]|[^\W{_EAST_ASIAN}]+")
_FOREIGN = re.compile(
    r"<\|[a-z_0-9]{2,30}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|^### ?(?:Human|Assistant|Instruction|Response):",
    re.MULTILINE,
)
"""What ChatML, Llama 2 and 3, Gemma, Phi, Alpaca and their like write around a turn."""
_LLAMA_END, _LLAMA_BEGIN = "</s>", "<s>"  # in HTML they come together: struck-out text


@dataclass(frozen=True)
class PairIssues:
    """What was found in the rows that are kept, each by its number.

    Attributes:
        lines: of each issue that a row has, ascending.
        partners: of contradictory and repeated rows the line of the other one.
        marks: which control tokens, and which of other templates, stand in messages; by frequency.
        languages: of the chosen answers.
        hashes: of what they answer and say.
        sample: some rows from everywhere in the source.
        places: what the numbers mean.
    """

    lines: Mapping[PairIssue, Sequence[int]]
    partners: Mapping[PairIssue, Mapping[int, int]]
    marks: Mapping[PairIssue, Sequence[str]]
    languages: Mapping[Language, int]
    hashes: PairHashes
    sample: Sequence[PreferencePair]
    places: Places

    def of(self, line: int) -> list[str]:
        """Those that a row has, in words, with the name of the row that it repeats."""
        found = [issue for issue in PairIssue if line in self._members.get(issue, ())]
        others = {issue: self.partners.get(issue, {}).get(line) for issue in found}
        return [
            f"{issue} ({self.places.name(other)})" if (other := others[issue]) else str(issue)
            for issue in found
        ]

    @cached_property
    def _members(self) -> Mapping[PairIssue, frozenset[int]]:
        return {issue: frozenset(lines) for issue, lines in self.lines.items()}


def find_issues(
    source: Source,
    places: Places,
    kept: Sequence[int],
    control_tokens: Collection[str],
    on_progress: Callable[[str, int, int, str], None],
) -> PairIssues:
    """Read the texts of a source of pairs.

    Args:
        source, places: files, and what the numbers of their rows mean.
        kept: the numbers of the rows to look at, ascending.
        control_tokens: of the tokenizer: what no message should contain.
        on_progress: called with phase, done, total and unit.

    Raises:
        DpoError: a file cannot be read.
    """
    reader = _Reader(tuple(control_tokens))
    sampled, sample = set(kept[:: max(1, len(kept) // _SAMPLED_ROWS)][:_SAMPLED_ROWS]), []
    is_wanted = bytearray(max(kept, default=0) + 1)
    for line in kept:
        is_wanted[line] = True
    for row in read_pairs(source, None, places):
        if row.line >= len(is_wanted):
            break
        if not isinstance(row, PreferencePair) or not is_wanted[row.line]:
            continue
        with contextlib.suppress(RecursionError):  # nested as deep as JSON may be read
            reader.read(row)
        if row.line in sampled:
            sample.append(row)
        if len(reader.hashes) % _PROGRESS_ROWS == 0:
            on_progress("reading texts", len(reader.hashes), len(kept), "pairs")
    partners = reader.compare()
    return PairIssues(
        {issue: sorted(lines) for issue, lines in reader.lines.items()},
        partners,
        {issue: [mark for mark, _ in marks.most_common()] for issue, marks in reader.marks.items()},
        dict(reader.languages),
        reader.hashes,
        sample,
        places,
    )


class _Reader:
    """Collects issues; keeps hashes of the texts, not the texts."""

    def __init__(self, control_tokens: Sequence[str]) -> None:
        self.lines: dict[PairIssue, list[int]] = defaultdict(list)
        self.marks: dict[PairIssue, Counter[str]] = defaultdict(Counter)
        self.languages: Counter[Language] = Counter()
        self.hashes = PairHashes()
        self._control_tokens = control_tokens

    def read(self, row: PreferencePair) -> None:
        """Note what one row has about it."""
        shared = _shared_messages(row)
        self.hashes.add(row.line, row.chosen[:shared], row.chosen, row.rejected)
        found = self._marks_of(row)
        rests = row.chosen[shared:], row.rejected[shared:]
        if any(rest and rest[0]["role"] != "assistant" for rest in rests):
            found.add(PairIssue.OTHER_PROMPT)
        chosen, rejected = ("\n".join(m["content"] for m in rest) for rest in rests)
        if is_near_identical(chosen, rejected):
            found.add(PairIssue.NEAR_IDENTICAL)
        if _thinks(rests[0]) != _thinks(rests[1]):
            found.add(PairIssue.ONE_SIDED_THINK)
        language, other = language_of(chosen), language_of(rejected)
        if language:
            self.languages[language] += 1
        is_long = min(len(chosen), len(rejected)) >= _LEAST_LETTERS
        if is_long and language and other and language != other:
            found.add(PairIssue.OTHER_LANGUAGE)
        for issue in found:
            self.lines[issue].append(row.line)

    def compare(self) -> dict[PairIssue, dict[int, int]]:
        """Note rows that say what others say, or the opposite; gives the lines of the others."""
        repeated, contradictory = self.hashes.compare()
        partners = {PairIssue.CONTRADICTORY: contradictory, PairIssue.REPEATED: repeated}
        for issue, found in partners.items():
            if found:
                self.lines[issue] += found
        return partners

    def _marks_of(self, row: PreferencePair) -> set[PairIssue]:
        """What stands in a message and belongs to a chat template."""
        marks: dict[PairIssue, set[str]] = {
            PairIssue.CONTROL_TOKENS: set(),
            PairIssue.FOREIGN_TEMPLATE: set(),
        }
        for message in (*row.chosen, *row.rejected):
            content = message["content"]
            control = {token for token in self._control_tokens if token in content}
            foreign = set(_FOREIGN.findall(content))
            if _LLAMA_END in content and _LLAMA_BEGIN not in content:
                foreign.add(_LLAMA_END)
            marks[PairIssue.CONTROL_TOKENS] |= control
            marks[PairIssue.FOREIGN_TEMPLATE] |= foreign.difference(self._control_tokens)
        for issue, found in marks.items():
            self.marks[issue].update(found)
        return {issue for issue, found in marks.items() if found}


def is_near_identical(first: str, second: str) -> bool:
    """Whether two texts have nearly all their words in common, in whatever order.

    A word is a run of letters and digits, or one ideograph; the measure is Dice's coefficient,
    2 |common| / (|first| + |second|), each word counted as often as it stands there.
    """
    shorter, longer = sorted((first, second), key=len)
    if len(shorter) < NEAR_IDENTICAL_SHARE**2 * len(longer):  # soon said of most
        return False
    words, others = Counter(_WORD.findall(first.lower())), Counter(_WORD.findall(second.lower()))
    total = words.total() + others.total()
    return total > 0 and 2 * (words & others).total() >= NEAR_IDENTICAL_SHARE * total


def _shared_messages(row: PreferencePair) -> int:
    """How many of their first messages both sides have in common."""
    shared = 0
    for chosen, rejected in zip(row.chosen, row.rejected, strict=False):
        if chosen != rejected:
            break
        shared += 1
    return shared


def _thinks(messages: Sequence[Message]) -> bool:
    return any("<think>" in m["content"] or m.get("reasoning_content") for m in messages)

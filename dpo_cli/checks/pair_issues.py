"""Issues in the texts of pairs, for example repeated rows or marks of another chat template."""

from __future__ import annotations

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dpo_cli.checks.conversations import issues_of
from dpo_cli.checks.pair_hashes import PairHashes
from dpo_cli.checks.unread_columns import UnreadColumns
from dpo_cli.data.languages import Language, language_of
from dpo_cli.data.messages import Message
from dpo_cli.data.pairs import PreferencePair, read_pairs
from dpo_cli.data.places import Places
from dpo_cli.data.sources import Source
from dpo_cli.findings import PairIssue

NEAR_IDENTICAL_SHARE = 0.9
"""Smallest share of common words at which two sides count as nearly identical."""
_MIN_LETTERS = 20
"""Characters of the shorter side below which its language is not compared."""
_SAMPLED_ROWS = 32
_MIN_PAIRS, _ONE_PROMPT_SHARE = 3, 0.9
"""Smallest number and share of the pairs at which `ONE_PROMPT` is reported."""
_MIN_ANSWERS, _ANSWER_SHARE = 3, 0.05
"""Smallest number and share of the prompts at which `FREQUENT_ANSWER` is reported."""
_MARKED_ROWS = 20
"""Rows whose missing words are shown as examples."""
_PROGRESS_ROWS = 500
_EAST_ASIAN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
_WORD = re.compile(rf"[{_EAST_ASIAN}]|[^\W{_EAST_ASIAN}]+")
_FOREIGN = re.compile(
    r"<\|[a-z_0-9]{2,30}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|^### ?(?:Human|Assistant|Instruction|Response):",
    re.MULTILINE,
)
"""Marks that the templates of ChatML, Llama 2 and 3, Gemma, Phi and Alpaca write around a turn."""
_LLAMA_END, _LLAMA_BEGIN = "</s>", "<s>"  # both together are HTML: struck-out text


@dataclass(frozen=True)
class PairIssues:
    """Issues of the kept rows of a source; a row is named by its number.

    Attributes:
        lines: rows that have each issue, ascending.
        partners: for contradictory and repeated rows, the other row by the row.
        marks: control tokens and marks of other templates in messages, the most frequent first.
        languages: number of chosen answers in each language.
        hashes: hashes of prompts and sides.
        sample: some rows, spread over the whole source.
        unread: columns that the format does not read.
        places: mapping from row numbers to files and lines.
    """

    lines: Mapping[PairIssue, Sequence[int]]
    partners: Mapping[PairIssue, Mapping[int, int]]
    marks: Mapping[PairIssue, Sequence[str]]
    languages: Mapping[Language, int]
    hashes: PairHashes
    sample: Sequence[PreferencePair]
    unread: UnreadColumns
    places: Places

    def of(self, line: int) -> list[str]:
        """Return the issues of a row in words, with the name of the row that it repeats."""
        texts = []
        for issue in PairIssue:
            if line in self._members.get(issue, ()):
                partner = self.partners.get(issue, {}).get(line)
                texts.append(f"{issue} ({self.places.name(partner)})" if partner else str(issue))
        return texts

    @cached_property
    def _members(self) -> Mapping[PairIssue, frozenset[int]]:
        return {issue: frozenset(lines) for issue, lines in self.lines.items()}


def find_issues(
    source: Source,
    places: Places,
    kept: Sequence[int],
    control_tokens: Collection[str],
    on_progress: Callable[[str, int, int, str], None],
    missing_words: Callable[[PreferencePair], Sequence[str]] = lambda row: (),
) -> PairIssues:
    """Read the texts of the kept rows and find their issues.

    Args:
        source, places: files, and the mapping of row numbers to them.
        kept: numbers of the rows to read, ascending.
        control_tokens: special tokens of the tokenizer, which no message should contain.
        on_progress: called with phase, done, total and unit.
        missing_words: returns the words of a pair's answers that its tokens lack.

    Raises:
        DpoError: a file cannot be read.
    """
    collector = _Collector(tuple(control_tokens), missing_words)
    sampled, sample = set(kept[:: max(1, len(kept) // _SAMPLED_ROWS)][:_SAMPLED_ROWS]), []
    # One byte per row: a set of integers would take about 70 times the memory.
    is_kept = bytearray(max(kept, default=0) + 1)
    for line in kept:
        is_kept[line] = True
    for row in read_pairs(source, None, places):
        if row.line >= len(is_kept):
            break
        if not isinstance(row, PreferencePair) or not is_kept[row.line]:
            continue
        with contextlib.suppress(RecursionError):  # a message nested too deeply for JSON
            collector.read(row)
        if row.line in sampled:
            sample.append(row)
        if len(collector.hashes) % _PROGRESS_ROWS == 0:
            on_progress("reading texts", len(collector.hashes), len(kept), "pairs")
    partners = collector.compare()
    return PairIssues(
        {issue: sorted(lines) for issue, lines in collector.lines.items()},
        partners,
        {
            issue: [mark for mark, _ in marks.most_common()]
            for issue, marks in collector.marks.items()
        },
        dict(collector.languages),
        collector.hashes,
        sample,
        collector.unread,
        places,
    )


class _Collector:
    """Collects issues row by row; keeps hashes of the texts instead of the texts."""

    def __init__(
        self,
        control_tokens: Sequence[str],
        missing_words: Callable[[PreferencePair], Sequence[str]],
    ) -> None:
        self.lines: dict[PairIssue, list[int]] = defaultdict(list)
        self.marks: dict[PairIssue, Counter[str]] = defaultdict(Counter)
        self.languages: Counter[Language] = Counter()
        self.hashes = PairHashes()
        self.unread = UnreadColumns()
        self._control_tokens = control_tokens
        self._missing_words = missing_words

    def read(self, row: PreferencePair) -> None:
        """Add the issues of one row."""
        shared = _shared_messages(row)
        self.hashes.add(row.line, row.chosen[:shared], row.chosen, row.rejected)
        self.unread.add(row)
        issues = self._marks_of(row)
        for issue, shown in issues_of(row).items():
            self.marks[issue].update(shown)
            issues.add(issue)
        if missing := self._missing_words(row):
            issues.add(PairIssue.LOST_WORDS)
            if len(self.lines[PairIssue.LOST_WORDS]) < _MARKED_ROWS:
                self.marks[PairIssue.LOST_WORDS].update({*missing})
        rests = row.chosen[shared:], row.rejected[shared:]
        # The sides must part at an answer: a user turn after the common beginning is a part of
        # the prompt that the other side does not have.
        if any(rest and rest[0]["role"] != "assistant" for rest in rests):
            issues.add(PairIssue.OTHER_PROMPT)
        chosen, rejected = ("\n".join(m["content"] for m in rest) for rest in rests)
        if is_near_identical(chosen, rejected):
            issues.add(PairIssue.NEAR_IDENTICAL)
        if _thinks(rests[0]) != _thinks(rests[1]):
            issues.add(PairIssue.ONE_SIDED_THINK)
        language, other = language_of(chosen), language_of(rejected)
        if language:
            self.languages[language] += 1
        is_long = min(len(chosen), len(rejected)) >= _MIN_LETTERS
        if is_long and language and other and language != other:
            issues.add(PairIssue.OTHER_LANGUAGE)
        for issue in issues:
            self.lines[issue].append(row.line)

    def compare(self) -> dict[PairIssue, dict[int, int]]:
        """Add repeated and contradictory rows; return the other row of each."""
        repeated, contradictory = self.hashes.compare()
        partners = {PairIssue.CONTRADICTORY: contradictory, PairIssue.REPEATED: repeated}
        for issue, others in partners.items():
            if others:
                self.lines[issue] += others
        # Pairs without a common beginning share the empty prompt.
        promptless = {
            *self.lines.get(PairIssue.NO_USER, ()),
            *self.lines.get(PairIssue.OTHER_PROMPT, ()),
        }
        one_prompt = self.hashes.rows_of_frequent_prompts(_MIN_PAIRS, _ONE_PROMPT_SHARE)
        frequent = {
            PairIssue.ONE_PROMPT: [] if promptless.issuperset(one_prompt) else one_prompt,
            PairIssue.FREQUENT_ANSWER: self.hashes.rows_of_frequent_answers(
                _MIN_ANSWERS, _ANSWER_SHARE
            ),
        }
        for issue, lines in frequent.items():
            if lines:
                self.lines[issue] += lines
        return partners

    def _marks_of(self, row: PreferencePair) -> set[PairIssue]:
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
        for issue, texts in marks.items():
            self.marks[issue].update(texts)
        return {issue for issue, texts in marks.items() if texts}


def is_near_identical(first: str, second: str) -> bool:
    """Return True if two texts share nearly all of their words, in any order.

    A word is a run of letters and digits, or one ideograph. The measure is Dice's coefficient over
    multisets of words, 2 |common| / (|first| + |second|).
    """
    shorter, longer = sorted((first, second), key=len)
    # A fast exit for most pairs: texts of such different lengths cannot reach the share.
    if len(shorter) < NEAR_IDENTICAL_SHARE**2 * len(longer):
        return False
    words, others = Counter(_WORD.findall(first.lower())), Counter(_WORD.findall(second.lower()))
    total = words.total() + others.total()
    return total > 0 and 2 * (words & others).total() >= NEAR_IDENTICAL_SHARE * total


def _shared_messages(row: PreferencePair) -> int:
    shared = 0
    for chosen, rejected in zip(row.chosen, row.rejected, strict=False):
        if chosen != rejected:
            break
        shared += 1
    return shared


def _thinks(messages: Sequence[Message]) -> bool:
    return any("<think>" in m["content"] or m.get("reasoning_content") for m in messages)

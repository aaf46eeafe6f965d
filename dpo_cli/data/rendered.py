"""Rendered conversations: text, scored answers, and positions where a prompt may be cut."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import AnyStr, NamedTuple

_MOST_BACK = 4
"""Number of last characters of a header in which a token boundary common to all turns is sought."""
EMPTY_THINK_BLOCK = "<think>\n\n</think>\n\n"


class RewrittenError(ValueError):
    """The template renders a turn differently once later turns follow it."""


class Answer(NamedTuple):
    """Scored answer of a rendered conversation.

    prompt: the turns before it, rendered with the header of an answer.
    end: end of the answer in the rendered text, in characters.
    """

    prompt: str
    end: int


@dataclass(frozen=True)
class Rendered:
    """Conversation as text, with its scored answers.

    cuts: positions between which `data.truncation` may cut the prompt, in characters: the beginning
        of each user's text, and the end of the last one. Empty if the prompt cannot be cut.
    is_rewritten: the template renders the prompt of an answer differently without the answer.
    """

    text: str
    answers: tuple[Answer, ...] = ()
    cuts: tuple[int, ...] = ()
    is_rewritten: bool = False

    @property
    def cut_positions(self) -> list[int]:
        """Positions that `aligned_cuts` needs."""
        *begins, end = self.cuts or (0,)
        return [max(0, begin - back) for begin in begins for back in range(_MOST_BACK)] + [end]

    def aligned_cuts(self, before: Mapping[int, int], ended: Mapping[int, int]) -> tuple[int, ...]:
        """Convert `cuts` to token indices that can be exchanged for one another.

        The blank at the end of a header is often a separate token before one text, and a part of
        the first token of another text. Therefore all cuts move back by the same few characters, to
        a position where every turn has a token boundary.

        Args:
            before, ended: tokens that start before and end by a position, for `cut_positions`.
        """
        if not self.cuts:
            return ()
        *begins, end = self.cuts
        for back in range(_MOST_BACK):
            moved = [max(0, begin - back) for begin in begins]
            headers = {self.text[start:begin] for start, begin in zip(moved, begins, strict=True)}
            # A token boundary: the tokens that start before a position also end there.
            if len(headers) == 1 and all(before[start] == ended[start] for start in moved):
                return (*(ended[start] for start in moved), ended[end])
        return tuple(ended[position] for position in self.cuts)

    def without_empty_think(self) -> Rendered:
        """Remove empty think blocks."""

        def removed(text: str) -> str:
            return text.replace(EMPTY_THINK_BLOCK, "")

        answers = [
            Answer(removed(prompt), len(removed(self.text[:end]))) for prompt, end in self.answers
        ]
        return replace(self, text=removed(self.text), answers=tuple(answers))

    def with_think_in_answers(self) -> Rendered:
        """Count an empty think block at the end of a prompt as the beginning of the answer."""
        answers = [
            Answer(prompt.removesuffix(EMPTY_THINK_BLOCK), end) for prompt, end in self.answers
        ]
        return replace(self, answers=tuple(answers))


def find_cuts(
    text: str, pieces: Sequence[str], user_texts: Sequence[str], header_length: int
) -> tuple[int, ...]:
    """Return `Rendered.cuts` of a text, or () if the users' texts are not found in it.

    Args:
        text: rendered conversation, whose beginning is the prompt.
        pieces: from `ChatTokenizer.prompt_pieces`.
        user_texts: texts of the user turns of the prompt; templates may remove blanks around them.
        header_length: characters of the last piece that may not follow in `text`, because they are
            the header of another answer.
    """
    if not pieces or not user_texts:
        return ()
    last = pieces[-1][: max(0, len(pieces[-1]) - header_length)]
    expected = [*pieces[:-1], last]
    cuts, place, end = [], 0, 0
    if not text.startswith(expected[0]):
        return ()
    for piece, following, content in zip(expected, expected[1:], user_texts, strict=False):
        place += len(piece)
        forms = (content, content.strip(), content.rstrip(), content.lstrip())
        written = next((form for form in forms if text.startswith(form + following, place)), None)
        if written is None:
            return ()
        cuts.append(place)
        place += len(written)
        end = place
    return (*cuts, end)


def common_length(first: AnyStr, second: AnyStr) -> int:
    """Return the length of the common prefix of two strings or byte strings."""
    same, limit = 0, min(len(first), len(second))
    while same < limit:  # binary search: comparing slices runs at memory speed
        middle = (same + limit + 1) // 2
        if first[same:middle] == second[same:middle]:
            same = middle
        else:
            limit = middle - 1
    return same


def common_tokens(first: array[int], second: array[int]) -> int:
    """Return the number of ids with which both sequences begin."""
    return common_length(first.tobytes(), second.tobytes()) // first.itemsize

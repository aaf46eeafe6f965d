"""Repetition of a text: the share of its pieces that it has already written."""

from __future__ import annotations

LENGTH = 6
"""Characters of a piece: longer than most parts of words, shorter than a phrase. The metric must
see "33333333" and "- - - -" as well as repeated sentences, in languages without spaces, too."""


def repetition(text: str) -> float:
    """Return the share of the character 6-grams of `text` that occurred before, 0 to 1.

    One minus the number of different n-grams over their number, as seq-rep-n of Welleck et al.
    (2019, arXiv:1908.04319), but on characters: a text has no tokens. Runs of white space count as
    one space. 0 for a text of at most 6 characters.
    """
    text = " ".join(text.split())
    pieces = [text[start : start + LENGTH] for start in range(len(text) - LENGTH + 1)]
    return 1 - len(set(pieces)) / len(pieces) if len(pieces) > 1 else 0.0

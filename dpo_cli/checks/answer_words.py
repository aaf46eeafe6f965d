"""Check that the decoded response tokens contain the words of each answer."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from dpo_cli.data.chat import ChatTokenizer, Tokenized
from dpo_cli.data.encoding import Flag
from dpo_cli.data.messages import Message
from dpo_cli.data.pairs import PreferencePair
from dpo_cli.data.rendered import EMPTY_THINK_BLOCK
from dpo_cli.data.tokens import EncodedRows

_NO_LIMIT = 1 << 30
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_TAG = re.compile(r"</?think>")


class AnswerWords:
    """Comparison of the texts of answers with their tokens, row by row in ascending order.

    A tokenizer may have no tokens for some words, and a mask may begin after the first word. In
    both cases the decoded response tokens lack words. Case and accents are ignored, because some
    tokenizers remove them. Pairs whose words the chat template changes are left out, because
    encoding finds them (`dpo_cli.data.encoding.Flag.TEMPLATE_CHANGES_WORDS`).
    """

    def __init__(self, encoded: EncodedRows, tokenizer: ChatTokenizer) -> None:
        self._encoded, self._tokenizer = encoded, tokenizer
        self._index = 0

    def missing(self, row: PreferencePair) -> list[str]:
        """Return the words of both last answers that the decoded response tokens lack."""
        encoded = self._encoded
        while self._index < len(encoded) and int(encoded.lines[self._index]) < row.line:
            self._index += 1
        if self._index == len(encoded) or int(encoded.lines[self._index]) != row.line:
            return []
        if int(encoded.flags[self._index]) & Flag.TEMPLATE_CHANGES_WORDS:
            return []
        pair = encoded.pair(self._index, _NO_LIMIT)
        sides = (row.chosen, pair.chosen), (row.rejected, pair.rejected)
        return [word for messages, side in sides for word in self._missing(messages, side)]

    def _missing(self, messages: Sequence[Message], side: Tokenized) -> list[str]:
        answer = next(each for each in reversed(messages) if each["role"] == "assistant")
        thoughts = answer.get("reasoning_content")
        written = self._last_response(side)
        texts = [text for text in (answer["content"], thoughts) if isinstance(text, str)]
        # Most answers are decoded unchanged and need no comparison by words.
        texts = [text for text in texts if text.strip() not in written]
        return list((Counter(words(texts)) - Counter(words([written]))).elements()) if texts else []

    def _last_response(self, side: Tokenized) -> str:
        """Decode the last contiguous tokens with loss."""
        positions = side.response.nonzero().flatten()
        if not len(positions):
            return ""
        end = int(positions[-1]) + 1
        others = (~side.response[:end]).nonzero().flatten()
        return self._tokenizer.decode(side.ids[int(others[-1]) + 1 if len(others) else 0 : end])


def words(texts: Iterable[str]) -> list[str]:
    """Return the words of texts without case and accents; an ideograph is a word."""
    found: list[str] = []
    for text in texts:
        text = _TAG.sub(" ", text.replace(EMPTY_THINK_BLOCK, ""))
        parts = unicodedata.normalize("NFKD", text.casefold())
        if not parts.isascii():
            parts = "".join(each for each in parts if not unicodedata.combining(each))
        found += _WORD.findall(parts)
    return found

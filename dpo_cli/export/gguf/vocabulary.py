"""Tokenizers in GGUF: vocabulary, merges, pre-tokenizer, special tokens and chat template.

llama.cpp has code for the regular expressions of known tokenizers and selects it by a name in the
file. Only tokenizers that split texts by one of these expressions are written.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.errors import DpoError

if TYPE_CHECKING:
    import gguf

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DIGITS = "digits"
_BY_SPLITS: Mapping[tuple[tuple[str, ...], bool], str] = {
    # The second value: True if a word in the vocabulary is a token even if no merges lead to it.
    (("words",), False): "gpt-2",
    ((_DIGITS, "words"), False): "smollm",
    ((_WORDS + r"\p{N}" + _SIGNS,), False): "qwen2",
    ((_WORDS + r"\p{N}{1,3}" + _SIGNS,), False): "smaug-bpe",
    ((_WORDS + r"\p{N}{1,3}" + _SIGNS,), True): "llama-bpe",
}
"""Names of pre-tokenizers in llama.cpp, by the splits of a tokenizer and its `ignore_merges`."""
_NORMALIZERS = (None, "NFC")
_EXTRA_STOPS = ("eot", "eom")
"""Kinds of tokens in GGUF, beside "eos", at which llama.cpp stops."""


class GgufVocabulary:
    """Tokenizer in the form of a GGUF file.

    Attributes:
        pre_tokenizer: name in llama.cpp.
        notes: differences between llama.cpp's tokenizer and this one that no file can remove.
    """

    def __init__(self, tokenizer: ChatTokenizer, stop_ids: Collection[int], size: int) -> None:
        """Read the tokenizer.

        Args:
            tokenizer: tokenizer of the training.
            stop_ids: tokens that end an answer.
            size: rows of the embedding, at least the number of tokens.

        Raises:
            DpoError: llama.cpp has no tokenizer that computes the same ids.
        """
        self._tokenizer, self._size = tokenizer, size
        self._definition = json.loads(tokenizer.definition)
        self.pre_tokenizer = _pre_tokenizer(self._definition, tokenizer)
        self.notes = list(_notes(self._definition))
        special = {kind.removesuffix("_token_id"): id for kind, id in tokenizer.special_ids.items()}
        others = sorted(set(stop_ids) - {special.get("eos")})
        if "eos" not in special:
            if not others:  # llama.cpp would stop at token 11
                raise DpoError(
                    f"--format gguf: {tokenizer.folder}: no token ends an answer",
                    "Set eos_token in tokenizer_config.json.",
                )
            special["eos"] = others.pop(0)
        special |= zip(_EXTRA_STOPS, others, strict=False)
        if unplaced := others[len(_EXTRA_STOPS) :]:
            tokens = ", ".join(repr(tokenizer.decode([id])) for id in unplaced)
            self.notes.append(f"a GGUF file names at most three stop tokens; not named: {tokens}")
        self._special_ids = special

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        """Add tokens, merges, special tokens and chat template to a file."""
        import gguf

        tokens = [f"[PAD{id}]" for id in range(self._size)]
        types = [gguf.TokenType.UNUSED] * self._size
        for token, id in self._definition["model"]["vocab"].items():
            tokens[id], types[id] = token, gguf.TokenType.NORMAL
        for added in self._definition["added_tokens"]:
            # Both kinds split every text; llama.cpp prints only those that are not special.
            kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
            tokens[added["id"]], types[added["id"]] = added["content"], kind
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre_tokenizer)
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        special = gguf.SpecialVocab(self._tokenizer.folder, load_merges=True, n_vocab=self._size)
        # As the training has them: transformers may take them from other files of the folder.
        special.special_token_ids = dict(self._special_ids)
        special.chat_template = self._tokenizer.chat_template
        # The training adds no token to what the chat template writes, and neither may llama.cpp.
        special.add_special_token = {"bos": False, "eos": False}
        special.add_to_gguf(writer, quiet=True)


def _pre_tokenizer(definition: Mapping[str, Any], tokenizer: ChatTokenizer) -> str:
    """Return llama.cpp's name of the pre-tokenizer."""

    def refused(why: str) -> DpoError:
        return DpoError(
            f"--format gguf: {tokenizer.folder}: llama.cpp has no tokenizer that {why}",
            "Write a Hugging Face directory with --format hf, and convert it with llama.cpp's own"
            " convert_hf_to_gguf.py.",
        )

    model = definition["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        kind = "BPE with byte fallback" if model["type"] == "BPE" else model["type"]
        raise refused(f"dpo can write for a vocabulary of the type {kind}")
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            raise refused(f"computes BPE with {setting} = {model[setting]!r}")
    normalizer = (definition.get("normalizer") or {}).get("type")
    if normalizer not in _NORMALIZERS:
        raise refused(f"normalizes texts as {normalizer} does")
    splits = tuple(_splits(definition.get("pre_tokenizer")))
    name = _BY_SPLITS.get((splits, bool(model.get("ignore_merges"))))
    if name is None:
        raise refused(f"splits texts by {' and '.join(splits) or 'nothing'}")
    return name


def _splits(step: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the splits of a pre-tokenizer: regular expressions, or names of fixed ones."""
    if step is None:
        return
    kind = step["type"]
    if kind == "Sequence":
        yield from itertools.chain.from_iterable(map(_splits, step["pretokenizers"]))
    elif kind == "ByteLevel":
        if step.get("add_prefix_space"):
            yield "a space before each text"
        if step.get("use_regex", True):
            yield "words"
    elif kind == "Digits" and step.get("individual_digits"):
        yield _DIGITS
    elif kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        pattern = step["pattern"]
        yield str(pattern.get("Regex", pattern.get("String")))
    else:
        yield str(kind)


def _notes(definition: Mapping[str, Any]) -> Iterator[str]:
    if definition.get("normalizer"):
        yield (
            "llama.cpp does not normalize texts to NFC: letters with combining accents get other"
            " tokens than in training"
        )
    spaced = [
        added["content"]
        for added in definition["added_tokens"]
        if added.get("lstrip") or added.get("rstrip") or added.get("single_word")
    ]
    if spaced:
        yield (
            f"llama.cpp does not remove blanks beside {spaced[0]!r}"
            f" ({len(spaced)} tokens of this kind)"
        )

"""Pairs that a profile names: their source, their encoding, and the limits of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.groups import prompt_labels
from dpo_cli.data.pairs import refuse_if_mostly_malformed
from dpo_cli.data.sampler import hold_out, repeat
from dpo_cli.data.sources import Source
from dpo_cli.data.token_cache import encode_source
from dpo_cli.data.tokens import EncodedRows, Rows, TokenizedPairs
from dpo_cli.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from dpo_cli.errors import DpoError
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.text import show_value

if TYPE_CHECKING:  # its module loads transformers' models, which `dpo data` does without
    from dpo_cli.models.loading import ModelWeights

OnProgress = Callable[[str, int, int, str], None]
"""Called with phase, done, total and unit."""


def training_pairs(profile: Profile) -> Source:
    """Return the source of the pairs to train on."""
    return Source(profile.data.paths, profile.data.format, profile.data.columns or {})


def held_out_pairs(profile: Profile) -> Source | None:
    """Return the source of the held-out pairs; None if `eval.path` is not set."""
    if profile.eval.path is None:
        return None
    return Source((profile.eval.path,), profile.data.format, profile.data.columns or {})


def encode(
    profile: Profile,
    source: Source,
    tokenizer: ChatTokenizer,
    on_progress: OnProgress,
    group: ProcessGroup = SINGLE_PROCESS,
) -> EncodedRows:
    """Encode the rows of a source as the profile sets it; see `encode_source`."""
    return encode_source(
        source,
        tokenizer,
        empty_think_ratio=profile.data.empty_think_ratio,
        seed=profile.train.seed,
        scored_turns=profile.data.scored_turns,
        truncation=profile.data.effective_truncation,
        on_progress=lambda done, total: on_progress(
            "encoding" if total else "counting", done, total, "rows"
        ),
        ranks=group,
    )


def cut(profile: Profile, encoded: EncodedRows, max_seq_len: int | None = None) -> Rows:
    """Truncate encoded rows as the profile sets it, or to another `max_seq_len`."""
    data = profile.data
    return encoded.cut(
        max_seq_len or data.max_seq_len, data.effective_truncation, data.max_prompt_len
    )


def usable_rows(
    profile: Profile,
    source: Source,
    tokenizer: ChatTokenizer,
    on_progress: OnProgress,
    group: ProcessGroup,
) -> Rows:
    """Encode the rows of a source and truncate them to `data.max_seq_len`.

    Raises:
        DpoError: no row can be used, or too many are malformed.
    """
    encoded = encode(profile, source, tokenizer, on_progress, group)
    rows = cut(profile, encoded)
    refuse_if_mostly_malformed(source, rows.skipped_rows, rows.total, rows.places)
    if not rows.kept:
        raise DpoError(
            f"{source}: no row can be trained on",
            "Set a larger data.max_seq_len, or correct the rows.",
            [f"{rows.places.name(row.line)}: {row.reason}" for row in rows.skipped_rows[:5]],
        )
    return rows


def require_same_vocabulary(
    tokenizer: ChatTokenizer, weights: ModelWeights, reference_weights: ModelWeights
) -> None:
    """Refuse a tokenizer or a reference with another vocabulary than the policy's.

    Raises:
        DpoError: naming the sizes.
    """
    vocab_size = weights.architecture.vocab_size
    # A smaller tokenizer is fine: embeddings are often padded to a round number.
    if tokenizer.vocab_size > vocab_size:
        raise DpoError(
            f"{tokenizer.folder}: the tokenizer has {tokenizer.vocab_size} entries, the model"
            f" has {vocab_size}",
            "Use the tokenizer that the weights were trained with.",
        )
    if reference_weights.architecture.vocab_size != vocab_size:
        raise DpoError(
            f"model.reference has {reference_weights.architecture.vocab_size} entries in its"
            f" vocabulary, model.weights has {vocab_size}",
            "Use a reference that shares the tokenizer of the policy.",
        )


def require_positions(
    profile: Profile, weights: ModelWeights, source: Source, pairs: TokenizedPairs
) -> None:
    """Refuse pairs with more tokens than the model has positions.

    A larger `data.max_seq_len` is allowed while no conversation is that long, except in the padded
    layout, which pads each sequence to it.

    Raises:
        DpoError: naming the lines.
    """
    if (limit := weights.architecture.max_positions) is None:
        return
    remedy = f"Set data.max_seq_len to {limit} or less."
    if profile.train.layout == "padded" and profile.data.max_seq_len > limit:
        raise DpoError(
            f"data.max_seq_len = {profile.data.max_seq_len}: the model has {limit} positions, and"
            ' train.layout = "padded" pads every sequence to that length',
            remedy,
        )
    longest = pairs.lengths.amax(dim=1)
    beyond = pairs.lines[longest > limit].tolist()
    if beyond:
        raise DpoError(
            f"{source}: {len(beyond)} pairs have up to {longest.max()} tokens on a side, and"
            f" the model has {limit} positions: {pairs.places.names(beyond)}",
            remedy,
        )


def split_pairs(
    profile: Profile, rows: Rows, held_out: Rows | None, whole_prompts: bool
) -> tuple[TokenizedPairs, TokenizedPairs]:
    """Return the pairs to train on and the held-out pairs.

    Args:
        profile: its [data] and [eval] tables decide.
        rows: of `data.data_path`.
        held_out: rows of `eval.path`, if it is set.
        whole_prompts: a split by `eval.fraction` keeps the pairs of a prompt together.

    Raises:
        DpoError: no pair is left to train on.
    """
    pairs, evaluated = rows.kept, held_out.kept if held_out else rows.kept[:0]
    if profile.eval.fraction and not held_out:
        if len(pairs) < 2:
            raise DpoError(
                f"eval.fraction = {profile.eval.fraction}: there is only one pair to train on",
                "Use more data, or remove eval.fraction.",
            )
        labels = prompt_labels(pairs) if whole_prompts else None
        seed = profile.train.seed
        training, evaluation = hold_out(len(pairs), profile.eval.fraction, seed, labels)
        pairs, evaluated = pairs.select(training), pairs.select(evaluation)
    # After the split, so that a pair that is repeated cannot also be held out.
    if (weights := profile.data.mixture_weights) is not None:
        pairs = pairs.select(repeat(_by_path(pairs, len(weights)), weights, profile.train.seed))
        if not pairs:
            raise DpoError(
                f"data.mixture_weights = {show_value(weights)}: no pair is left to train on",
                "Set larger weights.",
            )
    return pairs, evaluated


def _by_path(pairs: TokenizedPairs, paths: int) -> list[list[int]]:
    """Return the indices of the pairs from each path of `data.data_path`."""
    groups: list[list[int]] = [[] for _ in range(paths)]
    for index, line in enumerate(pairs.lines.tolist()):
        part = pairs.places.part(line)
        groups[part.source if part else 0].append(index)
    return groups

"""The inputs of a run as they are read: weights, rows, and whether they fit each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.pairs import refuse_if_mostly_malformed
from dpo_cli.data.sources import Source
from dpo_cli.data.token_cache import encode_source
from dpo_cli.data.tokens import EncodedRows, Rows, TokenizedPairs
from dpo_cli.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from dpo_cli.errors import DpoError
from dpo_cli.files import sha256_file, write_atomically
from dpo_cli.models.loading import ModelWeights, load_model_weights
from dpo_cli.models.spec import architecture_of
from dpo_cli.profile.inputs import resolve_weights
from dpo_cli.profile.schema import Profile
from dpo_cli.run.lookup import find_run
from dpo_cli.training.run_weights import read_trained

RUN_PREFIX = "run:"

OnProgress = Callable[[str, int, int, str], None]
"""Called with phase, done, total and unit."""


def read_model_weights(
    profile: Profile,
    which: Literal["weights", "reference"],
    runs_root: Path,
    keep_in: Path | None = None,
) -> ModelWeights:
    """The weights that the profile starts from, or compares with.

    Args:
        profile: states them.
        which: of the two.
        runs_root: where `run:NAME` is looked for.
        keep_in: a folder where the weights of `run:NAME` are kept, and found again.

    Raises:
        DpoError: they are missing, damaged, or contradict the profile.
    """
    source = resolve_weights(profile, which)
    if source.startswith(RUN_PREFIX):
        return _load_run(source, runs_root, keep_in and keep_in / f"{which}.safetensors")
    return load_model_weights(Path(source), profile.model.model_dump())


def _load_run(source: str, runs_root: Path, kept: Path | None) -> ModelWeights:
    """The float32 weights of another run's newest checkpoint, as they were when first read."""
    if kept is None or not kept.exists():
        trained = read_trained(find_run(runs_root, source.removeprefix(RUN_PREFIX)))
        if kept is None:
            return trained.model_weights
        shape = {"shape": json.dumps(trained.architecture.to_dict())}
        write_atomically(kept, lambda temporary: save_file(trained.weights, temporary, shape))
    with safe_open(kept, framework="pt") as file:
        shape = json.loads(file.metadata()["shape"])
    return ModelWeights(architecture_of(shape), load_file(kept), torch.float32, sha256_file(kept))


def require_same_vocabulary(
    tokenizer: ChatTokenizer, model_weights: ModelWeights, reference: ModelWeights
) -> None:
    """Refuse a tokenizer or a reference of another vocabulary than the checkpoint's.

    Raises:
        DpoError: naming the sizes.
    """
    vocab_size = model_weights.architecture.vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise DpoError(
            f"{tokenizer.folder}: the tokenizer has {tokenizer.vocab_size} entries, the checkpoint"
            f" knows {vocab_size}",
            "use the tokenizer that the checkpoint was trained with",
        )
    if reference.architecture.vocab_size != vocab_size:
        raise DpoError(
            f"model.reference knows {reference.architecture.vocab_size} tokens, model.weights"
            f" {vocab_size}",
            "policy and reference must share a tokenizer",
        )


def require_positions(
    profile: Profile, model_weights: ModelWeights, source: Source, pairs: TokenizedPairs
) -> None:
    """Refuse pairs of a source with more tokens than the model has positions for.

    A `data.max_seq_len` beyond that is fine where no conversation is as long; not so in the
    padded layout, which pads each of them to it.

    Raises:
        DpoError: naming the lines.
    """
    if (limit := model_weights.architecture.max_positions) is None:
        return
    remedy = f"state data.max_seq_len = {limit}, or less"
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


def training_pairs(profile: Profile) -> Source:
    """Where the pairs to train on come from."""
    return Source(profile.data.paths, profile.data.format, profile.data.columns or {})


def held_out_pairs(profile: Profile) -> Source | None:
    """Where pairs come from that are held out, if they have a file of their own."""
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
    """The rows of a source as the profile has them encoded; see `encode_source`."""
    return encode_source(
        source,
        tokenizer,
        empty_think_ratio=profile.data.empty_think_ratio,
        seed=profile.train.seed,
        on_progress=lambda done, total: on_progress(
            "encoding" if total else "counting", done, total, "rows"
        ),
        crew=group,
    )


def usable_rows(
    profile: Profile,
    source: Source,
    tokenizer: ChatTokenizer,
    on_progress: OnProgress,
    group: ProcessGroup,
) -> Rows:
    """The rows of a source at the profile's `data.max_seq_len`.

    Raises:
        DpoError: there is none that can be trained on, or too many are malformed.
    """
    rows = encode(profile, source, tokenizer, on_progress, group).cut(profile.data.max_seq_len)
    refuse_if_mostly_malformed(source, rows.skipped_rows, rows.total, rows.places)
    if not rows.kept:
        raise DpoError(
            f"{source}: no row can be trained on",
            "is data.max_seq_len too small?",
            [f"{rows.places.name(row.line)}: {row.reason}" for row in rows.skipped_rows[:5]],
        )
    return rows

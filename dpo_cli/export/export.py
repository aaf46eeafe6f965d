"""`dpo export`: the trained weights as other tools load them, proved by loading them back."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import transformers
from torch import Tensor

from dpo_cli.data.batching import make_batch
from dpo_cli.data.chat import ChatTokenizer, TokenizedPair
from dpo_cli.data.encoding import encode_pairs
from dpo_cli.data.pairs import read_pairs
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.export.model_card import MARK, model_card
from dpo_cli.export.rounding import Rounding, round_weights
from dpo_cli.export.update_retention import UpdateRetention, measure_update_retention, read_start
from dpo_cli.export.verified_write import check_place, verified_write
from dpo_cli.files import write_text_atomically
from dpo_cli.models.convert import StateDict
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.loading import build_model, hash_weights
from dpo_cli.models.minimind import MiniMind
from dpo_cli.models.saving import size_bytes
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.models.spec import Architecture, as_huggingface
from dpo_cli.models.support import scorer_for
from dpo_cli.profile import folder
from dpo_cli.profile.inputs import resolve_tokenizer
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.schema import Profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import Exported, history
from dpo_cli.training.inputs import export_dtype
from dpo_cli.training.sources import training_pairs
from dpo_cli.training.weights import read_trained

_COMPARED_PAIRS = 4
_MINIMIND_VOCABULARY = 6400
_ROWS_AT_ONCE = 16

Form = Literal["pth", "hf"]
"""Of what is written: MiniMind's file, or a Hugging Face directory."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far it is from the training state.

    The differences are of response tokens' log-probs, in nats, between the float32 training state
    and the file as loaded back; a directory by plain transformers, which knows nothing of us. Among
    experts a rounding may send a token to another one: then the largest difference is one token's,
    and the mean says more.

    Attributes:
        seed: of stochastic rounding; None for any other.
        retention: of the run's update in the file. None where no weight has moved, or where
            `not_compared` says why the weights of the start are not here to compare with.
        state: the training state that the file was made from, in the Hugging Face layout.
        exported: the file as loaded back, likewise.
    """

    path: Path
    dtype: str
    rounding: Rounding
    seed: int | None
    size_bytes: int
    tensors: int
    optimizer_step: int
    pairs_compared: int
    mean_logp_difference: float
    max_logp_difference: float
    retention: UpdateRetention | None
    not_compared: str
    try_command: str | None
    state: StateDict = field(repr=False)
    exported: StateDict = field(repr=False)


def export_run(
    run: RunDirectory,
    destination: Path | None,
    dtype: str | None,
    force: bool,
    settings: Sequence[str] = (),
    rounding: Rounding = "nearest",
    seed: int | None = None,
    *,
    best: bool = False,
    form: Form | None = None,
) -> ExportReport:
    """Write the newest verified version of a run: for MiniMind's own scripts, or as a directory.

    The file gets its name once it was loaded back: it holds exactly what the state was rounded to,
    and its log-probs were compared with the state's.

    Args:
        run: may still be training.
        destination: the file or directory; by default the profile's name in its `model.out_dir`.
        dtype: float16, bfloat16 or float32; by default the profile's.
        force: replace what this run did not write.
        settings: keys of the profile that are others here, such as where the data lies now.
        rounding: how weights become numbers of a half-precision file.
        seed: of stochastic rounding; by default the profile's.
        best: write the state with the lowest held-out loss instead of the newest.
        form: "pth", MiniMind's file, or "hf", a directory; by default as the model came.

    Raises:
        DpoError: nothing is saved yet, no best state is kept, the file is another's, a weight is
            beyond what the file can hold, or it does not load back.
    """
    profile = load_profile(run.profile_path, settings).profile
    trained = read_trained(run, best=best)
    state, architecture, plan = trained.weights, trained.architecture, trained.plan
    tokenizer = ChatTokenizer(resolve_tokenizer(profile))
    written = _in_form(architecture, form, tokenizer)
    dtype = dtype or export_dtype(profile, architecture, plan.model.weights_dtype)
    if rounding == "stochastic":
        seed = profile.train.seed if seed is None else seed
        if dtype == "float32":
            raise UsageError(
                "--rounding stochastic: float32 holds every weight as it is, nothing is rounded",
                "leave --rounding out, or state --dtype float16 or bfloat16",
            )
    if destination is None:
        name = architecture.file_name(profile.export.prefix)
        place = profile.model.out_dir or run.path
        destination = place / (name.removesuffix(".pth") if written is not architecture else name)
    path = _destination(run, destination, written, force)
    pairs = _pairs_to_compare(profile, tokenizer)
    rounded = round_weights(state, dtype, rounding, seed or 0)
    with verified_write(path, rounded, written, dtype, tokenizer.folder) as (new, exported):
        if isinstance(written, HuggingFace):
            step = trained.optimizer_step
            card = model_card(plan, list(history(run.events_path)), written, dtype, step)
            write_text_atomically(new / folder.CARD, card)
        differences = _logp_differences(architecture, state, exported.state, new, pairs)
    with explain_disk_errors(run.path):
        events = EventWriter(run.events_path, mend=False)
        events.append(
            Exported(
                path=str(path),
                sha256=exported.fingerprint,
                dtype=dtype,
                optimizer_step=trained.optimizer_step,
                rounding=rounding,
                seed=seed,
            )
        )
        events.close()
    retention, not_compared = None, ""
    try:
        start = read_start(run, profile, plan)
    except DpoError as error:
        not_compared = error.message
    else:
        retention = measure_update_retention(start, state, exported.state, dtype)
    return ExportReport(
        path=path,
        dtype=dtype,
        rounding=rounding,
        seed=seed,
        size_bytes=size_bytes(path),
        tensors=len(written.to_native_names(exported.state)),
        optimizer_step=trained.optimizer_step,
        pairs_compared=len(pairs),
        mean_logp_difference=float(differences.mean()),
        max_logp_difference=float(differences.max()),
        retention=retention,
        not_compared=not_compared,
        try_command=try_command(path, written),
        state=state,
        exported=exported.state,
    )


def try_command(path: Path, architecture: Architecture) -> str | None:
    """How to talk with these weights.

    A directory by a pipeline of transformers; MiniMind's by its own script, from the root of its
    checkout. None where that cannot be: its tokenizers have as many entries as its models, and no
    others.

    MiniMind 2's `eval_model.py` puts "./" before its out_dir, so the path is made relative. Both
    scripts make up the file's name from its prefix and shape.
    """
    if not isinstance(architecture, MiniMind):
        pipe = f"pipeline('text-generation', {str(path)!r})"
        said = "[{'role': 'user', 'content': 'Hello'}]"
        code = f"from transformers import pipeline; print({pipe}({said})[0]['generated_text'])"
        return f"python -c {shlex.quote(code)}"
    if architecture.vocab_size != _MINIMIND_VOCABULARY:
        return None
    folder, ending = os.path.relpath(path.parent), architecture.file_name("")
    if not path.name.endswith(ending):
        return f"first rename it to rlhf{ending}: MiniMind's scripts know no other names"
    prefix = path.name.removesuffix(ending)
    shape = [
        f"--hidden_size {architecture.hidden_size}",
        f"--num_hidden_layers {architecture.num_hidden_layers}",
    ]
    if architecture.version == 2 and prefix == "rlhf":
        moe = ["--use_moe True"] if architecture.use_moe else []
        command = ["python eval_model.py --model_mode 2", f"--out_dir {shlex.quote(folder)}"]
    else:
        moe = ["--use_moe 1"] if architecture.use_moe else []
        command = [
            f"python eval_llm.py --weight {shlex.quote(prefix)}",
            f"--save_dir {shlex.quote(folder)}",
        ]
    return " ".join([*command, *shape, *moe])


def _in_form(
    architecture: Architecture, form: Form | None, tokenizer: ChatTokenizer
) -> Architecture:
    """What is written, as the form has it."""
    if form == "hf":
        return as_huggingface(architecture, tokenizer.special_ids)
    if form == "pth" and not isinstance(architecture, MiniMind):
        raise UsageError(
            f"--format pth: {architecture.name} is no model of MiniMind's",
            "leave --format out: a Hugging Face directory is written",
        )
    return architecture


def _destination(run: RunDirectory, destination: Path, written: Architecture, force: bool) -> Path:
    """Where to write; refuses to replace what this run did not write."""
    destination = destination.absolute()
    check_place(destination, written)
    if not force and destination.exists() and not _is_replaceable(run, destination):
        raise DpoError(
            f"{destination} exists, and this run did not write it",
            "replace it with --force, or write elsewhere with --to",
        )
    return destination


def _is_replaceable(run: RunDirectory, destination: Path) -> bool:
    """Whether nothing of anybody else's is in the place of an export."""
    if destination.parent.resolve() == run.path.resolve():
        return True
    if destination.is_dir():
        names = {path.name for path in destination.iterdir()}
        if not names <= folder.WRITTEN or not _is_our_card(destination / folder.CARD):
            return False
        if not names:
            return True
    written = {event.sha256 for event in history(run.events_path) if isinstance(event, Exported)}
    try:
        return hash_weights(destination) in written
    except DpoError:  # a directory with no weights in it
        return False


def _is_our_card(path: Path) -> bool:
    return not path.exists() or MARK in path.read_text(encoding="utf-8", errors="replace")


def _pairs_to_compare(profile: Profile, tokenizer: ChatTokenizer) -> list[TokenizedPair]:
    """The first pairs of the training data: the run was planned with at least one."""
    source = training_pairs(profile)
    rows = read_pairs(source)
    pairs: list[TokenizedPair] = []
    while len(pairs) < _COMPARED_PAIRS and (some := list(itertools.islice(rows, _ROWS_AT_ONCE))):
        kept, _ = encode_pairs(
            some,
            tokenizer,
            max_seq_len=profile.data.max_seq_len,
            empty_think_ratio=profile.data.empty_think_ratio,
            seed=profile.train.seed,
        )
        pairs += kept
    if not pairs:
        raise DpoError(
            f"{source}: no pair is left to compare the file with",
            "the data has changed since the run: --set data.data_path=... says where it lies now",
        )
    return pairs[:_COMPARED_PAIRS]


@torch.no_grad()
def _logp_differences(
    architecture: Architecture,
    trained: StateDict,
    exported: StateDict,
    path: Path,
    pairs: list[TokenizedPair],
) -> Tensor:
    """(N,), absolute, for every response token of the pairs."""
    batch = make_batch(pairs, "packed", max_seq_len=0)
    longest = max(len(side.ids) for pair in pairs for side in (pair.chosen, pair.rejected))
    first = scorer_for(build_model(architecture, trained), longest)
    if path.is_dir():
        plain = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
        second = ResponseScorer(plain, fallback_reason="as anybody would run it")
    else:
        second = scorer_for(build_model(architecture, exported), longest)
    before, after = (scorer.eval()(batch).token_logps[batch.mask] for scorer in (first, second))
    differences: Tensor = (before - after).abs()
    return differences

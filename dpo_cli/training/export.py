"""`dpo export`: the trained weights in MiniMind's form, proved by loading them back."""

from __future__ import annotations

import fcntl
import glob
import itertools
import os
import shlex
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dpo_cli.data.batching import make_batch
from dpo_cli.data.chat import ChatTokenizer, TokenizedPair
from dpo_cli.data.encoding import encode_pairs
from dpo_cli.data.pairs import read_pairs
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.files import fsync_path, sha256_file
from dpo_cli.models.convert import StateDict
from dpo_cli.models.minimind import MiniMind
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.models.zoo import build_model, load_checkpoint
from dpo_cli.profile.inputs import resolve_tokenizer
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.schema import Profile
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.run.events import EventWriter, Exported, history
from dpo_cli.run.generations import Generation
from dpo_cli.run.store import RunDirectory
from dpo_cli.training.rounding import Rounding, round_weights
from dpo_cli.training.state import load_best, load_weights
from dpo_cli.training.survival import Survival, measure_survival, read_start
from dpo_cli.training.weights import write_weights

_COMPARED_PAIRS = 4
_MINIMIND_VOCABULARY = 6400
_ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far it is from the training state.

    The differences are of response tokens' log-probs, in nats, between the float32 training state
    and the file as loaded back. Among experts a rounding may send a token to another one: then the
    largest difference is one token's, and the mean says more.

    Attributes:
        seed: of stochastic rounding; None for any other.
        survival: of the run's update in the file. None where no weight has moved, or where
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
    survival: Survival | None
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
) -> ExportReport:
    """Write the newest verified generation of a run for MiniMind's own scripts.

    The file gets its name once it was loaded back: it holds exactly what the state was rounded to,
    and its log-probs were compared with the state's.

    Args:
        run: may still be training.
        destination: the file; by default the profile's name in its `model.out_dir`.
        dtype: float16, bfloat16 or float32; by default the profile's.
        force: replace a file that this run did not write.
        settings: keys of the profile that are others here, such as where the data lies now.
        rounding: how weights become numbers of a half-precision file.
        seed: of stochastic rounding; by default the profile's.
        best: write the state with the lowest held-out loss instead of the newest.

    Raises:
        DpoError: nothing is saved yet, no best state is kept, the file is another's, a weight is
            beyond what the file can hold, or it does not load back.
    """
    profile = load_profile(run.profile_path, settings).profile
    plan, newest = run.read_plan(), run.read_newest(load_weights)
    if plan is None or newest is None:
        raise DpoError(
            f"{run.name}: nothing is saved that could be exported",
            f"let it train up to its first save: dpo resume {run.name}",
        )
    generation, state = _best(run) if best else newest
    architecture = MiniMind(**plan["model"]["shape"])
    dtype = dtype or profile.export.dtype
    if rounding == "stochastic":
        seed = profile.train.seed if seed is None else seed
        if dtype == "float32":
            raise UsageError(
                "--rounding stochastic: float32 holds every weight as it is, nothing is rounded",
                "leave --rounding out, or state --dtype float16 or bfloat16",
            )
    path = _destination(run, profile, architecture, destination, force)
    pairs = _pairs_to_compare(profile)
    rounded = round_weights(state, dtype, rounding, seed or 0)
    with explain_disk_errors(path.parent), _renamed_at_the_end(path) as temporary:
        write_weights(temporary, rounded, architecture, dtype)
        exported = load_checkpoint(temporary, _stated(architecture))
        _require_same(path, exported.state, rounded)
        differences = _logp_differences(architecture, state, exported.state, pairs)
    with explain_disk_errors(run.path):
        events = EventWriter(run.events_path, mend=False)
        events.append(
            Exported(
                path=str(path),
                sha256=exported.fingerprint,
                dtype=dtype,
                optimizer_step=generation.optimizer_step,
                rounding=rounding,
                seed=seed,
            )
        )
        events.close()
    survival, not_compared = None, ""
    try:
        start = read_start(run, profile, plan)
    except DpoError as error:
        not_compared = error.message
    else:
        survival = measure_survival(start, state, exported.state, dtype)
    return ExportReport(
        path=path,
        dtype=dtype,
        rounding=rounding,
        seed=seed,
        size_bytes=path.stat().st_size,
        tensors=len(architecture.expected_shapes()),
        optimizer_step=generation.optimizer_step,
        pairs_compared=len(pairs),
        mean_logp_difference=float(differences.mean()),
        max_logp_difference=float(differences.max()),
        survival=survival,
        not_compared=not_compared,
        try_command=try_command(path, architecture),
        state=state,
        exported=exported.state,
    )


def _best(run: RunDirectory) -> tuple[Generation, StateDict]:
    """The best state that the newest one knows of, and its weights."""
    newest = run.read_newest(load_best)
    step = newest[1].optimizer_step if newest else 0
    if newest and newest[1].loss is None:
        problem, remedy = "it has no held-out pairs", "export the newest state: without --best"
    elif not step:
        problem = "no evaluation was better than the one before the first step"
        remedy = "the checkpoint it began with is the best; or export the newest: without --best"
    elif (kept := run.read_verified(step, load_weights)) is not None:
        return kept
    else:
        problem = f"the state after optimizer step {step} is not kept, or damaged"
        remedy = "eval.keep_best = true keeps it; export the newest state: without --best"
    raise DpoError(f"{run.name} has no best state: {problem}", remedy)


@contextmanager
def _renamed_at_the_end(path: Path) -> Iterator[Path]:
    """A name for a file that becomes `path` if nothing goes wrong."""
    with _own_directory(path) as directory:
        yield directory / path.name
        os.replace(directory / path.name, path)
        fsync_path(path.parent)


@contextmanager
def _own_directory(path: Path) -> Iterator[Path]:
    """A directory beside `path` for a block; those that killed exports to `path` left are removed.

    It is locked, and the kernel frees the lock however the process ends.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.unproved"):
        with _locked(leftover, fcntl.LOCK_EX | fcntl.LOCK_NB) as is_abandoned:
            if is_abandoned:
                shutil.rmtree(leftover, ignore_errors=True)
    while True:
        directory = path.with_name(f".{path.name}.{uuid.uuid4().hex}.unproved")
        directory.mkdir()
        with _locked(directory, fcntl.LOCK_EX):
            if not directory.exists():  # removed by another export before it was locked
                continue
            try:
                yield directory
            finally:
                shutil.rmtree(directory, ignore_errors=True)
            return


@contextmanager
def _locked(directory: Path, operation: int) -> Iterator[bool]:
    """Lock a directory for a block, if it can be done; whether it was."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # gone meanwhile, or no directory
        yield False
        return
    try:
        is_locked = True
        try:
            fcntl.flock(descriptor, operation)
        except OSError:  # another has it, or the file system locks no directories
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)


def try_command(path: Path, architecture: MiniMind) -> str | None:
    """How MiniMind's own script talks with these weights, from the root of its checkout.

    None where it cannot: its tokenizers have as many entries as its models, and no others.

    Generation 2's `eval_model.py` puts "./" before its out_dir, so the path is made relative. Both
    scripts make up the file's name from its prefix and shape.
    """
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
    if architecture.generation == 2 and prefix == "rlhf":
        moe = ["--use_moe True"] if architecture.use_moe else []
        command = ["python eval_model.py --model_mode 2", f"--out_dir {shlex.quote(folder)}"]
    else:
        moe = ["--use_moe 1"] if architecture.use_moe else []
        command = [
            f"python eval_llm.py --weight {shlex.quote(prefix)}",
            f"--save_dir {shlex.quote(folder)}",
        ]
    return " ".join([*command, *shape, *moe])


def _destination(
    run: RunDirectory,
    profile: Profile,
    architecture: MiniMind,
    destination: Path | None,
    force: bool,
) -> Path:
    """Where to write; refuses to replace what this run did not write."""
    if destination is None:
        folder = profile.model.out_dir or run.path
        destination = folder / architecture.file_name(profile.export.prefix)
    destination = destination.absolute()
    if destination.is_dir():
        raise DpoError(f"{destination}: a directory", "name the file with --to")
    if not destination.parent.is_dir():
        raise DpoError(
            f"{destination.parent}: no such directory", "create it, or name a file with --to"
        )
    if destination.exists() and not force:
        written = {e.sha256 for e in history(run.events_path) if isinstance(e, Exported)}
        inside = destination.parent.resolve() == run.path.resolve()
        if not inside and sha256_file(destination) not in written:
            raise DpoError(
                f"{destination} exists, and this run did not write it",
                "replace it with --force, or write elsewhere with --to FILE",
            )
    return destination


def _stated(architecture: MiniMind) -> dict[str, object]:
    """What the exported weights alone cannot tell, for loading them back."""
    keys = ("num_attention_heads", "num_key_value_heads", "num_experts_per_tok", "norm_topk_prob")
    facts = architecture.to_dict()
    return {key: facts[key] for key in (*keys, "rope_theta", "rms_norm_eps")}


def _pairs_to_compare(profile: Profile) -> list[TokenizedPair]:
    """The first pairs of the training data: the run was planned with at least one."""
    tokenizer = ChatTokenizer(resolve_tokenizer(profile))
    rows = read_pairs(profile.data.data_path)
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
            f"{profile.data.data_path}: no pair is left to compare the file with",
            "the data has changed since the run: --set data.data_path=... says where it lies now",
        )
    return pairs[:_COMPARED_PAIRS]


def _require_same(path: Path, read_back: StateDict, written: StateDict) -> None:
    """Every weight of the file is bit for bit the one that was to be written.

    Raises:
        DpoError: naming the first that is not.
    """
    for name, tensor in written.items():
        if not torch.equal(read_back[name], tensor):
            raise DpoError(
                f"{path}: {name} was read back otherwise than it was written",
                "disk or memory fail here: export to another place with --to",
            )


@torch.no_grad()
def _logp_differences(
    architecture: MiniMind,
    trained: StateDict,
    exported: StateDict,
    pairs: list[TokenizedPair],
) -> Tensor:
    """(N,), absolute, for every response token of the pairs."""
    batch = make_batch(pairs, "packed", max_seq_len=0)
    first, second = (
        ResponseScorer(build_model(architecture, state)).eval()(batch).token_logps[batch.mask]
        for state in (trained, exported)
    )
    differences: Tensor = (first - second).abs()
    return differences

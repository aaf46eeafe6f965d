"""`dpo export`: writes trained weights for other tools, and verifies the file by loading it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
from dpo_cli.export.adapter_export import (
    require_adapter,
    verified_adapter,
)
from dpo_cli.export.destination import checked_destination
from dpo_cli.export.model_card import ExportedWeights, model_card
from dpo_cli.export.try_command import TryCommand, try_command
from dpo_cli.export.update_retention import UpdateRetention, measure_update_retention
from dpo_cli.export.usage import directory_commands
from dpo_cli.export.verified_write import verified_write
from dpo_cli.files import write_text_atomically
from dpo_cli.inference.stops import stop_problem
from dpo_cli.models.adapted import build_adapted, merge_adapter
from dpo_cli.models.convert import StateDict
from dpo_cli.models.generation import stop_ids_of
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.loading import ModelWeights
from dpo_cli.models.minimind import MiniMind
from dpo_cli.models.rounding import Rounding, default_rounding, round_weights
from dpo_cli.models.saving import size_bytes
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.models.spec import Architecture, architecture_of, as_huggingface
from dpo_cli.models.support import scorer_for
from dpo_cli.models.trainable import adapter_name
from dpo_cli.profile import folder
from dpo_cli.profile.inputs import resolve_tokenizer
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.model import Quantization
from dpo_cli.profile.schema import Profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import Exported
from dpo_cli.run.plan import Plan
from dpo_cli.run.protected import inputs_of_run, require_free_of_inputs
from dpo_cli.training.inputs import export_dtype
from dpo_cli.training.sources import training_pairs
from dpo_cli.training.weights import read_start, read_trained, saved_plan

_COMPARED_PAIRS = 4
_ROWS_PER_READ = 16

ExportFormat = Literal["pth", "hf", "peft"]
"""MiniMind's weights file, a Hugging Face directory, or the directory of an adapter."""


@dataclass(frozen=True)
class ExportReport:
    """Exported file, and its difference from the training state.

    The differences are of the response tokens' log-probs, in nats, between the float32 training
    state and the file as loaded back. A directory is loaded by plain transformers, without code of
    this project. With experts, rounding may route a token to another expert, and the largest
    difference is that of one token; then the mean is more informative.

    Attributes:
        seed: seed of stochastic rounding; None for rounding to nearest.
        unfinished_of: planned steps of a run that is not completed; None if it is.
        quantization: format of the weights beside which the adapter was trained. The training state
            that the file is compared with has them as they were read.
        logp_difference_from_quantized: mean difference from the model with quantized weights.
        stop_warning: why the exported model would not stop where the answers of the training end;
            "" if it does.
        retention: update retention of the file; None if no weight has changed, or if the starting
            weights cannot be read (`not_compared` has the reason).
        state: training state that was exported, in the Hugging Face layout.
        exported: weights of the file, in the same layout.
    """

    path: Path
    dtype: str
    rounding: Rounding
    seed: int | None
    size_bytes: int
    tensors: int
    optimizer_step: int
    unfinished_of: int | None
    pairs_compared: int
    mean_logp_difference: float
    max_logp_difference: float
    quantization: Quantization | None
    logp_difference_from_quantized: float | None
    retention: UpdateRetention | None
    not_compared: str
    stop_warning: str
    try_command: TryCommand | None
    state: StateDict = field(repr=False)
    exported: StateDict = field(repr=False)


def export_run(
    run: RunDirectory,
    destination: Path | None,
    dtype: str | None,
    force: bool,
    overrides: Sequence[str] = (),
    rounding: Rounding | None = None,
    seed: int | None = None,
    *,
    best: bool = False,
    export_format: ExportFormat | None = None,
) -> ExportReport:
    """Write the weights of a run's newest verified checkpoint as a file or directory.

    The file is renamed to its final name only after it was loaded back, its weights were compared
    bit for bit, and its log-probs were computed.

    Args:
        run: may still be training.
        destination: file or directory; by default the profile's name in its `model.out_dir`.
        dtype: float16, bfloat16 or float32; by default the profile's.
        force: replace a file or directory that this run did not write, but no input of the run.
        overrides: `KEY=VALUE` for keys of the profile, for example a new path of the data.
        rounding: rounding to half precision; by default stochastic for a bfloat16 file of weights
            that started as bfloat16, else to nearest.
        seed: seed of stochastic rounding; by default the profile's.
        best: export the checkpoint with the lowest held-out loss instead of the newest.
        export_format: "pth" for MiniMind's file, "hf" for a directory, "peft" for the directory of
            an adapter; by default the format of the starting weights, with the adapter merged.

    Raises:
        DpoError: nothing is saved yet, no best checkpoint is kept, the destination is not this
            run's or is an input of it, a weight exceeds the range of the dtype, or the file does
            not load back.
    """
    profile = load_profile(run.profile_path, overrides).profile
    if export_format == "peft":
        require_adapter(profile, dtype)
        dtype = "float32"
    plan = saved_plan(run)
    # Before anything is loaded: a refused destination costs no wait.
    architecture = architecture_of(plan.model.shape)
    tokenizer = ChatTokenizer(resolve_tokenizer(profile))
    written = _converted(architecture, export_format, tokenizer)
    dtype = dtype or export_dtype(profile, architecture, plan.model.weights_dtype)
    rounding = rounding or default_rounding(dtype, plan.model.weights_dtype)
    if rounding == "stochastic":
        seed = profile.train.seed if seed is None else seed
        if dtype == "float32":
            raise UsageError(
                "rounding is stochastic, but float32 represents every weight exactly",
                "Leave out the rounding, or export float16 or bfloat16.",
            )
    if destination is None:
        name = architecture.file_name(profile.export.prefix)
        if export_format == "peft":
            name = adapter_name(profile.export.prefix)
        parent = profile.model.out_dir or run.path
        destination = parent / (name.removesuffix(".pth") if written is not architecture else name)
    require_free_of_inputs(destination, inputs_of_run(run, overrides), "--to")
    is_adapter = export_format == "peft"
    path = checked_destination(run, destination, written, force, is_adapter=is_adapter)
    as_trained = read_trained(run, overrides, best=best)
    # The adapter belongs into the weights as they were read, which the file is compared with.
    trained = replace(
        as_trained, model_weights=replace(as_trained.model_weights, quantization=None)
    )
    state = trained.weights
    pairs = _pairs_to_compare(profile, tokenizer)
    # transformers reads the stop tokens of a directory from its configuration alone.
    stop_ids = stop_ids_of(architecture, tokenizer.end_id)
    if isinstance(written, HuggingFace):
        stop_ids = written.stop_ids
    stops = tuple(tokenizer.decode([id]) for id in sorted(stop_ids))
    stop_warning = stop_problem(tokenizer, stop_ids)
    if export_format == "peft":
        with verified_adapter(path, trained.model_weights, profile) as (exported, loaded):
            differences = _logp_differences(trained.model_weights, loaded, pairs)
            from_quantized = _from_quantized(as_trained.model_weights, loaded, pairs)
            retention, not_compared = _retention(run, profile, plan, state, exported, dtype)
    else:
        rounded = round_weights(state, dtype, rounding, seed or 0, written.own_dtypes(dtype))
        with verified_write(path, rounded, written, dtype, tokenizer.folder) as (new, exported):
            loaded = _load_back(trained.model_weights, exported, new, pairs)
            differences = _logp_differences(trained.model_weights, loaded, pairs)
            from_quantized = _from_quantized(as_trained.model_weights, loaded, pairs)
            retention, not_compared = _retention(run, profile, plan, state, exported, dtype)
            if isinstance(written, HuggingFace):
                described = ExportedWeights(
                    written,
                    dtype,
                    rounding,
                    seed,
                    trained.optimizer_step,
                    retention,
                    float(differences.mean()),
                    stops,
                    stop_warning,
                )
                write_text_atomically(new / folder.CARD, model_card(run, plan, described))
    command = None if export_format == "peft" else try_command(path, written)
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
                stops=stops,
                commands=_commands(path, command),
            )
        )
        events.close()
    return ExportReport(
        path=path,
        dtype=dtype,
        rounding=rounding,
        seed=seed,
        size_bytes=size_bytes(path),
        tensors=_count_tensors(trained.model_weights, written, export_format),
        optimizer_step=trained.optimizer_step,
        unfinished_of=None if run.is_completed else plan.steps.optimizer_steps,
        pairs_compared=len(pairs),
        mean_logp_difference=float(differences.mean()),
        max_logp_difference=float(differences.max()),
        quantization=as_trained.model_weights.quantization,
        logp_difference_from_quantized=from_quantized,
        retention=retention,
        not_compared=not_compared,
        stop_warning=stop_warning,
        try_command=command,
        state=state,
        exported=exported.state,
    )


def _commands(path: Path, command: TryCommand | None) -> dict[str, str]:
    if command is None:
        return {}
    if command.is_minimind_script:
        return {"MiniMind": command.text}
    return directory_commands(path, command.text)


def _from_quantized(
    as_trained: ModelWeights, loaded: ResponseScorer, pairs: list[TokenizedPair]
) -> float | None:
    """Return the mean difference from the model as trained; None if that is not quantized."""
    if as_trained.quantization is None:
        return None
    return float(_logp_differences(as_trained, loaded, pairs).mean())


def _retention(
    run: RunDirectory,
    profile: Profile,
    plan: Plan,
    state: StateDict,
    exported: ModelWeights,
    dtype: str,
) -> tuple[UpdateRetention | None, str]:
    """Return the update retention, or None and why the starting weights cannot be read."""
    try:
        start = merge_adapter(read_start(run, profile, plan))
    except DpoError as error:
        return None, error.message
    return measure_update_retention(start, state, exported.state, dtype), ""


def _converted(
    architecture: Architecture, export_format: ExportFormat | None, tokenizer: ChatTokenizer
) -> Architecture:
    if export_format == "hf":
        return as_huggingface(architecture, tokenizer.special_ids)
    if export_format == "pth" and not isinstance(architecture, MiniMind):
        raise UsageError(
            f"--format pth: {architecture.name} is not a MiniMind model",
            "Leave out --format to write a Hugging Face directory.",
        )
    return architecture


def _count_tensors(
    trained: ModelWeights, written: Architecture, export_format: ExportFormat | None
) -> int:
    if export_format == "peft":
        assert trained.adapter is not None
        return len(trained.adapter.shapes)
    return len(written.to_native_names(trained.state))


def _pairs_to_compare(profile: Profile, tokenizer: ChatTokenizer) -> list[TokenizedPair]:
    """Read the first pairs of the training data."""
    source = training_pairs(profile)
    rows = read_pairs(source)
    pairs: list[TokenizedPair] = []
    while len(pairs) < _COMPARED_PAIRS and (chunk := list(itertools.islice(rows, _ROWS_PER_READ))):
        kept, _ = encode_pairs(
            chunk,
            tokenizer,
            max_seq_len=profile.data.max_seq_len,
            empty_think_ratio=profile.data.empty_think_ratio,
            seed=profile.train.seed,
            scored_turns=profile.data.scored_turns,
            truncation=profile.data.effective_truncation,
            max_prompt_len=profile.data.max_prompt_len,
        )
        pairs += kept
    if not pairs:
        raise DpoError(
            f"{source}: no pair to compare the exported file with",
            "The data has changed since the run. Set its present path with --set"
            " data.data_path=PATH.",
        )
    return pairs[:_COMPARED_PAIRS]


def _load_back(
    trained: ModelWeights, exported: ModelWeights, path: Path, pairs: list[TokenizedPair]
) -> ResponseScorer:
    """Return a scorer of the file or directory."""
    if not path.is_dir():
        return _scorer(replace(trained, state=exported.state, adapter=None), pairs)
    # Without our attention function and weight mapping, as any other user would load it.
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    return ResponseScorer(plain, fallback_reason="plain transformers")


def _scorer(weights: ModelWeights, pairs: list[TokenizedPair]) -> ResponseScorer:
    longest = max(len(side.ids) for pair in pairs for side in (pair.chosen, pair.rejected))
    is_known = weights.architecture.supports_packing
    return scorer_for(build_adapted(weights), longest, is_known=is_known)


@torch.no_grad()
def _logp_differences(
    trained: ModelWeights, loaded: ResponseScorer, pairs: list[TokenizedPair]
) -> Tensor:
    """Compute the absolute differences of the log-probs of all response tokens, (N,)."""
    batch = make_batch(pairs, "packed", max_seq_len=0)
    models = (_scorer(trained, pairs), loaded)
    expected, actual = (model.eval()(batch).token_logps[batch.mask] for model in models)
    differences: Tensor = (expected - actual).abs()
    return differences

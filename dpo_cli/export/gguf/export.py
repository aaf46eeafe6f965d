"""`dpo export --format gguf`: files for llama.cpp and Ollama, each proven in llama.cpp."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.pairs import PreferencePair, read_pairs
from dpo_cli.errors import DpoError
from dpo_cli.export.gguf import llama_cpp
from dpo_cli.export.gguf.architectures import GgufArchitecture
from dpo_cli.export.gguf.dependencies import INSTALL, require_gguf
from dpo_cli.export.gguf.destination import check_directory, default_directory, fingerprint
from dpo_cli.export.gguf.file import GgufContent, as_stored, read_gguf, write_gguf
from dpo_cli.export.gguf.modelfile import MODELFILE, ollama_settings
from dpo_cli.export.gguf.proof import Proof, Prover
from dpo_cli.export.gguf.quantizations import DEFAULT_QUANTIZATIONS, Quantization
from dpo_cli.export.gguf.vocabulary import GgufVocabulary
from dpo_cli.export.update_retention import UpdateRetention, measure_update_retention
from dpo_cli.export.usage import gguf_commands
from dpo_cli.export.verified_write import rename_on_success
from dpo_cli.files import write_text_atomically
from dpo_cli.inference.stops import stop_problem
from dpo_cli.models.adapted import merge_adapter
from dpo_cli.models.convert import StateDict
from dpo_cli.models.generation import stop_ids_of
from dpo_cli.models.loading import ModelWeights
from dpo_cli.models.spec import architecture_of, as_huggingface
from dpo_cli.profile.inputs import resolve_tokenizer
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.schema import Profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import Exported
from dpo_cli.run.protected import inputs_of_run, require_free_of_inputs
from dpo_cli.training.sources import training_pairs
from dpo_cli.training.weights import read_start, read_trained, saved_plan

_PROOF_ROWS = 32
_NOT_PROVEN = "the package xllamacpp, which contains llama.cpp, is not installed"


@dataclass(frozen=True)
class GgufFile:
    """One file of an export.

    Attributes:
        path: the file.
        quantization: format of its matrices.
        size_bytes: size of the file.
        retention: update retention of its weights; None if no weight has changed, or if the
            starting weights cannot be read (`GgufReport.not_compared` has the reason).
        weights: its weights as float32, in the Hugging Face layout.
    """

    path: Path
    quantization: Quantization
    size_bytes: int
    retention: UpdateRetention | None
    weights: StateDict = field(repr=False)


@dataclass(frozen=True)
class GgufReport:
    """Exported directory.

    Attributes:
        path: the directory.
        files: its GGUF files, from the most exact to the smallest.
        optimizer_step: step of the exported checkpoint.
        unfinished_of: planned steps of a run that is not completed; None if it is.
        proof: llama.cpp's replies; None if `not_proven` has a reason.
        not_proven: why llama.cpp did not load the files.
        not_compared: why the weights were not compared with the starting weights.
        warnings: differences between the training and the use of the files.
        state: training state that was exported, in the Hugging Face layout.
    """

    path: Path
    files: Sequence[GgufFile]
    optimizer_step: int
    unfinished_of: int | None
    proof: Proof | None
    not_proven: str
    not_compared: str
    warnings: Sequence[str]
    state: StateDict = field(repr=False)


def export_gguf(
    run: RunDirectory,
    destination: Path | None,
    quantizations: Sequence[Quantization] = DEFAULT_QUANTIZATIONS,
    *,
    force: bool = False,
    best: bool = False,
    overrides: Sequence[str] = (),
) -> GgufReport:
    """Write the weights of a run's newest verified checkpoint as GGUF files, with a Modelfile.

    The directory gets its name only after every file was read back, and loaded by llama.cpp if that
    is installed.

    Args:
        run: may still be training.
        destination: directory; by default one beside the run's other exports.
        quantizations: formats, one file each.
        force: replace a directory that this run did not write.
        best: export the checkpoint with the lowest held-out loss instead of the newest.
        overrides: `KEY=VALUE` for keys of the profile, for example a new path of the data.

    Raises:
        DpoError: the package gguf is missing, GGUF has no such architecture or tokenizer, the
            destination is not this run's or is an input of it, or llama.cpp computes something else
            than the training.
    """
    require_gguf()
    profile = load_profile(run.profile_path, overrides).profile
    shape = architecture_of(saved_plan(run).model.shape)
    # Before the weights are read: a refused destination costs no wait.
    own_name = shape.file_name(profile.export.prefix)
    path = (destination or default_directory(run, profile, own_name)).absolute()
    require_free_of_inputs(path, inputs_of_run(run, overrides), "--to")
    check_directory(run, path, force=force)
    trained = read_trained(run, overrides, best=best)
    tokenizer = ChatTokenizer(resolve_tokenizer(profile))
    stop_ids = stop_ids_of(trained.architecture, tokenizer.end_id)
    model = as_huggingface(trained.architecture, tokenizer.special_ids)
    architecture = GgufArchitecture(model)
    vocabulary = GgufVocabulary(tokenizer, stop_ids, model.vocab_size)
    name = path.name.removesuffix("-gguf")
    pairs = _first_pairs(profile)
    content = GgufContent(name, architecture, vocabulary)
    prover = None
    if llama_cpp.is_installed():
        prover = Prover(model, tokenizer, pairs, stop_ids)
    proof = None
    warnings = list(vocabulary.notes)
    if problem := stop_problem(tokenizer, stop_ids):
        warnings.append(f"{problem}: answers will not end")
    with explain_disk_errors(path.parent), rename_on_success(path) as new:
        new.mkdir()
        wanted = list(quantizations)
        # Only the answers of the float32 file must be those of transformers. All files have one
        # layout, so that this one is written and proven even if it is not wanted.
        written: list[Quantization] = wanted if "f32" in wanted or not prover else ["f32", *wanted]
        read = _write_files(new, trained.weights, content, written)
        if prover is not None:
            proof = prover.prove(read)
            if proof.different_prompts:
                warnings.append(
                    f"llama.cpp renders {proof.different_prompts} of {proof.prompts} conversations"
                    " differently than the training's chat template"
                )
        if "f32" not in wanted and "f32" in read:
            read.pop("f32")[0].unlink()
        settings, warning = ollama_settings(tokenizer, pairs, stop_ids, model)
        warnings += [warning] if warning else []
        # The most exact file that is not twice as large as the weights of most models.
        served = next((each for each in wanted if each != "f32"), wanted[0])
        lines = f"FROM ./{read[served][0].name}\n{settings.text}"
        write_text_atomically(new / MODELFILE, lines)
        sha256 = fingerprint(new)
        sizes = {each: read[each][0].stat().st_size for each in wanted}
    with explain_disk_errors(run.path):
        events = EventWriter(run.events_path, mend=False)
        events.append(
            Exported(
                path=str(path),
                sha256=sha256,
                dtype=",".join(wanted),
                optimizer_step=trained.optimizer_step,
                stops=tuple(tokenizer.decode([id]) for id in sorted(stop_ids)),
                commands=gguf_commands(str(path), read[served][0].name),
            )
        )
        events.close()
    start, not_compared = None, ""
    try:
        start = merge_adapter(read_start(run, profile, trained.plan))
    except DpoError as error:
        not_compared = error.message
    files = [
        GgufFile(
            path=path / read[each][0].name,
            quantization=each,
            size_bytes=sizes[each],
            retention=_retention(start, architecture, trained.weights, read[each][1], each),
            weights=read[each][1],
        )
        for each in wanted
    ]
    return GgufReport(
        path=path,
        files=files,
        optimizer_step=trained.optimizer_step,
        unfinished_of=None if run.is_completed else trained.plan.steps.optimizer_steps,
        proof=proof,
        not_proven="" if prover else f"{_NOT_PROVEN}. {INSTALL}",
        not_compared=not_compared,
        warnings=warnings,
        state=trained.weights,
    )


def _write_files(
    folder: Path,
    weights: StateDict,
    content: GgufContent,
    quantizations: Sequence[Quantization],
) -> dict[Quantization, tuple[Path, StateDict]]:
    """Write one file per format; return their paths and their weights as read back."""
    tensors = content.architecture.to_gguf(weights)
    read = {}
    for quantization in quantizations:
        file = folder / f"{content.name}-{quantization}.gguf"
        write_gguf(file, tensors, content, quantization)
        read[quantization] = file, content.architecture.from_gguf(read_gguf(file), weights)
    return read


def _retention(
    start: ModelWeights | None,
    architecture: GgufArchitecture,
    state: StateDict,
    weights: StateDict,
    quantization: Quantization,
) -> UpdateRetention | None:
    if start is None:
        return None
    tensors = as_stored(architecture.to_gguf(start.state), quantization)
    rounded = architecture.from_gguf(tensors, start.state)
    return measure_update_retention(start, state, weights, "float32", rounded)


def _first_pairs(profile: Profile) -> list[PreferencePair]:
    """Read the first pairs of the training data."""
    source = training_pairs(profile)
    rows = itertools.islice(read_pairs(source), _PROOF_ROWS)
    pairs = [row for row in rows if isinstance(row, PreferencePair)]
    if not pairs:
        raise DpoError(
            f"{source}: no pair to compare the exported files with",
            "The data has changed since the run. Set its present path with --set"
            " data.data_path=PATH.",
        )
    return pairs

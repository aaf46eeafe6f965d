"""Tests of `dpo export --format gguf`: llama.cpp computes the files as transformers does."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.pairs import PreferencePair, read_pairs
from dpo_cli.errors import DpoError, NoSpaceError, UsageError
from dpo_cli.export.gguf import architectures, dependencies, llama_cpp, vocabulary
from dpo_cli.export.gguf.architectures import GgufArchitecture
from dpo_cli.export.gguf.export import export_gguf
from dpo_cli.export.gguf.file import GgufContent, read_gguf, write_gguf
from dpo_cli.export.gguf.modelfile import measure_turns
from dpo_cli.export.gguf.proof import Prover
from dpo_cli.export.gguf.quantizations import QUANTIZATIONS, parse_quantizations
from dpo_cli.extras import install_extra
from dpo_cli.inference.stops import stop_problem
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.loading import load_model_weights
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Exported, history
from dpo_cli.training.checkpointing import load_weights
from tests.support import workers
from tests.support.cli import REPOSITORY, Run, dpo
from tests.support.families import FAMILIES
from tests.support.family_runs import SECONDS, TOKENIZER, make
from tests.support.small_runs import golden_run

pytest.importorskip("gguf", reason="needs the extra gguf: pip install '.[gguf]'")
PAIRS = REPOSITORY / "demo/pairs.jsonl"
needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None,
    reason="needs llama.cpp: pip install xllamacpp (no wheel for this platform?)",
)
KINDS = {
    "minimind2": "llama",
    "minimind2-moe": "granitemoe",
    "minimind3": "qwen3",
    "minimind3-moe": "qwen3moe",
    "llama": "llama",
    "qwen3": "qwen3",
}
"""Models that these tests train, and their architectures in GGUF."""


def trained_run(kind: str, shared: Path, place: Path) -> RunDirectory:
    if kind.startswith("minimind"):
        version, is_moe = "seed" if "2" in kind else "head", kind.endswith("moe")
        changes = {"train.epochs": 1, "eval.interval": 0}
        run = workers.new_run(place / "runs", golden_run(shared, version, is_moe, **changes))
    else:
        run = workers.new_run(place / "runs", ["train", str(make(place, kind))])
    assert workers.work(run, seconds=SECONDS) == 0
    return run


@pytest.fixture(scope="module")
def runs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function from a model kind to its run, which is trained once."""
    made: dict[str, RunDirectory] = {}

    def get(kind: str) -> RunDirectory:
        if kind not in made:
            made[kind] = trained_run(kind, shared, tmp_path_factory.mktemp(kind))
        return made[kind]

    return get


def export_and_check(run: RunDirectory, kind: str, place: Path) -> None:
    import gguf

    report = export_gguf(run, place / "my-gguf", ["f32", "q8_0", "q4_0"])
    state = load_weights(Run(run).checkpoint)
    exact, half, quarter = report.files
    assert [file.path.name for file in report.files] == [
        "my-f32.gguf",
        "my-q8_0.gguf",
        "my-q4_0.gguf",
    ]
    assert all(torch.equal(exact.weights[name], state[name]) for name in state)
    assert exact.size_bytes > half.size_bytes > quarter.size_bytes
    assert exact.retention is not None
    assert half.retention is not None
    assert quarter.retention is not None
    assert exact.retention.relative_error == 0
    assert exact.retention.kept == pytest.approx(1)
    assert 0 < half.retention.relative_error < quarter.retention.relative_error
    reader = gguf.GGUFReader(exact.path)
    assert reader.fields["general.architecture"].contents() == KINDS[kind]

    proof = report.proof
    assert proof is not None
    assert proof.texts > 5
    assert proof.prompts > 4
    assert proof.different_prompts == 0
    for answers in proof.answers.values():
        assert answers.tokens > 0
    assert proof.answers["f32"].equal == proof.answers["f32"].tokens
    assert proof.answers["f32"].max_logp_difference < 1e-3

    lines = (place / "my-gguf/Modelfile").read_text()
    assert lines.startswith("FROM ./my-q8_0.gguf\nTEMPLATE ")
    assert 'PARAMETER stop "<|im_end|>"' in lines


@needs_llama_cpp
@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_computes_the_same(runs: Any, kind: str, tmp_path: Path) -> None:
    assert workers.call(partial(export_and_check, runs(kind), kind, tmp_path), SECONDS) == 0


LLAMA_3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA_3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
RANDOM: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: FAMILIES[name] for name in ("qwen2", "mistral")},
    "qwen3-moe": (FAMILIES["qwen3-moe"][0], {**FAMILIES["qwen3-moe"][1], "norm_topk_prob": True}),
    "granite": FAMILIES["granite-logits-scaling"],
    "llama-3-rope": ("LlamaConfig", {**FAMILIES["llama"][1], "rope_parameters": LLAMA_3}),
    "llama-biases": (
        "LlamaConfig",
        {**FAMILIES["llama"][1], "attention_bias": True, "mlp_bias": True},
    ),
    "mixtral": (
        "MixtralConfig",
        {**FAMILIES["llama"][1], "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "granitemoe": (
        "GraniteMoeConfig",
        {**FAMILIES["llama"][1], "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}
"""More models with random weights: configuration class of transformers, and settings."""


def prove_random_weights(
    name: str, settings: dict[str, Any], tokenizer: ChatTokenizer, place: Path
) -> vocabulary.GgufVocabulary:
    """Prove a GGUF file of a model with random weights, and return its vocabulary."""
    config = getattr(transformers, name)(**{**settings, "vocab_size": tokenizer.vocab_size + 7})
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(11)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.2 * noise + (parameter.ndim == 1)
    model.save_pretrained(place / "model")
    weights = load_model_weights(place / "model", {})
    assert isinstance(weights.architecture, HuggingFace)
    stop_ids = {tokenizer.end_id or 0}
    architecture = GgufArchitecture(weights.architecture)
    words = vocabulary.GgufVocabulary(tokenizer, stop_ids, weights.architecture.vocab_size)
    content = GgufContent("random", architecture, words)
    write_gguf(place / "random.gguf", architecture.to_gguf(weights.state), content, "f32")
    read = architecture.from_gguf(read_gguf(place / "random.gguf"), weights.state)
    assert all(torch.equal(read[name], tensor) for name, tensor in weights.state.items())
    pairs = [row for row in read_pairs(PAIRS) if isinstance(row, PreferencePair)][:6]
    prover = Prover(weights.architecture, tokenizer, pairs, stop_ids)
    [answers] = prover.prove({"f32": (place / "random.gguf", weights.state)}).answers.values()
    assert answers.equal == answers.tokens > 0
    return words


@needs_llama_cpp
@pytest.mark.parametrize("kind", RANDOM)
def test_llama_cpp_computes_further_models(kind: str, tmp_path: Path) -> None:
    prove_random_weights(*RANDOM[kind], ChatTokenizer(TOKENIZER), tmp_path)


WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
DIGITS = {"type": "Digits", "individual_digits": True}


def split_at(pattern: str) -> list[dict[str, Any]]:
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    return [{**split, "pattern": {"Regex": pattern}}, {**BYTES, "use_regex": False}]


@needs_llama_cpp
@pytest.mark.parametrize(
    ("name", "steps", "ignores_merges"),
    [
        ("qwen2", split_at(WORDS + SIGNS), False),
        ("smaug-bpe", split_at(WORDS + "{1,3}" + SIGNS), False),
        ("llama-bpe", split_at(WORDS + "{1,3}" + SIGNS), True),
        ("smollm", [DIGITS, {**BYTES, "use_regex": True}], False),
    ],
)
def test_llama_cpp_splits_texts_as_the_tokenizer(
    shared: Path, tmp_path: Path, name: str, steps: list[dict[str, Any]], ignores_merges: bool
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(shared / "tokenizer/minimind2", folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    content["model"]["ignore_merges"] = ignores_merges
    (folder / "tokenizer.json").write_text(json.dumps(content))
    words = prove_random_weights(*RANDOM["qwen2"], ChatTokenizer(folder), tmp_path)
    assert words.pre_tokenizer == name


@needs_llama_cpp
def test_the_proof_finds_wrong_rows_of_queries_and_keys(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architectures, "_interleaved", lambda tensor, _: tensor)
    monkeypatch.setattr(architectures, "_separated", lambda tensor, _: tensor)
    with pytest.raises(DpoError, match="greedy answers differ from transformers'"):
        export_gguf(runs("minimind2"), tmp_path / "out", ["f16"])
    assert not list(tmp_path.iterdir())


@needs_llama_cpp
def test_the_proof_finds_a_wrong_pre_tokenizer(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "_pre_tokenizer", lambda *_: "llama-bpe")
    with pytest.raises(DpoError, match=r"llama.cpp encodes a text differently from token"):
        export_gguf(runs("minimind2"), tmp_path / "out", ["f16"])
    assert not list(tmp_path.iterdir())


@needs_llama_cpp
def test_a_file_that_llama_cpp_cannot_load(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_norm(self: GgufArchitecture, state: Any) -> Any:
        return {n: t for n, t in to_gguf(self, state).items() if n != "output_norm.weight"}

    to_gguf = GgufArchitecture.to_gguf
    monkeypatch.setattr(GgufArchitecture, "to_gguf", without_norm)
    monkeypatch.setattr(GgufArchitecture, "from_gguf", lambda self, tensors, names: dict(names))
    with pytest.raises(DpoError, match=r"out-f32.gguf: llama.cpp cannot use this file"):
        export_gguf(runs("minimind2"), tmp_path / "out", ["f16"])
    assert not list(tmp_path.iterdir())


@needs_llama_cpp
def test_through_dpo_itself(runs: Any, tmp_path: Path) -> None:
    run = runs("minimind2")
    out = dpo(
        *("export", run.path, "--format", "gguf", "--quantization", "q4_0,f16", "--to", "x"),
        *("--set", "model.weights=gone.pth"),
        cwd=tmp_path,
    )
    assert out.returncode == 0, out.stderr
    text = " ".join(out.stdout.split())
    assert "2 GGUF files and a Modelfile, after step" in text
    assert re.search(r"token ids of \d+ texts equal, (\d+) of \1 prompts rendered as in", text)
    assert re.search(r"float32 weights in llama.cpp: (\d+) of \1 tokens of greedy answers", text)
    assert "not compared with the starting weights" in text
    assert (
        "try it: llama-cli -m x/x-f16.gguf ollama create x -f x/Modelfile && ollama run x" in text
    )
    assert sorted(os.listdir(tmp_path / "x")) == ["Modelfile", "x-f16.gguf", "x-q4_0.gguf"]
    again = dpo(
        *("export", run.path, "--format", "gguf", "--quantization", "q8_0", "--to", "x"),
        "--evaluate",
        cwd=tmp_path,
    )
    assert again.returncode == 0, again.stderr
    assert re.search(r"^q8_0 +\d.* +\d+/\d+ +0\.\d+ +[+-]", again.stdout, re.MULTILINE)
    assert re.search(r"kept of the learned margin: q8_0 [\d.]+ %;|has no margin", again.stdout)
    assert (tmp_path / "x/x-q8_0.gguf").exists()


def test_without_llama_cpp_the_report_says_so(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "find_spec", lambda _: None)
    report = export_gguf(runs("minimind2"), tmp_path / "out")
    assert report.proof is None
    assert "xllamacpp, which contains llama.cpp, is not installed" in report.not_proven
    assert install_extra("gguf") in report.not_proven
    assert os.listdir(tmp_path) == ["out"]


def test_only_an_own_export_is_replaced(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "find_spec", lambda _: None)
    run, folder = runs("minimind2"), tmp_path / "my-gguf"
    export_gguf(run, folder, ["f16"])
    export_gguf(run, folder, ["q8_0"])
    assert sorted(os.listdir(folder)) == ["Modelfile", "my-q8_0.gguf"]
    [*_, event] = [event for event in history(run.events_path) if isinstance(event, Exported)]
    assert event.stops
    assert event.commands["llama.cpp"].endswith("my-q8_0.gguf")
    assert (event.path, event.dtype) == (str(folder), "q8_0")
    with (folder / "Modelfile").open("a") as file:
        file.write("SYSTEM mine\n")
    with pytest.raises(DpoError, match="exists, and this run did not write it"):
        export_gguf(run, folder, ["q8_0"])
    export_gguf(run, folder, ["q8_0"], force=True)
    (folder / "mine.txt").touch()
    with pytest.raises(DpoError, match=r"would be replaced completely, and contains mine\.txt"):
        export_gguf(run, folder, ["q8_0"], force=True)


def test_without_the_extra_one_line_names_the_command(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dependencies, "find_spec", lambda _: None)
    with pytest.raises(DpoError, match="the package gguf is not installed") as caught:
        export_gguf(runs("minimind2"), tmp_path / "out")
    assert caught.value.remedy == install_extra("gguf")


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        ("gpt_neox", {}, "no GGUF architecture for gpt_neox"),
        ("codegen", {}, "no GGUF architecture for codegen"),
        ("llama", {"hidden_act": "gelu"}, "does not compute llama with hidden_act = gelu"),
        ("mistral", {"sliding_window": 8}, "mistral with sliding_window = 8"),
        (
            "qwen3",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "qwen3 with rope_type = linear",
        ),
        ("qwen3_moe", {"norm_topk_prob": False}, "qwen3_moe with norm_topk_prob = False"),
    ],
)
def test_models_that_llama_cpp_would_compute_differently_are_refused(
    model_type: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DpoError, match=re.escape(message)) as caught:
        GgufArchitecture(HuggingFace({"model_type": model_type, **settings}, {}))
    assert "--format hf" in caught.value.remedy


def test_names_of_formats() -> None:
    assert parse_quantizations("q4_0, F16,q4_0") == ["f16", "q4_0"]
    assert parse_quantizations(None) == ["f16"]
    assert parse_quantizations(QUANTIZATIONS) == list(QUANTIZATIONS)
    with pytest.raises(UsageError, match=r"--quantization: no format 'q3'") as caught:
        parse_quantizations("f16,q3")
    assert "Use one or more of f32, f16, bf16, q8_0" in caught.value.remedy
    with pytest.raises(UsageError) as caught:
        parse_quantizations(["q4_k_m"])
    assert "llama-quantize" in caught.value.remedy
    with pytest.raises(UsageError, match="no format is named"):
        parse_quantizations(" , ")


def test_options_that_do_not_fit_gguf(runs: Any, tmp_path: Path) -> None:
    run = runs("minimind2").path
    for options, message in (
        (("--format", "gguf", "--quantization", "q9"), "no format 'q9'"),
        (("--format", "gguf", "--dtype", "float16"), "--dtype: GGUF files are rounded by their"),
        (("--quantization", "f16"), "only GGUF files are quantized"),
    ):
        done = dpo("export", run, *options, cwd=tmp_path)
        assert done.returncode == 2
        assert message in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


def limited_export(run: RunDirectory, path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with pytest.raises(NoSpaceError, match="no space left to write in"):
        export_gguf(run, path, ["f16"])


def test_a_full_disk_leaves_no_file(runs: Any, tmp_path: Path) -> None:
    run = runs("minimind2")
    assert workers.call(partial(limited_export, run, tmp_path / "out")) == 0
    assert not list(tmp_path.iterdir())


def killed_export(run: RunDirectory, path: Path) -> None:
    import gguf

    write = gguf.GGUFWriter.write_tensors_to_file

    def half(self: Any, **_: Any) -> None:
        write(self)
        self.flush()
        file = next(path.parent.rglob("*.gguf"))
        os.truncate(file, file.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    gguf.GGUFWriter.write_tensors_to_file = half
    export_gguf(run, path, ["f16"])


def test_a_killed_export_leaves_no_half_file(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "find_spec", lambda _: None)
    run = runs("minimind2")
    code = workers.call(partial(killed_export, run, tmp_path / "out"))
    assert code == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    export_gguf(run, tmp_path / "out", ["f16"])
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["minimind2", "minimind3"])
def test_the_modelfile_renders_as_the_chat_template(shared: Path, name: str) -> None:
    tokenizer = ChatTokenizer(shared / "tokenizer" / name)
    turns = measure_turns(tokenizer)
    assert turns is not None
    question, answer = (
        {"role": "user", "content": "你好 {{x}}"},
        {"role": "assistant", "content": "b"},
    )
    system = {"role": "system", "content": "s"}
    for messages in (
        [question],
        [system, question],
        [question, answer, question],
        [system, question, answer, question, answer, question],
    ):
        expected = tokenizer.prompt_text(messages)  # type: ignore[arg-type]
        assert turns.render(messages) == expected  # type: ignore[arg-type]
        assert executed(turns.go_template(), messages) == expected


def executed(template: str, messages: list[dict[str, str]]) -> str:
    """Execute the part of Go's template language that a Modelfile uses."""
    tokens = re.split(r"(\{\{.*?\}\})", template)
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""

    def block(
        index: int, message: dict[str, str], is_last: bool, runs: bool
    ) -> tuple[str, int, str]:
        text = ""
        while index < len(tokens):
            token = tokens[index]
            index += 1
            if not token.startswith("{{"):
                text += token if runs else ""
                continue
            code = token[2:-2].strip()
            if code == "end" or code.startswith("else"):
                return text, index, code
            if code.startswith("if "):
                part, index = choice(code, index, message, is_last, runs)
            elif code.startswith("range"):
                part = ""
                for number, each in enumerate(messages if runs else messages[:1], 1):
                    more, after, _ = block(index, each, number == len(messages), runs)
                    part += more
                index = after
            elif code == '"{{"':
                part = "{{"
            else:
                part = {".System": system, ".Content": message.get("content", "")}.get(code, "")
                assert code in (".System", ".Content") or code.startswith("$last :=")
            text += part if runs else ""
        return text, index, "end"

    def choice(
        code: str, index: int, message: dict[str, str], is_last: bool, runs: bool
    ) -> tuple[str, int]:
        text, is_done = "", False
        while code != "end":
            condition = code.removeprefix("else").strip().removeprefix("if ")
            holds = {
                "": True,
                ".System": bool(system),
                "$last": is_last,
                "not $last": not is_last,
                'eq .Role "user"': message.get("role") == "user",
                'eq .Role "assistant"': message.get("role") == "assistant",
            }[condition]
            part, index, code = block(index, message, is_last, runs and holds and not is_done)
            text, is_done = text + part, is_done or holds
        return text, index

    return block(0, {}, False, True)[0]


def test_generation_that_stops_elsewhere_is_named() -> None:
    tokenizer = ChatTokenizer(REPOSITORY / "demo/tokenizer")
    end = tokenizer.end_id
    assert end is not None
    assert stop_problem(tokenizer, [end]) == ""
    other = next(id for id in tokenizer.control_tokens.values() if id != end)
    assert "the chat template ends an answer with '<|im_end|>" in stop_problem(tokenizer, [other])


def test_a_tokenizer_that_llama_cpp_lacks_is_refused(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(shared / "tokenizer/minimind2", folder)
    content = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(
        content.replace('"normalizer": null', '"normalizer": {"type": "Lowercase"}')
    )
    with pytest.raises(DpoError, match="no tokenizer that normalizes texts as Lowercase does"):
        vocabulary.GgufVocabulary(ChatTokenizer(folder), [2], 6400)

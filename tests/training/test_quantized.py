"""Adapters beside weights in 4 and 8 bits: exact layers, runs, resumes, exports, and refusals."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from dpo_cli.api.run import Run as DpoRun
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.export.export import ExportReport, export_run
from dpo_cli.extras import install_extra
from dpo_cli.models import quantized
from dpo_cli.models.adapted import as_quantized, build_adapted, merge_adapter
from dpo_cli.models.adapter import as_at_start
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.loading import ModelWeights, build_model, load_model_weights
from dpo_cli.models.quantized import load_bitsandbytes, require_kernels
from dpo_cli.models.trainable import trainable_of
from dpo_cli.profile import adapter_config
from dpo_cli.profile.inputs import check_inputs
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.model import Quantization
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Evaluated, Sampled, StepDone, history
from dpo_cli.training.weights import read_start, read_trained
from tests.support import families, workers
from tests.support.adapters import (
    IDS,
    MODELS,
    assert_starts_at_ln_2,
    logits,
    lora_run,
    profile_of,
    start_weights,
    trained_weights,
)
from tests.support.cli import Run, dpo, set_options
from tests.support.small_runs import golden_settings

bitsandbytes = pytest.importorskip("bitsandbytes")

FORMATS: tuple[Quantization, ...] = ("nf4", "int8")
KEY = "model.quantization"


def dequantized(weight: Tensor, quantization: Quantization) -> Tensor:
    """A weight as bitsandbytes stores it, by the functions of its documentation."""
    functional: Any = bitsandbytes.functional
    if quantization == "nf4":
        packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        found: Tensor = functional.dequantize_4bit(packed, state)
        return found
    rows, scales, _ = functional.int8_vectorwise_quant(weight.half())
    return functional.int8_vectorwise_dequant(rows, scales)  # type: ignore[no-any-return]


def rounded(weights: ModelWeights, quantization: Quantization) -> ModelWeights:
    """Float32 weights with the values of quantized ones."""
    model = build_model(weights.architecture, weights.state)
    head = model.get_output_embeddings()
    linear = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    assert len(linear) == 14
    state = {
        name: dequantized(tensor, quantization) if name in linear else tensor
        for name, tensor in weights.state.items()
    }
    return replace(weights, state=state)


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_a_quantized_model_is_a_plain_one_with_rounded_weights(
    name: str, quantization: Quantization
) -> None:
    """Outputs and gradients, in training and in evaluation, with the adapter and without."""
    weights = trained_weights(name)
    model = build_adapted(replace(weights, quantization=quantization))
    plain = build_adapted(rounded(weights, quantization))
    assert torch.equal(logits(model), logits(plain))
    with torch.no_grad(), as_at_start(model), as_at_start(plain):
        assert torch.equal(logits(model), logits(plain))
    for each in (model, plain):
        each.train()(IDS, use_cache=False).logits.square().mean().backward()
    assert torch.equal(model(IDS, use_cache=False).logits, logits(model))
    expected = dict(plain.named_parameters())
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    for key, parameter in trained.items():
        gradient, plain_gradient = parameter.grad, expected[key].grad
        assert gradient is not None
        assert plain_gradient is not None
        assert (gradient - plain_gradient).norm() <= 1e-5 * plain_gradient.norm(), key


@pytest.mark.parametrize("quantization", FORMATS)
def test_half_precision_weights_make_the_same_quantized_model(quantization: Quantization) -> None:
    """Gemma rounds the scale of its embedding if it is built in half precision."""
    for name in ("llama", "gemma"):
        model = families.build(name)
        state = {
            key: tensor.detach().bfloat16()
            for key, tensor in model.state_dict().items()
            if key not in model.all_tied_weights_keys
        }
        architecture = HuggingFace(model.config.to_dict(), {})
        wide = {key: tensor.float() for key, tensor in state.items()}
        built = [
            build_model(architecture, each, quantization=quantization) for each in (state, wide)
        ]
        assert torch.equal(logits(built[0]), logits(built[1])), name
        dtypes = {each.dtype for each in built[0].parameters()}
        assert dtypes == {torch.float32, torch.uint8 if quantization == "nf4" else torch.int8}


def test_dora_beside_nf4_begins_as_its_reference() -> None:
    weights = replace(start_weights("llama"), quantization="nf4")
    model = build_adapted(trainable_of(profile_of({"use_dora": True}), weights).start)
    with_adapter = logits(model)
    with torch.no_grad(), as_at_start(model):
        assert torch.equal(logits(model), with_adapter)


@pytest.mark.parametrize("quantization", FORMATS)
def test_a_quantized_layer_computes_in_half_precision_under_autocast(
    quantization: Quantization,
) -> None:
    model = build_adapted(replace(trained_weights("llama"), quantization=quantization))
    exact = logits(model)
    quantized.set_compute_dtype(model, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        first, again = logits(model), model.train()(IDS, use_cache=False).logits
    assert torch.equal(first, again)
    assert 0 < (first.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_merged_weights_are_not_rounded() -> None:
    weights = trained_weights("qwen3")
    expected = merge_adapter(weights).state
    found = merge_adapter(replace(weights, quantization="nf4"))
    assert found.quantization is None
    assert all(torch.equal(found.state[name], expected[name]) for name in expected)


# --- runs ----------------------------------------------------------------------------------------


def quantized_run(shared: Path, quantization: Quantization, **changes: Any) -> list[str]:
    return lora_run(shared, **{KEY: quantization, **changes})


@pytest.fixture(scope="module", params=FORMATS)
def trained(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    run = workers.new_run(
        tmp_path_factory.mktemp("quantized"),
        quantized_run(shared, request.param, **{"eval.num_samples": 1}),
    )
    assert workers.work(run) == 0
    return run


def test_a_run_starts_at_ln_2_and_learns(trained: RunDirectory) -> None:
    events = list(history(trained.events_path))
    steps = assert_starts_at_ln_2(events)
    assert steps[-1].losses[0] < 0.65
    assert 0 < steps[-1].metrics["weights_moved"] <= 1
    tensors = load_file(Run(trained).checkpoint / "weights.safetensors")
    assert all(".lora_" in name for name in tensors)
    samples = [event for event in events if isinstance(event, Sampled)]
    assert samples[0].samples[0]["policy"] == samples[0].samples[0]["reference"]
    plan = trained.read_plan()
    assert plan is not None
    assert plan.environment["bitsandbytes"] == bitsandbytes.__version__
    assert trained.worker_log_path.read_text() == ""


def test_an_evaluation_has_the_bits_of_the_run(trained: RunDirectory) -> None:
    last = [event for event in history(trained.events_path) if isinstance(event, Evaluated)][-1]
    found = DpoRun(trained).evaluate().models[0].groups["all"]
    assert found["loss"] == last.metrics["loss"]
    assert found["margin_per_token"] == last.metrics["margin_per_token"]


def test_a_killed_run_ends_bit_for_bit(shared: Path, trained: RunDirectory, tmp_path: Path) -> None:
    plan = trained.read_plan()
    assert plan is not None
    quantization = plan.setting(KEY)
    killed = workers.new_run(
        tmp_path, quantized_run(shared, quantization, **{"eval.num_samples": 1})
    )
    process = workers.start(killed)
    workers.until_steps(killed, process, 5)
    workers.kill(process)
    assert workers.work(killed) == 0
    resumed, uninterrupted = Run(killed), Run(trained)
    assert resumed.metric_rows == uninterrupted.metric_rows
    assert resumed.evaluations == uninterrupted.evaluations
    assert resumed.files() == uninterrupted.files()


def test_exports_hold_the_full_weights(shared: Path, trained: RunDirectory, tmp_path: Path) -> None:
    def export(form: str, name: str) -> ExportReport:
        return export_run(trained, tmp_path / name, "float32", False, export_format=form)  # type: ignore[arg-type]

    plan = trained.read_plan()
    assert plan is not None
    for form, name in (("pth", "rlhf_64.pth"), ("hf", "hf"), ("peft", "adapter")):
        report = export(form, name)
        assert report.quantization == plan.setting(KEY)
        assert report.max_logp_difference < 1e-4, form
        assert report.logp_difference_from_quantized is not None
        assert 1e-3 < report.logp_difference_from_quantized < 1, form
        assert report.retention is not None
        assert report.retention.kept == pytest.approx(1, abs=1e-6)
    start = load_model_weights(shared / "golden/train/seed/full_sft_64.pth", {}).state
    merged = load_model_weights(tmp_path / "rlhf_64.pth", {}).state
    adapter = load_file(tmp_path / "adapter/adapter_model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    first, second = (
        adapter[f"base_model.model.{name}.lora_{factor}.weight"] for factor in ("A", "B")
    )
    change = merged[f"{name}.weight"] - start[f"{name}.weight"].float()
    assert (change - 2 * second @ first).abs().max() < 1e-6
    untouched = "model.embed_tokens.weight"
    assert torch.equal(merged[untouched], start[untouched].float())
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert plain(IDS).logits.isfinite().all()
    assert "quantization_config" not in json.loads((tmp_path / "hf/config.json").read_text())


def test_a_reference_of_its_own_is_not_quantized(shared: Path, tmp_path: Path) -> None:
    reference = shared / "golden/train/seed/full_sft_64.pth"
    arguments = quantized_run(shared, "nf4", **{"model.reference": reference, "train.epochs": 1})
    run = workers.new_run(tmp_path, arguments)
    assert workers.work(run) == 0
    events = list(history(run.events_path))
    first = next(event for event in events if isinstance(event, StepDone))
    evaluated = next(event for event in events if isinstance(event, Evaluated))
    for loss in (first.losses[0], evaluated.metrics["loss"]):
        assert loss != math.log(2)
        assert abs(loss - math.log(2)) < 1


def test_quantized_weights_have_a_fingerprint_of_their_own(trained: RunDirectory) -> None:
    profile = load_profile(trained.profile_path).profile
    plan = trained.read_plan()
    assert plan is not None
    start = read_start(trained, profile, plan)
    assert start.quantization == plan.setting(KEY)
    assert start.fingerprint == plan.fingerprints["reference"]
    others = {start.fingerprint}
    for each in (None, *FORMATS):
        weights = load_model_weights(Path(str(profile.model.weights)), {})
        others.add(as_quantized(weights, each).fingerprint)
    assert len(others) == 3
    assert read_trained(trained).model_weights.quantization == plan.setting(KEY)


def test_check_measures_what_quantizing_changes(shared: Path, tmp_path: Path) -> None:
    _, profile, *options = quantized_run(shared, "nf4", **{"train.epochs": 1})
    result = dpo("check", profile, *options, "--json", cwd=tmp_path)
    found = json.loads(result.stdout)
    assert result.returncode == 1, result.stderr  # random weights fit no tokenizer
    error = found["facts"]["quantization"]
    assert 0 < error["mean_difference"] < error["largest_difference"]
    assert error["tokens"] > error["pairs"] > 0
    [finding] = [each for each in found["findings"] if each["code"] == "quantization"]
    assert "nf4 weights change the log-probs of" in finding["message"]
    assert "held-out pairs" in finding["message"]
    [first_loss] = [each for each in found["findings"] if each["code"] == "first-loss"]
    assert "policy and reference agree exactly" in first_loss["message"]


# --- wrong input ---------------------------------------------------------------------------------


def refused(shared: Path, folder: Path, **changes: Any) -> str:
    """The one line about settings that no run can have."""
    path = folder / "mine.toml"
    path.write_text('extends = "dense"\n')
    settings = {**golden_settings(shared, "seed", False), KEY: "nf4", **changes}
    with pytest.raises(UsageError) as caught:
        check_inputs(load_profile(path, set_options(settings)[1::2]))
    [line] = caught.value.details
    return line


def test_quantization_without_adapters_is_refused(shared: Path, tmp_path: Path) -> None:
    line = refused(shared, tmp_path)
    assert f"{KEY}: quantized weights are frozen, and only adapters beside them can be" in line
    assert line.endswith("set lora.rank, or remove model.quantization")


def test_dora_beside_int8_is_refused(shared: Path, tmp_path: Path) -> None:
    line = refused(shared, tmp_path, **{KEY: "int8", "lora.rank": 4, "lora.use_dora": True})
    assert 'set model.quantization = "nf4", or remove lora.use_dora' in line


def test_without_bitsandbytes_one_line_names_the_package(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        adapter_config,
        "find_spec",
        lambda name: None if name == "bitsandbytes" else importlib.util.find_spec(name),
    )
    line = refused(shared, tmp_path, **{"lora.rank": 4})
    remedy = install_extra("quant")
    assert f"{KEY}: bitsandbytes is not installed; {remedy[0].lower()}{remedy[1:-1]}" in line


def test_float64_weights_are_refused(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "wide_64.pth"
    state = torch.load(shared / "golden/train/seed/full_sft_64.pth", weights_only=True)
    torch.save({name: tensor.double() for name, tensor in state.items()}, path)
    weights = load_model_weights(path, {})
    with pytest.raises(DpoError, match="float64 weights are not quantized"):
        as_quantized(weights, "nf4")


def test_a_device_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise NotImplementedError("no kernel for this device")

    monkeypatch.setattr(load_bitsandbytes().functional, "int8_vectorwise_dequant", fail)
    with pytest.raises(DpoError, match="cannot compute on cpu") as caught:
        require_kernels("int8", torch.device("cpu"))
    assert 'set train.device = "cpu"' in caught.value.remedy
    require_kernels("nf4", torch.device("cpu"))


def test_a_model_without_linear_layers_is_refused() -> None:
    model = families.build("gpt2")
    with pytest.raises(DpoError, match="GPT2LMHeadModel has no linear layers"):
        quantized.quantize(model, "int8")


def test_a_resume_with_another_quantization_is_refused(trained: RunDirectory) -> None:
    plan = trained.read_plan()
    assert plan is not None
    other = next(each for each in FORMATS if each != plan.setting(KEY))
    resume = partial(dpo, "resume", str(trained.path), cwd=trained.path.parent)
    result = resume("--set", f"{KEY}={other}")
    output = " ".join((result.stdout + result.stderr).split())
    assert result.returncode == 2, output
    assert "cannot continue with another quantization" in output

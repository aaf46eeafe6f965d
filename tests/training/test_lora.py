"""Tests that training adapters equals peft in the plain padded loop, in float64 to 1e-10."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from dpo_cli.api.run import Run as DpoRun
from dpo_cli.compute.device import Device
from dpo_cli.data.batching import make_batch
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.export.export import export_run
from dpo_cli.extras import install_extra
from dpo_cli.models.adapted import build_adapted, changed_weights, merge_adapter
from dpo_cli.models.adapter import adapter_state, as_at_start
from dpo_cli.models.frozen import Frozen
from dpo_cli.models.loading import ModelWeights, build_model, load_model_weights
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.models.support import scorer_for
from dpo_cli.models.trainable import trainable_of
from dpo_cli.profile import adapter_config
from dpo_cli.profile.inputs import check_inputs
from dpo_cli.profile.load import load_profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Evaluated, Sampled, StepDone, history
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.optimizer import make_optimizer
from dpo_cli.training.reference import CachedReference
from dpo_cli.training.setup import frozen_reference
from dpo_cli.training.trainer import Trainer
from dpo_cli.training.weights import read_start, read_trained
from tests.support import workers
from tests.support.adapters import (
    BETA,
    IDS,
    MODELS,
    RATE,
    assert_starts_at_ln_2,
    logits,
    lora_run,
    profile_of,
    start_weights,
    trained_weights,
)
from tests.support.cli import Run, dpo, set_options
from tests.support.columns import in_columns
from tests.support.small_runs import golden_run, golden_settings
from tests.support.two_layouts import (
    ARCHITECTURES,
    MAX_SEQ_LEN,
    Float64,
    Recorder,
    empty_state,
    odd_pairs,
)

BOUND = 1e-10
PAIRS = odd_pairs()


def make_trainer(name: str, hooks: Recorder, lora: dict[str, Any]) -> Trainer:
    """Return a trainer for 20 steps in float64; the reference is the policy without the adapter."""
    weights = start_weights(name)
    device = Device(torch.device("cpu"), torch.float64)
    pairs = in_columns(PAIRS)
    inputs = RunInputs(
        profile=profile_of(lora),
        device=device,
        weights=weights,
        reference_weights=weights,
        tokenizer=Path(),
        pad_id=0,
        pairs=pairs,
        held_out=pairs[:0],
        skipped_rows=[],
        fingerprints={},
    )
    model = build_adapted(inputs.trainable.start).double()
    policy = scorer_for(model, MAX_SEQ_LEN)
    assert policy.fallback_reason is None
    reference = CachedReference(
        pairs,
        inputs.batches.reference_batches,
        device,
        partial(frozen_reference, inputs, policy),
        can_reuse_batches=True,
    )
    optimizer = make_optimizer(inputs.trainable.optimized(model).values(), inputs.profile.train)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Trainer(
        inputs, policy, reference, reference, optimizer, scaler, hooks, save=lambda _: None
    )


def plain_losses(trainer: Trainer, lora: dict[str, Any]) -> tuple[list[float], nn.Module]:
    """Train as in a tutorial: peft, all logits, padding, the reference by `disable_adapter`."""
    inputs = trainer.inputs
    base = build_model(inputs.weights.architecture, inputs.weights.state)
    base.set_attn_implementation("eager")
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    with torch.random.fork_rng():
        torch.manual_seed(inputs.profile.train.seed)
        model = peft.get_peft_model(base, peft.LoraConfig(**{**settings, **lora}))
    model = model.double()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)

    def response_logps(batch: Any) -> Tensor:
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
        logps = logits.log_softmax(-1).gather(-1, batch.labels.unsqueeze(-1)).squeeze(-1)
        chosen, rejected = (logps * batch.mask).sum(-1).chunk(2)
        difference: Tensor = chosen - rejected
        return difference

    losses = []
    for global_batch in inputs.order.global_batches():
        [indices] = global_batch.micro_batches
        batch = make_batch([PAIRS[i] for i in indices], "padded", max_seq_len=MAX_SEQ_LEN, pad_id=0)
        with torch.no_grad(), model.disable_adapter():
            reference = response_logps(batch)
        loss = -F.logsigmoid(BETA * (response_logps(batch) - reference)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), inputs.profile.train.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = inputs.learning_rate.at(global_batch.last_step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        *((name, {}) for name in MODELS),
        ("llama", {"use_dora": True}),
        ("qwen3", {"use_rslora": True, "target_modules": ["q_proj", "v_proj"]}),
    ],
    ids=str,
)
def test_20_steps_are_those_of_peft_in_the_plain_loop(name: str, lora: dict[str, Any]) -> None:
    hooks = Recorder()
    with Float64():
        trainer = make_trainer(name, hooks, lora)
        assert trainer.train() is None
        expected, plain = plain_losses(trainer, lora)
    losses = [step.losses[0] for step in hooks.steps]
    assert len(losses) == 20
    assert losses[0] == pytest.approx(torch.tensor(2.0).double().log().item(), abs=1e-15)
    assert losses == pytest.approx(expected, abs=BOUND, rel=0)
    assert max(losses) - min(losses) > 0.1
    expected = peft.get_peft_model_state_dict(plain, save_embedding_layers=False)
    ours = adapter_state(trainer.policy.model)
    assert ours.keys() == expected.keys()
    for key, tensor in ours.items():
        assert (tensor - expected[key]).abs().max() < BOUND, key


# --- one model: the reference, and merged weights ------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_is_the_base_bit_for_bit(name: str) -> None:
    weights = trained_weights(name)
    base = build_model(weights.architecture, weights.state)
    model = build_adapted(weights)
    with_adapter = logits(model)
    with torch.no_grad(), as_at_start(model):
        assert torch.equal(logits(model), logits(base))
    assert torch.equal(logits(model), with_adapter)
    assert (with_adapter - logits(base)).abs().max() > 1e-2
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert trained == trainable_of(profile_of({}), weights).optimized(model).keys()


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"use_rslora": True}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_merged_weights_are_the_model_with_its_adapter(name: str, lora: dict[str, Any]) -> None:
    weights = trained_weights(name, **lora)
    with Float64():
        model = build_adapted(weights).double()
        merged = build_model(weights.architecture, weights.state).double()
        merged.load_state_dict(dict(changed_weights(model, weights)), strict=False)
        assert (logits(merged) - logits(model)).abs().max() < 1e-12
    written = merge_adapter(weights)
    assert written.adapter is None
    assert written.state.keys() == weights.state.keys()
    plain = build_model(written.architecture, written.state)
    assert (logits(plain) - logits(build_adapted(weights))).abs().max() < 1e-4


def test_a_fresh_adapter_depends_on_the_seed_alone() -> None:
    weights = start_weights("llama")

    def drawn(seed: int) -> dict[str, Tensor]:
        torch.rand(3)
        return adapter_state(build_adapted(trainable_of(profile_of({}, seed=seed), weights).start))

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    torch.set_rng_state(state)
    torch.rand(9)
    after = torch.rand(1)
    torch.set_rng_state(state)
    drawn(1), drawn(1), drawn(1)
    assert torch.equal(torch.rand(1), after)


def test_dropout_is_off_in_the_reference_and_on_in_the_policy() -> None:
    weights = trained_weights("llama", dropout=0.5)
    scorer = ResponseScorer(build_adapted(weights).train())
    frozen = Frozen(scorer, partial(as_at_start, scorer.model))
    with frozen.active() as active:
        assert not active.training
        first = active.model(IDS).logits
        assert torch.equal(first, active.model(IDS).logits)
    assert scorer.training
    assert not torch.equal(scorer.model(IDS).logits, scorer.model(IDS).logits)


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = workers.new_run(
        tmp_path_factory.mktemp("lora"), lora_run(shared, **{"eval.num_samples": 1})
    )
    assert workers.work(run) == 0
    return run


def test_a_run_starts_at_ln_2_and_saves_the_adapter_only(trained: RunDirectory) -> None:
    events = list(history(trained.events_path))
    steps = assert_starts_at_ln_2(events)
    plan = trained.read_plan()
    assert plan is not None
    assert plan.model.trained_parameters == 9472
    assert 0 < steps[-1].metrics["weights_moved"] <= 1
    names = ("weights", "exp_avg", "exp_avg_sq")
    tensors = [load_file(Run(trained).checkpoint / f"{name}.safetensors") for name in names]
    assert tensors[0].keys() == tensors[1].keys() == tensors[2].keys()
    assert all(".lora_" in name for name in tensors[0])
    assert sum(tensor.numel() for tensor in tensors[0].values()) == 9472
    written = load_file(trained.path / "rlhf_adapter/adapter_model.safetensors")
    assert all(torch.equal(written[name], tensors[0][name]) for name in tensors[0])
    samples = [event for event in events if isinstance(event, Sampled)]
    assert samples[0].samples[0]["policy"] == samples[0].samples[0]["reference"]


@pytest.mark.parametrize("lora", [{"lora.dropout": 0.2}, {"lora.use_dora": True}], ids=str)
def test_a_killed_run_ends_bit_for_bit(shared: Path, tmp_path: Path, lora: dict[str, Any]) -> None:
    arguments = lora_run(shared, **lora)
    whole = workers.new_run(tmp_path / "whole", arguments)
    assert workers.work(whole) == 0
    killed = workers.new_run(tmp_path / "killed", arguments)
    process = workers.start(killed)
    workers.until_steps(killed, process, 5)
    workers.kill(process)
    assert workers.work(killed) == 0
    resumed, uninterrupted = Run(killed), Run(whole)
    assert resumed.metric_rows == uninterrupted.metric_rows
    assert resumed.evaluations == uninterrupted.evaluations
    assert resumed.files() == uninterrupted.files()
    adapters = [run.path / "rlhf_adapter/adapter_model.safetensors" for run in (killed, whole)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_an_evaluation_has_the_bits_of_the_run(trained: RunDirectory) -> None:
    last = [event for event in history(trained.events_path) if isinstance(event, Evaluated)][-1]
    found = DpoRun(trained).evaluate().models[0].groups["all"]
    assert found["loss"] == last.metrics["loss"]
    assert found["margin_per_token"] == last.metrics["margin_per_token"]


def test_exports_are_merged_weights_and_a_directory_of_peft(
    trained: RunDirectory, tmp_path: Path
) -> None:
    for form, name in (("pth", "rlhf_64.pth"), ("hf", "hf"), ("peft", "adapter")):
        report = export_run(trained, tmp_path / name, "float32", False, export_format=form)  # type: ignore[arg-type]
        assert report.max_logp_difference < 1e-4, form
        assert report.retention is not None
        assert report.retention.kept == pytest.approx(1, abs=1e-6)
    merged = load_model_weights(tmp_path / "rlhf_64.pth", {}).state
    directory = load_model_weights(tmp_path / "hf", {}).state
    assert all(torch.equal(merged[name], directory[name]) for name in merged)
    again = export_run(trained, tmp_path / "adapter", None, False, export_format="peft")
    assert again.tensors == 28
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").double()
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(settings["target_modules"])
    with pytest.raises(UsageError, match="an adapter is exported as it is trained"):
        export_run(trained, tmp_path / "half", "float16", False, export_format="peft")
    assert logits_of(plain).isfinite().all()


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


# --- an adapter as start -------------------------------------------------------------------------


def test_a_run_begins_with_an_adapter(shared: Path, trained: RunDirectory, tmp_path: Path) -> None:
    """Merged for full training, merged below a new adapter, or trained itself: ln 2 each time."""
    sft = trained.path / "rlhf_adapter"
    full = {"lora.rank": None}
    continued = {"lora.continue_adapter": True}
    merged = export_run(trained, tmp_path / "merged.pth", "float32", False).state
    for index, changes in enumerate((full, {"lora.rank": 2}, continued)):
        keys = {key: value for key, value in {"lora.rank": 4, **changes}.items() if value}
        settings = {"model.adapter": sft, "train.learning_rate": 1e-3, "train.epochs": 1, **keys}
        run = workers.new_run(tmp_path / str(index), golden_run(shared, "seed", False, **settings))
        assert workers.work(run) == 0
        events = list(history(run.events_path))
        first = next(event for event in events if isinstance(event, StepDone))
        assert first.losses == (math.log(2),), settings
        start = read_start(run, load_profile(run.profile_path).profile, run.read_plan())
        began = merge_adapter(start).state
        assert all(torch.equal(began[name].float(), merged[name]) for name in merged)
        ended = read_trained(run).weights
        assert any(not torch.equal(ended[name], merged[name]) for name in merged)
        if changes is not continued:
            with pytest.raises(UsageError, match="--format peft"):
                export_run(run, tmp_path / "no", None, False, export_format="peft")


# --- wrong input ---------------------------------------------------------------------------------


def refuse(shared: Path, folder: Path, **changes: Any) -> str:
    """Return the output of a `dpo train` that ends before the first step."""
    result = dpo(*lora_run(shared, **changes), cwd=folder)
    output = result.stdout + result.stderr
    assert result.returncode in (1, 2), output
    assert "Traceback" not in output
    assert not list(folder.glob("runs/*"))
    return " ".join(output.split())


def test_wrong_settings_are_refused(shared: Path, tmp_path: Path) -> None:
    assert "lora.rank = 0: must be greater than or equal to 1" in refuse(
        shared, tmp_path, **{"lora.rank": 0}
    )
    assert "'query' matches no linear layer of a block" in refuse(
        shared, tmp_path, **{"lora.target_modules": '["q_proj", "query"]'}
    )
    assert "'lm_head' matches no linear layer of a block" in refuse(
        shared, tmp_path, **{"lora.target_modules": '["lm_head"]'}
    )


def test_a_wrong_adapter_is_refused(shared: Path, tmp_path: Path, trained: RunDirectory) -> None:
    sft = trained.path / "rlhf_adapter"
    continued = {"model.adapter": sft, "lora.continue_adapter": True}
    assert "an adapter of another model than model.weights" in refuse(
        shared, tmp_path, **{**continued, "model.weights": other_size(shared, tmp_path)}
    )
    output = refuse(shared, tmp_path, **{**continued, "lora.rank": 8})
    assert "Set lora.rank = 4, lora.alpha = 8." in output
    assert "no adapter: it has no adapter_config.json" in refuse(
        shared, tmp_path, **{"model.adapter": shared}
    )


def other_size(shared: Path, folder: Path) -> Path:
    """Return weights with feed-forward blocks of half the width."""
    path = folder / "other_64.pth"
    state = torch.load(shared / "golden/train/seed/full_sft_64.pth", weights_only=True)
    for name, tensor in state.items():
        axis = 0 if "gate_proj" in name or "up_proj" in name else 1 if "down_proj" in name else None
        if axis is not None:
            state[name] = tensor.narrow(axis, 0, tensor.shape[axis] // 2).clone()
    torch.save(state, path)
    return path


def test_a_resume_with_another_rank_or_target_is_refused(trained: RunDirectory) -> None:
    for change in ("lora.rank=8", 'lora.target_modules=["q_proj"]'):
        result = dpo("resume", str(trained.path), "--set", change, cwd=trained.path.parent)
        output = " ".join((result.stdout + result.stderr).split())
        assert result.returncode == 2, output
        assert f"{change.split('=')[0]}: " in output
        assert "cannot continue with another adapter" in output


def test_without_peft_one_line_names_the_extra(
    shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(adapter_config, "find_spec", lambda name: None)
    path = tmp_path / "mine.toml"
    settings = {**golden_settings(shared, "seed", False), "lora.rank": 4}
    options = set_options(settings)
    path.write_text('extends = "dense"\n')
    loaded = load_profile(path, options[1::2])
    with pytest.raises(UsageError) as caught:
        check_inputs(loaded)
    [line] = caught.value.details
    remedy = install_extra("lora")
    assert f"lora.rank: peft is not installed; {remedy[0].lower()}{remedy[1:-1]}" in line


def test_a_mixture_of_experts_is_refused() -> None:
    name = "minimind3-moe"
    architecture = ARCHITECTURES[name]
    weights = ModelWeights(architecture, empty_state(architecture), torch.float32, name)
    with pytest.raises(DpoError, match="mixture of experts"):
        trainable_of(profile_of({}), weights)

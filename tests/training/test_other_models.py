"""Tests of models of other families than MiniMind's, from directory to exported directory.

Each story runs in a process like a worker's, whose imports are done.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from dpo_cli.checks.check import run_checks
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.encoding import encode_pairs
from dpo_cli.data.pairs import read_pairs
from dpo_cli.errors import DpoError
from dpo_cli.export.export import export_run
from dpo_cli.export.merge import merge_models
from dpo_cli.findings import Level
from dpo_cli.inference.chat import open_responders
from dpo_cli.inference.evaluate import evaluate_models
from dpo_cli.inference.open_model import open_model
from dpo_cli.models.generation import Decoding
from dpo_cli.models.loading import build_model, load_model_weights
from dpo_cli.models.spec import architecture_of
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.eval_config import find_eval_config
from dpo_cli.run.events import (
    Alert,
    Completed,
    Evaluated,
    Failed,
    Resumed,
    Sampled,
    StepDone,
    history,
)
from dpo_cli.run.models import find_model
from dpo_cli.training.checkpointing import load_weights
from dpo_cli.training.session import train_run
from tests.support import workers
from tests.support.cli import Run
from tests.support.families import FAMILIES, UNSUPPORTED
from tests.support.family_runs import MODEL, SECONDS, TOKENIZER, make


class Until:
    """Requests a stop after a number of optimizer steps."""

    def __init__(self, run: RunDirectory, steps: int | None) -> None:
        self._run, self._steps = run, steps

    @property
    def stop(self) -> str | None:
        done = sum(isinstance(event, StepDone) for event in history(self._run.events_path))
        return "interrupted" if self._steps is not None and done >= self._steps else None


def train(run: RunDirectory, steps: int | None = None) -> int:
    """Train once in this process."""
    with run.locked():
        return int(train_run(run.path, Until(run, steps)))


def log_probs(model: transformers.PreTrainedModel, profile: Path) -> Tensor:
    """Return log-probs of whole conversations with transformers' own attention."""
    pairs, _ = encode_pairs(
        list(read_pairs(profile.parent / "dpo.jsonl"))[:3],
        ChatTokenizer(TOKENIZER),
        max_seq_len=64,
        empty_think_ratio=0.0,
        seed=0,
    )
    model.eval().set_attn_implementation("eager")
    model.config._attn_implementation = "eager"  # if the code has no other attention
    found = []
    for side in (side for pair in pairs for side in (pair.chosen, pair.rejected)):
        with torch.no_grad():
            logits = model(input_ids=side.ids.unsqueeze(0), use_cache=False).logits[0, :-1]
        found.append(logits.log_softmax(-1).gather(-1, side.ids[1:].unsqueeze(-1)).flatten())
    return torch.cat(found)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def story(family: str, folder: Path) -> None:
    profile = make(folder, family)
    diagnosis = run_checks(profile, [], folder / "runs", None, lambda *_: None)
    problems = {finding.code for finding in diagnosis.findings if finding.level is Level.ERROR}
    assert problems == {"tokenizer-mismatch"}  # random weights
    findings = {finding.code: finding for finding in diagnosis.findings}
    assert findings["gradients"].level is Level.OK
    assert ("not-packed" in findings) == (family in UNSUPPORTED)

    whole, stopped = (workers.new_run(folder / "runs", ["train", str(profile)]) for _ in range(2))
    assert train(whole) == 0
    assert train(stopped, steps=1) == 130
    assert train(stopped) == 0
    events = list(history(stopped.events_path))
    assert [event.optimizer_step for event in events if isinstance(event, Resumed)] == [1]
    assert Run(stopped).losses == Run(whole).losses
    assert Run(stopped).files() == Run(whole).files()
    assert any(isinstance(event, Sampled) for event in events)
    (completed,) = [event for event in events if isinstance(event, Completed)]
    assert completed.weights == "rlhf"
    rolling = contents(stopped.path / "rlhf")
    assert rolling == contents(whole.path / "rlhf")
    reasons = [e.message for e in events if isinstance(e, Alert) and e.code == "not-packed"]
    assert len(reasons) == (family in UNSUPPORTED)
    assert all(UNSUPPORTED[family].split(" of ")[0] in reason for reason in reasons)

    report = export_run(stopped, folder / "exported", None, False)
    assert report.dtype == "float32"
    assert report.retention is not None
    assert report.retention.kept == 1
    exported = contents(folder / "exported")
    card = exported.pop("README.md").decode()
    assert exported == rolling
    assert str(folder) not in card
    assert "On 4 held-out pairs, before and after step 3:" in card
    state = load_weights(Run(stopped).checkpoint)
    read = load_model_weights(folder / "exported", {})
    assert read.state.keys() == state.keys()
    assert all(torch.equal(read.state[name], state[name]) for name in state)
    plan = stopped.read_plan()
    assert plan is not None
    trained = build_model(architecture_of(plan.model.shape), state)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder / "exported")
    before, after = log_probs(trained, profile), log_probs(plain, profile)
    assert (before - after).abs().max() <= 1e-5
    start = transformers.AutoModelForCausalLM.from_pretrained(folder / MODEL)
    assert (before - log_probs(start, profile)).abs().max() > 1e-4
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "exported")
    said = [{"role": "user", "content": "Hello"}]
    assert tokenizer.apply_chat_template(said, tokenize=False).startswith("<|im_start|>")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_checked_trained_resumed_exported_and_loaded(
    family: str, tmp_path: Path
) -> None:
    assert workers.call(partial(story, family, tmp_path), SECONDS) == 0


def new_run(profile: Path, **settings: object) -> RunDirectory:
    options = [word for pair in settings.items() for word in ("--set", "{}={}".format(*pair))]
    return workers.new_run(profile.parent / "runs", ["train", str(profile), *options])


def refused(*arguments: object) -> str:
    with pytest.raises(DpoError) as caught:
        export_run(*arguments)  # type: ignore[arg-type]
    return caught.value.message


def own_precision(folder: Path) -> None:
    profile = make(folder, "llama", torch.bfloat16)
    run = new_run(
        profile,
        **{"eval.keep_best": "true", "eval.interval": 1, "train.activation_checkpointing": "true"},
    )
    assert train(run) == 0
    for name in ("rlhf", "rlhf_best"):
        state = load_file(run.path / name / "model.safetensors")
        assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
        assert '"dtype": "bfloat16"' in (run.path / name / "config.json").read_text()
        modes = {path.stat().st_mode for path in (run.path / name).iterdir() if path.is_file()}
        assert len(modes) == 1  # weights are as readable as the files beside them
    torn = run.path / "rlhf" / f".model.safetensors.{'0' * 32}.tmp"
    torn.write_text("half")
    run.remove_leftovers()
    assert not torn.exists()

    place = folder / "exported"
    report = export_run(run, place, None, False)
    assert report.dtype == "bfloat16"
    assert report.retention is not None
    assert (report.retention.source_dtype, report.retention.start_error) == ("bfloat16", 0)
    assert report.rounding == "stochastic"
    assert report.retention.kept == pytest.approx(1, abs=0.1)
    # The weights beside the run are those of an export.
    beside = load_file(run.path / "rlhf" / "model.safetensors")
    for name, tensor in load_file(place / "model.safetensors").items():
        assert torch.equal(tensor, beside[name])
    nearest = export_run(run, folder / "nearest", None, False, (), "nearest")
    assert nearest.retention is not None
    assert nearest.retention.kept < 0.9
    assert report.size_bytes == sum(path.stat().st_size for path in place.iterdir())
    assert (
        export_run(run, place, "float32", False).dtype == "float32"
    )  # replaces an earlier export of this run
    (place / "README.md").write_text("somebody's")
    assert "this run did not write it" in refused(run, place, None, False)
    export_run(run, place, None, True)
    assert "somebody's" not in (place / "README.md").read_text()
    assert f"{profile} is a file" in refused(run, profile, None, True)
    assert not list(folder.glob(".*partial"))

    settings = {"model.weights": f"run:{run.name}", "model.tokenizer": TOKENIZER}
    second = new_run(profile, **settings)
    assert train(second) == 0
    assert Run(second).losses[0] == pytest.approx(math.log(2))
    plan = second.read_plan()
    assert plan is not None
    assert (plan.model.architecture, plan.model.weights_dtype) == ("llama", "float32")


def test_weights_are_exported_in_their_own_dtype(tmp_path: Path) -> None:
    assert workers.call(partial(own_precision, tmp_path), SECONDS) == 0


def both_layouts(family: str, folder: Path) -> None:
    """Compares with the plain loop, which pads everything."""
    profile = make(folder, family)
    losses = []
    for layout in ("packed", "padded"):
        settings = {"train.layout": layout, "data.max_seq_len": 96, "train.epochs": 2}
        run = new_run(profile, **settings, **{"train.learning_rate": 1e-3})
        assert train(run) == 0
        losses.append(torch.tensor(Run(run).losses))
        first = Run(run).steps[0]
        assert first.losses[0] == pytest.approx(math.log(2), abs=1e-15)
        assert first.metrics["kl"] == 0.0
        assert first.metrics["rewards/ties"] == 1.0
        assert "rewards/accuracies" not in first.metrics
    assert (losses[0] - losses[1]).abs().max() < 1e-3 * (losses[1] - math.log(2)).abs().max()


@pytest.mark.parametrize("family", ["qwen2", "mistral-window", "gemma2"])
def test_the_layouts_train_alike(family: str, tmp_path: Path) -> None:
    assert workers.call(partial(both_layouts, family, tmp_path), SECONDS) == 0


def balanced(folder: Path) -> None:
    (folder / "known").mkdir()
    run = new_run(make(folder / "known", "qwen3-moe"), **{"train.router_aux_loss_coef": 0.01})
    assert train(run) == 0
    assert all(step.metrics["aux_loss"] > 1 for step in Run(run).steps)
    (folder / "unknown").mkdir()
    run = new_run(make(folder / "unknown", "gpt-oss"), **{"train.router_aux_loss_coef": 0.01})
    assert train(run) == 1
    (failed,) = [event for event in Run(run).events if isinstance(event, Failed)]
    assert "no aux_loss is defined for gpt_oss" in failed.message


def test_aux_loss_of_known_routers(tmp_path: Path) -> None:
    assert workers.call(partial(balanced, tmp_path), SECONDS) == 0


def afterwards(family: str, folder: Path) -> None:
    """Compare `dpo eval`, `dpo merge` and `dpo chat` with plain transformers."""
    run = new_run(make(folder, family))
    assert train(run) == 0
    export_run(run, folder / "exported", None, False)
    trained, exported, start = (
        find_model(str(path), run.path.parent)
        for path in (run.path, folder / "exported", folder / MODEL)
    )
    *_, told = (event for event in Run(run).events if isinstance(event, Evaluated))
    for named in (trained, exported):
        profile = run.profile_path if named is exported else None
        eval_config = find_eval_config([named], runs_root=run.path.parent, profile_path=profile)
        assert eval_config is not None
        [model] = evaluate_models(eval_config, [open_model(named, {})], lambda *_: None).models
        assert model.groups["all"] == pytest.approx(told.groups["all"], abs=1e-5)

    models = [open_model(named, {}) for named in (trained, start)]
    merge_models(*models, 0.25, folder / "merged", None, start.tokenizer())
    merged = load_file(folder / "merged/model.safetensors")
    for name, tensor in models[0].model_weights.state.items():
        expected = 0.75 * tensor.double() + 0.25 * models[1].model_weights.state[name].double()
        assert torch.equal(merged[name], expected.float()), name

    [speaker] = open_responders(exported, None, Decoding(12), runs_root=run.path.parent)
    answer = speaker.answer([{"role": "user", "content": "Hello"}], 0)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder / "exported")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "exported")
    prompt = ChatTokenizer(TOKENIZER).prompt([{"role": "user", "content": "Hello"}]).unsqueeze(0)
    said = plain.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :]
    assert "".join(answer) == tokenizer.decode(said, skip_special_tokens=True)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3-moe"])
def test_result_can_be_evaluated_merged_and_chatted_with(family: str, tmp_path: Path) -> None:
    assert workers.call(partial(afterwards, family, tmp_path), SECONDS) == 0

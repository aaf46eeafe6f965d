"""Models of other families than MiniMind's, from their directory to a directory that others load.

Each story runs in a process like a worker's, whose imports are done.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.encoding import encode_pairs
from dpo_cli.data.pairs import read_pairs
from dpo_cli.doctor.examination import examine
from dpo_cli.findings import Level
from dpo_cli.models.architecture import architecture_of
from dpo_cli.models.zoo import build_model, load_checkpoint
from dpo_cli.run.events import Alert, Completed, Resumed, Sampled, StepDone, history
from dpo_cli.run.store import RunDirectory
from dpo_cli.training.export import export_run
from dpo_cli.training.session import train_run
from dpo_cli.training.state import load_weights
from tests.cli import REPOSITORY, Run
from tests.families import FAMILIES, build
from tests.faults import workers
from tests.models.test_support import UNSUPPORTED

TOKENIZER = REPOSITORY / "demo/tokenizer"
VOCABULARY = 776
"""More rows than the tokenizer has entries, as with many published models."""
PROFILE = """\
[model]
checkpoint = "./model"
[data]
data_path = "pairs.jsonl"
[dpo]
reduction = "sum"
[train]
device = "cpu"
epochs = 1
learning_rate = 1e-4
save_interval = 1
save_min_seconds = 0
[eval]
fraction = 0.25
samples = 1
"""


class Until:
    """Wants a run to stop when it has made a number of optimizer steps."""

    def __init__(self, run: RunDirectory, steps: int | None) -> None:
        self._run, self._steps = run, steps

    @property
    def stop(self) -> str | None:
        done = sum(isinstance(event, StepDone) for event in history(self._run.events_path))
        return "interrupted" if self._steps is not None and done >= self._steps else None


def make(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Path:
    """A profile, and beside it a model's directory in parts, with a tokenizer, and a few pairs."""
    model = build(family, VOCABULARY).to(dtype)
    model.save_pretrained(folder / "model", max_shard_size="80KB")
    for path in TOKENIZER.iterdir():
        shutil.copy(path, folder / "model")
    rows = (REPOSITORY / "demo/pairs.jsonl").read_text().splitlines(keepends=True)
    (folder / "pairs.jsonl").write_text("".join(rows[:16]))
    (folder / "my.toml").write_text(PROFILE)
    return folder / "my.toml"


def train(run: RunDirectory, steps: int | None = None) -> int:
    """One life of a worker, in this process."""
    with run.locked():
        return int(train_run(run.path, Until(run, steps)))


def log_probs(model: transformers.PreTrainedModel, profile: Path) -> Tensor:
    """Of whole conversations, by the attention that every model has."""
    pairs, _ = encode_pairs(
        list(read_pairs(profile.parent / "pairs.jsonl"))[:3],
        ChatTokenizer(TOKENIZER),
        max_seq_len=64,
        empty_think_ratio=0.0,
        seed=0,
    )
    model.eval().set_attn_implementation("eager")
    model.config._attn_implementation = "eager"  # where the code has no other
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
    diagnosis = examine(profile, [], folder / "runs", None, lambda *_: None)
    problems = {finding.code for finding in diagnosis.findings if finding.level is Level.ERROR}
    assert problems == {"tokenizer-mismatch"}  # these weights know nothing
    told = {finding.code: finding for finding in diagnosis.findings}
    assert told["gradients"].level is Level.OK
    assert ("not-packed" in told) == (family in UNSUPPORTED)

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
    assert report.survival is not None
    assert report.survival.kept == 1
    exported = contents(folder / "exported")
    assert exported == rolling
    state = load_weights(Run(stopped).generation)
    read = load_checkpoint(folder / "exported", {})
    assert read.state.keys() == state.keys()
    assert all(torch.equal(read.state[name], state[name]) for name in state)
    plan = stopped.read_plan()
    assert plan is not None
    trained = build_model(architecture_of(plan["model"]["shape"]), state)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder / "exported")
    before, after = log_probs(trained, profile), log_probs(plain, profile)
    assert (before - after).abs().max() <= 1e-5
    start = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    assert (before - log_probs(start, profile)).abs().max() > 1e-4
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "exported")
    said = [{"role": "user", "content": "Hello"}]
    assert tokenizer.apply_chat_template(said, tokenize=False).startswith("<|im_start|>")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_checked_trained_resumed_exported_and_loaded(
    family: str, tmp_path: Path
) -> None:
    assert workers.call(partial(story, family, tmp_path)) == 0

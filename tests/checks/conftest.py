"""Fixtures for `dpo check`: tiny weights, trained for a second on a few pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dpo_cli.checks import resources
from dpo_cli.checks.check import run_checks
from dpo_cli.compute.device import resolve
from dpo_cli.data.batching import make_batch
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.encoding import encode_pairs
from dpo_cli.data.pairs import read_pairs
from dpo_cli.findings import Diagnosis, Finding
from dpo_cli.models.loading import build_model, to_disk_names
from dpo_cli.models.minimind import MiniMind
from dpo_cli.models.saving import write_weights
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.profile.load import load_profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.training.inputs import RunInputs, read_inputs

TOKENIZER = Path(__file__).resolve().parents[2] / "demo/tokenizer"
SUBJECTS = ("tea", "rain", "a lamp", "the sea", "bread", "a train", "wool", "the moon")
PROFILE = f"""\
[model]
weights = "./full_sft_32.pth"
tokenizer = "{TOKENIZER}"
[data]
data_path = "pairs.jsonl"
max_seq_len = 128
[dpo]
beta = 25.0
[train]
device = "cpu"
learning_rate = 1e-4
[eval]
fraction = 0.25
"""

Examine = Callable[..., Diagnosis]


def row(question: str, chosen: str, rejected: str) -> str:
    """Return one line of a file of pairs."""

    def side(answer: str) -> list[dict[str, str]]:
        messages = [("user", question), ("assistant", answer)]
        return [{"role": role, "content": content} for role, content in messages]

    return json.dumps({"chosen": side(chosen), "rejected": side(rejected)}) + "\n"


ROWS = [
    row(f"Tell me about {subject}.", f"I like {subject} very much.", f"No idea what {subject} is.")
    for subject in SUBJECTS
]


def architecture(version: int, experts: int = 0) -> MiniMind:
    """Return a tiny model of either version."""
    return MiniMind(
        version=2 if version == 2 else 3,
        hidden_size=32,
        num_hidden_layers=2,
        vocab_size=ChatTokenizer(TOKENIZER).vocab_size,
        intermediate_size=64,
        num_experts=experts,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=4,
        num_experts_per_tok=2 if version == 2 else 1,
        norm_topk_prob=True,
        rope_theta=1e6,
        rms_norm_eps=1e-5,
    )


def random_scorer(shape: MiniMind) -> ResponseScorer:
    """Return random weights."""

    generator = torch.Generator().manual_seed(1)
    state = {
        name: torch.ones(size) if len(size) == 1 else 0.1 * torch.randn(size, generator=generator)
        for name, size in shape.expected_shapes().items()
    }
    return ResponseScorer(build_model(shape, shape.to_hf_names(state)))


def save(path: Path, scorer: ResponseScorer, shape: MiniMind) -> None:
    """Write the weights as MiniMind would."""
    write_weights(path, to_disk_names(scorer.model, scorer.model.state_dict()), shape, "float16")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return weights to which the responses of `ROWS` are likely."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "pairs.jsonl").write_text("".join(ROWS))
    pairs, _ = encode_pairs(
        read_pairs(folder / "pairs.jsonl"),
        ChatTokenizer(TOKENIZER),
        max_seq_len=128,
        empty_think_ratio=0.0,
        seed=0,
    )
    shape = architecture(2)
    scorer = random_scorer(shape)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=1e-2)
    batch = make_batch(pairs, "packed", max_seq_len=128)
    for _ in range(25):
        scores = scorer(batch)
        optimizer.zero_grad()
        (-scores.token_logps[scores.mask].mean()).backward()
        optimizer.step()
    save(folder / "full_sft_32.pth", scorer, shape)
    return folder / "full_sft_32.pth"


@pytest.fixture
def bench(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with a profile and all its files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DPO_RUNS_DIR", raising=False)
    (tmp_path / "my.toml").write_text(PROFILE)
    (tmp_path / "pairs.jsonl").write_text("".join(ROWS))
    (tmp_path / "full_sft_32.pth").write_bytes(weights.read_bytes())
    return tmp_path


@pytest.fixture
def examined(bench: Path, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Check `my.toml` with overrides, as on a machine without other processes."""
    monkeypatch.setattr(resources, "contention", lambda *_: None)

    def run(*settings: str, pair: str | None = None) -> Diagnosis:
        return run_checks(bench / "my.toml", settings, bench / "runs", pair, lambda *_: None)

    return run


def of(diagnosis: Diagnosis, code: str) -> Finding:
    """Return the only finding with a code."""
    [finding] = [finding for finding in diagnosis.findings if finding.code == code]
    return finding


def prepared_with(bench: Path, *settings: str) -> RunInputs:
    profile = load_profile(bench / "my.toml", settings).profile
    run = RunDirectory(bench / "runs/none")
    return read_inputs(profile, resolve("cpu", "float32"), run, lambda *_: None)

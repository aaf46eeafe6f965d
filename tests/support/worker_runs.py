"""Small runs of the golden models, trained in this process."""

from __future__ import annotations

from pathlib import Path

from dpo_cli.errors import ExitCode
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.resolved import to_toml
from dpo_cli.run.directory import RunDirectory
from dpo_cli.training import session
from tests.support.cli import Run

MODELS = {
    "dense": ("seed/full_sft_64.pth", "minimind2"),
    "moe": ("seed/full_sft_64_moe.pth", "minimind2"),
    "minimind3": ("head/full_sft_64.pth", "minimind3"),
    "minimind3-moe": ("head/full_sft_64_moe.pth", "minimind3"),
}


class NeverStopped:
    stop: str | None = None


def train(shared: Path, root: Path, profile: str, dtype: str, **changes: str) -> Run:
    model_weights, tokenizer = MODELS[profile]
    keys = {
        "model.weights": shared / "golden/train" / model_weights,
        "model.hidden_size": 64,
        "model.num_hidden_layers": 2,
        "model.tokenizer": shared / "tokenizer" / tokenizer,
        "data.data_path": shared / "golden/data/train27.jsonl",
        "data.max_seq_len": 128,
        "train.device": "cpu",
        "train.dtype": dtype,
        "train.epochs": 1,
        "train.learning_rate": 1e-4,
        **changes,
    }
    return train_profile(root, dtype, profile, **keys)


def train_profile(root: Path, name: str, profile: str | Path, **settings: object) -> Run:
    """Train with a shipped profile or a file, and settings by dotted key."""
    words = [f"{key}={value}" for key, value in settings.items()]
    loaded = load_profile(Path(profile), words)
    directory = RunDirectory.create(root, name, to_toml(loaded.profile))
    assert session.train_run(directory.path, NeverStopped()) is ExitCode.DONE
    return Run(directory)

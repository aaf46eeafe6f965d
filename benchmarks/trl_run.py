"""Record the losses of ten steps of TRL's DPOTrainer, for the tests.

    .venv-bench/bin/python benchmarks/trl_run.py ../shared

Writes tests/commands/trl_losses.json. Model, pairs and settings come from
tests/support/trl_run.py; the run uses float32 and one CPU thread.
"""

from __future__ import annotations

import datetime
import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
import trl
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.support.trl_run import MODEL, SETTINGS, STEPS, write_pairs  # noqa: E402


def main() -> None:
    """Train, and write the losses with date and versions."""
    shared = Path(sys.argv[1])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder, "pairs.jsonl")
        write_pairs(shared, pairs)
        recorded = {
            "date": datetime.date.today().isoformat(),
            "trl": trl.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "losses": train(shared / MODEL, pairs, folder),
        }
    path = ROOT / "tests/commands/trl_losses.json"
    path.write_text(json.dumps(recorded, indent=1) + "\n")


def train(model: Path, pairs: Path, folder: str) -> list[float]:
    """Train one epoch, and return the loss of each step."""
    config = DPOConfig(
        output_dir=folder, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        logging_steps=1, gradient_checkpointing=False, **SETTINGS,
    )  # fmt: skip
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
        args=config,
        train_dataset=load_dataset("json", data_files=str(pairs), split="train", cache_dir=folder),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    losses: list[float] = []
    compute = trainer.compute_loss

    def recorded(*arguments: object, **options: object) -> object:
        result = compute(*arguments, **options)
        losses.append(float(result[0] if isinstance(result, tuple) else result))
        return result

    trainer.compute_loss = recorded  # the logs of the trainer have rounded losses
    trainer.train()
    assert len(losses) == STEPS
    return losses


if __name__ == "__main__":
    main()

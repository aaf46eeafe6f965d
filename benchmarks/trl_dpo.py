"""Time one epoch of TRL's DPOTrainer, with the interpreter of an environment that has TRL.

    python benchmarks/trl_dpo.py MODEL PAIRS SETTINGS

MODEL is a Hugging Face directory with its tokenizer, PAIRS a JSONL file of conversations, SETTINGS
a JSON object of arguments of `DPOConfig`. `benchmarks/speed.py` and `gpu.py` run this script.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time

import torch
import trl
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


class StepTimes(TrainerCallback):
    """Callback that records the end time of each optimizer step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def main() -> None:
    """Train, and print times, peak memory and loss as JSON."""
    model, pairs, settings = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        rows = load_dataset("json", data_files=pairs, split="train", cache_dir=folder)
        config = DPOConfig(
            output_dir=folder,
            num_train_epochs=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            **json.loads(settings),
        )
        times = StepTimes()
        trainer = DPOTrainer(
            AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
            args=config,
            train_dataset=rows.select_columns(["chosen", "rejected"]),
            processing_class=AutoTokenizer.from_pretrained(model),
            callbacks=[times],
        )
        began = time.perf_counter()
        output = trainer.train()
        seconds = time.perf_counter() - began
    print(
        json.dumps(
            {
                "seconds": seconds,
                "step_seconds": [
                    end - start
                    for start, end in zip([began, *times.ends], times.ends, strict=False)
                ],
                "pairs": len(rows),
                "trl": trl.__version__,
                "peak_bytes": torch.cuda.max_memory_allocated()
                or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "losses": [output.training_loss],
            }
        )
    )


if __name__ == "__main__":
    main()

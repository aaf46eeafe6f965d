"""Record losses and log-probs of TRL on pairs with several turns, for the tests.

    .venv-bench/bin/python benchmarks/trl_logps.py POLICY REFERENCE PAIRS

Writes tests/inference/trl_logps.json. POLICY and REFERENCE are Hugging Face directories, PAIRS a
JSONL file with `prompt`, `chosen` and `rejected`. `DPOTrainer` lacks SimPO, so the script computes
its loss from the log-probs by equation 6 of the paper (beta 2.5, gamma 1.25).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
import trl
from datasets import load_dataset
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

LOSSES = ("sigmoid", "sigmoid_norm", "ipo", "apo_zero", "bco_pair")
BETA, SIMPO_BETA, SIMPO_GAMMA = 0.1, 2.5, 1.25


def main() -> None:
    """Evaluate with each loss, and write the results."""
    policy, reference, pairs = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        rows = load_dataset("json", data_files=pairs, split="train", cache_dir=folder)
        losses = {}
        for loss in LOSSES:
            trainer = make_trainer(policy, reference, rows, loss, folder)
            losses[loss] = trainer.evaluate()["eval_loss"]
        logps = score(trainer, policy)
    chosen, rejected = (
        torch.tensor(logps[side], dtype=torch.float64) for side in ("chosen", "rejected")
    )
    tokens = [torch.tensor(logps[f"{side}_tokens"]) for side in ("chosen", "rejected")]
    margin = SIMPO_BETA * (chosen / tokens[0] - rejected / tokens[1]) - SIMPO_GAMMA
    losses["simpo"] = float(-logsigmoid(margin).mean())
    recorded = {"trl": trl.__version__, "losses": losses, "logps": logps}
    path = Path(__file__).resolve().parents[1] / "tests/inference/trl_logps.json"
    path.write_text(json.dumps(recorded, indent=1) + "\n")


def make_trainer(policy: str, reference: str, rows: object, loss: str, folder: str) -> DPOTrainer:
    """Build a trainer that evaluates all pairs in one batch, in float32."""
    config = DPOConfig(
        output_dir=folder, loss_type=[loss], beta=BETA, max_length=None, report_to="none",
        use_cpu=True, bf16=False, per_device_eval_batch_size=64, disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    models = [
        AutoModelForCausalLM.from_pretrained(path, dtype="float32") for path in (policy, reference)
    ]
    return DPOTrainer(
        models[0], ref_model=models[1], args=config, train_dataset=rows, eval_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(policy),
    )  # fmt: skip


def score(trainer: DPOTrainer, policy: str) -> dict[str, list[float]]:
    """Sum the policy's log-probs over the tokens that TRL's collator marks."""
    model = AutoModelForCausalLM.from_pretrained(policy, dtype="float32").eval()
    batch = next(iter(trainer.get_eval_dataloader()))
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logps = logits[:, :-1].double().log_softmax(-1)
    logps = logps.gather(2, batch["input_ids"][:, 1:, None]).squeeze(2)
    mask = batch["completion_mask"][:, 1:]
    sums, tokens = (logps * mask).sum(1), mask.sum(1)
    half = len(sums) // 2
    return {
        "chosen": sums[:half].tolist(),
        "rejected": sums[half:].tolist(),
        "chosen_tokens": tokens[:half].tolist(),
        "rejected_tokens": tokens[half:].tolist(),
    }


if __name__ == "__main__":
    main()

"""Compare the forecast of memory with the peak of a real run on a CPU.

    python benchmarks/memory.py --json FILE

Each case trains a MiniMind of 768 x `--layers` (16 have 104 M parameters) with random weights for
two steps through `dpo train`, and compares the peak of its process with the total that `dpo check
--quick` has computed from the plan. Cache and files are in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.models.loading import build_model
from dpo_cli.models.minimind import MiniMind

DEMO = Path(__file__).resolve().parents[1] / "demo"
CASES: dict[str, list[str]] = {
    "all weights, adamw": [],
    "rank 16": ["lora.rank=16"],
    "rank 16, int8": ["lora.rank=16", "model.quantization=int8"],
    "rank 16, nf4": ["lora.rank=16", "model.quantization=nf4"],
}


def write_weights(path: Path, layers: int) -> int:
    """Random float16 weights, 768 wide; the number of parameters."""
    architecture = MiniMind(
        version=2,
        hidden_size=768,
        num_hidden_layers=layers,
        vocab_size=ChatTokenizer(DEMO / "tokenizer").vocab_size,
        intermediate_size=2048,
        num_experts=0,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=96,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        rope_theta=1e6,
        rms_norm_eps=1e-5,
    )
    torch.manual_seed(1)
    config = architecture.config()
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    state = {
        name: tensor.half()
        for name, tensor in model.state_dict().items()
        if name not in model.all_tied_weights_keys
    }
    build_model(architecture, state)  # the names fit
    torch.save(architecture.to_native_names(state), path)
    return sum(tensor.numel() for tensor in state.values())


def measure(folder: Path, settings: list[str]) -> dict[str, Any]:
    """Forecast and peak of one case, in bytes."""
    words = [
        *(f"model.weights={folder / 'full_sft_768.pth'}", f"model.tokenizer={DEMO / 'tokenizer'}"),
        *(f"data.data_path={folder / 'pairs.jsonl'}", "data.max_seq_len=128", "train.epochs=1"),
        *("train.batch_size=4", "train.device=cpu", "train.threads=1", *settings),
    ]
    options = [word for setting in words for word in ("--set", setting)]
    command = [sys.executable, "-m", "dpo_cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DPO_CACHE_DIR": str(folder / "cache")}
    checked = subprocess.run(
        [*command, "check", "dense", "--quick", "--json", *options],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
    )
    forecast = json.loads(checked.stdout)["facts"]["memory_need"]
    trained = subprocess.Popen(
        [*command, "train", "dense", "--plain", "--quiet", *options], env=environment, cwd=folder
    )
    _, status, usage = os.wait4(trained.pid, 0)
    assert status == 0
    return {"forecast": forecast, "peak": usage.ru_maxrss * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = (DEMO / "pairs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:8]
        (folder / "pairs.jsonl").write_text("".join(rows), encoding="utf-8")
        results["parameters"] = write_weights(folder / "full_sft_768.pth", options.layers)
        for case, settings in CASES.items():
            found = results[case] = measure(folder, settings)
            forecast, peak = found["forecast"]["total"], found["peak"]
            error = forecast / peak - 1
            print(
                f"{case}: forecast {forecast / 1e9:.2f} GB, peak {peak / 1e9:.2f} GB, {error:+.1%}"
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

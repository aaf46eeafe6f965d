"""Compare log-probs of exported MiniMind models in transformers 4 and in this version.

    python -m venv /tmp/older
    /tmp/older/bin/pip install torch==2.13.0 transformers==4.57.6
    python benchmarks/older_transformers.py --python /tmp/older/bin/python \
        --json benchmarks/older_transformers.json

Exports the demo's weights and a tiny model of each architecture as Hugging Face directories, and
scores 900 tokens with both versions. `tests/export/test_older_transformers.py` compares this
version with the recorded numbers of the older one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
TOKENS = 900
RECORDED_POSITIONS = (0, 99, 299, 499, 699, 898)
SHAPES: dict[str, dict[str, Any]] = {
    "minimind2": {"version": 2, "num_experts": 0},
    "minimind2-moe": {"version": 2, "num_experts": 4, "num_experts_per_tok": 2},
    "minimind3": {"version": 3, "num_experts": 0},
    "minimind3-moe": {"version": 3, "num_experts": 4, "num_experts_per_tok": 1},
}


def write_exports(folder: Path) -> Iterator[tuple[str, Path]]:
    """Export every model to a directory in `folder`, in float32."""
    from dpo_cli.models.loading import load_model_weights
    from dpo_cli.models.saving import write_folder
    from dpo_cli.models.spec import as_huggingface

    demo = load_model_weights(ROOT / "demo/full_sft_128.pth", {})
    models = {"demo": (demo.architecture, demo.state)}
    for name, shape in SHAPES.items():
        architecture = _architecture(**shape)
        models[name] = architecture, architecture.to_hf_names(_formula_state(architecture))
    for name, (architecture, state) in models.items():
        written = as_huggingface(architecture, {"bos_token_id": 1, "eos_token_id": 2})
        write_folder(folder / name, state, written, "float32", ROOT / "demo/tokenizer")
        yield name, folder / name


def _architecture(version: Any, num_experts: int, num_experts_per_tok: int = 1) -> Any:
    from dpo_cli.models.minimind import MiniMind

    return MiniMind(
        version=version,
        hidden_size=32,
        num_hidden_layers=2,
        vocab_size=97,
        intermediate_size=48,
        num_experts=num_experts,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts_per_tok=num_experts_per_tok,
        norm_topk_prob=True,
        rope_theta=1e6,
        rms_norm_eps=1e-5 if version == 2 else 1e-6,
    )


def _formula_state(architecture: Any) -> dict[str, torch.Tensor]:
    """Return weights by a formula instead of a generator, equal in every version of torch.

    The weights are large enough for a wrong rotary base to change the log-probs clearly.
    """
    state = {}
    for number, (name, shape) in enumerate(architecture.expected_shapes().items()):
        index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        waves = torch.sin(index * 12.9898 + number * 78.233) * 43758.5453
        values = (waves - waves.floor() - 0.5).reshape(shape)
        state[name] = (1 + 0.2 * values if len(shape) == 1 else values).float()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state


def token_logps(path: Path) -> list[float]:
    """Score 900 tokens with plain transformers; return the log-prob of each but the first."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = (torch.arange(TOKENS) * 7 + torch.arange(TOKENS) // 13) % model.config.vocab_size
    with torch.no_grad():
        logits = model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0, :-1]
    logps = logits.double().log_softmax(-1)
    values: list[float] = logps[torch.arange(TOKENS - 1), ids[1:]].tolist()
    return values


def summary(logps: list[float]) -> dict[str, Any]:
    """Return the mean and the log-probs at a few positions."""
    return {
        "mean": sum(logps) / len(logps),
        "logps": [logps[position] for position in RECORDED_POSITIONS],
    }


def main() -> None:
    """Export, score with both versions, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", help="interpreter with the older transformers")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument(
        "--score", type=Path, nargs="*", help="only print the log-probs of these directories"
    )
    arguments = parser.parse_args()
    if arguments.score:  # in the older environment, without dpo_cli
        scores = {path.name: token_logps(path) for path in arguments.score}
        print(json.dumps({"version": transformers.__version__, "scores": scores}))
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = dict(write_exports(Path(folder)))
        ours = {name: token_logps(path) for name, path in paths.items()}
        command = [arguments.python, __file__, "--score", *map(str, paths.values())]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    recorded = json.loads(done.stdout.splitlines()[-1])
    models = {}
    for name, logps in ours.items():
        older = recorded["scores"][name]
        difference = max(abs(one - other) for one, other in zip(logps, older, strict=True))
        models[name] = {**summary(older), "max_difference": difference}
        print(f"{name:14} mean {models[name]['mean']:.6f}, largest difference {difference:.2e}")
    result = {
        "date": datetime.date.today().isoformat(),
        "transformers": transformers.__version__,
        "older": recorded["version"],
        "positions": RECORDED_POSITIONS,
        "models": models,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

"""Speed of `dpo`, the plain loop and TRL on one GPU, on fixed pairs and three models.

    make bench-gpu
    python benchmarks/gpu.py --trl .venv-bench/bin/python      # also TRL, by this interpreter
    python benchmarks/gpu.py --device cpu --quick              # tiny sizes, in minutes

The script needs only this repository: the weights are random, and the pairs are sentences of the
demo, joined to the lengths of real pairs. It writes `benchmarks/gpu/NAME.json` and `NAME.md`, where
NAME is the name of the GPU. Each part (a model and a variant) runs in its own process, and its
result is saved at once; a second call runs only the missing parts. A call takes ten minutes at
most. A part is one warm-up step, a few timed steps, and one step under torch's profiler:

- pairs/s: speed of the timed steps, without start-up. "cold" computes the reference's log-probs in
  each step, as the first epoch of a run does; "warm" reads them from memory.
- MFU: the FLOP/s of the fewest matrix products that give this gradient (each token once, the head
  at response positions), divided by the FLOP/s of one large product on this device in this dtype.
- launches: kernels of the profiled step; on a CPU, operations of torch.
- busy: time of these kernels divided by the time of a timed step.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from inputs import add_trl
from steps import (
    forward_gflop,
    make_step,
    peak_bytes,
    prepare,
    prepare_trl,
    rate_of_product,
    trl_settings,
)

DEMO = Path(__file__).resolve().parents[1] / "demo"
RESULTS = Path(__file__).with_name("gpu")
SECONDS = 600.0
"""Time limit of one call."""
_MIN_SECONDS = 20.0
"""A part starts only if this much time is left."""

MINIMIND = {
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 6400,
}
QWEN = {"num_key_value_heads": 8, "vocab_size": 151_936, "head_dim": 128}
MODELS: dict[str, dict[str, Any]] = {
    "MiniMind 26M": {
        **MINIMIND,
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "intermediate_size": 1408,
    },
    "MiniMind 104M": {
        **MINIMIND,
        "hidden_size": 768,
        "num_hidden_layers": 16,
        "intermediate_size": 2048,
    },
    "Qwen3 0.6B": {
        **QWEN,
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
    },
}
TINY_MODELS: dict[str, dict[str, Any]] = {
    "MiniMind, tiny": {
        **MINIMIND,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 192,
    },
    "Qwen3, tiny": {
        "num_key_value_heads": 2,
        "vocab_size": 8192,
        "head_dim": 16,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 192,
        "num_attention_heads": 4,
    },
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain loop": {"script": True},
    "TRL": {"trl": True},
    "dpo, cold": {"cold": True},
    "dpo, warm": {},
}


def main() -> None:
    """Run the command line."""
    options = _options()
    if options.part:
        print(json.dumps(run_part(options, *options.part.split("/"))))
        return
    device = _describe(options.device)
    name = device["name"] + (" quick" if options.quick else "")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json")
    report = _load_report(path, device)
    with tempfile.TemporaryDirectory(prefix="dpo-bench-gpu-") as folder:
        left = run_missing(options, report, path, Path(folder))
    table = as_table(report)
    path.with_suffix(".md").write_text(table, encoding="utf-8")
    print(table)
    print(f"wrote {path} and {path.with_suffix('.md')}")
    if left:
        print(f"time is over; {left} parts are missing. Run the command again to add them.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", default="auto", help="same values as train.device (default: the GPU)"
    )
    parser.add_argument("--quick", action="store_true", help="use tiny sizes, to try the script")
    add_trl(parser)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trl is None and _has_trl(sys.executable):
        options.trl = Path(sys.executable)
    options.batch_size, options.accumulation_steps = (2, 2) if options.quick else (4, 8)
    options.timed_steps = 2 if options.quick else 3
    options.max_seq_len = 256 if options.quick else 1024
    steps = options.timed_steps + 2
    options.pairs = steps * options.batch_size * options.accumulation_steps
    return options


def _load_report(path: Path, device: dict[str, Any]) -> dict[str, Any]:
    """Load the report, or start a new one if the device or a version differs."""
    if path.exists():
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if report["device"] == device:
            return report
    return {"device": device, "parts": {}}


def run_missing(
    options: argparse.Namespace, report: dict[str, Any], path: Path, folder: Path
) -> int:
    """Run the parts without a result until the time is over; return the number still missing."""
    deadline = time.monotonic() + SECONDS
    models = TINY_MODELS if options.quick else MODELS
    wanted = [
        (model, variant)
        for model, variant in itertools.product(models, VARIANTS)
        if f"{model}/{variant}" not in report["parts"]
        and (options.trl or not VARIANTS[variant].get("trl"))
    ]
    for done, (model, variant) in enumerate(wanted):
        seconds = deadline - time.monotonic()
        if seconds < _MIN_SECONDS:
            return len(wanted) - done
        command = [sys.executable, *sys.argv, "--part", f"{model}/{variant}"]
        command += ["--folder", str(folder)]
        print(f"{model}, {variant} ...", file=sys.stderr)
        result = _run_json(command, seconds)
        if result is None and seconds < SECONDS / 2:
            return len(wanted) - done  # the next call has more time for this part
        result = result or {"error": f"no result in {seconds:.0f} s"}
        result["date"] = datetime.date.today().isoformat()
        report["parts"][f"{model}/{variant}"] = result
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def _run_json(command: list[str], seconds: float) -> dict[str, Any] | None:
    """Run a part; return the JSON of the last line of its output.

    Returns {"error": LINE} with the last line of stderr if the part fails, None after `seconds`.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"error": lines[-1][:300]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_part(options: argparse.Namespace, model: str, variant: str) -> dict[str, Any]:
    """Measure one model and one variant in this process; TRL runs under its own interpreter."""
    settings = {**VARIANTS[variant], "accumulation_steps": options.accumulation_steps}
    options.model_weights = options.tokenizer = options.folder / re.sub(r"\W+", "-", model)
    if not options.model_weights.exists():
        write_model((TINY_MODELS if options.quick else MODELS)[model], options.model_weights)
    options.data = options.folder / "all-pairs.jsonl"
    if not options.data.exists():
        write_pairs(options.data, 2 * options.pairs, 0.2 if options.quick else 1.0)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        if settings.get("trl"):
            return _run_trl(options, Path(scratch))
        os.environ["DPO_CACHE_DIR"] = scratch
        inputs = prepare(options, settings, Path(scratch))
        return _measure(inputs, settings)


def _measure(inputs: Any, settings: dict[str, Any]) -> dict[str, Any]:
    warm_up, *timed, profiled = inputs.order.global_batches()
    take_step = make_step(inputs, settings)
    losses = take_step(warm_up)
    seconds = []
    for window in timed:
        inputs.device.synchronize()
        began = time.perf_counter()
        losses += take_step(window)
        inputs.device.synchronize()
        seconds.append(time.perf_counter() - began)
    peak = peak_bytes(inputs.device)
    launches, kernel_seconds = _profile(inputs.device, lambda: take_step(profiled))
    pairs = sum(len(batch) for window in timed for batch in window.micro_batches)
    scores_reference = settings.get("script") or settings.get("cold")
    config = inputs.weights.architecture.config(0.0)
    forwards = 4 if scores_reference else 3  # a backward pass has twice the products of a forward
    gflop = forwards * forward_gflop(config, inputs.pairs) / len(inputs.pairs)
    return {
        "dtype": inputs.device.dtype_name,
        "pairs": pairs,
        "step_seconds": [round(each, 5) for each in seconds],
        "gflop_a_pair": round(gflop, 2),
        "gflops_a_second_of_product": round(rate_of_product(inputs.device)),
        "peak_bytes": peak,
        "launches": launches,
        "kernel_seconds": kernel_seconds and round(kernel_seconds, 5),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def _profile(device: Any, step: Any) -> tuple[int, float | None]:
    """Return number and seconds of the kernels of a step; on a CPU, torch operations and None."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile, supported_activities

    wanted = {ProfilerActivity.CPU} if device.type == "cpu" else set(supported_activities())
    with profile(activities=wanted) as profiler:
        step()
        device.synchronize()
    events = profiler.events() or []
    kernels = [event for event in events if event.device_type != DeviceType.CPU]
    if device.type == "cpu":
        return sum(event.name.startswith("aten::") for event in events), None
    return len(kernels), sum(event.device_time_total for event in kernels) / 1e6


def _run_trl(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Time an epoch of TRL's trainer without the first and last step, as in the other variants."""
    import torch

    from dpo_cli.compute.device import resolve

    dtype = resolve(options.device, "auto").dtype
    settings = {
        **trl_settings(options, is_on_cpu=options.device == "cpu"),
        "gradient_accumulation_steps": options.accumulation_steps,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": options.device != "cpu",
    }
    command = [*prepare_trl(options, scratch), json.dumps(settings)]
    found = _run_json(command, SECONDS)
    assert found is not None, "TRL took too long"
    if "error" in found:
        raise SystemExit(found["error"])
    seconds = found["step_seconds"][1:-1]
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "pairs": len(seconds) * options.batch_size * options.accumulation_steps,
        "step_seconds": [round(each, 5) for each in seconds],
        "peak_bytes": found["peak_bytes"],
        "trl": found["trl"],
        "last_loss": found["losses"][-1],
    }


def write_model(shape: dict[str, Any], folder: Path) -> None:
    """Write a model with random weights and the demo's tokenizer."""
    import torch
    import transformers

    is_qwen = "head_dim" in shape
    kind = transformers.Qwen3Config if is_qwen else transformers.LlamaConfig
    config = kind(**shape, tie_word_embeddings=True, max_position_embeddings=32_768, rope_theta=1e6)
    torch.manual_seed(0)
    unfinished = folder.with_name(folder.name + ".unfinished")
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(unfinished)
    for file in (DEMO / "tokenizer").iterdir():
        shutil.copyfile(file, unfinished / file.name)
    unfinished.rename(folder)


def write_pairs(path: Path, count: int, scale: float) -> None:
    """Write pairs of the demo's sentences, about 860 tokens times `scale` each, like real pairs."""
    rows = [json.loads(line) for line in (DEMO / "pairs.jsonl").open(encoding="utf-8")]
    prompts = [row["chosen"][0]["content"] for row in rows]
    responses = [row[side][1]["content"] for row in rows for side in ("chosen", "rejected")]
    draw = random.Random(0)

    def text(sentences: list[str], low: int, high: int) -> str:
        number = max(1, round(scale * draw.randint(low, high)))
        return " ".join(draw.choice(sentences) for _ in range(number))

    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            prompt = {"role": "user", "content": text(prompts, 1, 8)}
            row = {
                side: [prompt, {"role": "assistant", "content": text(responses, 6, 34)}]
                for side in ("chosen", "rejected")
            }
            file.write(json.dumps(row) + "\n")


def _describe(device: str) -> dict[str, Any]:
    """Return the device and the versions on which the figures depend."""
    import torch
    import transformers

    from dpo_cli.compute.device import resolve

    found = resolve(device, "auto")
    name = found.name
    if found.type == "cpu":
        name = f"CPU {platform.machine()}, {os.cpu_count()} cores, {found.name.split(', ')[1]}"
    return {
        "name": name,
        **found.versions,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _has_trl(python: str) -> bool:
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('trl') is None)"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def as_table(report: dict[str, Any]) -> str:
    """Format the figures as a page in Markdown."""
    device = report["device"]
    versions = ", ".join(f"{key} {value}" for key, value in device.items() if key != "name")
    lines = [f"# {device['name']}", "", f"{versions}. Made by `benchmarks/gpu.py`.", ""]
    lines += ["| | dtype | pairs/s | times plain | MFU | peak, MB | launches | busy | last loss |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for model, variant in itertools.product((*MODELS, *TINY_MODELS), VARIANTS):
        part = report["parts"].get(f"{model}/{variant}")
        if part is None:
            continue
        if "error" in part:
            lines.append(f"| {model}, {variant} | {part['error']} |" + " |" * 7)
            continue
        rate = _pairs_a_second(part)
        plain = report["parts"].get(f"{model}/plain loop", {})
        times = f"{rate / _pairs_a_second(plain):.2f}" if "step_seconds" in plain else ""
        mfu = busy = ""
        if "gflop_a_pair" in part:
            share = rate * part["gflop_a_pair"] / part["gflops_a_second_of_product"]
            mfu = f"{share:.1%}"
        if part.get("kernel_seconds"):
            busy = f"{part['kernel_seconds'] / statistics.median(part['step_seconds']):.0%}"
        launches = f"{part['launches']:,}" if part.get("launches") else ""
        lines.append(
            f"| {model}, {variant} | {part['dtype']} | {rate:.2f} | {times} | {mfu}"
            f" | {part['peak_bytes'] / 1e6:,.0f} | {launches} | {busy} | {part['last_loss']:.5f} |"
        )
    return "\n".join(lines) + "\n"


def _pairs_a_second(part: dict[str, Any]) -> float:
    return float(part["pairs"] / sum(part["step_seconds"]))


if __name__ == "__main__":
    main()

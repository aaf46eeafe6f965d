"""Seconds per pair of `dpo`, the plain loop and TRL on the same pairs and weights.

    python benchmarks/speed.py ../shared/checkpoints/full_sft_512.pth \\
        ../shared/tokenizer/minimind2 ../shared/data/dpo_en_zh_400.jsonl

The variants run in turn, each in its own process, for several rounds; the result is the median
without start-up. "cold" computes the reference's log-probs in each step, as the first epoch of a
run does; "warm" reads them from memory. The floor is the time of the fewest matrix products that
give this gradient (each token once, the head at response positions) at the FLOP/s of one large
product on this machine. `make bench` installs TRL in another environment and passes its
interpreter. If the machine has a GPU, all variants run on it in bfloat16 (`--cpu` chooses the CPU);
the MFU is the floor divided by the measured time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from inputs import add_trl, make_parser
from steps import (
    forward_gflop,
    make_step,
    peak_bytes,
    prepare,
    prepare_trl,
    rate_of_product,
    run_json,
    trl_settings,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "plain script": {"script": True, "tuned": False},
    "plain script, same settings": {"script": True},
    "dpo, padded layout": {"layout": "padded", "tuned": False},
    "dpo, cold": {"cold": True},
    "dpo, warm": {},
    "dpo, warm, bfloat16": {"dtype": "bfloat16"},
}
WITHOUT_ONE: dict[str, dict[str, Any]] = {
    "warm, padded, sides apart": {"packed": False},
    "warm, prompts not shared": {"share_prompts": False},
    "warm, torch's head": {"fused_head": False},
    "warm, torch's settings": {"tuned": False},
    "warm, micro-batches whole": {"max_tokens_per_forward": 1 << 30},
    "warm, activations made twice": {"activation_checkpointing": True},
    "warm, compiled": {"compile": True},
}
TRL: dict[str, dict[str, Any]] = {
    "TRL, defaults": {},
    "TRL, best settings": {
        "bf16": False,
        "gradient_checkpointing": False,
        "precompute_ref_log_probs": True,
        "dataloader_pin_memory": False,
    },
}


def remove_technique(settings: dict[str, Any]) -> None:
    """Replace one of `dpo`'s techniques by the plain computation."""
    import torch

    from dpo_cli.models import scoring
    from dpo_cli.objective.logps import gather_logps
    from dpo_cli.training import batches, reference

    if not settings.get("fused_head", True):
        scoring.head_logps = lambda hidden, weight, labels, logits_scaling, **_: gather_logps(
            torch.nn.functional.linear(hidden, weight) / logits_scaling, labels
        )
    if not settings.get("share_prompts", True):
        make_batch = batches.make_batch

        def make_unshared(*arguments: Any, **options: Any) -> Any:
            return make_batch(*arguments, **{**options, "share_prompts": False})

        batches.make_batch = reference.make_batch = make_unshared


def run_once(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Run one variant in this process; return seconds, peak memory and losses of the steps."""
    remove_technique(settings)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DPO_CACHE_DIR"] = folder
        inputs = prepare(options, settings, Path(folder))
    take_step = make_step(inputs, settings)
    if settings.get("compile"):  # the first step compiles; its time is not counted
        take_step(next(inputs.order.global_batches()))
    began = time.perf_counter()
    losses: list[float] = []
    for global_batch in inputs.order.global_batches():
        losses += take_step(global_batch)
    return {
        "seconds": time.perf_counter() - began,
        "pairs": len(inputs.pairs),
        "peak_bytes": peak_bytes(inputs.device),
        "losses": losses,
    }


def floor(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fewest products of a step, and the FLOP/s of one large product."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DPO_CACHE_DIR"] = folder
        inputs = prepare(options, {"tuned": False}, Path(folder))
    gflop = forward_gflop(inputs.weights.architecture, inputs.pairs) / len(inputs.pairs)
    rate = rate_of_product(inputs.device)
    return {
        "gflops_a_second": round(rate),
        "gflop_a_pair_warm": round(3 * gflop, 1),
        "gflop_a_pair_cold": round(4 * gflop, 1),
        "seconds_a_pair_warm": round(3 * gflop / rate, 3),
        "seconds_a_pair_cold": round(4 * gflop / rate, 3),
    }


def main() -> None:
    """Run the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-seq-len", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="run on the CPU, even if there is a GPU")
    parser.add_argument(
        "--only", action="append", help="measure only this variant; may be repeated"
    )
    parser.add_argument(
        "--each", action="store_true", help="also measure dpo without each of its techniques"
    )
    add_trl(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.device = "cpu" if options.cpu else "auto"
    if options.variant == "floor":
        print(json.dumps(floor(options)))
        return
    if options.variant:
        print(json.dumps(run_once(options, {**VARIANTS, **WITHOUT_ONE}[options.variant])))
        return
    with tempfile.TemporaryDirectory() as folder:
        report = measure(options, Path(folder))
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure the variants in turn."""
    import torch

    command_line = [sys.executable, *sys.argv, "--variant"]
    commands = {
        name: [*command_line, name]
        for name in {**VARIANTS, **(WITHOUT_ONE if options.each else {})}
    }
    if options.trl:
        trl = prepare_trl(options, folder)
        common = trl_settings(options, is_on_cpu=options.cpu or not torch.cuda.is_available())
        commands |= {
            name: [*trl, json.dumps({**common, **settings})] for name, settings in TRL.items()
        }
    if options.only:
        commands = {name: commands[name] for name in options.only}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    floors = []
    for _ in range(options.rounds):
        floors.append(run_json([*command_line, "floor"]))
        for name, command in commands.items():
            results[name].append(run_json(command))
            print(f"{name}: {results[name][-1]['seconds']:.1f} s", file=sys.stderr)
    lowest = min(floors, key=lambda each: each["seconds_a_pair_warm"])
    base = statistics.median(run["seconds"] for run in next(iter(results.values())))
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "arguments": sys.argv[1:],
        "floor": lowest,
        "variants": {name: summarize(runs, base, lowest) for name, runs in results.items()},
    }


def summarize(
    runs: list[dict[str, Any]], base_seconds: float, lowest: dict[str, Any]
) -> dict[str, Any]:
    """Return the figures of one variant, compared with the first variant and the floor."""
    seconds = [run["seconds"] / run["pairs"] for run in runs]
    median = statistics.median(seconds)
    return {
        "seconds_a_pair": round(median, 3),
        "least": round(min(seconds), 3),
        "most": round(max(seconds), 3),
        "times_as_fast": round(base_seconds / runs[0]["pairs"] / median, 2),
        "by_warm_floor": round(median / lowest["seconds_a_pair_warm"], 2),
        "peak_mb": round(max(run["peak_bytes"] for run in runs) / 1e6),
        "last_loss": runs[0]["losses"][-1],
    }


def show(report: dict[str, Any]) -> None:
    """Print the figures as a table in Markdown."""
    print(f"floor: {report['floor']}\n")
    print("| | s/pair (min to max) | speedup | times the warm floor | peak, MB | last loss |")
    print("|---|---|---|---|---|---|")
    for name, row in report["variants"].items():
        print(
            f"| {name} | {row['seconds_a_pair']:.3f} ({row['least']:.3f} to {row['most']:.3f})"
            f" | {row['times_as_fast']:.2f} | {row['by_warm_floor']:.2f} | {row['peak_mb']:,}"
            f" | {row['last_loss']:.6f} |"
        )


if __name__ == "__main__":
    main()

"""Seconds a pair: `dpo`'s training step, the plain loop and TRL on the same pairs and weights.

    python benchmarks/speed.py ../shared/checkpoints/full_sft_512.pth \\
        ../shared/tokenizer/minimind2 ../shared/data/dpo_en_zh_400.jsonl

The variants take turns, each in a process of its own, and rounds are repeated; what counts is the
median. "cold" has the reference's log-probs still to compute, as in a run's first epoch; "warm"
has them. Start-up is not counted. The floor is the time in which the least products that give this
gradient (each token once, the head at response positions) could be made at the rate that one large
product reaches here. `make bench` sets up an environment with TRL, and hands over its Python.
Where there is a card, all run on it, under bfloat16 (`--cpu` for the CPU), and the inverse of the
ratio to the floor is the MFU.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from inputs import make_parser

VARIANTS: dict[str, dict[str, Any]] = {
    "plain script": {"script": True, "tuned": False},
    "plain script, same settings": {"script": True},
    "dpo, padded layout": {"layout": "padded", "tuned": False},
    "dpo, cold": {"cold": True},
    "dpo, warm": {},
    "dpo, warm, bfloat16": {"dtype": "bfloat16"},
}
LEFT_OUT: dict[str, dict[str, Any]] = {
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


class TrainerHooks:
    """Nobody looks on, and nobody asks."""

    def emit(self, event: Any) -> None:
        """Let it go."""

    def requests(self) -> set[str]:
        """Nothing."""
        return set()

    def keep_scores(self, *scores: Any) -> None:
        """Let them go."""

    def progress(self, *how_far: Any) -> None:
        """Let it go."""

    def on_not_finite(self, trainer: Any, global_batch: Any, losses: Any) -> None:
        """There must be none."""
        raise SystemExit("the loss is not finite")


def plain_script(inputs: Any) -> list[float]:
    """What the scripts do, and no more: pad to the maximum, two models, every logit."""
    import torch
    from torch.nn import functional as F

    from dpo_cli.data.batching import make_batch
    from dpo_cli.models.loading import build_model

    def model_of(model_weights: Any) -> Any:
        model = build_model(model_weights.architecture, model_weights.state)
        model.set_attn_implementation("sdpa")
        return model.to(inputs.device.torch_device)

    profile, autocast = inputs.profile, inputs.device.autocast
    policy, reference = model_of(inputs.weights), model_of(inputs.reference_weights)
    reference.eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=profile.train.learning_rate)

    def mean_logps(logits: Any, labels: Any, mask: Any) -> Any:
        logps = F.log_softmax(logits, dim=2).gather(2, labels.unsqueeze(2)).squeeze(2)
        return (logps * mask).sum(1) / mask.sum(1)

    losses = []
    for window in inputs.order.global_batches(start=0):
        [indices] = window.micro_batches
        batch = make_batch(
            [inputs.pairs[i] for i in indices],
            "padded",
            max_seq_len=profile.data.max_seq_len,
            pad_id=inputs.pad_id,
        ).to(inputs.device.torch_device)
        with autocast():
            with torch.no_grad():
                its_logits = reference(batch.input_ids).logits
                its = mean_logps(its_logits, batch.labels, batch.mask)
            ours = mean_logps(policy(batch.input_ids).logits, batch.labels, batch.mask)
            chosen, rejected = (ours - its).chunk(2)
            loss = -F.logsigmoid(profile.dpo.beta * (chosen - rejected)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), profile.train.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def prepare(options: argparse.Namespace, settings: dict[str, Any], folder: Path) -> Any:
    """The inputs of a run over the first pairs of the data that can be trained on."""
    import dataclasses

    from dpo_cli.compute.device import configure_device, resolve
    from dpo_cli.profile.schema import Profile
    from dpo_cli.run.directory import RunDirectory
    from dpo_cli.training.inputs import read_inputs

    device = resolve("cpu" if options.cpu else "auto", settings.get("dtype", "auto"))
    if settings.get("tuned", True):
        configure_device(device)
    data = folder / "pairs.jsonl"
    with options.data.open(encoding="utf-8") as lines:
        data.write_text("".join(itertools.islice(lines, 4 * options.pairs)), encoding="utf-8")
    train = {
        "layout": settings.get("layout", "packed"),
        "learning_rate": 1e-7,
        "epochs": 1,
        "batch_size": options.batch_size,
        "max_tokens_per_forward": settings.get("max_tokens_per_forward"),
        "activation_checkpointing": settings.get("activation_checkpointing", False),
        "compile": settings.get("compile", False),
    }
    profile = Profile.model_validate(
        {
            "model": {
                "weights": str(options.model_weights.resolve()),
                "tokenizer": str(options.tokenizer.resolve()),
            },
            "data": {"data_path": str(data), "max_seq_len": options.max_seq_len},
            "dpo": {"beta": 5.0},
            "train": train,
        }
    )
    inputs = read_inputs(profile, device, RunDirectory(folder), lambda *_: None)
    pairs = inputs.pairs[: options.pairs]
    assert len(pairs) == options.pairs, f"only {len(pairs)} pairs can be trained on"
    return dataclasses.replace(inputs, pairs=pairs)


def leave_out(settings: dict[str, Any]) -> None:
    """Put in the place of a technique what would be there without it."""
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

        def apart(*arguments: Any, **options: Any) -> Any:
            return make_batch(*arguments, **{**options, "share_prompts": False})

        batches.make_batch = reference.make_batch = apart


def run_once(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """One variant in this process: seconds of the steps and the most memory it held."""
    import torch

    from dpo_cli.training import setup
    from dpo_cli.training.optimizer import make_optimizer
    from dpo_cli.training.reference import open_references
    from dpo_cli.training.trainer import Trainer

    leave_out(settings)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DPO_CACHE_DIR"] = folder
        inputs = prepare(options, settings, Path(folder))

    def result(began: float, losses: list[float]) -> dict[str, Any]:
        return {
            "seconds": time.perf_counter() - began,
            "pairs": len(inputs.pairs),
            "peak_bytes": inputs.device.peak_bytes()
            or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "losses": losses,
        }

    if settings.get("script"):
        return result(time.perf_counter(), plain_script(inputs))

    def scorer(model_weights: Any) -> Any:
        scorer = setup.make_scorer(inputs, model_weights)
        if not settings.get("packed", True):
            scorer.model.set_attn_implementation("sdpa")
            scorer.fallback_reason = "left out"
        return scorer

    policy = scorer(inputs.weights)
    os.environ["DPO_CACHE_DIR"] = os.devnull
    reference, _ = open_references(
        inputs, lambda: scorer(inputs.reference_weights), Path(os.devnull)
    )
    trainer = Trainer(
        inputs,
        policy,
        reference,
        reference,
        make_optimizer(policy.parameters()),
        torch.amp.GradScaler(inputs.device.type, enabled=False),
        hooks=TrainerHooks(),
        save=lambda trainer: None,
    )
    is_warm = inputs.profile.train.layout == "packed" and not settings.get("cold")
    for window in inputs.order.global_batches() if is_warm else ():
        for forward in inputs.batches.micro_batches(window.micro_batches):
            batch = inputs.batches.make_batch(inputs.pairs, forward.indices)
            reference.token_logps(forward.indices, batch)
    if settings.get("compile"):  # which takes its time with the first step
        trainer.take_step(next(inputs.order.global_batches()))
    began = time.perf_counter()
    losses: list[float] = []
    for window in inputs.order.global_batches():
        losses += trainer.take_step(window).losses
    return result(began, losses)


def floor(options: argparse.Namespace) -> dict[str, Any]:
    """The least products of a step, and the rate of one large product."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        os.environ["DPO_CACHE_DIR"] = folder
        inputs = prepare(options, {"tuned": False}, Path(folder))
    shape = inputs.weights.architecture
    heads = shape.num_attention_heads * shape.head_dim
    groups = shape.num_key_value_heads * shape.head_dim
    width, blocks = shape.hidden_size, 1
    if shape.use_moe:  # MiniMind version 2 has one expert beside those that are chosen
        blocks = shape.num_experts_per_tok + (shape.version == 2)
    weights = 2 * width * (heads + groups) + 3 * blocks * width * shape.intermediate_size
    forward = 0
    for pair, tokens in zip(inputs.pairs, inputs.pairs.computed_tokens.tolist(), strict=True):
        chosen, rejected = len(pair.chosen.ids) - 1, len(pair.rejected.ids) - 1
        prompt = chosen + rejected - tokens
        # A query and each key that it may see: one product for the score, one for the answer.
        seen = (chosen**2 + rejected**2 - prompt**2) / 2
        targets = pair.chosen.response_tokens + pair.rejected.response_tokens
        forward += shape.num_hidden_layers * (2 * weights * tokens + 4 * heads * seen)
        forward += 2 * width * shape.vocab_size * targets
    gflop = forward / 1e9 / len(inputs.pairs)
    rows = 4096 if inputs.device.type == "cpu" else 1 << 17
    place = {"device": inputs.device.torch_device, "dtype": inputs.device.dtype}
    left, right = torch.randn(rows, 512, **place), torch.randn(512, 1408, **place)
    seconds = []
    for _ in range(40):
        began = time.perf_counter()
        (left @ right)[0, 0].item()  # which waits for the device
        seconds.append(time.perf_counter() - began)
    rate = 2 * rows * 512 * 1408 / min(seconds) / 1e9
    return {
        "gflops_a_second": round(rate),
        "gflop_a_pair_warm": round(3 * gflop, 1),
        "gflop_a_pair_cold": round(4 * gflop, 1),
        "seconds_a_pair_warm": round(3 * gflop / rate, 3),
        "seconds_a_pair_cold": round(4 * gflop / rate, 3),
    }


def prepare_trl(options: argparse.Namespace, folder: Path) -> list[str]:
    """The same weights and pairs as TRL wants them: its command line but for the settings."""
    from dpo_cli.models.loading import build_model

    os.environ["DPO_CACHE_DIR"] = str(folder)
    inputs = prepare(options, {"tuned": False}, folder)
    model = build_model(inputs.weights.architecture, inputs.weights.state)
    model.save_pretrained(folder / "model")
    for file in options.tokenizer.iterdir():
        shutil.copyfile(file, folder / "model" / file.name)
    lines = (folder / "pairs.jsonl").read_text(encoding="utf-8").split("\n")
    kept = [lines[line - 1] + "\n" for line in inputs.pairs.lines.tolist()]
    (folder / "kept.jsonl").write_text("".join(kept), encoding="utf-8")
    script = Path(__file__).with_name("trl_dpo.py")
    return [str(options.trl), str(script), str(folder / "model"), str(folder / "kept.jsonl")]


def main() -> None:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-seq-len", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="even where there is a card")
    parser.add_argument("--only", action="append", help="a variant's name; may be repeated")
    parser.add_argument("--each", action="store_true", help="also with each technique left out")
    parser.add_argument("--trl", type=Path, metavar="PYTHON", help="of an environment with TRL")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant == "floor":
        print(json.dumps(floor(options)))
        return
    if options.variant:
        print(json.dumps(run_once(options, {**VARIANTS, **LEFT_OUT}[options.variant])))
        return
    with tempfile.TemporaryDirectory() as folder:
        report = measure(options, Path(folder))
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every variant, by turns."""
    import torch

    itself = [sys.executable, *sys.argv, "--variant"]
    commands = {
        name: [*itself, name] for name in {**VARIANTS, **(LEFT_OUT if options.each else {})}
    }
    if options.trl:
        trl = prepare_trl(options, folder)
        common = {
            "per_device_train_batch_size": options.batch_size,
            "max_length": options.max_seq_len,
            "learning_rate": 1e-7,
            "use_cpu": options.cpu or not torch.cuda.is_available(),
        }
        commands |= {name: [*trl, json.dumps({**common, **own})] for name, own in TRL.items()}
    if options.only:
        commands = {name: commands[name] for name in options.only}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    floors = []
    for _ in range(options.rounds):
        floors.append(answer([*itself, "floor"]))
        for name, command in commands.items():
            results[name].append(answer(command))
            print(f"{name}: {results[name][-1]['seconds']:.1f} s", file=sys.stderr)
    least = min(floors, key=lambda floor: floor["seconds_a_pair_warm"])
    base = statistics.median(run["seconds"] for run in next(iter(results.values())))
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "arguments": sys.argv[1:],
        "floor": least,
        "variants": {name: row(runs, base, least) for name, runs in results.items()},
    }


def answer(command: list[str]) -> Any:
    """What a process printed last, as JSON."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return json.loads(done.stdout.splitlines()[-1])


def row(runs: list[dict[str, Any]], base: float, floor: dict[str, Any]) -> dict[str, Any]:
    """The figures of one variant."""
    seconds = [run["seconds"] / run["pairs"] for run in runs]
    median = statistics.median(seconds)
    return {
        "seconds_a_pair": round(median, 3),
        "least": round(min(seconds), 3),
        "most": round(max(seconds), 3),
        "times_as_fast": round(base / runs[0]["pairs"] / median, 2),
        "by_warm_floor": round(median / floor["seconds_a_pair_warm"], 2),
        "peak_mb": round(max(run["peak_bytes"] for run in runs) / 1e6),
        "last_loss": runs[0]["losses"][-1],
    }


def show(report: dict[str, Any]) -> None:
    """The figures as a table in Markdown."""
    least = report["floor"]
    print(f"floor: {least}\n")
    print("| | s/pair (least to most) | times as fast | by warm floor | peak, MB | last loss |")
    print("|---|---|---|---|---|---|")
    for name, row in report["variants"].items():
        print(
            f"| {name} | {row['seconds_a_pair']:.3f} ({row['least']:.3f} to {row['most']:.3f})"
            f" | {row['times_as_fast']:.2f} | {row['by_warm_floor']:.2f} | {row['peak_mb']:,}"
            f" | {row['last_loss']:.6f} |"
        )


if __name__ == "__main__":
    main()

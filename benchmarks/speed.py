"""Seconds a pair: `dpo`'s training step against the plain loop, on the same pairs and weights.

    python benchmarks/speed.py ../shared/checkpoints/full_sft_512.pth \\
        ../shared/tokenizer/minimind2 ../shared/data/dpo_en_zh_400.jsonl

The variants take turns, each in a process of its own, and rounds are repeated; what counts is the
median. "cold" has the reference's log-probs still to compute, as in a run's first epoch; "warm"
has them. Start-up is not counted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
    "plain script": {"script": True, "tuned": False},
    "plain script, same matmul": {"script": True},
    "dpo, reference layout": {"layout": "reference", "tuned": False},
    "dpo, cold": {"cold": True},
    "t512": {"tokens": 512},
    "t1024": {"tokens": 1024},
    "t4096": {"tokens": 4096},
    "t99999": {"tokens": 99999},
    "dpo, warm": {},
    "dpo, warm, bfloat16": {"dtype": "bfloat16"},
}
LEFT_OUT: dict[str, dict[str, Any]] = {
    "warm without matmul and memory settings": {"tuned": False},
    "warm without plain attention": {"short_attention": False},
    "warm without fused head": {"fused_head": False},
}


class Watch:
    """Nobody looks on, and nobody asks."""

    def emit(self, event: Any) -> None:
        """Let it go."""

    def asked(self) -> set[str]:
        """Nothing."""
        return set()

    def progress(self, *how_far: Any) -> None:
        """Let it go."""

    def not_finite(self, trainer: Any, window: Any, losses: Any) -> None:
        """There must be none."""
        raise SystemExit("the loss is not finite")


def plain_script(prepared: Any) -> list[float]:
    """What the scripts do, and no more: pad to the maximum, two models, every logit."""
    import torch
    from torch.nn import functional as F

    from dpo_cli.data.batching import make_batch
    from dpo_cli.models.zoo import build_model

    def model_of(checkpoint: Any) -> Any:
        model = build_model(checkpoint.architecture, checkpoint.state)
        model.set_attn_implementation("sdpa")
        return model

    profile = prepared.profile
    policy, reference = model_of(prepared.checkpoint), model_of(prepared.reference)
    reference.eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=profile.train.learning_rate)

    def mean_logps(logits: Any, labels: Any, mask: Any) -> Any:
        logps = F.log_softmax(logits, dim=2).gather(2, labels.unsqueeze(2)).squeeze(2)
        return (logps * mask).sum(1) / mask.sum(1)

    losses = []
    for window in prepared.order.windows(start=0):
        [indices] = window.micro_batches
        batch = make_batch(
            [prepared.pairs[i] for i in indices],
            "reference",
            max_seq_len=profile.data.max_seq_len,
            pad_id=prepared.pad_id,
        )
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


def run_once(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """One variant in this process: seconds of the steps and the most memory it held."""
    import dataclasses
    import tempfile

    import torch

    from dpo_cli.models import attention, scoring
    from dpo_cli.objective.logps import gather_logps
    from dpo_cli.profile.schema import Profile
    from dpo_cli.run.store import RunDirectory
    from dpo_cli.training import device, session
    from dpo_cli.training import reference as kept
    from dpo_cli.training.optim import make_optimizer
    from dpo_cli.training.trainer import Trainer

    compute = device.resolve("cpu" if options.cpu else "auto", settings.get("dtype", "float32"))
    if settings.get("tuned", True):
        device.tune(compute)
    if not settings.get("short_attention", True):
        attention._SegmentAttention.apply = lambda *arguments: attention._packed_flash_attention(
            *arguments, 0.0
        )
    if not settings.get("fused_head", True):
        scoring.head_logps = lambda hidden, weight, labels, logits_scaling: gather_logps(
            torch.nn.functional.linear(hidden, weight) / logits_scaling, labels
        )
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "pairs.jsonl"
        with options.data.open(encoding="utf-8") as lines:
            data.write_text("".join(line for line, _ in zip(lines, range(400), strict=False)))
        profile = Profile.model_validate(
            {
                "model": {
                    "checkpoint": str(options.checkpoint.resolve()),
                    "tokenizer": str(options.tokenizer.resolve()),
                },
                "data": {"data_path": str(data), "max_seq_len": options.max_seq_len},
                "dpo": {"beta": 5.0},
                "train": {
                    "layout": settings.get("layout", "packed"),
                    "learning_rate": 1e-7,
                    "epochs": 1,
                    "tokens_per_forward": settings.get("tokens"),
                    "batch_size": options.batch_size,
                },
            }
        )
        run = RunDirectory(Path(folder))
        prepared = session.prepare(profile, compute, run, lambda *_: None)
    pairs = prepared.pairs[: options.pairs]
    prepared = dataclasses.replace(
        prepared, pairs=pairs, order=dataclasses.replace(prepared.order, pairs=len(pairs))
    )

    def result(began: float, losses: list[float]) -> dict[str, Any]:
        return {
            "seconds": time.perf_counter() - began,
            "pairs": len(pairs),
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "losses": losses,
        }

    if settings.get("script"):
        return result(time.perf_counter(), plain_script(prepared))
    policy = session.make_scorer(prepared, prepared.checkpoint)
    reference: Any
    began = time.perf_counter()
    if profile.train.layout == "reference":
        reference = kept.LiveReference(session.make_scorer(prepared, prepared.reference), compute)
    else:
        reference, _ = kept.open_references(
            prepared, lambda: session.make_scorer(prepared, prepared.reference), Path(folder)
        )
    trainer = Trainer(
        prepared,
        policy,
        reference,
        reference,
        make_optimizer(policy.parameters()),
        torch.amp.GradScaler(compute.device.type, enabled=False),
        watch=Watch(),
        save=lambda trainer: None,
    )
    if not settings.get("cold") and profile.train.layout == "packed":
        for row in reference._rows:
            reference.token_logps(row, None)
        began = time.perf_counter()
    losses: list[float] = []
    for window in prepared.order.windows(start=0):
        losses += trainer.take_step(window).losses
    return result(began, losses)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-seq-len", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="even where there is a card")
    parser.add_argument("--only", action="append", help="a variant's name; may be repeated")
    parser.add_argument("--each", action="store_true", help="also with each technique left out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    variants = {**VARIANTS, **(LEFT_OUT if options.each else {})}
    if options.variant:
        print(json.dumps(run_once(options, {**VARIANTS, **LEFT_OUT}[options.variant])))
        return
    names = [name for name in variants if not options.only or name in options.only]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            command = [sys.executable, *sys.argv, "--variant", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[name].append(json.loads(done.stdout))
            print(f"\n{name}: {results[name][-1]['seconds']:.1f} s", file=sys.stderr)
    table = {}
    first = names[0]
    base = statistics.median(r["seconds"] for r in results[first])
    for name, runs in results.items():
        seconds = [r["seconds"] for r in runs]
        table[name] = {
            "seconds": [round(s, 2) for s in seconds],
            "seconds_a_pair": round(statistics.median(seconds) / runs[0]["pairs"], 3),
            "ratio": round(base / statistics.median(seconds), 2),
            "peak_mb": round(max(r["peak_bytes"] for r in runs) / 1e6),
            "last_loss": runs[0]["losses"][-1],
        }
    import torch

    report = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "arguments": sys.argv[1:],
        "variants": table,
    }
    print(f"{'':40}{'s/pair':>8}{'ratio':>7}{'peak MB':>9}{'last loss':>11}")
    for name, row in table.items():
        print(
            f"{name:40}{row['seconds_a_pair']:8.3f}{row['ratio']:7.2f}{row['peak_mb']:9,}"
            f"{row['last_loss']:11.6f}"
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

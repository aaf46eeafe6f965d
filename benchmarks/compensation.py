"""Time of AdamW's step with and without `train.kahan_summation`.

    python benchmarks/compensation.py ../shared/checkpoints/full_sft_512.pth --threads 2

Both optimizers start from the same weights and get the same gradients. Their steps alternate, so
other load on the machine affects both equally. Times are medians over the steps; the ratio is the
median over the pairs of steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from dpo_cli.models.loading import build_model, load_model_weights
from dpo_cli.profile.train import Train
from dpo_cli.training.optimizer import make_optimizer, set_learning_rate


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_weights", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model_weights = load_model_weights(options.model_weights, {})
    models = [build_model(model_weights.architecture, model_weights.state) for _ in range(2)]
    optimizers = [
        make_optimizer(model.parameters(), Train(kahan_summation=kahan_summation))
        for model, kahan_summation in zip(models, (False, True), strict=True)
    ]
    seconds: list[list[float]] = []
    for _ in range(options.steps + 1):
        seconds.append([])
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            one.grad = other.grad = torch.randn_like(one)
        for optimizer in optimizers:
            set_learning_rate(optimizer, 1e-6)
            before = time.perf_counter()
            optimizer.step()
            seconds[-1].append(time.perf_counter() - before)
    plain, compensated = zip(*seconds[1:], strict=True)  # the first step allocates the moments
    ratios = [slow / fast for fast, slow in zip(plain, compensated, strict=True)]
    print(f"{model_weights.parameters / 1e6:.1f} M weights, {options.threads} threads")
    print(f"AdamW            {1000 * statistics.median(plain):.1f} ms a step")
    print(f"kahan_summation  {1000 * statistics.median(compensated):.1f} ms a step")
    print(
        f"ratio            {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f},"
        f" {options.steps} steps)"
    )


if __name__ == "__main__":
    main()

"""What `train.kahan_summation` costs in time: AdamW's step with it and without, side by side.

    python benchmarks/compensation.py ../shared/checkpoints/full_sft_512.pth --threads 2

Both step the same weights by the same gradients in turn, so that what else the machine does meets
both alike. Figures are medians, the ratio is that of each pair of steps.
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
    """The command line."""
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
        for own, other in zip(*(model.parameters() for model in models), strict=True):
            own.grad = other.grad = torch.randn_like(own)
        for optimizer in optimizers:
            set_learning_rate(optimizer, 1e-6)
            before = time.perf_counter()
            optimizer.step()
            seconds[-1].append(time.perf_counter() - before)
    plain, kahan_summation = zip(*seconds[1:], strict=True)  # the first makes the moments
    ratios = [after / before for before, after in zip(plain, kahan_summation, strict=True)]
    print(f"{model_weights.parameters / 1e6:.1f} M weights, {options.threads} threads")
    print(f"AdamW        {1000 * statistics.median(plain):.1f} ms a step")
    print(f"kahan_summation  {1000 * statistics.median(kahan_summation):.1f} ms a step")
    print(
        f"ratio        {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f},"
        f" {options.steps} steps)"
    )


if __name__ == "__main__":
    main()

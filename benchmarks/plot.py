"""Plot the results of `benchmarks/scaling.py`. Needs matplotlib, which `make bench` installs.

.venv-bench/bin/python benchmarks/plot.py scaling.json scaling.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib import pyplot


def main() -> None:
    """Draw two panels: seconds per pair by length and by batch size."""
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    titles = {"by_length": "max_seq_len (batch_size 4)", "by_batch_size": "batch_size (at 1,024)"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        points = {int(number): row for number, row in report[name].items()}
        for variant in next(iter(points.values())):
            seconds = [row[variant]["seconds_a_pair"] for row in points.values()]
            axis.plot(list(points), seconds, marker="o", label=variant)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set_xticks(list(points), [f"{number:,}" for number in points])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds per pair")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(sys.argv[2])


if __name__ == "__main__":
    main()

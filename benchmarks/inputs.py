"""The command line that the benchmarks share: weights, tokenizer, pairs."""

from __future__ import annotations

import argparse
from pathlib import Path


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of the three inputs, to which each benchmark adds its own options."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_weights", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("data", type=Path)
    return parser


def add_trl(parser: argparse.ArgumentParser) -> None:
    """Add the option that also measures TRL, in an environment of its own."""
    parser.add_argument("--trl", type=Path, metavar="PYTHON", help="of an environment with TRL")

"""Command-line arguments that the benchmarks share: weights, tokenizer and pairs."""

from __future__ import annotations

import argparse
from pathlib import Path


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the three inputs; each benchmark adds its own options."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_weights", type=Path, help="weights file or Hugging Face directory")
    parser.add_argument("tokenizer", type=Path, help="directory of the tokenizer")
    parser.add_argument("data", type=Path, help="JSONL file of preference pairs")
    return parser


def add_trl(parser: argparse.ArgumentParser) -> None:
    """Add the option to measure TRL too, in another environment."""
    parser.add_argument(
        "--trl", type=Path, metavar="PYTHON", help="also measure TRL, with this interpreter"
    )

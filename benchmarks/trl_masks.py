"""Token ids and masks of TRL's DPOTrainer, recorded for the tests.

    .venv-bench/bin/python benchmarks/trl_masks.py

writes tests/data/trl_masks.json: for each chat template, tokenizer and row of
tests/support/chat_families.py the number of prompt ids, and number and CRC-32 of the ids of both
sides; null where the template refuses the row.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers
import trl
from datasets import IterableDataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.support.chat_families import ROWS, TEMPLATES, TOKENIZERS, write_tokenizer  # noqa: E402


def main() -> None:
    """Record all families."""
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(output_dir=folder, max_length=None, report_to="none", use_cpu=True)
        recorded = {
            f"{template} {kind}": encode_rows(write_tokenizer(Path(folder), template, kind), config)
            for template in TEMPLATES
            for kind in TOKENIZERS
        }
    versions = {"trl": trl.__version__, "transformers": transformers.__version__}
    path = ROOT / "tests/data/trl_masks.json"
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in recorded.items())
    path.write_text(f'{{"versions": {json.dumps(versions)},\n"families": {{\n{lines}\n}}}}\n')


def encode_rows(folder: Path, config: DPOConfig) -> dict[str, list[int] | None]:
    """Return the numbers of each row."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {name: encode(tokenizer, row, config) for name, row in ROWS.items()}


def encode(tokenizer: Any, row: dict[str, Any], config: DPOConfig) -> list[int] | None:
    """Return the numbers of one row, made by TRL's own method."""
    rows = IterableDataset.from_generator(lambda: iter([row]))
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    try:
        [found] = DPOTrainer._prepare_dataset(trainer, rows, tokenizer, config, "train")
    except Exception:  # the template raises
        return None
    numbers = [len(found["prompt_ids"])]
    for side in ("chosen", "rejected"):
        ids = [*found["prompt_ids"], *found[f"{side}_ids"]]
        numbers += [len(ids), zlib.crc32(array("i", ids).tobytes())]
    return numbers


if __name__ == "__main__":
    main()

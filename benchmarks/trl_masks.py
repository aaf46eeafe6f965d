"""Record token ids and masks of TRL's DPOTrainer, for the tests.

    .venv-bench/bin/python benchmarks/trl_masks.py MODELS PAIRS

Writes tests/data/trl_masks.json: for each chat template, tokenizer and row of
tests/support/chat_families.py, the number of prompt ids and the number and CRC-32 of the ids of
both sides, or null if the template refuses the row. For each directory in MODELS, the file has the
CRC-32 of these numbers over every fourth row without a system turn of the JSONL file PAIRS.
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
    """Record all families and models."""
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(output_dir=folder, max_length=None, report_to="none", use_cpu=True)
        recorded = {
            f"{template} {kind}": encode_rows(write_tokenizer(Path(folder), template, kind), config)
            for template in TEMPLATES
            for kind in TOKENIZERS
        }
    real = record_real(*map(Path, sys.argv[1:]), config)
    versions = {"trl": trl.__version__, "transformers": transformers.__version__}
    path = ROOT / "tests/data/trl_masks.json"
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in recorded.items())
    head = f'"versions": {json.dumps(versions)},\n"real": {json.dumps(real)}'
    path.write_text(f'{{{head},\n"families": {{\n{lines}\n}}}}\n')


def record_real(models: Path, pairs: Path, config: DPOConfig) -> dict[str, int]:
    """Return the CRC-32 of the numbers of real rows for each model."""
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    # Some of the templates have no system turn.
    rows = [row for row in rows if row["chosen"][0]["role"] != "system"][::4]
    found = {}
    for folder in sorted(models.iterdir()):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        numbers = [encode(tokenizer, row, config) for row in rows]
        found[folder.name] = zlib.crc32(json.dumps(numbers).encode())
    return found


def encode_rows(folder: Path, config: DPOConfig) -> dict[str, list[int] | None]:
    """Return the numbers of each row of the families."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {name: encode(tokenizer, row, config) for name, row in ROWS.items()}


def encode(tokenizer: Any, row: dict[str, Any], config: DPOConfig) -> list[int] | None:
    """Encode one row by TRL's own method; return lengths and CRC-32 of its ids.

    Returns None if the template refuses the row.
    """
    rows = IterableDataset.from_generator(lambda: iter([row]))
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    try:
        [found] = DPOTrainer._prepare_dataset(trainer, rows, tokenizer, config, "train")
    except Exception:  # templates raise errors of several kinds
        return None
    numbers = [len(found["prompt_ids"])]
    for side in ("chosen", "rejected"):
        ids = [*found["prompt_ids"], *found[f"{side}_ids"]]
        numbers += [len(ids), zlib.crc32(array("i", ids).tobytes())]
    return numbers


if __name__ == "__main__":
    main()

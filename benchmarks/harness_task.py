"""Preference pairs as a task of lm-evaluation-harness; `benchmarks/harness.py` runs this script."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, PreTrainedTokenizerBase

_DIGITS = 10
_NAME = "pairs"


def as_question(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Convert a pair to a question with two answers, the first of which is right."""
    prompt = row["chosen"][:-1]
    question = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    answers = []
    for side in ("chosen", "rejected"):
        whole = tokenizer.apply_chat_template(row[side], tokenize=False)
        answers.append(whole.removeprefix(question).removesuffix("\n"))
    return {"question": question, "answers": answers}


def main() -> None:
    """Evaluate a model directory on pairs; write the figures to a file (the three arguments)."""
    model, data, report = map(Path, sys.argv[1:])
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = data.read_text(encoding="utf-8").splitlines()
    questions = report.with_name("questions.jsonl")
    questions.write_text(
        "".join(json.dumps(as_question(json.loads(line), tokenizer)) + "\n" for line in lines),
        encoding="utf-8",
    )
    task = {
        "task": _NAME,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(questions)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{answers}}",
        "doc_to_target": 0,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    results = lm_eval.simple_evaluate(
        HFLM(str(model), dtype="float32", device="cpu", batch_size=1), tasks=[task]
    )
    figures = results["results"][_NAME]
    report.write_text(
        json.dumps(
            {
                "pairs": len(lines),
                "acc": round(figures["acc,none"], _DIGITS),
                "acc_stderr": round(figures["acc_stderr,none"], _DIGITS),
                "version": lm_eval.__version__,
            }
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()

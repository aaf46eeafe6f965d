"""Data sets with the files, metadata and columns of real ones, but other rows."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from typing import Any

import yaml

from tests.support.written import Row, json_array, jsonl, parquet

Files = dict[str, bytes]


def readme(**metadata: Any) -> bytes:
    return f"---\n{yaml.safe_dump(metadata)}---\n# A data set\n".encode()


def halves(rows: Sequence[Row]) -> tuple[Sequence[Row], Sequence[Row]]:
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def ultrafeedback_binarized(rows: Sequence[Row]) -> Files:
    """HuggingFaceH4/ultrafeedback_binarized: nested messages in Parquet, six splits."""

    def table(rows: Sequence[Row]) -> bytes:
        return parquet(
            [
                {
                    "prompt": row["chosen"][-2]["content"],
                    "prompt_id": f"{number:064x}",
                    **row,
                    "messages": row["chosen"],
                    "score_chosen": 8.5,
                    "score_rejected": 3.0,
                }
                for number, row in enumerate(rows)
            ]
        )

    first, second = halves(rows)
    splits = ("train_prefs", "train_sft", "test_prefs", "test_sft", "train_gen", "test_gen")
    data_files = [{"split": split, "path": f"data/{split}-*"} for split in splits]
    sizes = [{"name": "train_prefs", "num_examples": len(rows)}]
    return {
        "README.md": readme(
            configs=[{"config_name": "default", "data_files": data_files}],
            dataset_info={"splits": sizes},
        ),
        "data/train_prefs-00000-of-00002.parquet": table(first),
        "data/train_prefs-00001-of-00002.parquet": table(second),
        **{f"data/{split}-00000-of-00001.parquet": table(rows[:2]) for split in splits[1:]},
    }


def hh_rlhf(rows: Sequence[Row]) -> Files:
    """Anthropic/hh-rlhf: texts with speakers, compressed, in folders; no configurations."""

    def text(side: Sequence[Row]) -> str:
        names = {"user": "Human", "assistant": "Assistant"}
        return "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in side)

    def file(rows: Sequence[Row]) -> bytes:
        return gzip.compress(jsonl([{k: text(v) for k, v in row.items()} for row in rows]))

    first, second = halves(rows)
    attempts = [{"transcript": "...", "task_description": "...", "tags": None}]
    return {
        "README.md": readme(license="mit", tags=["human-feedback"]),
        "harmless-base/train.jsonl.gz": file(first),
        "harmless-base/test.jsonl.gz": file(rows[:1]),
        "helpful-base/train.jsonl.gz": file(second),
        "helpful-base/test.jsonl.gz": file(rows[:1]),
        "red-team-attempts/red_team_attempts.jsonl.gz": gzip.compress(jsonl(attempts)),
    }


def orca_pairs(rows: Sequence[Row]) -> Files:
    """Intel/orca_dpo_pairs: one JSONL with `system`, `question`, `chosen` and `rejected`."""
    flat = [
        {
            "system": "",
            "question": row["chosen"][-2]["content"],
            **{side: row[side][-1]["content"] for side in ("chosen", "rejected")},
        }
        for row in rows
    ]
    return {"README.md": readme(license="apache-2.0"), "orca_rlhf.jsonl": jsonl(flat)}


def distilabel(rows: Sequence[Row]) -> Files:
    """Output of distilabel's UltraFeedback task: several answers with ratings."""
    flat = [
        {
            "instruction": row["chosen"][-2]["content"],
            "generations": [row[side][-1]["content"] for side in ("rejected", "chosen")],
            "generation_models": ["a", "b"],
            "ratings": [2, 5],
            "rationales": ["Poor.", "Good."],
            "model_name": "c",
            "distilabel_metadata": {"raw_output": "..."},
        }
        for row in rows
    ]
    files = [{"split": "train", "path": "data/train-*"}]
    configs = [{"config_name": "default", "data_files": files}]
    path = "data/train-00000-of-00001-d2e1b3a6e3a0bd44.parquet"
    return {"README.md": readme(configs=configs), path: parquet(flat)}


def capybara(rows: Sequence[Row]) -> Files:
    """argilla/Capybara-Preferences: whole conversations with models and numbers of turns."""
    flat = [
        {
            "source": "Airoboros",
            **row,
            "num_turns": len(row["chosen"]) // 2,
            "model": "m",
        }
        for row in rows
    ]
    files = [{"split": "train", "path": "data/train-*"}]
    first, second = halves(flat)
    return {
        "README.md": readme(configs=[{"config_name": "default", "data_files": files}]),
        "data/train-00000-of-00002.parquet": parquet(first),
        "data/train-00001-of-00002.parquet": parquet(second),
    }


def helpsteer3(rows: Sequence[Row]) -> Files:
    """nvidia/HelpSteer3: configurations in folders, preferences from -3 to 3."""

    def flat(row: Row, number: int) -> Row:
        sides = [row[side][-1]["content"] for side in ("chosen", "rejected")]
        first, second = sides if number % 2 else sides[::-1]
        score = -2 if number % 2 else 1
        return {
            "domain": "general",
            "language": "english",
            "context": row["chosen"][:-1],
            "response1": first,
            "response2": second,
            "overall_preference": score,
            "individual_preference": [{"score": score, "reasoning": "..."}],
        }

    file = gzip.compress(jsonl([flat(row, number) for number, row in enumerate(rows)]))
    splits = ("train", "validation")
    configs = [
        {
            "config_name": name,
            "data_files": [{"split": s, "path": f"{name}/{s}.jsonl.gz"} for s in splits],
            **({"default": True} if name == "preference" else {}),
        }
        for name in ("feedback", "preference")
    ]
    other = gzip.compress(jsonl([{"context": [], "feedback1": ["..."]}]))
    return {
        "README.md": readme(configs=configs),
        **{f"preference/{split}.jsonl.gz": file for split in splits},
        **{f"feedback/{split}.jsonl.gz": other for split in splits},
    }


def dpo_en_zh(rows: Sequence[Row]) -> Files:
    """hiyouga/DPO-En-Zh-20k: two configurations, JSON arrays in ShareGPT's form."""
    names = {"user": "human", "assistant": "gpt", "system": "system"}

    def turn(message: Row) -> Row:
        return {"from": names[message["role"]], "value": message["content"]}

    flat = [
        {
            "conversations": [turn(message) for message in row["chosen"][:-1]],
            "chosen": turn(row["chosen"][-1]),
            "rejected": turn(row["rejected"][-1]),
        }
        for row in rows
    ]
    configs = [{"config_name": name, "data_files": f"dpo_{name}.json"} for name in ("en", "zh")]
    return {
        "README.md": readme(configs=configs),
        "dpo_en.json": json_array(flat),
        "dpo_zh.json": json_array(flat[:3]),
        "dataset_infos.json": json.dumps({"en": {}}).encode(),
    }


SHAPES = {
    "ultrafeedback": (ultrafeedback_binarized, "hf:them/set", "ultrafeedback"),
    "hh-rlhf": (hh_rlhf, "hf:them/set", "implicit"),
    "orca": (orca_pairs, "hf:them/set", "plain"),
    "distilabel": (distilabel, "hf:them/set", "generations"),
    "capybara": (capybara, "hf:them/set", "minimind"),
    "helpsteer": (helpsteer3, "hf:them/set", "helpsteer"),
    "dpo-en-zh": (dpo_en_zh, "hf:them/set:en", "sharegpt"),
}
"""Files, user-visible name and row format of each data set."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dpo_cli.models.zoo import load_checkpoint
from dpo_cli.training.export import try_command


@pytest.mark.parametrize(
    ("checkpoint", "file", "expected"),
    [
        (
            "seed/full_sft_64",
            "out/rlhf_64.pth",
            "python eval_model.py --model_mode 2 --out_dir out"
            " --hidden_size 64 --num_hidden_layers 2",
        ),
        (
            "seed/full_sft_64_moe",
            "out/rlhf_64_moe.pth",
            "python eval_model.py --model_mode 2 --out_dir out"
            " --hidden_size 64 --num_hidden_layers 2 --use_moe True",
        ),
        (
            "seed/full_sft_64",
            "out/dpo_64.pth",
            "python eval_llm.py --weight dpo --save_dir out --hidden_size 64 --num_hidden_layers 2",
        ),
        (
            "head/full_sft_64_moe",
            "my out/rlhf_64_moe.pth",
            "python eval_llm.py --weight rlhf --save_dir 'my out'"
            " --hidden_size 64 --num_hidden_layers 2 --use_moe 1",
        ),
        (
            "head/full_sft_64",
            "mine.pth",
            "first rename it to rlhf_64.pth: MiniMind's scripts know no other names",
        ),
    ],
)
def test_the_command_of_that_generation(
    golden: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    checkpoint: str, file: str, expected: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    tiny = load_checkpoint(golden / f"arch/{checkpoint}.pth", {}).architecture
    assert try_command(tmp_path / file, tiny) is None  # MiniMind has no tokenizer for it
    architecture = dataclasses.replace(tiny, vocab_size=6400)
    assert try_command(tmp_path / file, architecture) == expected

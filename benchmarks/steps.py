"""Training steps of the plain loop and of `dpo` on the same inputs, for the benchmarks."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Step = Callable[[Any], list[float]]
"""Function that trains on a global batch and returns the loss of each micro-batch."""


class TrainerHooks:
    """Trainer hooks that do nothing, except that a loss that is not finite is an error."""

    def emit(self, event: Any) -> None:
        pass

    def requests(self) -> set[str]:
        return set()

    def keep_scores(self, *scores: Any) -> None:
        pass

    def progress(self, *arguments: Any) -> None:
        pass

    def on_not_finite(self, trainer: Any, global_batch: Any, losses: Any) -> None:
        raise SystemExit("the loss is not finite")


def make_step(inputs: Any, settings: dict[str, Any]) -> Step:
    """Load the models of a variant, and return the function that takes a step."""
    return plain_step(inputs) if settings.get("script") else dpo_step(inputs, settings)


def plain_step(inputs: Any) -> Step:
    """Return the step of MiniMind's script: padded to the maximum, two models, all logits."""
    import torch
    from torch.nn import functional as F

    from dpo_cli.data.batching import make_batch
    from dpo_cli.models.loading import build_model

    def model_of(model_weights: Any) -> Any:
        model = build_model(model_weights.architecture, model_weights.state)
        model.set_attn_implementation("sdpa")
        return model.to(inputs.device.torch_device)

    profile, autocast = inputs.profile, inputs.device.autocast
    policy, reference = model_of(inputs.weights), model_of(inputs.reference_weights)
    reference.eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=profile.train.learning_rate)

    def mean_logps(logits: Any, labels: Any, mask: Any) -> Any:
        logps = F.log_softmax(logits, dim=2).gather(2, labels.unsqueeze(2)).squeeze(2)
        return (logps * mask).sum(1) / mask.sum(1)

    def loss_of(indices: Any) -> Any:
        batch = make_batch(
            [inputs.pairs[i] for i in indices],
            "padded",
            max_seq_len=profile.data.max_seq_len,
            pad_id=inputs.pad_id,
        ).to(inputs.device.torch_device)
        with autocast():
            with torch.no_grad():
                ref_logits = reference(batch.input_ids).logits
                ref_logps = mean_logps(ref_logits, batch.labels, batch.mask)
            logps = mean_logps(policy(batch.input_ids).logits, batch.labels, batch.mask)
            chosen, rejected = (logps - ref_logps).chunk(2)
            return -F.logsigmoid(profile.dpo.beta * (chosen - rejected)).mean()

    def take_step(global_batch: Any) -> list[float]:
        losses = []
        for indices in global_batch.micro_batches:
            loss = loss_of(indices)
            (loss / len(global_batch.micro_batches)).backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(policy.parameters(), profile.train.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return losses

    return take_step


def dpo_step(inputs: Any, settings: dict[str, Any]) -> Step:
    """Return the step of `dpo`'s trainer; cold if `settings` has "cold" or the padded layout."""
    import torch

    from dpo_cli.models.frozen import Frozen
    from dpo_cli.training import setup
    from dpo_cli.training.optimizer import make_optimizer
    from dpo_cli.training.reference import open_references
    from dpo_cli.training.trainer import Trainer

    def scorer(model_weights: Any) -> Any:
        scorer = setup.make_scorer(inputs, model_weights)
        if not settings.get("packed", True):
            scorer.model.set_attn_implementation("sdpa")
            scorer.fallback_reason = "left out by the benchmark"
        return scorer

    policy = scorer(inputs.weights)
    os.environ["DPO_CACHE_DIR"] = os.devnull  # keeps the reference's log-probs in memory only
    reference, _ = open_references(
        inputs, lambda: Frozen(scorer(inputs.reference_weights)), Path(os.devnull)
    )
    trainer = Trainer(
        inputs,
        policy,
        reference,
        reference,
        make_optimizer(policy.parameters(), inputs.profile.train),
        torch.amp.GradScaler(inputs.device.type, enabled=inputs.device.dtype == torch.float16),
        hooks=TrainerHooks(),
        save=lambda trainer: None,
    )
    is_warm = inputs.profile.train.layout == "packed" and not settings.get("cold")
    for global_batch in inputs.order.global_batches() if is_warm else ():
        for micro_batch in inputs.batches.micro_batches(global_batch.micro_batches):
            batch = inputs.batches.make_batch(inputs.pairs, micro_batch.indices)
            reference.token_logps(micro_batch.indices, batch)
    return lambda global_batch: list(trainer.take_step(global_batch).losses)


def prepare(options: argparse.Namespace, settings: dict[str, Any], folder: Path) -> Any:
    """Read the inputs of a run over the first `options.pairs` pairs that can be trained on."""
    import dataclasses

    from dpo_cli.compute.device import configure_device, resolve
    from dpo_cli.profile.schema import Profile
    from dpo_cli.run.directory import RunDirectory
    from dpo_cli.training.inputs import read_inputs

    device = resolve(options.device, settings.get("dtype", "auto"))
    if settings.get("tuned", True):
        configure_device(device)
    data = folder / "pairs.jsonl"
    with options.data.open(encoding="utf-8") as lines:
        data.write_text("".join(itertools.islice(lines, 4 * options.pairs)), encoding="utf-8")
    train = {
        "layout": settings.get("layout", "packed"),
        "learning_rate": 1e-7,
        "epochs": 1,
        "batch_size": options.batch_size,
        "accumulation_steps": settings.get("accumulation_steps", 1),
        "max_tokens_per_forward": settings.get("max_tokens_per_forward"),
        "activation_checkpointing": settings.get("activation_checkpointing", False),
        "compile": settings.get("compile", False),
    }
    profile = Profile.model_validate(
        {
            "model": {
                "weights": str(options.model_weights.resolve()),
                "tokenizer": str(options.tokenizer.resolve()),
            },
            "data": {"data_path": str(data), "max_seq_len": options.max_seq_len},
            "dpo": {"beta": 5.0},
            "train": train,
        }
    )
    inputs = read_inputs(profile, device, RunDirectory(folder), lambda *_: None)
    pairs = inputs.pairs[: options.pairs]
    assert len(pairs) == options.pairs, f"the data has only {len(pairs)} pairs to train on"
    return dataclasses.replace(inputs, pairs=pairs)


def peak_bytes(device: Any) -> int:
    """Return the peak memory of the tensors on a device; on a CPU, of the process."""
    from dpo_cli.compute.memory import peak_process_bytes

    return int(device.peak_bytes() or peak_process_bytes())


def forward_gflop(shape: Any, pairs: Any) -> float:
    """Return the GFLOP of a forward: each token once, the head at response positions.

    `shape` is an architecture of MiniMind, or a configuration of transformers for a dense model.
    """
    heads = shape.num_attention_heads * shape.head_dim
    groups = shape.num_key_value_heads * shape.head_dim
    width, blocks = shape.hidden_size, 1
    if getattr(shape, "use_moe", False):
        # MiniMind version 2 has one shared expert beside the routed ones.
        blocks = shape.num_experts_per_tok + (shape.version == 2)
    weights = 2 * width * (heads + groups) + 3 * blocks * width * shape.intermediate_size
    flop = 0.0
    for pair, tokens in zip(pairs, pairs.computed_tokens.tolist(), strict=True):
        chosen, rejected = len(pair.chosen.ids) - 1, len(pair.rejected.ids) - 1
        prompt = chosen + rejected - tokens
        # Per query and visible key: one product for the score, one for the value.
        seen = (chosen**2 + rejected**2 - prompt**2) / 2
        targets = pair.chosen.response_tokens + pair.rejected.response_tokens
        flop += shape.num_hidden_layers * (2 * weights * tokens + 4 * heads * seen)
        flop += 2 * width * shape.vocab_size * targets
    return flop / 1e9


def rate_of_product(device: Any) -> float:
    """Measure the GFLOP/s of one large product in the dtype of the device."""
    import torch

    rows, middle, columns = (4096, 512, 1408) if device.type == "cpu" else (8192, 8192, 8192)
    kind = {"device": device.torch_device, "dtype": device.dtype}
    left, right = torch.randn(rows, middle, **kind), torch.randn(middle, columns, **kind)
    seconds = []
    for _ in range(40):
        began = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return 2 * rows * middle * columns / min(seconds) / 1e9


def prepare_trl(options: argparse.Namespace, folder: Path) -> list[str]:
    """Write the same weights and pairs for TRL; return the command line without the settings."""
    from dpo_cli.models.loading import build_model

    os.environ["DPO_CACHE_DIR"] = str(folder)
    inputs = prepare(options, {"tuned": False}, folder)
    model = build_model(inputs.weights.architecture, inputs.weights.state)
    model.save_pretrained(folder / "model")
    for file in options.tokenizer.iterdir():
        shutil.copyfile(file, folder / "model" / file.name)
    lines = (folder / "pairs.jsonl").read_text(encoding="utf-8").split("\n")
    kept = [lines[line - 1] + "\n" for line in inputs.pairs.lines.tolist()]
    (folder / "kept.jsonl").write_text("".join(kept), encoding="utf-8")
    script = Path(__file__).with_name("trl_dpo.py")
    return [str(options.trl), str(script), str(folder / "model"), str(folder / "kept.jsonl")]


def trl_settings(options: argparse.Namespace, *, is_on_cpu: bool) -> dict[str, Any]:
    """Return the settings of TRL's trainer for the sizes of a benchmark."""
    return {
        "per_device_train_batch_size": options.batch_size,
        "max_length": options.max_seq_len,
        "learning_rate": 1e-7,
        "use_cpu": is_on_cpu,
    }


def run_json(command: list[str]) -> Any:
    """Run a command; return the last line of its output as JSON."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode} of {' '.join(command)}")
    return json.loads(done.stdout.splitlines()[-1])

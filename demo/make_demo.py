"""Build the demo's files: tokenizer, SFT weights, preference pairs and held-out pairs.

The results are part of the repository. To build them again, without a network, run in its root:

    python -m demo.make_demo

All random choices are seeded. A second run on the same machine, with the same library versions,
writes the same bytes; on other machines the weights may differ in the last bits.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from demo import measure, world
from dpo_cli.data.chat import ChatTokenizer, Tokenized
from dpo_cli.models.loading import build_model, to_disk_names
from dpo_cli.models.minimind import MiniMind
from dpo_cli.models.saving import write_weights

HERE = Path(__file__).resolve().parent

SEED = 20261122
THREADS = 2  # the number of threads changes the last bits
TRAINING_PAIRS = 640
HELD_OUT_PAIRS = 96
QUESTIONS = 24_000
GOODBYES = 6_000
BATCH_SIZE = 32
LEARNING_RATE = 3e-3
WARMUP_STEPS = 20
NOISE_STD = 0.01  # of the noise on the weights, see `fine_tune`
FINAL_SHARE = 0.02  # of the learning rate, at the end of the cosine decay

_IGNORED = -100

PADDING, TURN, END = SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 768

ARCHITECTURE = MiniMind(
    version=2,
    hidden_size=128,
    num_hidden_layers=4,
    vocab_size=VOCABULARY,
    intermediate_size=384,
    num_experts=0,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=16,
    num_experts_per_tok=2,
    norm_topk_prob=True,
    rope_theta=1e6,
    rms_norm_eps=1e-5,
)

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{% else %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{{ '<|im_start|>user\\n' + message['content'] + '<|im_end|>\\n<|im_start|>assistant\\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + '<|im_end|>\\n' }}"
    "{% endif %}"
    "{% endfor %}"
)
"""MiniMind version 2's template: the assistant header follows every user turn."""


def main() -> None:
    """Build all files and print a report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--to", type=Path, default=HERE, metavar="DIR", help="where to write (default: demo/)"
    )
    folder: Path = parser.parse_args().to
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    start = time.perf_counter()

    facts = world.make_facts(SEED)
    for_training, for_held_out = world.split_facts(facts, SEED)
    folder.mkdir(parents=True, exist_ok=True)
    pairs, held_out = folder / measure.PAIRS, folder / measure.HELD_OUT
    write_jsonl(pairs, world.make_pairs(for_training, TRAINING_PAIRS, SEED + 1))
    write_jsonl(held_out, world.make_pairs(for_held_out, HELD_OUT_PAIRS, SEED + 2))

    corpus = world.make_corpus(facts, QUESTIONS, GOODBYES, SEED + 3)
    tokenizer = make_tokenizer(folder / measure.TOKENIZER, corpus)
    encoded = tokenizer.encode([tokenizer.render(dialogue)[0] for dialogue in corpus])
    model = fine_tune(new_model(), [dialogue.tokenized() for dialogue in encoded])
    weights = folder / ARCHITECTURE.file_name("full_sft")
    write_weights(weights, to_disk_names(model, model.state_dict()), ARCHITECTURE, dtype="float16")
    print(f"built in {time.perf_counter() - start:.0f} s: {folder}")
    measure.report(weights, folder)


def write_jsonl(path: Path, rows: Sequence[Any]) -> None:
    """Write one row per line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def make_tokenizer(folder: Path, corpus: Sequence[Sequence[world.Message]]) -> ChatTokenizer:
    """Train a byte-level BPE on the corpus, and write it in the layout of MiniMind's folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    roles = ("system\nYou are a helpful assistant", "user\n", "assistant\n")
    texts = [message["content"] for dialogue in corpus for message in dialogue]
    tokenizer.train_from_iterator([*roles, *texts], trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY, "the corpus is too small for the vocabulary"

    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    added_token = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(number): {"content": token, **added_token, "special": True}
            for number, token in enumerate(SPECIAL_TOKENS)
        },
        "bos_token": TURN,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": 32768,
        "pad_token": PADDING,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": PADDING,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text)
    return ChatTokenizer(folder)


def new_model() -> PreTrainedModel:
    """Build a model with random weights and Llama's initialization (std 0.02)."""
    state = {
        name: torch.randn(shape) * 0.02 if len(shape) > 1 else torch.ones(shape)
        for name, shape in ARCHITECTURE.expected_shapes().items()
    }
    return build_model(ARCHITECTURE, ARCHITECTURE.to_hf_names(state))


def fine_tune(model: PreTrainedModel, dialogues: Sequence[Tokenized]) -> PreTrainedModel:
    """Train one pass over the dialogues, on the answers only, like MiniMind's own fine-tuning.

    Each gradient is computed with noise on the weights. Without the noise, so small a model
    converges to weights where any small change destroys its facts, and DPO changes all weights.
    """
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.98))
    batches = list(_batches(dialogues))
    model.train()
    for step, (ids, labels) in enumerate(batches, start=1):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 1) / len(batches)))
        warmup = min(1.0, step / WARMUP_STEPS)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * warmup * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)
        with _noise_on(parameters):
            answer = labels != _IGNORED
            hidden = model.model(input_ids=ids).last_hidden_state[answer]
            loss = F.cross_entropy(model.lm_head(hidden), labels[answer])
            torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step in (1, len(batches)):
            print(f"step {step:4}/{len(batches)}  loss {loss.item():.3f}", flush=True)
    return model.eval()


@contextmanager
def _noise_on(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Add noise to all weights, and restore them exactly at the end."""
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter), alpha=NOISE_STD)
    yield
    with torch.no_grad():
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)


def _batches(dialogues: Sequence[Tokenized]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and labels, both (sequences, tokens), padded on the right."""
    for start in range(0, len(dialogues), BATCH_SIZE):
        rows = dialogues[start : start + BATCH_SIZE]
        ids = pad_sequence([row.ids for row in rows], batch_first=True)
        response = pad_sequence([row.response for row in rows], batch_first=True)
        yield ids[:, :-1], ids.where(response, _IGNORED)[:, 1:]


if __name__ == "__main__":
    main()

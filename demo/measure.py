"""Facts and preferences of a demo model, measured on the held-out pairs.

Run from the root of the repository:

    python -m demo.measure                            # the SFT weights
    python -m demo.measure runs/demo-.../rlhf_128.pth # the result of a run
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from demo import world
from dpo_cli.data.batching import make_batch
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.encoding import encode_pairs
from dpo_cli.data.pairs import PreferencePair, read_pairs
from dpo_cli.models.loading import build_model, load_model_weights
from dpo_cli.models.scoring import ResponseScorer

HERE = Path(__file__).resolve().parent
TOKENIZER, PAIRS, HELD_OUT = "tokenizer", "pairs.jsonl", "held_out.jsonl"
WEIGHTS = "full_sft_128.pth"

_END = "<|im_end|>"
_MAX_ANSWER_TOKENS = 64
_ANSWERS_SHOWN = 4
_SEED = 7


@dataclass(frozen=True)
class Preference:
    """Scores of a model on the held-out pairs.

    `nats_chosen` and `nats_rejected` are per response token; `accuracy` is the share of pairs whose
    chosen response is more likely than the rejected one.
    """

    nats_chosen: float
    nats_rejected: float
    accuracy: float


def main() -> None:
    """Measure one weights file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, nargs="?", default=HERE / WEIGHTS)
    report(parser.parse_args().weights, HERE)


def report(weights: Path, folder: Path) -> None:
    """Print the measurements of a weights file, with tokenizer and pairs in `folder`."""
    model_weights = load_model_weights(weights, {})
    model = build_model(model_weights.architecture, model_weights.state).eval()
    tokenizer = ChatTokenizer(folder / TOKENIZER)
    pairs = [row for row in read_pairs(folder / HELD_OUT) if isinstance(row, PreferencePair)]

    preference = measure_preference(model, tokenizer, folder / HELD_OUT)
    questions = [str(pair.chosen[0]["content"]) for pair in pairs]
    chance = math.log(model_weights.architecture.vocab_size)
    print(
        f"{weights}: {model_weights.architecture.description}, {model_weights.parameters} weights"
    )
    print(f"on the {len(pairs)} held-out pairs:")
    print(
        f"  nats per response token   {preference.nats_chosen:.3f} chosen,"
        f" {preference.nats_rejected:.3f} rejected (chance {chance:.2f})"
    )
    print(f"  chosen more likely        {preference.accuracy:.3f} of the pairs")
    right = [world.split_answer(str(pair.chosen[1]["content"])) for pair in pairs]
    for label, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        answers = generate(model, tokenizer, questions, temperature)
        given = list(zip(right, map(world.split_answer, answers), strict=True))
        true = sum(ours[0] == others[0] for ours, others in given) / len(given)
        in_tone = sum(ours[1] == others[1] for ours, others in given) / len(given)
        print(f"  {label} answers".ljust(27), f"{true:.3f} true, {in_tone:.3f} in the right tone")
    for question, answer in list(zip(questions, answers, strict=True))[:_ANSWERS_SHOWN]:
        print(f"\n  > {question}\n  {answer}")


@torch.no_grad()
def measure_preference(model: PreTrainedModel, tokenizer: ChatTokenizer, path: Path) -> Preference:
    """Compute the scores of the pairs in a file."""
    pairs, _ = encode_pairs(
        read_pairs(path), tokenizer, max_seq_len=1024, empty_think_ratio=1.0, seed=0
    )
    scores = ResponseScorer(model)(make_batch(pairs, "packed", max_seq_len=0))
    sums = (scores.token_logps * scores.mask).sum(dim=-1)
    nats = -sums / scores.mask.sum(dim=-1)
    (chosen, rejected), (nats_chosen, nats_rejected) = sums.chunk(2), nats.chunk(2)
    return Preference(
        nats_chosen=nats_chosen.mean().item(),
        nats_rejected=nats_rejected.mean().item(),
        accuracy=(chosen > rejected).float().mean().item(),
    )


@torch.no_grad()
def generate(
    model: PreTrainedModel, tokenizer: ChatTokenizer, questions: Sequence[str], temperature: float
) -> list[str]:
    """Answer each question: greedily at temperature 0, otherwise sampled with a fixed seed."""
    backend = Tokenizer.from_file(str(tokenizer.folder / "tokenizer.json"))
    end = backend.token_to_id(_END)
    generator = torch.Generator().manual_seed(_SEED)
    prompts = [tokenizer.render([{"role": "user", "content": text}])[0] for text in questions]
    rows = [encoded.tokenized().ids for encoded in tokenizer.encode(prompts)]
    starts = [len(row) for row in rows]
    open_rows = list(range(len(rows)))
    for _ in range(_MAX_ANSWER_TOKENS):
        ids = pad_sequence([rows[number] for number in open_rows], batch_first=True)
        last = torch.tensor([len(rows[number]) - 1 for number in open_rows])
        logits: Tensor = model(input_ids=ids).logits[torch.arange(len(open_rows)), last]
        if temperature:
            probabilities = (logits / temperature).softmax(dim=-1)
            tokens = torch.multinomial(probabilities, 1, generator=generator)
        else:
            tokens = logits.argmax(dim=-1, keepdim=True)
        for number, token in zip(open_rows, tokens, strict=True):
            rows[number] = torch.cat([rows[number], token])
        open_rows = [number for number in open_rows if rows[number][-1] != end]
        if not open_rows:
            break
    return [
        backend.decode(row[start:].tolist(), skip_special_tokens=True)
        for row, start in zip(rows, starts, strict=True)
    ]


if __name__ == "__main__":
    main()

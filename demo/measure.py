"""What a model of the demo knows and prefers, on the held-out pairs.

python -m demo.measure                            # the SFT checkpoint
python -m demo.measure runs/demo-.../rlhf_128.pth # what a run made of it
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
from dpo_cli.data.chat import ChatTokenizer, encode_pairs
from dpo_cli.data.pairs import PreferencePair, read_pairs
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.models.zoo import build_model, load_checkpoint

HERE = Path(__file__).resolve().parent
TOKENIZER, PAIRS, HELD_OUT = "tokenizer", "pairs.jsonl", "held_out.jsonl"
WEIGHTS = "full_sft_128.pth"

_END = "<|im_end|>"
_LONGEST_ANSWER = 64  # tokens
_SHOWN = 4
_SEED = 7


@dataclass(frozen=True)
class Preference:
    """How a model scores the held-out pairs.

    `nats_chosen` and `nats_rejected` are per response token; `accuracy` is the share of pairs whose
    chosen response it finds likelier than the rejected one.
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
    """Print everything there is to say about a weights file, with the assets in `folder`."""
    checkpoint = load_checkpoint(weights, {})
    model = build_model(checkpoint.architecture, checkpoint.state).eval()
    tokenizer = ChatTokenizer(folder / TOKENIZER)
    pairs = [row for row in read_pairs(folder / HELD_OUT) if isinstance(row, PreferencePair)]

    preference = measure_preference(model, tokenizer, folder / HELD_OUT)
    questions = [str(pair.chosen[0]["content"]) for pair in pairs]
    answers = sample_answers(model, tokenizer, questions)
    expected = [world.split_answer(str(pair.chosen[1]["content"])) for pair in pairs]
    given = [world.split_answer(answer) for answer in answers]
    true = [ours[0] == theirs[0] for ours, theirs in zip(given, expected, strict=True)]
    matching = [ours[1] == theirs[1] for ours, theirs in zip(given, expected, strict=True)]
    chance = math.log(checkpoint.architecture.vocab_size)
    print(f"{weights}: {checkpoint.architecture.description}, {checkpoint.parameters} weights")
    print(f"on the {len(pairs)} held-out pairs:")
    print(
        f"  nats per response token   {preference.nats_chosen:.3f} chosen,"
        f" {preference.nats_rejected:.3f} rejected (chance {chance:.2f})"
    )
    print(f"  chosen likelier           {preference.accuracy:.3f} of the pairs")
    print(f"  sampled answer is true    {_share(true):.3f}")
    print(f"  in the question's tone    {_share(matching):.3f}")
    for question, answer in list(zip(questions, answers, strict=True))[:_SHOWN]:
        print(f"\n  > {question}\n  {answer}")


@torch.no_grad()
def measure_preference(model: PreTrainedModel, tokenizer: ChatTokenizer, path: Path) -> Preference:
    """Score the pairs of a file."""
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
def sample_answers(
    model: PreTrainedModel, tokenizer: ChatTokenizer, questions: Sequence[str]
) -> list[str]:
    """One answer to each question, drawn at temperature 1 with a fixed seed."""
    backend = Tokenizer.from_file(str(tokenizer.folder / "tokenizer.json"))
    end = backend.token_to_id(_END)
    generator = torch.Generator().manual_seed(_SEED)
    prompts = [tokenizer.render([{"role": "user", "content": text}]) for text in questions]
    rows = [encoded.ids for encoded in tokenizer.encode(prompts)]
    starts = [len(row) for row in rows]
    open_rows = set(range(len(rows)))
    for _ in range(_LONGEST_ANSWER):
        numbers = sorted(open_rows)
        if not numbers:
            break
        ids = pad_sequence([rows[number] for number in numbers], batch_first=True)
        logits: Tensor = model(input_ids=ids).logits
        last = torch.tensor([len(rows[number]) - 1 for number in numbers])
        probabilities = logits[torch.arange(len(numbers)), last].softmax(dim=-1)
        drawn = torch.multinomial(probabilities, 1, generator=generator)
        for number, token in zip(numbers, drawn, strict=True):
            rows[number] = torch.cat([rows[number], token])
            if token == end:
                open_rows.remove(number)
    return [
        backend.decode(row[start:].tolist(), skip_special_tokens=True)
        for row, start in zip(rows, starts, strict=True)
    ]


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)


if __name__ == "__main__":
    main()

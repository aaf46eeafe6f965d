"""Answers of policy and reference to the prompts of a few held-out pairs, for people to read."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile

import torch
from torch import Tensor

from dpo_cli.data.chat import ChatTokenizer, TokenizedPair
from dpo_cli.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from dpo_cli.models.frozen import Frozen
from dpo_cli.models.generation import free_positions, generate, most_likely, stop_ids_of
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.run.events import Sample
from dpo_cli.training.inputs import RunInputs

MAX_TOKENS = 96
"""Length at which an answer is truncated."""


class Sampler:
    """Generates answers of policy and reference to the same few prompts.

    Decoding is greedy: drawing a random number would change those of training, and so its bits.

    Args:
        inputs: inputs of the run.
        tokenizer: tokenizer of the run.
        load: loads the frozen reference onto the run's device. It answers once and is freed.
        group: the ranks that train together. If they share a model, all of them generate, and take
            each token of the main rank.
    """

    def __init__(
        self,
        inputs: RunInputs,
        tokenizer: ChatTokenizer,
        load: Callable[[], Frozen],
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self._inputs, self._tokenizer, self._load, self._group = inputs, tokenizer, load, group
        pairs = inputs.held_out
        count = min(inputs.profile.eval.num_samples, len(pairs))
        # Spread evenly over the file, because files are often sorted.
        self._places = pairs.places
        self._pairs = [pairs[index * len(pairs) // count] for index in range(count)]
        self._reference: list[str] = []
        self._frame = user_frame(tokenizer)

    def sample(
        self, policy: ResponseScorer, on_progress: Callable[[int, int], None]
    ) -> list[Sample]:
        """Return each prompt with both answers.

        Args:
            policy: the trained model.
            on_progress: called with the number of answers done, and of all.
        """
        total = len(self._pairs) * (1 if self._reference else 2)
        done = 0

        def report() -> None:
            nonlocal done
            done += 1
            on_progress(done, total)

        if not self._reference:
            self._reference = self._answers(self._load(), report)
        answers = self._answers(Frozen(policy), report)
        return [
            Sample(
                place=self._places.name(pair.line),
                prompt=(text := self._tokenizer.decode(prompt_of(pair))),
                question=question_of(text, self._frame),
                policy=policy_answer,
                reference=reference_answer,
            )
            for pair, policy_answer, reference_answer in zip(
                self._pairs, answers, self._reference, strict=True
            )
        ]

    def _answers(self, model: Frozen, report: Callable[[], None]) -> list[str]:
        answers = []
        with model.active() as scorer:
            for pair in self._pairs:
                prompt = prompt_of(pair)
                with self._group.computing():
                    answer = greedy_answer(
                        self._inputs, self._tokenizer, scorer, prompt, self._choose
                    )
                answers.append(answer)
                report()
        return answers

    def _choose(self, logits: Tensor) -> int:
        """Return the most likely token; with shards, that of the main rank on all ranks.

        Ranks on different processors could round differently and end at different tokens.
        """
        token_id = most_likely(logits)
        if self._group.is_sharded:
            chosen = torch.tensor([token_id])
            self._group.broadcast_tensors([chosen])
            token_id = int(chosen)
        return token_id


def greedy_answer(
    inputs: RunInputs,
    tokenizer: ChatTokenizer,
    scorer: ResponseScorer,
    prompt: Tensor,
    choose: Callable[[Tensor], int] = most_likely,
) -> str:
    """Generate an answer of at most `MAX_TOKENS` tokens to a prompt, (T,) ids."""
    architecture = inputs.weights.architecture
    room = free_positions(architecture, prompt)
    stop_ids = stop_ids_of(architecture, tokenizer.end_id)
    answer = generate(
        scorer.next_logits,
        prompt,
        device=inputs.device,
        stop_ids=stop_ids,
        max_new_tokens=MAX_TOKENS if room is None else max(1, min(MAX_TOKENS, room)),
        sample=choose,
    )
    return tokenizer.decode([token_id for token_id in answer if token_id not in stop_ids])


def user_frame(tokenizer: ChatTokenizer) -> tuple[str, str]:
    """Return the text that the chat template writes before and after the last user turn.

    Found by rendering marks. Before the first turn a template may add a system prompt, so the text
    before is what precedes both a first and a later turn. Empty if the template fails.
    """
    marks = ("qxq1", "qxq2", "qxq3")
    user, answer, again = (
        {"role": role, "content": mark}
        for role, mark in zip(("user", "assistant", "user"), marks, strict=True)
    )
    try:
        first = tokenizer.decode(tokenizer.prompt([user]))
        later = tokenizer.decode(tokenizer.prompt([user, answer, again]))
    except ValueError:  # for example a template that refuses a second turn, or needs a system turn
        return "", ""
    before_first, _, _ = first.partition(marks[0])
    before_later, _, after = later.rpartition(marks[2])
    before_later = before_later.rpartition(marks[1])[2]
    pairs = zip(reversed(before_first), reversed(before_later), strict=False)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return before_later[len(before_later) - common :], after


def question_of(prompt: str, frame: tuple[str, str]) -> str:
    """Return the last user turn of a rendered prompt; all of it if it does not end with one.

    Args:
        prompt: rendered text, up to the header of the answer.
        frame: from `user_frame`.
    """
    before, after = frame
    if not before or not prompt.endswith(after):
        return prompt
    text = prompt.removesuffix(after)
    return text.rpartition(before)[2] if before in text else prompt


def prompt_of(pair: TokenizedPair) -> Tensor:
    """Return the ids up to the last answer of the chosen side, with its header: (T,)."""
    ids, response = pair.chosen.ids, pair.chosen.response
    # A response has one run of True per assistant turn; `first` marks the start of each.
    first = response.clone()
    first[1:] &= ~response[:-1]
    return ids[: int(first.nonzero()[-1])]

"""What policy and reference answer to the prompts of a few held-out pairs: for people to read."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dpo_cli.data.chat import ChatTokenizer, TokenizedPair
from dpo_cli.models.generation import free_positions, generate
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.run.events import Sample
from dpo_cli.training.inputs import RunInputs

MOST_TOKENS = 96
"""Of an answer."""


class Sampler:
    """Asks policy and reference the same few prompts; what the reference says never changes.

    Answers are greedy: no random number is drawn, and none of the run's is used up.

    Args:
        inputs: the run's inputs.
        tokenizer: of the run.
        load: gives the frozen reference, on the run's device; it is freed when it has answered.
    """

    def __init__(
        self, inputs: RunInputs, tokenizer: ChatTokenizer, load: Callable[[], ResponseScorer]
    ) -> None:
        self._device, self._tokenizer, self._load = inputs.device, tokenizer, load
        self._architecture = inputs.weights.architecture
        pairs, count = (
            inputs.held_out,
            min(inputs.profile.eval.num_samples, len(inputs.held_out)),
        )
        # Spread evenly: files are often sorted.
        self._places = pairs.places
        self._pairs = [pairs[index * len(pairs) // count] for index in range(count)]
        self._reference: list[str] = []

    def sample(
        self, policy: ResponseScorer, on_progress: Callable[[int, int], None]
    ) -> list[Sample]:
        """Every prompt with both answers, cut at `MOST_TOKENS`.

        Args:
            policy: left in evaluation mode.
            on_progress: hears how many answers are there, and how many there will be.
        """
        total = len(self._pairs) * (1 if self._reference else 2)
        told = 0

        def tell() -> None:
            nonlocal told
            told += 1
            on_progress(told, total)

        if not self._reference:
            self._reference = self._answers(self._load(), tell)
        answers = self._answers(policy, tell)
        return [
            Sample(
                place=self._places.name(pair.line),
                prompt=self._tokenizer.decode(prompt_of(pair)),
                policy=policy_says,
                reference=reference_says,
            )
            for pair, policy_says, reference_says in zip(
                self._pairs, answers, self._reference, strict=True
            )
        ]

    def _answers(self, scorer: ResponseScorer, tell: Callable[[], None]) -> list[str]:
        scorer.eval()
        answers = []
        for pair in self._pairs:
            answers.append(self._answer(scorer, prompt_of(pair)))
            tell()
        return answers

    def _answer(self, scorer: ResponseScorer, prompt: Tensor) -> str:
        room = free_positions(self._architecture, prompt)
        end_id = self._tokenizer.end_id
        answer = generate(
            scorer.model,
            prompt,
            device=self._device,
            end_id=end_id,
            max_new_tokens=MOST_TOKENS if room is None else max(1, min(MOST_TOKENS, room)),
        )
        return self._tokenizer.decode([number for number in answer if number != end_id])


def prompt_of(pair: TokenizedPair) -> Tensor:
    """(T,), the ids up to the last answer of the chosen side, its header included."""
    ids, response = pair.chosen.ids, pair.chosen.response
    first = response.clone()
    first[1:] &= ~response[:-1]
    return ids[: int(first.nonzero()[-1])]

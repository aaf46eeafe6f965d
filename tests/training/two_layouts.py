"""A bench for two layouts of one batch: models, pairs that are hard to pack, and a trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dpo_cli.data.batching import Layout
from dpo_cli.data.chat import Tokenized, TokenizedPair
from dpo_cli.data.order import DataOrder
from dpo_cli.models.convert import to_hf
from dpo_cli.models.minimind import MiniMind
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.models.support import scorer_for
from dpo_cli.models.zoo import Checkpoint, build_model, to_disk_names, use_experts_for
from dpo_cli.objective.balance import BalanceKind
from dpo_cli.profile.schema import Profile
from dpo_cli.run.events import Event, StepDone
from dpo_cli.training import reference as kept
from dpo_cli.training.device import Compute
from dpo_cli.training.optim import LearningRate
from dpo_cli.training.plan import Prepared
from dpo_cli.training.trainer import Trainer
from tests import families
from tests.data.columns import in_columns

VOCABULARY = families.VOCABULARY
MAX_SEQ_LEN = 80


class Float64(TorchFunctionMode):
    """Turns every widening to float32 in the models' code into one to float64.

    RMS norms and routers compute in float32 whatever the weights are; a value near a rounding edge
    would then differ by 6e-8 between layouts, and hide what this test looks for.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is Tensor.float:
            return args[0].double()
        if function in (Tensor.type_as,):
            return args[0]
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return function(*args, **kwargs)


def architecture(generation: int, experts: int) -> MiniMind:
    return MiniMind(
        generation=generation,  # type: ignore[arg-type]
        hidden_size=32,
        num_hidden_layers=2,
        vocab_size=VOCABULARY,
        intermediate_size=48,
        num_experts=experts,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8 if generation == 2 else 12,
        num_experts_per_tok=2 if generation == 2 else 1,
        norm_topk_prob=True,
        rope_theta=1e6,
        rms_norm_eps=1e-5 if generation == 2 else 1e-6,
    )


ARCHITECTURES = {
    "minimind2": architecture(2, 0),
    "minimind2-moe": architecture(2, 4),
    "minimind3": architecture(3, 0),
    "minimind3-moe": architecture(3, 4),
}


def side(ids: Sequence[int], *spans: tuple[int, int]) -> Tokenized:
    response = torch.zeros(len(ids), dtype=torch.bool)
    for start, end in spans:
        response[start:end] = True
    return Tokenized(torch.tensor(ids), response)


def odd_pairs() -> list[TokenizedPair]:
    """Everything that could go wrong when two sides share a prompt."""
    generator = torch.Generator().manual_seed(5)

    def words(count: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (count,), generator=generator).tolist()

    prompt, long_prompt, answer = words(7), words(41), words(9)
    turn = [*prompt, *answer, *words(5)]
    pairs = [
        # very unequal lengths
        (side([*prompt, *words(2)], (7, 9)), side([*prompt, *words(60)], (7, 67))),
        (side([*long_prompt, *words(30)], (41, 71)), side([*long_prompt, *words(3)], (41, 44))),
        # several turns: the first answer is part of what both sides share
        (
            side([*turn, *words(8)], (7, 16), (21, 29)),
            side([*turn, *words(12)], (7, 16), (21, 33)),
        ),
        # several turns that differ from the first on
        (
            side([*prompt, *words(4), *words(6), *words(5)], (7, 11), (17, 22)),
            side([*prompt, *words(9), *words(3), *words(2)], (7, 16), (19, 21)),
        ),
        # one-token responses
        (side([*prompt, 3], (7, 8)), side([*prompt, 4], (7, 8))),
        (side([*prompt, 3], (7, 8)), side([*prompt, *words(20)], (7, 27))),
        # identical beginnings of the responses
        (side([*prompt, *answer, 5], (7, 17)), side([*prompt, *answer, 6, 7], (7, 18))),
        # one side continues the other, both ways round
        (side([*prompt, *answer], (7, 16)), side([*prompt, *answer, *words(6)], (7, 22))),
        (side([*prompt, *answer, *words(6)], (7, 22)), side([*prompt, *answer], (7, 16))),
        # nothing in common, not even the first token
        (side([1, *words(11)], (4, 12)), side([2, *words(25)], (10, 26))),
    ]
    return [TokenizedPair(line, *both) for line, both in enumerate(pairs, start=1)]


class Recorder:
    """Keeps the events and the gradients of a run; never asks for anything."""

    def __init__(self) -> None:
        self.steps: list[StepDone] = []
        self.gradients: list[Tensor] = []

    def emit(self, event: Event) -> None:
        assert isinstance(event, StepDone)
        self.steps.append(event)

    def asked(self) -> set[str]:
        return set()

    def progress(self, phase: str, done: int, total: int, unit: str) -> None:
        raise AssertionError("there is nothing to evaluate")


def random_weights(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(11)
    for parameter in model.parameters():
        spread = 0.3 if parameter.ndim > 1 else 0.1
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = noise * spread + (parameter.ndim == 1)


def minimind_scorer(name: str, layout: Layout) -> ResponseScorer:
    """One of MiniMind's four, with random weights."""
    architecture = ARCHITECTURES[name]
    model = build_model(architecture, empty_state(architecture))
    random_weights(model)
    if architecture.use_moe:
        use_experts_for(model, float32=False)
    return ResponseScorer(model, architecture.balance_kind if architecture.use_moe else None)


def family_scorer(name: str, layout: Layout) -> ResponseScorer:
    """A model of another family; in the reference layout under an attention that is not ours."""
    model = families.build(name)
    has_experts = "Experts" in " ".join(type(module).__name__ for module in model.modules())
    if has_experts:
        use_experts_for(model, float32=False)
    balance_kind: BalanceKind | None = "batch" if name == "qwen3-moe" else None
    if layout == "packed":
        return scorer_for(model, MAX_SEQ_LEN, balance_kind=balance_kind)
    model.set_attn_implementation("eager")
    return ResponseScorer(model, balance_kind)


def make_trainer(
    make_scorer: Callable[[Layout], ResponseScorer],
    layout: Layout,
    watch: Recorder,
    *,
    dtype: torch.dtype = torch.float64,
    **dpo: Any,
) -> Trainer:
    """A run of 20 steps over `odd_pairs`.

    Args:
        make_scorer: the policy, and the reference, of a layout.
        layout: the reference is kept in the packed one, and runs beside the policy in the other.
        watch: gets the steps and the gradients.
        dtype: of the weights.
        dpo: keys of the profile's table.
    """
    pairs = in_columns(odd_pairs())
    profile = Profile.model_validate(
        {
            "model": {"tokenizer": "unused"},
            "data": {"data_path": "unused", "max_seq_len": MAX_SEQ_LEN},
            "dpo": {"reduction": "sum", "beta": 0.3, **dpo},
            "train": {"layout": layout, "tokens_per_forward": 90, "save_min_seconds": 1e9},
        }
    )
    compute = Compute(torch.device("cpu"), dtype)
    order = DataOrder(
        pairs=len(pairs), batch_size=3, accumulation_steps=1, epochs=5, shuffle=True, seed=3
    )

    def scorer() -> ResponseScorer:
        made = make_scorer(layout).to(dtype)
        made.wants_sum_sq_probs = profile.dpo.use_weighting
        return made

    policy = scorer()
    # What the weights are called on disk; of another family's shape all that counts is whether it
    # has experts, with which micro-batches stay as they are.
    start = to_disk_names(policy.model, policy.model.state_dict())
    shape = ARCHITECTURES["minimind3" if policy.balance_kind is None else "minimind3-moe"]
    checkpoint = Checkpoint(shape, dict(start), dtype, "")
    prepared = Prepared(
        profile=profile,
        compute=compute,
        checkpoint=checkpoint,
        reference=checkpoint,
        tokenizer=Path(),
        pad_id=0,
        pairs=pairs,
        held_out=pairs[:0],
        set_aside=[],
        order=order,
        learning_rate=LearningRate("minimind2", 1e-2, order.micro_batches, 0),
        router_aux_loss_coef=0.1,
        fingerprints={},
    )
    if not profile.dpo.needs_reference:
        reference: Any = kept.NoReference()
    elif layout == "reference":
        reference = kept.LiveReference(scorer(), compute)
    else:
        reference = kept.KeptReference(pairs, prepared.reference_rows, compute, scorer)
    # Momentum-free SGD keeps the trajectory a smooth function of the gradients, which it follows
    # step by step; Adam would divide by gradients that are nought but rounding.
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    optimizer.register_step_pre_hook(
        lambda *_: watch.gradients.append(
            torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
        )
    )
    return Trainer(
        prepared,
        policy,
        reference,
        reference,
        optimizer,  # type: ignore[arg-type]
        torch.amp.GradScaler("cpu", enabled=False),
        watch=watch,
        save=lambda trainer: None,
    )


def empty_state(architecture: MiniMind) -> dict[str, Tensor]:
    zeros = {name: torch.zeros(shape) for name, shape in architecture.expected_shapes().items()}
    return to_hf(zeros, architecture)

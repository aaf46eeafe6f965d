"""Models, hard-to-pack pairs and a trainer, for comparing the packed and the padded layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dpo_cli.compute.device import Device
from dpo_cli.data.batching import Layout
from dpo_cli.data.chat import Tokenized, TokenizedPair
from dpo_cli.models.frozen import Frozen
from dpo_cli.models.loading import ModelWeights, build_model, to_disk_names
from dpo_cli.models.minimind import MiniMind
from dpo_cli.models.options import use_experts_for
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.models.support import scorer_for
from dpo_cli.objective.aux_loss import AuxLossKind
from dpo_cli.paired import ModelScores
from dpo_cli.profile.schema import Profile
from dpo_cli.run.events import Event, StepDone
from dpo_cli.training import reference as kept
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.trainer import Trainer
from tests.support import families
from tests.support.columns import in_columns

VOCABULARY = families.VOCABULARY
MAX_SEQ_LEN = 80


class Float64(TorchFunctionMode):
    """Turn every cast to float32 in the models' code into a cast to float64.

    RMS norms and routers compute in float32 whatever the dtype of the weights. Values close to a
    rounding boundary would then differ by 6e-8 between the layouts and hide errors of that size.
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


def architecture(version: Literal[2, 3], experts: int) -> MiniMind:
    return MiniMind(
        version=version,
        hidden_size=32,
        num_hidden_layers=2,
        vocab_size=VOCABULARY,
        intermediate_size=48,
        num_experts=experts,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8 if version == 2 else 12,
        num_experts_per_tok=2 if version == 2 else 1,
        norm_topk_prob=True,
        rope_theta=1e6,
        rms_norm_eps=1e-5 if version == 2 else 1e-6,
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
    """Return pairs with every special case of prompt sharing."""
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
    """Trainer hooks that record the steps and gradients of a run and request nothing."""

    def __init__(self) -> None:
        self.steps: list[StepDone] = []
        self.gradients: list[Tensor] = []

    def emit(self, event: Event) -> None:
        assert isinstance(event, StepDone)
        self.steps.append(event)

    def keep_scores(self, optimizer_step: int, scores: ModelScores) -> None:
        pass

    def requests(self) -> set[str]:
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
    """Build one of MiniMind's four variants with random weights."""
    architecture = ARCHITECTURES[name]
    model = build_model(architecture, empty_state(architecture))
    random_weights(model)
    if architecture.use_moe:
        use_experts_for(model, float32=False)
    return ResponseScorer(model, architecture.aux_loss_kind if architecture.use_moe else None)


def family_scorer(name: str, layout: Layout) -> ResponseScorer:
    """Build a model of another family; for the padded layout with the attention of transformers."""
    model = families.build(name)
    has_experts = "Experts" in " ".join(type(module).__name__ for module in model.modules())
    if has_experts:
        use_experts_for(model, float32=False)
    aux_loss_kind: AuxLossKind | None = "batch" if name == "qwen3-moe" else None
    if layout == "packed":
        return scorer_for(model, MAX_SEQ_LEN, aux_loss_kind=aux_loss_kind)
    model.set_attn_implementation("eager")
    return ResponseScorer(model, aux_loss_kind)


def make_trainer(
    make_scorer: Callable[[Layout], ResponseScorer],
    layout: Layout,
    hooks: Recorder,
    *,
    dtype: torch.dtype = torch.float64,
    **dpo: Any,
) -> Trainer:
    """Build a trainer for 20 steps over `odd_pairs`.

    Args:
        make_scorer: builds the policy and the reference for a layout.
        layout: "packed" caches the log-probs of the reference, "padded" runs it beside the policy.
        hooks: records the steps and the gradients.
        dtype: of the weights.
        dpo: keys of the profile's [dpo] table.
    """
    pairs = in_columns(odd_pairs())
    profile = Profile.model_validate(
        {
            "model": {"tokenizer": "unused"},
            "data": {"data_path": "unused", "max_seq_len": MAX_SEQ_LEN, "shuffle": True},
            "dpo": {"reduction": "sum", "beta": 0.3, **dpo},
            "train": {
                "layout": layout,
                "max_tokens_per_forward": 90,
                "save_min_seconds": 1e9,
                "batch_size": 3,
                "epochs": 5,
                "seed": 3,
                "schedule": "minimind2",
                "learning_rate": 1e-2,
                "router_aux_loss_coef": 0.1,
            },
        }
    )
    device = Device(torch.device("cpu"), dtype)

    def build_scorer() -> ResponseScorer:
        scorer = make_scorer(layout).to(dtype)
        scorer.computes_sum_sq_probs = profile.dpo.use_weighting
        return scorer

    policy = build_scorer()
    # For other families a MiniMind architecture stands in: the trainer only needs to know if there
    # are experts, whose micro-batches must not be regrouped.
    start = to_disk_names(policy.model, policy.model.state_dict())
    shape = ARCHITECTURES["minimind3" if policy.aux_loss_kind is None else "minimind3-moe"]
    weights = ModelWeights(shape, dict(start), dtype, "")
    inputs = RunInputs(
        profile=profile,
        device=device,
        weights=weights,
        reference_weights=weights,
        tokenizer=Path(),
        pad_id=0,
        pairs=pairs,
        held_out=pairs[:0],
        skipped_rows=[],
        fingerprints={},
    )
    if not profile.dpo.needs_reference:
        reference: Any = kept.NoReference()
    elif layout == "padded":
        reference = kept.LiveReference(Frozen(build_scorer()), device)
    else:
        reference = kept.CachedReference(
            pairs, inputs.batches.reference_batches, device, lambda: Frozen(build_scorer())
        )
    # With SGD the trajectory is a smooth function of the gradients. Adam would divide by gradients
    # that are rounding errors only, and amplify them.
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    optimizer.register_step_pre_hook(
        lambda *_: hooks.gradients.append(
            torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
        )
    )
    return Trainer(
        inputs,
        policy,
        reference,
        reference,
        optimizer,  # type: ignore[arg-type]
        torch.amp.GradScaler("cpu", enabled=False),
        hooks=hooks,
        save=lambda trainer: None,
    )


def empty_state(architecture: MiniMind) -> dict[str, Tensor]:
    zeros = {name: torch.zeros(shape) for name, shape in architecture.expected_shapes().items()}
    return architecture.to_hf_names(zeros)

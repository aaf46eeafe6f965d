"""The module that maps a batch to token log-probs of its responses.

`ResponseScorer` is the one `nn.Module` that DDP or FSDP wraps and that training, evaluation and
export share. It hides the batch layout: padded, packed, and packed for a model that cannot compute
packed rows give the same scores.

Shape legend: S = 2P sequences (chosen first, then rejected), T time, N targets or tokens,
R response tokens, H hidden, V vocabulary, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from dpo_cli.data.batching import Batch, PackedBatch, PaddedBatch
from dpo_cli.data.staging import to_device
from dpo_cli.models.per_sequence import sequence_logits, split_sequences
from dpo_cli.objective.aux_loss import AuxLossKind, TokenGroups, aux_loss
from dpo_cli.objective.logps import (
    entropies,
    gather_logps,
    head_logps,
    head_logps_and_entropies,
    log_sum_sq_probs,
)

AuxTokens = Literal["real", "all"]

_ROUTER_CLASSES = ("TopKRouter", "TopKGating")
"""Suffixes of the router classes in transformers."""


class Scores(NamedTuple):
    """Token log-probs of a batch.

    A named tuple, because torch looks for tensors in the output of a sharded module, and would not
    find those of a dataclass.

    Attributes:
        token_logps: (S, T), in nats; undefined where the mask is false.
        mask: (S, T) bool, the response mask.
        aux_loss: scalar, without its coefficient; None for dense models.
        log_sum_sq_probs: (S, T), see `dpo_cli.objective.logps`; None unless the scorer computes it.
        entropies: (S, T), in nats, of the distribution that predicts each token; None unless
            requested.
    """

    token_logps: Tensor
    mask: Tensor
    aux_loss: Tensor | None
    log_sum_sq_probs: Tensor | None = None
    entropies: Tensor | None = None


class _TokenScores(NamedTuple):
    """Scores of tokens before they are arranged as (S, T); all of one shape."""

    logps: Tensor
    log_sum_sq_probs: Tensor | None
    entropies: Tensor | None

    def map(self, arrange: Callable[[Tensor], Tensor]) -> _TokenScores:
        return _TokenScores(
            arrange(self.logps),
            None if self.log_sum_sq_probs is None else arrange(self.log_sum_sq_probs),
            None if self.entropies is None else arrange(self.entropies),
        )


class ResponseScorer(nn.Module):
    """Causal language model that returns log-probs of responses instead of logits.

    Args:
        model: from `dpo_cli.models.loading`; models other than MiniMind through
            `dpo_cli.models.support`.
        aux_loss_kind: definition of the experts' aux_loss; None if the model has no experts.
        aux_loss_tokens: tokens that the aux_loss counts: "real" ones, or "all" including padding,
            as MiniMind's scripts do.
        fallback_reason: why this model cannot compute packed rows, so that each sequence becomes a
            row of its own; None if it can.
        computes_sum_sq_probs: return `log_sum_sq_probs` with every batch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        aux_loss_kind: AuxLossKind | None = None,
        aux_loss_tokens: AuxTokens = "real",
        fallback_reason: str | None = None,
        *,
        computes_sum_sq_probs: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.aux_loss_kind = aux_loss_kind
        self.aux_loss_tokens = aux_loss_tokens
        self.fallback_reason = fallback_reason
        self.computes_sum_sq_probs = computes_sum_sq_probs
        self._router_logits: list[Tensor] = []
        if aux_loss_kind is not None:
            for module in model.modules():
                if type(module).__name__.endswith(_ROUTER_CLASSES):
                    # A function over the list, not a bound method: the model would hold a reference
                    # to its scorer, and the cycle would delay the release of both.
                    module.register_forward_hook(
                        partial(_record_router_logits, self._router_logits)
                    )

    def forward(self, batch: Batch, with_entropies: bool = False) -> Scores:
        """Score a batch in its own layout.

        Args:
            batch: padded or packed.
            with_entropies: return entropies, too; they carry no gradient and are for evaluation.
        """
        # With activation checkpointing the backward pass runs the routers again, and the hooks
        # append logits that do not belong to the next batch.
        self._router_logits.clear()
        if not isinstance(batch, PackedBatch):
            return self._padded(batch, with_entropies)
        score = self._packed if self.fallback_reason is None else self._per_sequence
        return score(batch, with_entropies)

    def next_logits(self, **arguments: Any) -> Any:
        """Call the model itself, to generate; see `dpo_cli.models.generation`.

        Sharded models are gathered in `forward` and here, and nowhere else.
        """
        return self.model(**arguments)

    def _padded(self, batch: PaddedBatch, with_entropies: bool) -> Scores:
        """Score the padded layout as MiniMind's scripts do: all logits, log-softmax, gather."""
        output = self.model(input_ids=batch.input_ids, use_cache=False)
        tokens = self._score_logits(output.logits, batch.labels)
        if with_entropies:
            found = (batch.host or batch).mask.flatten().nonzero().squeeze(-1)
            positions = to_device(found, batch.mask.device)
            tokens = tokens._replace(entropies=entropies(output.logits, batch.mask, positions))
        return self._scores(
            tokens,
            batch.mask,
            lambda: _row_groups(batch.input_ids, batch.lengths, self.aux_loss_tokens),
        )

    def _packed(self, batch: PackedBatch, with_entropies: bool) -> Scores:
        """Score a packed row: each token computed once, logits at response positions only."""
        kernel_arguments: dict[str, Any] = {}
        if batch.sequences is not None:
            kernel_arguments["sequences"] = batch.sequences
        # `base_model` is the model without its head.
        output = self.model.base_model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            segments=batch.segments,
            use_cache=False,
            **kernel_arguments,
        )
        # index_select instead of indexing, whose gradient sorts the positions first.
        hidden = output.last_hidden_state.squeeze(0).index_select(0, batch.target_positions)
        tokens = self._score_hidden(hidden, batch.target_labels, with_entropies)
        # (N,) -> (S, T). A target in both responses of a pair is computed once and appears twice.
        tokens = tokens.map(
            lambda values: values.index_select(0, batch.targets.flatten()).view_as(batch.targets)
        )
        return self._scores(tokens, batch.mask, lambda: _packed_groups(batch))

    def _per_sequence(self, batch: PackedBatch, with_entropies: bool) -> Scores:
        """Score a packed batch by the model's own forward; see `dpo_cli.models.per_sequence`."""
        rows = split_sequences(batch)
        logits = sequence_logits(self.model, rows)
        tokens = self._score_logits(logits, rows.labels, with_entropies=with_entropies)
        # (R,) -> (S, T), in the order of the mask, 0 elsewhere.
        tokens = tokens.map(
            lambda values: values.new_zeros(batch.mask.shape).masked_scatter(batch.mask, values)
        )
        return self._scores(
            tokens,
            batch.mask,
            lambda: _row_groups(rows.input_ids, rows.lengths, self.aux_loss_tokens),
        )

    def _scores(
        self, tokens: _TokenScores, mask: Tensor, groups: Callable[[], TokenGroups]
    ) -> Scores:
        """Return the scores; `groups` is called for a model with experts only."""
        return Scores(
            tokens.logps, mask, self._aux_loss(groups), tokens.log_sum_sq_probs, tokens.entropies
        )

    def _score_logits(
        self, logits: Tensor, labels: Tensor, *, with_entropies: bool = False
    ) -> _TokenScores:
        """Score labels, (...), by logits, (..., V)."""
        return _TokenScores(
            gather_logps(logits, labels),
            log_sum_sq_probs(logits) if self.computes_sum_sq_probs else None,
            _all_entropies(logits, labels) if with_entropies else None,
        )

    def _score_hidden(self, hidden: Tensor, labels: Tensor, with_entropies: bool) -> _TokenScores:
        """Score labels, (N,), by hidden states, (N, H), through the head.

        The head is not called as a module where `head_logps` can replace it: with a large
        vocabulary, logits and log-probs are the largest tensors of a step. What a model does to its
        logits after the head is repeated here.
        """
        head: nn.Module = self.model.get_output_embeddings()
        config = self.model.config.get_text_config()
        scaling = getattr(config, "logits_scaling", None) or 1.0  # Granite divides the logits,
        scaling /= getattr(config, "logit_scale", None) or 1.0  # Cohere multiplies them.
        softcap = getattr(config, "final_logit_softcapping", None)
        is_linear = getattr(head, "bias", None) is None and softcap is None
        if is_linear and not self.computes_sum_sq_probs:
            weight: Tensor = head.get_parameter("weight")
            device = hidden.device.type
            # Autocast does not reach into a custom autograd function. On an accelerator half
            # precision lets the head use tensor cores; on a CPU its factors stay float32.
            dtype = None
            if torch.is_autocast_enabled(device) and device != "cpu":
                dtype = torch.get_autocast_dtype(device)
            options: dict[str, Any] = {"logits_scaling": scaling, "dtype": dtype}
            # Autocast is off inside, because the softmax must stay in float32.
            with torch.autocast(device, enabled=False):
                hidden = hidden.to(torch.promote_types(weight.dtype, torch.float32))
                if not with_entropies:
                    return _TokenScores(head_logps(hidden, weight, labels, **options), None, None)
                logps, entropy = head_logps_and_entropies(hidden, weight, labels, **options)
                return _TokenScores(logps, None, entropy)
        logits = head(hidden) / scaling
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        return self._score_logits(logits, labels, with_entropies=with_entropies)

    def _aux_loss(self, groups: Callable[[], TokenGroups]) -> Tensor | None:
        if self.aux_loss_kind is None:
            return None
        top_k = self.model.config.num_experts_per_tok
        loss = aux_loss(self._router_logits, groups(), top_k, self.aux_loss_kind)
        self._router_logits.clear()
        return loss


def _all_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    everywhere = torch.arange(labels.numel(), device=labels.device)
    return entropies(logits, torch.ones_like(labels, dtype=torch.bool), everywhere)


def _record_router_logits(
    recorded: list[Tensor], router: nn.Module, arguments: Any, output: Any
) -> None:
    """Compute a router's logits, (N, E), from its input and its one weight; a forward hook.

    The router's own output is of no use: it is a tuple whose order, and whose content (logits or
    probabilities), differ between versions of transformers.
    """
    (weight,) = router.parameters()
    recorded.append(F.linear(arguments[0].reshape(-1, weight.shape[1]), weight))


def _row_groups(input_ids: Tensor, lengths: Tensor, aux_loss_tokens: AuxTokens) -> TokenGroups:
    """Return one segment per row; padding, unless it counts, is one more segment in no sequence."""
    sequences, time = input_ids.shape
    device = input_ids.device
    segment_ids = torch.arange(sequences, device=device).unsqueeze(1).repeat(1, time)
    if aux_loss_tokens == "real":
        padding = torch.arange(time, device=device) >= lengths.unsqueeze(1)
        segment_ids = segment_ids.masked_fill(padding, sequences)
    members = torch.eye(sequences, sequences + 1, device=device)
    return TokenGroups(segment_ids.flatten(), members)


def _packed_groups(batch: PackedBatch) -> TokenGroups:
    """Return three segments per pair; the shared prompt is a member of both sequences."""
    lengths = [n for pair in batch.segments for n in (pair.prompt, pair.chosen, pair.rejected)]
    pairs, device = batch.pairs, batch.input_ids.device
    # With `output_size` given, torch does not wait for the GPU to compute the size.
    segment_ids = torch.repeat_interleave(
        to_device(torch.tensor(lengths), device), output_size=sum(lengths)
    )
    segment = torch.arange(3 * pairs, device=device)
    sequence = torch.arange(2 * pairs, device=device).unsqueeze(1)
    # Chosen sequences lack the third segment of their pair, rejected ones the second.
    absent = torch.where(sequence < pairs, 2, 1)
    is_member = (segment // 3 == sequence % pairs) & (segment % 3 != absent)
    return TokenGroups(segment_ids, is_member.float())

"""The one module from a batch to the log-probs of its responses: what DDP or FSDP wraps.

Shape legend: S = 2P sequences (chosen first, then rejected), T time, N targets or tokens,
H hidden, V vocabulary, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from dpo_cli.data.batching import Batch, PackedBatch, PaddedBatch
from dpo_cli.models import varlen
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

_ROUTERS = ("TopKRouter", "TopKGating")  # endings of the class names in transformers


@dataclass(frozen=True)
class Scores:
    """token_logps: (S, time), nats; mask: (S, time) bool, the response; aux_loss: scalar or None.

    log_sum_sq_probs: (S, time), see `dpo_cli.objective.logps`; None where it is not wanted.
    entropies: (S, time), nats, of the distributions that the tokens are drawn from; None where
        nobody asked for them.
    """

    token_logps: Tensor
    mask: Tensor
    aux_loss: Tensor | None
    log_sum_sq_probs: Tensor | None = None
    entropies: Tensor | None = None


class ResponseScorer(nn.Module):
    """A causal language model that scores responses.

    Args:
        model: from `dpo_cli.models.loading`; any other by `dpo_cli.models.support`.
        aux_loss_kind: how to measure the balance of its experts; None where it has none.
        aux_loss_tokens: "real" tokens, or "all" with the padding, as the reference scripts do.
        fallback_reason: why this model cannot compute packed rows, so that each sequence becomes a
            row of its own; None if it can.
        computes_sum_sq_probs: whether the scores are to have `log_sum_sq_probs`.
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
                if type(module).__name__.endswith(_ROUTERS):
                    # Not a method: a model that knew its scorer would not be freed with it.
                    module.register_forward_hook(partial(_keep_logits, self._router_logits))

    def forward(self, batch: Batch, with_entropies: bool = False) -> Scores:
        """Score a batch in its own layout; both mean the same.

        Entropies carry no gradient: they are for an evaluation.
        """
        # Checkpointing runs the routers again on the way back: what they said then is not wanted.
        self._router_logits.clear()
        if not isinstance(batch, PackedBatch):
            return self._padded(batch, with_entropies)
        score = self._packed if self.fallback_reason is None else self._unpacked
        return score(batch, with_entropies)

    def _padded(self, batch: PaddedBatch, with_entropies: bool) -> Scores:
        """The plain loop: every logit of every position, a full log-softmax, a gather."""
        output = self.model(input_ids=batch.input_ids, use_cache=False)
        read = self._read(output.logits, batch.labels, batch.mask if with_entropies else None)
        groups = _row_groups(batch.input_ids, batch.lengths, self.aux_loss_tokens)
        logps, sum_sq, undecided = read
        return Scores(logps, batch.mask, self._balance(groups), sum_sq, undecided)

    def _packed(self, batch: PackedBatch, with_entropies: bool) -> Scores:
        """Each token once, logits at response positions only."""
        device = batch.input_ids.device
        kernel: dict[str, Any] = {}
        if device.type == "cuda":
            kernel["sequences"] = varlen.locate_sequences(batch.segments, device)
        output = self.model.base_model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            segments=batch.segments,
            use_cache=False,
            **kernel,
        )
        hidden = output.last_hidden_state[0, batch.target_positions]
        logps, sum_sq, undecided = (
            its if its is None else its[batch.targets]
            for its in self._head_logps(hidden, batch.target_labels, with_entropies)
        )
        assert logps is not None
        balance = self._balance(_packed_groups(batch))
        return Scores(logps, batch.mask, balance, sum_sq, undecided)

    def _unpacked(self, batch: PackedBatch, with_entropies: bool) -> Scores:
        """The same by the model's own forward; see `dpo_cli.models.per_sequence`."""
        rows = split_sequences(batch)
        logits = sequence_logits(self.model, rows)
        everywhere = torch.ones_like(rows.labels, dtype=torch.bool) if with_entropies else None
        logps, sum_sq, undecided = (
            its if its is None else _at_responses(its, batch.mask)
            for its in self._read(logits, rows.labels, everywhere)
        )
        assert logps is not None
        groups = _row_groups(rows.input_ids, rows.lengths, self.aux_loss_tokens)
        return Scores(logps, batch.mask, self._balance(groups), sum_sq, undecided)

    def _read(
        self, logits: Tensor, labels: Tensor, with_entropies: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(..., V), (...) -> (...) each: the log-probs of the labels, `log_sum_sq_probs`, and the
        entropies where a mask asks for them.
        """
        sum_sq = log_sum_sq_probs(logits) if self.computes_sum_sq_probs else None
        undecided = None if with_entropies is None else entropies(logits, with_entropies)
        return gather_logps(logits, labels), sum_sq, undecided

    def _head_logps(
        self, hidden: Tensor, labels: Tensor, with_entropies: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(N, H), (N,) -> (N,) each, with what a model does to its logits after the head."""
        head: nn.Module = self.model.get_output_embeddings()
        config = self.model.config.get_text_config()
        scaling = getattr(config, "logits_scaling", None) or 1.0  # Granite divides,
        scaling /= getattr(config, "logit_scale", None) or 1.0  # Cohere multiplies
        softcap = getattr(config, "final_logit_softcapping", None)
        is_plain = getattr(head, "bias", None) is None and softcap is None
        if is_plain and not self.computes_sum_sq_probs:
            weight: Tensor = head.get_parameter("weight")
            device = hidden.device.type
            if torch.is_autocast_enabled(device):
                dtype = torch.get_autocast_dtype(device)
                hidden, weight = hidden.to(dtype), weight.to(dtype)
            with torch.autocast(device, enabled=False):
                if not with_entropies:
                    return head_logps(hidden, weight, labels, logits_scaling=scaling), None, None
                logps, undecided = head_logps_and_entropies(
                    hidden, weight, labels, logits_scaling=scaling
                )
                return logps, None, undecided
        logits = head(hidden) / scaling
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        everywhere = torch.ones_like(labels, dtype=torch.bool) if with_entropies else None
        return self._read(logits, labels, everywhere)

    def _balance(self, groups: TokenGroups) -> Tensor | None:
        if self.aux_loss_kind is None:
            return None
        top_k = self.model.config.num_experts_per_tok
        balance = aux_loss(self._router_logits, groups, top_k, self.aux_loss_kind)
        self._router_logits.clear()
        return balance


def _at_responses(values: Tensor, mask: Tensor) -> Tensor:
    """(R,) -> (S, time), in the order of the mask, 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _keep_logits(kept: list[Tensor], router: nn.Module, arguments: Any, output: Any) -> None:
    """A router's logits, from its input and its one weight.

    What routers answer with is no help: a tuple whose order, and whether it holds logits or
    probabilities, differs between versions of transformers.
    """
    (weight,) = router.parameters()
    kept.append(F.linear(arguments[0].reshape(-1, weight.shape[1]), weight))


def _row_groups(input_ids: Tensor, lengths: Tensor, aux_loss_tokens: AuxTokens) -> TokenGroups:
    """A segment for each sequence, and one more, in no sequence, for the padding."""
    sequences, time = input_ids.shape
    device = input_ids.device
    segment_ids = torch.arange(sequences, device=device).unsqueeze(1).repeat(1, time)
    if aux_loss_tokens == "real":
        padding = torch.arange(time, device=device) >= lengths.unsqueeze(1)
        segment_ids = segment_ids.masked_fill(padding, sequences)
    members = torch.eye(sequences, sequences + 1, device=device)
    return TokenGroups(segment_ids.flatten(), members)


def _packed_groups(batch: PackedBatch) -> TokenGroups:
    """Three segments a pair; its prompt counts for both of its sequences."""
    lengths = [n for pair in batch.segments for n in (pair.prompt, pair.chosen, pair.rejected)]
    segment_ids = torch.repeat_interleave(torch.tensor(lengths))
    pairs = batch.pairs
    members = torch.zeros(2 * pairs, 3 * pairs)
    for pair in range(pairs):
        members[pair, [3 * pair, 3 * pair + 1]] = 1.0
        members[pairs + pair, [3 * pair, 3 * pair + 2]] = 1.0
    device = batch.input_ids.device
    return TokenGroups(segment_ids.to(device), members.to(device))

from __future__ import annotations

import torch

from dpo_cli.data.batching import PackedBatch, PaddedBatch, make_batch
from dpo_cli.data.sequences import PairSegments, locate_sequences
from dpo_cli.data.staging import stage
from tests.support.two_layouts import odd_pairs

CPU = torch.device("cpu")


def test_tensors_of_any_dtype_survive_one_copy() -> None:
    tensors = [
        torch.tensor([[1, -2, 3]]),
        torch.tensor([True, False, True]),
        torch.empty(0, dtype=torch.float64),
        torch.tensor(0.5, dtype=torch.float64),
        torch.tensor([7], dtype=torch.int32),
        torch.arange(12).view(3, 4).T,
    ]
    staged = stage(tensors)
    assert staged.buffer.dtype == torch.uint8
    for copy, original in zip(staged.to(CPU), tensors, strict=True):
        assert copy.dtype == original.dtype
        assert torch.equal(copy, original)


def test_a_batch_for_a_gpu_is_the_same_batch() -> None:
    """The batch for a GPU has the arguments of the kernels too, and keeps the batch on the CPU."""
    gpu = torch.device("cuda")
    for layout in ("packed", "padded"):
        batch = make_batch(odd_pairs(), layout, max_seq_len=80)
        assert batch.for_device(CPU) is batch
        ready = batch.for_device(gpu)
        copy = ready.with_tensors(stage(ready.tensors).to(CPU))
        assert copy.host is ready
        assert (copy.pairs, copy.padding_tokens) == (batch.pairs, batch.padding_tokens)
        for copied, original in zip(copy.tensors, batch.tensors, strict=False):
            assert torch.equal(copied, original)
        if isinstance(copy, PackedBatch):
            assert isinstance(batch, PackedBatch)
            assert batch.sequences is None
            located, expected = copy.sequences, locate_sequences(batch.segments)
            assert located is not None
            assert torch.equal(located.key_index, expected.key_index)
            assert located.max_seqlen_k == expected.max_seqlen_k
        else:
            assert isinstance(copy, PaddedBatch)


def test_keys_of_each_sequence_are_contiguous() -> None:
    located = locate_sequences(
        [PairSegments(2, 1, 2), PairSegments(1, 0, 1), PairSegments(0, 2, 0)]
    )
    assert located.key_index.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 5, 6, 7, 8]
    assert located.cu_seqlens_q.tolist() == [0, 3, 5, 6, 7, 9]
    assert located.cu_seqlens_k.tolist() == [0, 3, 7, 8, 10, 12]
    assert (located.max_seqlen_q, located.max_seqlen_k) == (3, 4)
    assert located.key_index.dtype == located.cu_seqlens_q.dtype == torch.int32

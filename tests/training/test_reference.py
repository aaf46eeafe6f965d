from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dpo_cli.data.batching import make_batch
from dpo_cli.data.chat import Tokenized, TokenizedPair
from dpo_cli.training.reference import KeptReference, fingerprint, keep, load_kept


def pair(chosen: int, rejected: int) -> TokenizedPair:
    """A prompt of two tokens, and answers of so many."""

    def side(answer: int, first: int) -> Tokenized:
        ids = torch.tensor([1, 2, *range(first, first + answer)])
        return Tokenized(ids, torch.arange(len(ids)) >= 2)

    return TokenizedPair(1, side(chosen, 10), side(rejected, 50))


PAIRS = [pair(2, 3), pair(1, 1), pair(4, 2)]
LOGPS = -torch.arange(13.0)


def test_kept_log_probs_stand_where_the_policys_do() -> None:
    kept = KeptReference(LOGPS, PAIRS, torch.device("cpu"))
    indices = (2, 0)
    batch = make_batch([PAIRS[i] for i in indices], "packed", max_seq_len=0)
    rows = kept.token_logps(indices, batch)
    assert rows.shape == batch.mask.shape  # type: ignore[union-attr]
    found = [row[mask].tolist() for row, mask in zip(rows, batch.mask, strict=True)]  # type: ignore[union-attr]
    assert found == [[-7, -8, -9, -10], [0, -1], [-11, -12], [-2, -3, -4]]


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    assert load_kept(path, "key") is None
    keep(path, "key", LOGPS)
    kept = load_kept(path, "key")
    assert kept is not None
    assert torch.equal(kept, LOGPS)


def test_what_belongs_to_something_else_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    keep(path, "key", LOGPS)
    assert load_kept(path, "another key") is None


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_off_file_is_not_believed(tmp_path: Path, share: float) -> None:
    path = tmp_path / "reference.safetensors"
    keep(path, "key", LOGPS)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert load_kept(path, "key") is None


def test_no_flipped_bit_in_the_numbers_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    keep(path, "key", LOGPS)
    data = path.read_bytes()
    numbers = len(LOGPS) * 4
    for position in range(len(data) - numbers, len(data)):
        spoilt = bytearray(data)
        spoilt[position] ^= 1 << (position % 8)
        path.write_bytes(spoilt)
        assert load_kept(path, "key") is None


def test_the_fingerprint_knows_facts_tokens_and_masks() -> None:
    base = fingerprint("weights", pairs=PAIRS)
    assert base == fingerprint("weights", pairs=PAIRS)
    moved = Tokenized(PAIRS[0].chosen.ids, torch.arange(4) >= 1)
    others = [
        fingerprint("other weights", pairs=PAIRS),
        fingerprint("weights", pairs=PAIRS[::-1]),
        fingerprint("weights", pairs=[TokenizedPair(1, moved, PAIRS[0].rejected), *PAIRS[1:]]),
        fingerprint("weights", pairs=[*PAIRS[:2], pair(4, 3)]),
    ]
    assert len({base, *others}) == 5

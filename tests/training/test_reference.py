from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast
from unittest.mock import Mock

import pytest
import torch
from safetensors import SafetensorError

from dpo_cli import integrity
from dpo_cli.compute.device import Device, resolve
from dpo_cli.data.batching import PackedBatch, make_batch
from dpo_cli.data.chat import Tokenized, TokenizedPair
from dpo_cli.models.frozen import Frozen
from dpo_cli.models.scoring import ResponseScorer, Scores
from dpo_cli.profile.grid import count_references
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.schema import Profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.training.inputs import read_inputs
from dpo_cli.training.reference import CachedReference, load_cached, open_references, write_cached
from tests.support.columns import in_columns
from tests.support.small_runs import golden_run


def pair(chosen: int, rejected: int) -> TokenizedPair:
    """Return a pair with a prompt of two tokens and answers of these lengths."""

    def side(answer: int, first: int) -> Tokenized:
        ids = torch.tensor([1, 2, *range(first, first + answer)])
        return Tokenized(ids, torch.arange(len(ids)) >= 2)

    return TokenizedPair(1, side(chosen, 10), side(rejected, 50))


PAIRS = in_columns([pair(2, 3), pair(1, 1), pair(4, 2)])
ROWS = [(0, 2), (1,)]
LOGPS = {"token_logps": -torch.arange(13.0)}
CPU = Device(torch.device("cpu"), torch.float32)


class Scorer(torch.nn.Module):
    """Fake model that records rows. A log-prob is minus the token's id, an entropy half of that.

    Remembers the rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, batch: PackedBatch, with_entropies: bool = False) -> Scores:
        self.rows.append(batch.pairs)
        logps = -batch.target_labels.float()[batch.targets]
        return Scores(logps, batch.mask, None, entropies=-logps / 2 if with_entropies else None)


def reference(
    *places: Path, key: str = "key", with_entropies: bool = False
) -> tuple[CachedReference, list[Scorer]]:
    """Return a reference, and a list of the models that it has loaded."""
    loaded: list[Scorer] = []

    def load() -> Frozen:
        loaded.append(Scorer())
        return Frozen(cast(ResponseScorer, loaded[-1]))

    kept = CachedReference(PAIRS, ROWS, CPU, load, places, key, with_entropies=with_entropies)
    return kept, loaded


def ask(kept: CachedReference, *indices: int) -> list[list[float]]:
    """Return log-probs of each side of these pairs, without padding."""
    batch = cast(PackedBatch, make_batch([PAIRS[i] for i in indices], "packed", max_seq_len=0))
    rows = kept.token_logps(indices, batch)
    assert rows.shape == batch.mask.shape
    return [row[mask].tolist() for row, mask in zip(rows, batch.mask, strict=True)]


def assert_equal(first: Mapping[str, torch.Tensor] | None, second: object) -> None:
    assert isinstance(second, Mapping)
    assert first is not None
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], values) for name, values in second.items())


def test_log_probs_have_the_policys_layout() -> None:
    kept, _ = reference()
    expected = [[-10, -11, -12, -13], [-10, -11], [-50, -51], [-50, -51, -52]]
    assert ask(kept, 2, 0) == expected
    assert ask(kept, 1, 0) == [[-10], [-10, -11], [-50], [-50, -51, -52]]


def test_each_batch_is_computed_once() -> None:
    """The composition of a batch decides bits, so it must not depend on the order of requests."""
    kept, loaded = reference()
    ask(kept, 2)
    [scorer] = loaded
    assert scorer.rows == [2]
    assert not kept.is_complete
    ask(kept, 0)
    ask(kept, 0, 2)
    assert scorer.rows == [2]
    ask(kept, 0, 1, 2)
    assert scorer.rows == [2, 1]
    assert kept.is_complete
    ask(kept, 0, 1, 2)
    assert len(loaded) == 1


def test_partial_values_beside_the_run_complete_values_in_the_cache(tmp_path: Path) -> None:
    beside, shared = tmp_path / "run.safetensors", tmp_path / "cache" / "key.safetensors"
    kept, _ = reference(beside, shared)
    ask(kept, 0)
    kept.save()
    assert beside.exists()
    assert not shared.exists()

    resumed, loaded = reference(beside, shared)
    expected = ask(resumed, 2)
    assert not loaded
    ask(resumed, 1)
    assert loaded[0].rows == [1]
    resumed.save()
    assert shared.exists()

    other, loaded = reference(tmp_path / "other.safetensors", shared)
    assert ask(other, 2) == expected
    assert other.is_complete
    assert not loaded
    other.save()
    again = load_cached(tmp_path / "other.safetensors", "key")
    assert again is not None
    assert_equal(again, load_cached(beside, "key"))


def test_entropies_are_cached_with_the_log_probs(tmp_path: Path) -> None:
    path = tmp_path / "held_out.safetensors"
    ask(reference(path)[0], 0, 1, 2)
    plain, _ = reference(path)
    ask(plain, 0, 1, 2)
    plain.save()
    both, loaded = reference(path, with_entropies=True)
    batch = cast(PackedBatch, make_batch([PAIRS[0], PAIRS[1]], "packed", max_seq_len=0))
    scores = both.scores((0, 1), batch)
    assert len(loaded) == 1  # entropies are needed too
    assert scores.entropies is not None
    assert scores.entropies.tolist() == [[5, 5.5, 0], [5, 0, 0], [25, 25.5, 26], [25, 0, 0]]
    assert torch.equal(scores.entropies, -scores.token_logps / 2)
    assert torch.equal(scores.mask, batch.mask)
    both.scores((2,), cast(PackedBatch, make_batch([PAIRS[2]], "packed", max_seq_len=0)))
    both.save()
    again, loaded = reference(path, with_entropies=True)
    assert torch.equal(cast(torch.Tensor, again.scores((0, 1), batch).entropies), scores.entropies)
    assert not loaded


def test_unwritable_cache_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a directory should be")
    beside = tmp_path / "run.safetensors"
    kept, _ = reference(beside, tmp_path / "cache" / "reference" / "key.safetensors")
    ask(kept, 0, 1, 2)
    kept.save()
    assert load_cached(beside, "key") is not None


def test_values_that_cannot_be_read_are_computed_again_and_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read error does not prove damage."""
    places = [tmp_path / "run.safetensors", tmp_path / "cache/key.safetensors"]
    kept, _ = reference(*places)
    ask(kept, 0, 1, 2)
    kept.save()
    before = [place.stat().st_ino for place in places]
    with monkeypatch.context() as patched:
        fail = OSError(errno.EIO, os.strerror(errno.EIO))
        patched.setattr(integrity, "open_regular", Mock(side_effect=fail))
        again, loaded = reference(*places)
        assert ask(again, 0, 1, 2) == ask(kept, 0, 1, 2)
        again.save()
    assert loaded
    assert [place.stat().st_ino for place in places] == before
    assert load_cached(places[0], "key") is not None


def test_unwritable_run_is_an_error(tmp_path: Path) -> None:
    kept, _ = reference(tmp_path / "missing" / "run.safetensors")
    ask(kept, 0)
    with pytest.raises((OSError, SafetensorError)):
        kept.save()


@pytest.mark.parametrize("spoil", ["other key", "other length", "cut off"])
def test_values_that_do_not_fit_are_computed_again(tmp_path: Path, spoil: str) -> None:
    beside = tmp_path / "run.safetensors"
    if spoil == "other length":
        write_cached(beside, "key", {name: values[:5] for name, values in LOGPS.items()})
    else:
        write_cached(beside, "another" if spoil == "other key" else "key", LOGPS)
    if spoil == "cut off":
        beside.write_bytes(beside.read_bytes()[:-1])
    kept, loaded = reference(beside)
    assert ask(kept, 1) == [[-10], [-50]]
    assert len(loaded) == 1


def test_cached_values_load(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    assert load_cached(path, "key") is None
    write_cached(path, "key", LOGPS)
    assert_equal(load_cached(path, "key"), LOGPS)


def test_values_of_another_key_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    write_cached(path, "key", LOGPS)
    assert load_cached(path, "another key") is None


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_file_is_not_used(tmp_path: Path, share: float) -> None:
    path = tmp_path / "reference.safetensors"
    write_cached(path, "key", LOGPS)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert load_cached(path, "key") is None


def test_flipped_bits_are_detected(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    write_cached(path, "key", LOGPS)
    data = path.read_bytes()
    numbers = len(LOGPS["token_logps"]) * 4
    for position in range(len(data) - numbers, len(data)):
        spoilt = bytearray(data)
        spoilt[position] ^= 1 << (position % 8)
        path.write_bytes(spoilt)
        assert load_cached(path, "key") is None


def test_cache_key_covers_settings_beside_the_weights(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Examples are rope_theta, which no weights file contains, and the options of the forward."""
    monkeypatch.setenv("DPO_CACHE_DIR", str(tmp_path / "cache"))

    def place(**settings: object) -> tuple[Path, Profile]:
        _, profile, *options = golden_run(shared, "seed", False, **settings)
        stated = [option for option in options if option != "--set"]
        run = RunDirectory(tmp_path)
        loaded = load_profile(Path(profile), stated).profile
        device = resolve("cpu", "float32")
        inputs = read_inputs(loaded, device, run, lambda *_: None)
        reference, _ = open_references(inputs, lambda: cast(Frozen, None), tmp_path)
        assert isinstance(reference, CachedReference)
        return reference._paths[-1], loaded

    plain, profile = place()
    same = [
        {"dpo.beta": 3.0, "train.learning_rate": 1e-6},
        {"dpo.loss": "ipo", "train.schedule": "minimind3", "train.epochs": 2},
        {"dpo.reduction": "sum", "dpo.label_smoothing": 0.1, "train.grad_clip": 0.5},
        {"eval.interval": 7, "train.kahan_summation": True, "train.activation_checkpointing": True},
    ]
    for each in same:
        key, other = place(**each)
        assert key == plain
        assert count_references([profile, other]) == 1
    others = [
        {"model.rope_theta": 1e4},
        {"data.max_seq_len": 100},
        {"train.batch_size": 3},
        {"train.compile": True},
        {"train.deterministic": True},
        {"dpo.use_weighting": True},
        {"dpo.loss": "aot"},
    ]
    found = [place(**each) for each in others]
    assert len({plain, *(key for key, _ in found)}) == 8
    assert count_references([profile, *(other for _, other in found)]) == 8

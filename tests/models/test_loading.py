"""Tests of logits, log-probs and gradients of golden/arch in both layouts, and of bad files."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpo_cli.data.batching import make_batch
from dpo_cli.data.chat import Tokenized, TokenizedPair
from dpo_cli.errors import DpoError
from dpo_cli.files import sha256_file
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.loading import (
    ModelWeights,
    build_model,
    load_model_weights,
    read_state_dict,
    to_disk_names,
)
from dpo_cli.models.saving import write_folder
from dpo_cli.models.scoring import ResponseScorer
from tests.support.families import build

BOUND = 5e-5
CASES = [
    f"{version}/full_sft_{name}" for version in ("seed", "head") for name in ("64", "64_moe", "80")
]
# Settings that the weights do not contain: see golden/README.md.
OVERRIDES: dict[str, dict[str, Any]] = {
    "seed/full_sft_80": {"num_attention_heads": 4, "num_key_value_heads": 4}
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def path(golden: Path, case: str) -> Path:
    return golden / "arch" / f"{case}.pth"


@pytest.fixture(scope="module")
def recorded(path: Path) -> dict[str, Tensor]:
    return dict(load_file(path.with_name(f"{path.stem}.io.safetensors")))


@pytest.fixture(scope="module")
def model_weights(path: Path, case: str) -> ModelWeights:
    return load_model_weights(path, OVERRIDES.get(case, {}))


def test_inferred_architecture_matches_the_recorded_one(
    model_weights: ModelWeights, path: Path
) -> None:
    facts = json.loads(path.with_suffix(".json").read_text())
    config, architecture = facts["config"], model_weights.architecture
    for key in ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads"):
        assert getattr(architecture, key) == config[key]
    for key in ("num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps", "use_moe"):
        assert getattr(architecture, key) == config[key]
    if architecture.use_moe:
        assert architecture.num_experts_per_tok == config["num_experts_per_tok"]
        assert architecture.norm_topk_prob == config["norm_topk_prob"]
    assert model_weights.parameters == facts["param_count_tied_once"]
    assert list(architecture.expected_shapes()) == facts["state_dict_keys"]


def test_padded_logits_are_golden(model_weights: ModelWeights, recorded: dict[str, Tensor]) -> None:
    model = build_model(model_weights.architecture, model_weights.state).eval()
    with torch.no_grad():
        logits = model(recorded["input_ids"].long()).logits
    assert (logits - recorded["logits_eval"]).abs().max() < BOUND


def test_packed_logps_are_golden(model_weights: ModelWeights, recorded: dict[str, Tensor]) -> None:
    """Rows form pairs without a shared prompt, and pairs that share half of a row."""
    model = ResponseScorer(build_model(model_weights.architecture, model_weights.state)).eval()
    rows = [
        Tokenized(ids[:length].long(), torch.ones(int(length), dtype=torch.bool))
        for ids, length in zip(recorded["input_ids"], recorded["lengths"], strict=True)
    ]
    pairs = [TokenizedPair(1, rows[0], rows[1]), TokenizedPair(2, rows[2], rows[3])]
    # Each row is also one side of a pair whose other side shares the first half of the row.
    pairs += [
        TokenizedPair(3, row, Tokenized(torch.cat([row.ids[: len(row.ids) // 2], row.ids[:3]]),
                                        torch.ones(len(row.ids) // 2 + 3, dtype=torch.bool)))
        for row in rows
    ]  # fmt: skip
    with torch.no_grad():
        scores = model(make_batch(pairs, "packed", max_seq_len=0))
    sequences = {0: 0, 6: 1, 1: 2, 7: 3, 2: 0, 3: 1, 4: 2, 5: 3}
    for sequence, row in sequences.items():
        ours = scores.token_logps[sequence][scores.mask[sequence]]
        length = int(recorded["lengths"][row])
        assert len(ours) == length - 1
        assert (ours - recorded["logprob_eval"][row, : length - 1]).abs().max() < BOUND


# Without seed/full_sft_64_moe, which was recorded with expert outputs rounded to float16; and
# head/full_sft_64_moe only padded, because it was recorded with padding in the aux_loss.
@pytest.mark.parametrize(
    ("gradient_case", "layout"),
    [(case, layout) for case in CASES if "moe" not in case for layout in ("packed", "padded")]
    + [("head/full_sft_64_moe", "padded")],
)
def test_gradients_are_golden(golden: Path, gradient_case: str, layout: str) -> None:
    """The mean negative log-likelihood of all real tokens, plus version 3's aux_loss."""
    path = golden / "arch" / f"{gradient_case}.pth"
    recorded = load_file(path.with_name(f"{path.stem}.io.safetensors"))
    model_weights = load_model_weights(path, OVERRIDES.get(gradient_case, {}))
    architecture = model_weights.architecture
    model = build_model(architecture, model_weights.state)
    scorer = ResponseScorer(
        model, architecture.aux_loss_kind if architecture.use_moe else None, aux_loss_tokens="all"
    ).train()
    rows = [
        Tokenized(ids[:length].long(), torch.ones(int(length), dtype=torch.bool))
        for ids, length in zip(recorded["input_ids"], recorded["lengths"], strict=True)
    ]
    pairs = [TokenizedPair(1, rows[0], rows[1]), TokenizedPair(2, rows[2], rows[3])]
    # The recorded rows are padded to 48 tokens and all 48 are inputs, the last without a label.
    batch = make_batch(pairs, layout, max_seq_len=49)  # type: ignore[arg-type]
    if layout == "padded":
        last = torch.tensor([row.ids[-1] for row in (rows[0], rows[2], rows[1], rows[3])])
        batch.input_ids[torch.arange(4), batch.lengths] = last  # type: ignore[union-attr]
    scores = scorer(batch)
    loss = -scores.token_logps[scores.mask].mean()
    facts = json.loads(path.with_suffix(".json").read_text())
    assert loss.item() == pytest.approx(facts["grad_loss"]["nll"], abs=1e-5)
    if scores.aux_loss is not None:
        loss = loss + architecture.default_router_aux_loss_coef * scores.aux_loss
    loss.backward()
    gradients = to_disk_names(model, {n: p.grad for n, p in model.named_parameters()})
    compared = 0
    for key, expected in recorded.items():
        name = key.removeprefix("grad.")
        if key != name and name in gradients:
            assert (gradients[name] - expected).abs().max() < 1e-5, name
            compared += 1
    assert compared >= 3
    for name, norm in facts["grad_norms"].items():
        if name in gradients:
            assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-4), name


def test_model_returns_the_weights_it_was_built_from(
    model_weights: ModelWeights, path: Path
) -> None:
    model = build_model(model_weights.architecture, model_weights.state)
    back = model_weights.architecture.to_native_names(
        to_disk_names(model, dict(model.state_dict()))
    )
    original = read_state_dict(path)
    assert set(back) == set(original)
    assert all(torch.equal(back[name], tensor) for name, tensor in original.items())


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "gemma"])
@pytest.mark.parametrize("differs", [True, False])
def test_a_head_that_differs_from_a_tied_embedding_is_its_own(
    tmp_path: Path, family: str, differs: bool
) -> None:
    """Programs that trust config.json would replace such a head by the embedding."""
    model = build(family)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    head = "embed_out.weight" if family == "gpt-neox" else "lm_head.weight"
    state = load_file(tmp_path / "model.safetensors")
    embedding = next(tensor for name, tensor in state.items() if "embed" in name)
    state[head] = embedding + differs
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    weights = load_model_weights(tmp_path, {})
    assert (head in weights.state) is differs
    assert weights.architecture.config().tie_word_embeddings is not differs
    trained = build_model(weights.architecture, weights.state)
    assert torch.equal(trained.get_output_embeddings().weight, state[head])
    assert isinstance(weights.architecture, HuggingFace)
    write_folder(tmp_path / "out", weights.state, weights.architecture, "float32", tmp_path)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config.get("tie_word_embeddings", True) is not differs


def test_tied_head_may_be_missing(path: Path, case: str, tmp_path: Path) -> None:
    state = read_state_dict(path)
    del state["lm_head.weight"]
    copy = tmp_path / "full_sft.safetensors"
    save_file(state, copy)
    loaded = load_model_weights(copy, OVERRIDES.get(case, {}))
    assert torch.equal(
        loaded.state["model.embed_tokens.weight"], state["model.embed_tokens.weight"]
    )


class TestBadFiles:
    @pytest.fixture
    def state(self, golden: Path) -> dict[str, Tensor]:
        return read_state_dict(golden / "arch/seed/full_sft_64.pth")

    def test_a_file_that_is_overwritten_later(
        self, state: dict[str, Tensor], tmp_path: Path
    ) -> None:
        """The file is overwritten in place, as by `cp`; loaded weights stay unchanged."""
        path = tmp_path / "full_sft_64.safetensors"
        save_file({name: tensor.clone() for name, tensor in state.items()}, path)
        weights = load_model_weights(path, {})
        before = {name: tensor.clone() for name, tensor in weights.state.items()}
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
        assert all(torch.equal(tensor, before[name]) for name, tensor in weights.state.items())

    def test_a_file_that_changes_while_it_is_read(
        self, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise the fingerprint could belong to other weights than the loaded ones."""
        path = self.save(tmp_path, state)

        def write_and_hash(path: Path) -> str:
            with path.open("ab") as file:
                file.write(b"more")
            return sha256_file(path)

        monkeypatch.setattr("dpo_cli.models.loading.sha256_file", write_and_hash)
        assert "changed while it was read" in self.error(path).message

    def error(self, path: Path, **overrides: Any) -> DpoError:
        with pytest.raises(DpoError) as caught:
            load_model_weights(path, overrides)
        assert str(path) in caught.value.message
        assert caught.value.remedy
        return caught.value

    def save(self, tmp_path: Path, content: object) -> Path:
        path = tmp_path / "full_sft_64.pth"
        torch.save(content, path)
        return path

    def test_missing_file(self, tmp_path: Path) -> None:
        assert "no such file" in self.error(tmp_path / "full_sft_64.pth").message

    def test_directory(self, tmp_path: Path) -> None:
        assert "a directory" in self.error(tmp_path).message

    def test_empty_file(self, tmp_path: Path) -> None:
        path = tmp_path / "full_sft_64.pth"
        path.touch()
        assert "the file is empty" in self.error(path).message

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
    def test_truncated_file(
        self, state: dict[str, Tensor], tmp_path: Path, suffix: str, share: float
    ) -> None:
        path = tmp_path / f"full_sft_64{suffix}"
        if suffix == ".pth":
            torch.save(state, path)
        else:
            save_file({n: t.clone() for n, t in state.items()}, path)
        os.truncate(path, int(path.stat().st_size * share))
        assert "cut off, corrupted, or no weights file" in self.error(path).message

    def test_text_file(self, tmp_path: Path) -> None:
        path = tmp_path / "full_sft_64.pth"
        path.write_text("these are not weights\n")
        assert "no weights file" in self.error(path).message

    def test_code_in_a_pickle_is_not_run(self, tmp_path: Path) -> None:
        witness = tmp_path / "it-ran"

        class Bomb:
            def __reduce__(self) -> tuple[Any, tuple[str]]:
                return os.mkdir, (str(witness),)

        for number, write in enumerate((torch.save, _plain_pickle)):
            path = tmp_path / f"full_sft_{number}.pth"
            write({"model.embed_tokens.weight": Bomb()}, path)
            assert "not plain weights" in self.error(path).message
            assert not witness.exists()

    def test_training_file_that_contains_weights(
        self, state: dict[str, Tensor], tmp_path: Path
    ) -> None:
        failure = self.error(self.save(tmp_path, {"model": state, "epoch": 3}))
        assert "model, epoch are no tensors" in failure.message

    def test_single_tensor(self, tmp_path: Path) -> None:
        assert "holds Tensor" in self.error(self.save(tmp_path, torch.ones(3))).message

    def test_weights_of_another_model(self, tmp_path: Path) -> None:
        path = self.save(tmp_path, {"conv.weight": torch.ones(3, 3)})
        assert "not the weights of a MiniMind model (found conv.weight" in self.error(path).message

    def test_missing_and_unexpected_weights_are_listed(
        self, state: dict[str, Tensor], tmp_path: Path
    ) -> None:
        del state["model.layers.1.mlp.up_proj.weight"]
        state["model.layers.1.mlp.side_proj.weight"] = torch.ones(1)
        state["model.norm.weight"] = torch.ones(65)
        assert self.error(self.save(tmp_path, state)).details == (
            "missing: model.layers.1.mlp.up_proj.weight",
            "unexpected: model.layers.1.mlp.side_proj.weight",
            "wrong shape: model.norm.weight: (65,), (64,) expected",
        )

    def test_override_contradicts_the_weights(
        self, state: dict[str, Tensor], tmp_path: Path
    ) -> None:
        failure = self.error(self.save(tmp_path, state), hidden_size=512, use_moe=True)
        assert failure.details == (
            "model.hidden_size = 512 in the profile, 64 in the weights",
            "model.use_moe = True in the profile, False in the weights",
        )

    def test_default_head_counts_do_not_fit(self, golden: Path) -> None:
        failure = self.error(golden / "arch/seed/full_sft_80.pth")
        assert "8 attention heads and 2 key-value heads do not fit" in failure.message

    def test_override_contradicts_the_heads_of_version_3(self, golden: Path) -> None:
        failure = self.error(golden / "arch/head/full_sft_80.pth", num_attention_heads=5)
        assert failure.details == (
            "model.num_attention_heads = 5 in the profile, 4 in the weights",
        )

    def test_tied_copies_differ(self, state: dict[str, Tensor], tmp_path: Path) -> None:
        state["lm_head.weight"] = state["lm_head.weight"] + 1e-3
        assert "differ" in self.error(self.save(tmp_path, state)).message

    def test_weights_with_nan(self, state: dict[str, Tensor], tmp_path: Path) -> None:
        state["model.norm.weight"][3] = float("nan")
        assert "1 weights hold NaN" in self.error(self.save(tmp_path, state)).message

    def test_quantized_weights(self, state: dict[str, Tensor], tmp_path: Path) -> None:
        state["model.norm.weight"] = state["model.norm.weight"].to(torch.int8)
        assert "torch.int8" in self.error(self.save(tmp_path, state)).message

    def test_version_2_experts_without_normalization(self, golden: Path) -> None:
        path = golden / "arch/seed/full_sft_64_moe.pth"
        assert "norm_topk_prob" in self.error(path, norm_topk_prob=False).details[0]


def _plain_pickle(content: object, path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump(content, file)

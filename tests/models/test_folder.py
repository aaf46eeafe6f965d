"""Hugging Face directories: what is read of them is what transformers itself would compute."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpo_cli.errors import DpoError
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.loading import ModelWeights, build_model, load_model_weights, read_state_dict
from dpo_cli.models.spec import architecture_of
from tests.support.cli import REPOSITORY
from tests.support.families import FAMILIES, VOCABULARY, build

DEMO = REPOSITORY / "demo/full_sft_128.pth"
MINIMIND = {
    "model_type": "minimind",
    "auto_map": {"AutoModelForCausalLM": "model_minimind.MiniMindForCausalLM"},
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-05,
    "inference_rope_scaling": False,
}

Change = Callable[..., None]


def logits(model: transformers.PreTrainedModel) -> Tensor:
    """By the attention that every model has."""
    model.set_attn_implementation("eager")
    model.config._attn_implementation = "eager"  # where the code has no other
    ids = torch.arange(20).unsqueeze(0) * 7 % VOCABULARY
    with torch.no_grad():
        answer: Tensor = model.eval()(input_ids=ids, use_cache=False).logits
    return answer


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    build("llama").save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture
def change(llama: Path) -> Change:
    """Change config.json, and tensors by name; None takes one away."""

    def change(tensors: dict[str, Tensor | None] | None = None, **settings: Any) -> None:
        config = json.loads((llama / "config.json").read_text())
        (llama / "config.json").write_text(json.dumps({**config, **settings}))
        state = {**load_file(llama / "model.safetensors"), **(tensors or {})}
        kept = {name: tensor for name, tensor in state.items() if tensor is not None}
        save_file(kept, llama / "model.safetensors", {"format": "pt"})

    return change


def refuse(path: Path, **stated: Any) -> DpoError:
    with pytest.raises(DpoError) as caught:
        load_model_weights(path, stated)
    assert caught.value.message.startswith(str(path))
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_as_transformers_reads_it(family: str, tmp_path: Path) -> None:
    """In parts, too; and the plan's plain values are enough to build it again."""
    build(family).save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    model_weights = load_model_weights(tmp_path, {})
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert model_weights.dtype == torch.float32
    assert model_weights.parameters == plain.num_parameters()
    architecture = architecture_of(json.loads(json.dumps(model_weights.architecture.to_dict())))
    assert architecture == model_weights.architecture
    model = build_model(architecture, model_weights.state)
    assert (logits(model) - logits(plain)).abs().max() == 0
    before = torch.get_rng_state()
    build_model(architecture, model_weights.state)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(plain).__name__ in architecture.description
    assert architecture.vocab_size == VOCABULARY
    if family in ("mamba", "bloom-alibi"):
        assert architecture.max_positions is None
    else:
        assert architecture.max_positions == 128
        assert architecture.num_attention_heads == 4
    has_experts = family in ("qwen3-moe", "gpt-oss", "llama4-chunks")
    assert architecture.use_moe == has_experts
    assert (architecture.aux_loss_kind is not None) == (family == "qwen3-moe")


def test_nothing_is_dropped_that_the_profile_does_not_want_dropped(tmp_path: Path) -> None:
    """GPT-2's own configuration drops in three places."""
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4)
    assert config.resid_pdrop == config.attn_pdrop == config.embd_pdrop == 0.1
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    architecture = load_model_weights(tmp_path, {}).architecture
    silent, dropping = architecture.config(), architecture.config(0.3)
    assert silent.attn_pdrop == silent.resid_pdrop == silent.embd_pdrop == 0.0
    assert (dropping.attn_pdrop, dropping.resid_pdrop) == (0.3, 0.0)
    assert isinstance(architecture, HuggingFace)
    assert architecture.settings["attn_pdrop"] == 0.1  # as it is saved again
    build("mamba").save_pretrained(tmp_path / "mamba")
    mamba = load_model_weights(tmp_path / "mamba", {}).architecture
    with pytest.raises(DpoError, match="cannot drop attention weights"):
        mamba.config(0.1)


def test_the_padding_token_learns_like_any_other(llama: Path, change: Change) -> None:
    change(pad_token_id=5)
    model_weights = load_model_weights(llama, {})
    model = build_model(model_weights.architecture, model_weights.state)
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert model.get_input_embeddings().weight.grad[5].abs().sum() > 0
    assert isinstance(model_weights.architecture, HuggingFace)
    assert model_weights.architecture.settings["pad_token_id"] == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_keep_the_precision_they_were_saved_in(llama: Path, dtype: torch.dtype) -> None:
    build("llama").to(dtype).save_pretrained(llama)
    model_weights = load_model_weights(llama, {})
    assert (
        {tensor.dtype for tensor in model_weights.state.values()}
        == {model_weights.dtype}
        == {dtype}
    )
    assert build_model(model_weights.architecture, model_weights.state).dtype == torch.float32


def test_of_several_precisions_none_is_lost(llama: Path, change: Change) -> None:
    state = load_file(llama / "model.safetensors")
    norm = "model.norm.weight"
    change({name: tensor.bfloat16() for name, tensor in state.items() if name != norm})
    model_weights = load_model_weights(llama, {})
    assert model_weights.dtype == torch.bfloat16
    assert torch.equal(model_weights.state[norm], state[norm])


def test_files_of_older_versions(tmp_path: Path) -> None:
    """GPT-2's own: no prefix, masks among the weights, of which some are no floats."""
    model = build("gpt2")
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    old |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 128, 128) for layer in range(2)}
    old["h.0.attn.masked_bias"] = torch.zeros(3, dtype=torch.uint8)
    save_file(old, tmp_path / "model.safetensors")
    model_weights = load_model_weights(tmp_path, {})
    assert sorted(model_weights.state) == sorted(state)
    assert all(torch.equal(model_weights.state[name], state[name]) for name in state)


def test_a_head_that_is_said_to_be_tied_and_is_not(llama: Path, change: Change) -> None:
    """transformers then keeps both, and so do we."""
    change(tie_word_embeddings=True)
    model_weights = load_model_weights(llama, {})
    assert "lm_head.weight" in model_weights.state
    change({"lm_head.weight": None})
    tied = load_model_weights(llama, {})
    assert sorted({*model_weights.state} - {*tied.state}) == ["lm_head.weight"]


class TestMiniMindsOwnDirectories:
    @pytest.fixture
    def published(self, tmp_path: Path) -> Path:
        """As its scripts write them, with code that must not run."""
        state = torch.load(DEMO)
        torch.save(state, tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text(json.dumps(MINIMIND))
        (tmp_path / "model_minimind.py").write_text("raise SystemExit('this was run')\n")
        return tmp_path

    def test_it_is_the_same_as_the_file(self, published: Path) -> None:
        ours, theirs = load_model_weights(DEMO, {}), load_model_weights(published, {})
        assert theirs.architecture == ours.architecture
        assert all(torch.equal(theirs.state[name], ours.state[name]) for name in ours.state)

    def test_the_configuration_tells_what_weights_cannot(self, published: Path) -> None:
        changed = {
            **MINIMIND,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "rope_theta": 1e4,
        }
        (published / "config.json").write_text(json.dumps(changed))
        architecture = load_model_weights(published, {}).architecture
        assert (architecture.num_attention_heads, architecture.head_dim) == (16, 8)
        assert architecture.to_dict()["rope_theta"] == 1e4
        error = refuse(published, rope_theta=1e6)
        assert error.details == (
            "model.rope_theta = 1000000.0 in the profile, 10000.0 in the weights",
        )

    def test_scaled_frequencies(self, published: Path) -> None:
        changed = {**MINIMIND, "inference_rope_scaling": True}
        (published / "config.json").write_text(json.dumps(changed))
        assert "inference_rope_scaling" in refuse(published).message

    def test_a_pickle_that_would_run_code_is_not_run(self, published: Path, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path(published / "was-run").touch, ())

        with (published / "pytorch_model.bin").open("wb") as file:
            pickle.dump(Evil(), file)
        with pytest.raises(DpoError, match="not plain weights"):
            load_model_weights(published, {})
        assert not (published / "was-run").exists()


class TestBadDirectories:
    def test_a_weight_is_missing(self, llama: Path, change: Change) -> None:
        change({"model.norm.weight": None})
        assert refuse(llama).details == ("missing: model.norm.weight",)

    def test_what_does_not_belong(self, llama: Path, change: Change) -> None:
        change({"score.weight": torch.zeros(2), "model.norm.weight": torch.zeros(3)})
        error = refuse(llama)
        assert "not a complete LlamaForCausalLM, 32 x 2" in error.message
        assert error.details == (
            "unexpected: score.weight",
            "wrong shape: model.norm.weight: (3,), (32,) expected",
        )

    def test_a_part_is_missing(self, llama: Path) -> None:
        build("llama").save_pretrained(llama, max_shard_size="40KB")
        (llama / "model.safetensors").unlink()
        part = sorted(llama.glob("model-*.safetensors"))[1]
        part.unlink()
        with pytest.raises(DpoError, match=f"{part.name}: no such file"):
            load_model_weights(llama, {})

    def test_an_index_that_leads_out_of_the_directory(self, llama: Path) -> None:
        (llama / "model.safetensors").rename(llama.parent / "outside.safetensors")
        index = {"weight_map": {"x": "../outside.safetensors"}}
        (llama / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "has no valid weight_map" in refuse(llama).message

    def test_weights_that_are_no_numbers(self, llama: Path, change: Change) -> None:
        change({"model.norm.weight": torch.full((32,), torch.nan)})
        assert "1 weights hold NaN" in refuse(llama).message

    def test_quantised_weights(self, llama: Path, change: Change) -> None:
        change({"model.norm.weight": torch.zeros(32, dtype=torch.float8_e4m3fn)})
        assert "float8" in refuse(llama).message
        change(quantization_config={"quant_method": "gptq"})
        assert "quantized" in refuse(llama).message

    def test_a_kind_that_transformers_does_not_know(self, llama: Path, change: Change) -> None:
        change(model_type="martian", auto_map={"AutoModelForCausalLM": "m.M"})
        message = refuse(llama).message
        assert (
            "does not support model_type 'martian'; code in the directory is never run" in message
        )

    @pytest.mark.parametrize("kind", ["bert", "clip", "t5", "gemma3"])
    def test_no_language_model_of_text_alone(self, llama: Path, kind: str) -> None:
        """BERT could be one; then its weights do not fit."""
        (llama / "config.json").write_text(json.dumps({"model_type": kind}))
        error = refuse(llama)
        assert "not a text-only causal language model" in error.message or "not a complete" in str(
            error
        )

    def test_settings_that_make_no_model(self, llama: Path, change: Change) -> None:
        change(hidden_act="shout")
        assert "transformers cannot build this model" in refuse(llama).message
        change(hidden_act="silu", num_hidden_layers="two")
        assert "transformers cannot use this config.json" in refuse(llama).message
        (llama / "config.json").write_text("{")
        assert "cannot be read as JSON" in refuse(llama).message

    def test_a_profile_that_states_another_model(self, llama: Path) -> None:
        error = refuse(llama, hidden_size=512, use_moe=True, num_key_value_heads=2, rope_theta=1e6)
        assert error.details == (
            "model.hidden_size = 512 in the profile, 32 in the weights",
            "model.use_moe = True in the profile, False in the weights",
            "model.rope_theta = 1000000.0 in the profile, 10000.0 in the weights",
        )


def test_the_content_is_known_by_its_hashes(llama: Path, tmp_path: Path) -> None:
    def fingerprint(path: Path = llama) -> str:
        model_weights: ModelWeights = load_model_weights(path, {})
        return model_weights.fingerprint

    before = fingerprint()
    moved = llama.rename(tmp_path / "moved")
    assert fingerprint(moved) == before
    config = moved / "config.json"
    config.write_text(config.read_text().replace("1e-06", "1e-05"))
    assert fingerprint(moved) != before


def test_read_state_dict_reads_a_part(llama: Path) -> None:
    assert "model.norm.weight" in read_state_dict(llama / "model.safetensors")

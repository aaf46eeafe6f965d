"""Tests of Hugging Face directories: loaded models compute the same logits as in transformers."""

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
from dpo_cli.models.saving import write_folder
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
    """Compute logits with the attention that every model has."""
    model.set_attn_implementation("eager")
    model.config._attn_implementation = "eager"  # for code with one attention only
    ids = torch.arange(20).unsqueeze(0) * 7 % VOCABULARY
    with torch.no_grad():
        output: Tensor = model.eval()(input_ids=ids, use_cache=False).logits
    return output


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    build("llama").save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture
def change(llama: Path) -> Change:
    """Return a function that changes config.json and tensors; None removes a tensor."""

    def change(tensors: dict[str, Tensor | None] | None = None, **settings: Any) -> None:
        config = json.loads((llama / "config.json").read_text())
        (llama / "config.json").write_text(json.dumps({**config, **settings}))
        state = {**load_file(llama / "model.safetensors"), **(tensors or {})}
        kept = {name: tensor for name, tensor in state.items() if tensor is not None}
        save_file(kept, llama / "model.safetensors", {"format": "pt"})

    return change


def loading_error(path: Path, **overrides: Any) -> DpoError:
    with pytest.raises(DpoError) as caught:
        load_model_weights(path, overrides)
    assert caught.value.message.startswith(str(path))
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_logits_of_transformers(family: str, tmp_path: Path) -> None:
    """Weights may be in several parts, and the plan's plain values give the same model."""
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


def test_profile_replaces_the_dropout_of_the_configuration(tmp_path: Path) -> None:
    """GPT-2's own configuration sets three kinds of dropout."""
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4)
    assert config.resid_pdrop == config.attn_pdrop == config.embd_pdrop == 0.1
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    architecture = load_model_weights(tmp_path, {}).architecture
    without, with_dropout = architecture.config(), architecture.config(0.3)
    assert without.attn_pdrop == without.resid_pdrop == without.embd_pdrop == 0.0
    assert (with_dropout.attn_pdrop, with_dropout.resid_pdrop) == (0.3, 0.0)
    assert isinstance(architecture, HuggingFace)
    assert architecture.settings["attn_pdrop"] == 0.1  # unchanged in exports
    build("mamba").save_pretrained(tmp_path / "mamba")
    mamba = load_model_weights(tmp_path / "mamba", {}).architecture
    with pytest.raises(DpoError, match="cannot drop attention weights"):
        mamba.config(0.1)


def test_padding_token_gets_a_gradient(llama: Path, change: Change) -> None:
    change(pad_token_id=5)
    model_weights = load_model_weights(llama, {})
    model = build_model(model_weights.architecture, model_weights.state)
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert model.get_input_embeddings().weight.grad[5].abs().sum() > 0
    assert isinstance(model_weights.architecture, HuggingFace)
    assert model_weights.architecture.settings["pad_token_id"] == 5


def test_a_directory_that_is_a_link_is_replaced(llama: Path, tmp_path: Path) -> None:
    """Like a file that is a link: nothing is written to the target."""
    weights = load_model_weights(llama, {})
    assert isinstance(weights.architecture, HuggingFace)
    outside, link = tmp_path / "outside", tmp_path / "rlhf"
    outside.mkdir()
    (outside / "config.json").write_text("of others")
    link.symlink_to(outside)
    write_folder(link, weights.state, weights.architecture, "float32", llama)
    assert [path.name for path in outside.iterdir()] == ["config.json"]
    assert (outside / "config.json").read_text() == "of others"
    assert not link.is_symlink()
    assert (link / "config.json").is_file()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_keep_their_dtype(llama: Path, dtype: torch.dtype) -> None:
    build("llama").to(dtype).save_pretrained(llama)
    model_weights = load_model_weights(llama, {})
    assert (
        {tensor.dtype for tensor in model_weights.state.values()}
        == {model_weights.dtype}
        == {dtype}
    )
    assert build_model(model_weights.architecture, model_weights.state).dtype == torch.float32


def test_several_dtypes_are_loaded_without_rounding(llama: Path, change: Change) -> None:
    state = load_file(llama / "model.safetensors")
    norm = "model.norm.weight"
    change({name: tensor.bfloat16() for name, tensor in state.items() if name != norm})
    model_weights = load_model_weights(llama, {})
    assert model_weights.dtype == torch.bfloat16
    assert torch.equal(model_weights.state[norm], state[norm])


def test_files_of_older_transformers(tmp_path: Path) -> None:
    """GPT-2's original names have no prefix, and masks lie among the weights."""
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


def test_untied_head_despite_tie_word_embeddings(llama: Path, change: Change) -> None:
    """transformers keeps both tensors in this case."""
    change(tie_word_embeddings=True)
    model_weights = load_model_weights(llama, {})
    assert "lm_head.weight" in model_weights.state
    change({"lm_head.weight": None})
    tied = load_model_weights(llama, {})
    assert sorted({*model_weights.state} - {*tied.state}) == ["lm_head.weight"]


class TestMiniMindDirectories:
    @pytest.fixture
    def published(self, tmp_path: Path) -> Path:
        """Directory as MiniMind's scripts write it, with code that must not run."""
        state = torch.load(DEMO)
        torch.save(state, tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text(json.dumps(MINIMIND))
        (tmp_path / "model_minimind.py").write_text("raise SystemExit('this was run')\n")
        return tmp_path

    def test_directory_equals_the_file(self, published: Path) -> None:
        file, directory = load_model_weights(DEMO, {}), load_model_weights(published, {})
        assert directory.architecture == file.architecture
        assert all(torch.equal(directory.state[name], file.state[name]) for name in file.state)

    def test_config_decides_settings_that_weights_do_not_contain(self, published: Path) -> None:
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
        error = loading_error(published, rope_theta=1e6)
        assert error.details == (
            "model.rope_theta = 1000000.0 in the profile, 10000.0 in the weights",
        )

    def test_scaled_rotary_frequencies(self, published: Path) -> None:
        changed = {**MINIMIND, "inference_rope_scaling": True}
        (published / "config.json").write_text(json.dumps(changed))
        assert "inference_rope_scaling" in loading_error(published).message

    def test_code_in_a_pickle_is_not_run(self, published: Path, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path(published / "was-run").touch, ())

        with (published / "pytorch_model.bin").open("wb") as file:
            pickle.dump(Evil(), file)
        with pytest.raises(DpoError, match="not plain weights"):
            load_model_weights(published, {})
        assert not (published / "was-run").exists()


class TestBadDirectories:
    def test_missing_weight(self, llama: Path, change: Change) -> None:
        change({"model.norm.weight": None})
        assert loading_error(llama).details == ("missing: model.norm.weight",)

    def test_unexpected_weight_and_wrong_shape(self, llama: Path, change: Change) -> None:
        change({"score.weight": torch.zeros(2), "model.norm.weight": torch.zeros(3)})
        error = loading_error(llama)
        assert "not a complete LlamaForCausalLM, 32 x 2" in error.message
        assert error.details == (
            "unexpected: score.weight",
            "wrong shape: model.norm.weight: (3,), (32,) expected",
        )

    def test_missing_part(self, llama: Path) -> None:
        build("llama").save_pretrained(llama, max_shard_size="40KB")
        (llama / "model.safetensors").unlink()
        part = sorted(llama.glob("model-*.safetensors"))[1]
        part.unlink()
        with pytest.raises(DpoError, match=f"{part.name}: no such file"):
            load_model_weights(llama, {})

    def test_index_with_a_path_outside_the_directory(self, llama: Path) -> None:
        (llama / "model.safetensors").rename(llama.parent / "outside.safetensors")
        index = {"weight_map": {"x": "../outside.safetensors"}}
        (llama / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "has no valid weight_map" in loading_error(llama).message

    def test_weights_with_nan(self, llama: Path, change: Change) -> None:
        change({"model.norm.weight": torch.full((32,), torch.nan)})
        assert "1 weights hold NaN" in loading_error(llama).message

    def test_quantized_weights(self, llama: Path, change: Change) -> None:
        change({"model.norm.weight": torch.zeros(32, dtype=torch.float8_e4m3fn)})
        assert "float8" in loading_error(llama).message
        change(quantization_config={"quant_method": "gptq"})
        assert "quantized" in loading_error(llama).message

    def test_unknown_model_type(self, llama: Path, change: Change) -> None:
        change(model_type="martian", auto_map={"AutoModelForCausalLM": "m.M"})
        message = loading_error(llama).message
        assert (
            "does not support model_type 'martian'; code in the directory is never run" in message
        )

    @pytest.mark.parametrize("kind", ["bert", "clip", "t5", "gemma3"])
    def test_not_a_text_only_language_model(self, llama: Path, kind: str) -> None:
        """BERT has a causal class too, but its weights do not fit."""
        (llama / "config.json").write_text(json.dumps({"model_type": kind}))
        error = loading_error(llama)
        assert "not a text-only causal language model" in error.message or "not a complete" in str(
            error
        )

    def test_invalid_settings(self, llama: Path, change: Change) -> None:
        change(hidden_act="shout")
        assert "transformers cannot build this model" in loading_error(llama).message
        change(hidden_act="silu", num_hidden_layers="two")
        assert "transformers cannot use this config.json" in loading_error(llama).message
        (llama / "config.json").write_text("{")
        assert "cannot be read as JSON" in loading_error(llama).message

    def test_overrides_contradict_the_weights(self, llama: Path) -> None:
        error = loading_error(
            llama, hidden_size=512, use_moe=True, num_key_value_heads=2, rope_theta=1e6
        )
        assert error.details == (
            "model.hidden_size = 512 in the profile, 32 in the weights",
            "model.use_moe = True in the profile, False in the weights",
            "model.rope_theta = 1000000.0 in the profile, 10000.0 in the weights",
        )


def test_fingerprint_depends_on_content_only(llama: Path, tmp_path: Path) -> None:
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

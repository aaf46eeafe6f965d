"""Tests of directories without a model or tokenizer: errors name the content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_cli.errors import DpoError, UsageError
from dpo_cli.profile import folder
from dpo_cli.profile.inputs import InputError, check_tokenizer, resolve_weights
from dpo_cli.profile.load import profile_from_values
from dpo_cli.run.models import find_model, tokenizer_of

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345678\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the directory of a model that has no weights and no tokenizer yet."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


def weights_error(path: Path) -> str:
    values = {"model.weights": str(path), "data.data_path": path}
    with pytest.raises(InputError) as caught:
        resolve_weights(profile_from_values(values, ()), "weights")
    assert caught.value.message.startswith("model.weights: ")
    return caught.value.message


@pytest.mark.parametrize("has_config", [True, False])
def test_adapter(model: Path, has_config: bool, tmp_path: Path) -> None:
    adapter = {"base_model_name_or_path": "org/base", "peft_type": "LORA"}
    (model / "adapter_config.json").write_text(json.dumps(adapter))
    (model / "adapter_model.safetensors").write_bytes(b"x")
    if not has_config:
        (model / "config.json").unlink()
        with pytest.raises(DpoError, match="holds an adapter of org/base") as caught:
            find_model(str(model), tmp_path)
        assert "merge_and_unload" in caught.value.remedy
    message = weights_error(model)
    assert (
        "holds an adapter of org/base, not a whole model; set model.weights to its base" in message
    )
    assert "Or merge it: python -c" in message
    (model / "adapter_config.json").write_text("[damaged")
    assert "holds an adapter, not a whole model" in weights_error(model)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model-q4.gguf", "has only weights in GGUF (model-q4.gguf)"),
        ("consolidated.00.pth", "in the original layout of their makers (consolidated.00.pth)"),
        ("tf_model.h5", "has only weights of TensorFlow (tf_model.h5)"),
        ("flax_model.msgpack", "has only weights of Flax (flax_model.msgpack)"),
        ("weights.safetensors", "has only weights under another name (weights.safetensors)"),
        ("model-00001-of-00002.safetensors", "but no model.safetensors.index.json"),
        ("pytorch_model-00001-of-00002.bin", "but no pytorch_model.bin.index.json"),
        ("notes.txt", "has a config.json, but no model.safetensors"),
    ],
)
def test_other_weights(model: Path, name: str, what: str) -> None:
    (model / name).write_bytes(b"x")
    assert what in weights_error(model)
    with pytest.raises(DpoError) as caught:
        folder.weight_files(model)
    assert what in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("tokenizer.model",), "has a SentencePiece or tiktoken model (tokenizer.model)"),
        (("spiece.model",), "has a SentencePiece model (spiece.model)"),
        (("vocab.json", "merges.txt"), "has a vocabulary with merges (vocab.json, merges.txt)"),
        (("vocab.txt",), "has a WordPiece vocabulary (vocab.txt)"),
        (("qwen.tiktoken",), "has a tiktoken vocabulary (qwen.tiktoken)"),
    ],
)
@pytest.mark.parametrize("has_config", [True, False])
def test_tokenizers_in_other_files(
    model: Path, names: tuple[str, ...], what: str, has_config: bool, tmp_path: Path
) -> None:
    for name in names:
        (model / name).write_bytes(b"x")
    if has_config:
        (model / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UsageError) as caught:
        check_tokenizer("model.tokenizer", model)
    assert f"{what}, but no tokenizer.json; convert it: python -c" in caught.value.message
    with pytest.raises(DpoError) as failed:  # through dpo eval and dpo chat
        tokenizer_of([find_model(str(model), tmp_path)], None, tmp_path)
    assert what in failed.value.message
    assert "AutoTokenizer.from_pretrained" in failed.value.remedy


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "what"),
    [(LFS, "is a Git LFS pointer"), ("<!doctype html><title>404</title>", 'a web page ("404")')],
)
def test_tokenizer_that_was_not_downloaded(model: Path, name: str, content: str, what: str) -> None:
    for each in folder.TOKENIZER:
        (model / each).write_text("{}")
    check_tokenizer("model.tokenizer", model)
    (model / name).write_text(content)
    with pytest.raises(UsageError) as caught:
        check_tokenizer("model.tokenizer", model)
    assert name in caught.value.message
    assert what in caught.value.message


def test_config_that_was_not_downloaded(model: Path) -> None:
    (model / "config.json").write_text(LFS)
    with pytest.raises(DpoError, match=r"config\.json is a Git LFS pointer"):
        folder.read_json(model / "config.json")

"""Tests of weights saved from inside wrappers, of adapters, and of files that are no weights."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpo_cli.errors import DpoError
from dpo_cli.models.loading import build_model, load_model_weights, read_state_dict
from dpo_cli.models.names import common_prefixes, is_old_buffer, unwrap
from tests.support.cli import REPOSITORY
from tests.support.families import build

DEMO = REPOSITORY / "demo/full_sft_128.pth"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345678\n"


@pytest.fixture(scope="module")
def minimind() -> dict[str, Tensor]:
    return read_state_dict(DEMO)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    build("llama").save_pretrained(path)
    return path


def inside(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def copy_with(source: Path, target: Path, state: dict[str, Tensor]) -> Path:
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    copies = {name: tensor.clone() for name, tensor in state.items()}
    save_file(copies, target / "model.safetensors", {"format": "pt"})
    return target


def load_error(path: Path) -> DpoError:
    with pytest.raises(DpoError) as caught:
        load_model_weights(path, {})
    assert str(path) in caught.value.message
    assert caught.value.remedy
    return caught.value


PREFIXES = {
    "_orig_mod.": "_orig_mod.",
    "module.": "module.",
    "module._orig_mod.": "_orig_mod., module.",
    "base_model.model.": "base_model.model.",
    "_fsdp_wrapped_module.": "_fsdp_wrapped_module.",
    "policy.": "policy.",
}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_a_minimind_file(
    prefix: str, minimind: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "full_sft_128.pth"
    torch.save(inside(minimind, prefix), path)
    plain, wrapped = load_model_weights(DEMO, {}), load_model_weights(path, {})
    assert wrapped.architecture == plain.architecture
    assert all(torch.equal(wrapped.state[name], plain.state[name]) for name in plain.state)
    assert wrapped.removed_prefixes == PREFIXES[prefix]
    assert f"read without {PREFIXES[prefix]} in the names" in wrapped.description
    assert plain.description == plain.architecture.description


def test_blocks_that_were_compiled_one_by_one(minimind: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "full_sft_128.pth"
    inner = {
        name.replace(".mlp.", ".mlp._orig_mod.").replace("layers.0.", "layers.0._orig_mod."): each
        for name, each in minimind.items()
    }
    torch.save(inner, path)
    wrapped = load_model_weights(path, {})
    assert {*wrapped.state} == {*load_model_weights(DEMO, {}).state}
    assert wrapped.removed_prefixes == "_orig_mod."


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_a_directory(prefix: str, llama: Path, tmp_path: Path) -> None:
    state = load_file(llama / "model.safetensors")
    path = copy_with(llama, tmp_path / "wrapped", inside(state, prefix))
    wrapped, plain = load_model_weights(path, {}), load_model_weights(llama, {})
    assert all(torch.equal(wrapped.state[name], plain.state[name]) for name in plain.state)
    assert wrapped.removed_prefixes == PREFIXES[prefix]
    assert build_model(wrapped.architecture, wrapped.state).dtype == torch.float32


def test_prefix_stays_where_names_would_collide_or_differ() -> None:
    """Weights beside their average, and a prefix on some names only."""
    both = {"a.weight": 1, "_orig_mod.a.weight": 2}
    assert unwrap(both) == (both, "")
    some = {"module.a.weight": 1, "b.weight": 2}
    assert unwrap(some) == (some, "")
    assert common_prefixes(["x.y.a", "x.y.b.c"]) == ["x.y.", "x."]
    assert common_prefixes(["a", "b.c"]) == common_prefixes([]) == []


def test_old_buffers_are_not_weights(llama: Path, tmp_path: Path) -> None:
    """Older versions saved masks and rotary tables beside the weights, some in float32."""
    state = load_file(llama / "model.safetensors")
    old = state | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.1.self_attn.masked_bias": torch.tensor(-1e4),
        "model.layers.1.attn.bias": torch.ones(1, 1, 8, 8),
    }
    path = copy_with(llama, tmp_path / "old", old)
    assert {*load_model_weights(path, {}).state} == {*state}
    path = copy_with(llama, tmp_path / "other", state | {"model.layers.0.attn.bias": torch.ones(8)})
    assert "unexpected: model.layers.0.attn.bias" in load_error(path).details
    assert is_old_buffer("transformer.h.0.attn.attention.masked_bias", 0)
    assert not is_old_buffer("h.0.attn.c_attn.bias", 1)


def test_model_with_masks_of_older_transformers(shared: Path) -> None:
    """GPT-2 with `attn.masked_bias`, which plain transformers ignores."""
    assert load_model_weights(shared / "cases/models/gpt2-old", {}).parameters > 0


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.0.self_attn.q_proj.lora_B.default.weight",
        "base_model.model.model.layers.0.mlp.ia3_l",
        "prompt_embeddings",
        "model.layers.0.self_attn.q_proj.base_layer.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.lm_head.modules_to_save.default.weight",
    ],
)
def test_adapters(name: str, minimind: dict[str, Tensor], llama: Path, tmp_path: Path) -> None:
    alone = tmp_path / "adapter_model.safetensors"
    save_file({name: torch.ones(2)}, alone)
    assert "weights of an adapter" in load_error(alone).message
    beside = tmp_path / "full_sft_128.pth"
    torch.save({**minimind, name: torch.ones(2)}, beside)
    assert "merge_and_unload" in load_error(beside).remedy
    state = load_file(llama / "model.safetensors")
    path = copy_with(llama, tmp_path / "directory", {**state, name: torch.ones(2)})
    assert name in load_error(path).message


def torch_bytes(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def archive(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as zipped:
            zipped.writestr("full_sft_512.pth", b"0" * 600)
    else:
        with tarfile.open(fileobj=file, mode="w") as tarred:
            tarred.addfile(tarfile.TarInfo("out/full_sft_512.pth"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (LFS, "is a Git LFS pointer, not the file itself"),
        (b"<!DOCTYPE html><html><title>Log in</title></html>", 'is a web page ("Log in")'),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', '("AccessDenied")'),
        (archive("zip"), "is a zip archive (the first file is full_sft_512.pth)"),
        (archive("tar"), "is a tar archive of files (the first is out/full_sft_512.pth)"),
        (gzip.compress(b"weights", mtime=0), "is compressed by gzip"),
        (b"GGUF\3\0\0\0", "is a GGUF file"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (bytes(4096), "is filled with zero bytes"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_cause_of_a_file_that_is_no_weights(
    content: bytes, what: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"full_sft_512{suffix}"
    path.write_bytes(content)
    assert what in load_error(path).message


@pytest.mark.parametrize("name", ["model.safetensors", "model-00002-of-00002.safetensors"])
def test_pointer_in_a_directory(name: str, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    (tmp_path / name).write_bytes(LFS)
    index = {"weight_map": {"model.norm.weight": name}}
    if name != "model.safetensors":
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    error = load_error(tmp_path)
    assert "Git LFS pointer" in error.message
    assert "git lfs pull" in error.remedy


def test_content_decides_between_the_two_forms(minimind: dict[str, Tensor], tmp_path: Path) -> None:
    """The file has the suffix of the other form."""
    copies = {name: tensor.clone() for name, tensor in minimind.items()}
    save_file(copies, tmp_path / "a.pth")
    (tmp_path / "b.safetensors").write_bytes(torch_bytes(minimind))
    for name in ("a.pth", "b.safetensors"):
        assert {*read_state_dict(tmp_path / name)} == {*minimind}

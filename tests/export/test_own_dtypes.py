"""Tests that exported directories keep the dtype of each tensor and all tokenizer files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpo_cli.export.merge import merge_models
from dpo_cli.export.update_retention import measure_update_retention
from dpo_cli.export.verified_write import check_destination, verified_write
from dpo_cli.inference.open_model import open_model
from dpo_cli.models.loading import load_model_weights
from dpo_cli.models.rounding import round_weights
from dpo_cli.models.saving import size_bytes, write_model
from dpo_cli.models.spec import architecture_of
from dpo_cli.profile import folder
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.models import NamedModel
from tests.support.cli import REPOSITORY
from tests.support.families import build

TEMPLATES = {"tool_use.jinja": "{{ tools }}", "rag.jinja": "{{ documents }}"}
Dtypes = dict[str, torch.dtype]


def is_norm(name: str) -> bool:
    return name.endswith("norm.weight")


def mixed(family: str, path: Path, most: torch.dtype, norms: torch.dtype) -> Path:
    """Write a model whose norms have another dtype, with a tokenizer of several templates."""
    build(family).save_pretrained(path)
    state = load_file(path / "model.safetensors")
    own = {n: t.to(norms if is_norm(n) else most).contiguous() for n, t in state.items()}
    save_file(own, path / "model.safetensors", {"format": "pt"})
    for source in (REPOSITORY / "demo/tokenizer").iterdir():
        shutil.copy(source, path)
    (path / folder.TEMPLATES).mkdir()
    for name, text in TEMPLATES.items():
        (path / folder.TEMPLATES / name).write_text(text)
    (path / "vocab.txt").write_text("a\n")
    return path


def dtypes(path: Path) -> Dtypes:
    return {name: each.dtype for name, each in load_file(path / "model.safetensors").items()}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed("llama", tmp_path_factory.mktemp("m") / "llama", torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("family", "most", "norms"),
    [
        ("qwen3", torch.bfloat16, torch.float32),
        ("qwen3-moe", torch.float16, torch.float32),
        ("mistral", torch.float32, torch.bfloat16),
    ],
)
def test_each_tensor_keeps_its_dtype(
    family: str, most: torch.dtype, norms: torch.dtype, tmp_path: Path
) -> None:
    path = mixed(family, tmp_path / "model", most, norms)
    before = dtypes(path)
    assert {*before.values()} == {most, norms}
    start = load_model_weights(path, {})
    # The plan holds plain values only, and a run trains in float32.
    architecture = architecture_of(json.loads(json.dumps(start.architecture.to_dict())))
    assert architecture == start.architecture
    trained = {name: tensor.float() + 1e-3 for name, tensor in start.state.items()}
    main = start.dtype_name
    write_model(tmp_path / "saved", trained, architecture, main, path)
    assert dtypes(tmp_path / "saved") == before
    rounded = round_weights(trained, main, "nearest", 0, architecture.own_dtypes(main))
    with verified_write(tmp_path / "export", rounded, architecture, main, path) as (_, back):
        assert all(torch.equal(back.state[n].to(t.dtype), t) for n, t in rounded.items())
    assert dtypes(tmp_path / "export") == before
    assert all(
        torch.equal(tensor, trained[name].to(before[name]))
        for name, tensor in load_file(tmp_path / "export/model.safetensors").items()
    )


def test_another_dtype_applies_to_every_tensor(llama: Path, tmp_path: Path) -> None:
    start = load_model_weights(llama, {})
    for dtype in ("float16", "float32"):
        assert not start.architecture.own_dtypes(dtype)
        write_model(tmp_path / dtype, start.state, start.architecture, dtype, llama)
        assert {*dtypes(tmp_path / dtype).values()} == {getattr(torch, dtype)}


def test_stochastic_rounding_leaves_float32_as_it_is(llama: Path) -> None:
    start = load_model_weights(llama, {})
    state = {name: tensor.float() + 1e-5 for name, tensor in start.state.items()}
    own = start.architecture.own_dtypes("bfloat16")
    drawn = round_weights(state, "bfloat16", "stochastic", 3, own)
    assert all(torch.equal(drawn[n], state[n]) == is_norm(n) for n in state)
    # The retention is measured in the dtype of each tensor.
    norms_only = {n: (t if is_norm(n) else start.state[n].float()) for n, t in state.items()}
    written = round_weights(norms_only, "bfloat16", "nearest", 0, own)
    found = measure_update_retention(start, norms_only, written, "bfloat16")
    assert found is not None
    assert found.kept == 1
    assert found.relative_error == 0


def test_merge_keeps_dtypes_and_templates(llama: Path, tmp_path: Path) -> None:
    models = [open_model(NamedModel(llama), {}) for _ in range(2)]
    merge_models(*models, 0.5, tmp_path / "merged", None, llama)
    assert dtypes(tmp_path / "merged") == dtypes(llama)
    for name, text in TEMPLATES.items():
        assert (tmp_path / "merged" / folder.TEMPLATES / name).read_text() == text
    assert (tmp_path / "merged/vocab.txt").read_text() == "a\n"
    files = [path for path in (tmp_path / "merged").rglob("*") if path.is_file()]
    assert size_bytes(tmp_path / "merged") == sum(path.stat().st_size for path in files)
    # A second export may replace the directory, because the user has no file in it.
    check_destination(tmp_path / "merged", models[0].model_weights.architecture)


def test_torn_template_is_removed(tmp_path: Path) -> None:
    place = tmp_path / "run/rlhf" / folder.TEMPLATES
    place.mkdir(parents=True)
    (place.parent / "config.json").write_text("{}")
    torn = place / f".rag.jinja.{'0' * 32}.tmp"
    torn.write_text("half")
    RunDirectory(tmp_path / "run").remove_leftovers()
    assert not torn.exists()

"""Tests of MiniMind's models as Hugging Face directories, and of the way back."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers

from dpo_cli.errors import DpoError
from dpo_cli.export.export import export_run
from dpo_cli.export.import_hf import import_directory
from dpo_cli.models.loading import read_state_dict
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Exported, history
from dpo_cli.shell import quote
from tests.support import workers
from tests.support.cli import REPOSITORY, dpo
from tests.support.family_runs import SECONDS, make
from tests.support.small_runs import golden_run

CASES = {"seed": ("llama", "granitemoeshared"), "head": ("qwen3", "qwen3_moe")}


@pytest.fixture(scope="module", params=[(g, moe) for g in CASES for moe in (False, True)], ids=str)
def trained(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    version, moe = request.param
    root = tmp_path_factory.mktemp("directories")
    changes = {"train.epochs": 1, "eval.interval": 0}
    run = workers.new_run(root / "runs", golden_run(shared, version, moe, **changes))
    assert workers.work(run, seconds=SECONDS) == 0
    return run


def export_and_import(run: RunDirectory, place: Path) -> None:
    directory = place / "directory"
    report = export_run(run, directory, None, False, export_format="hf")
    assert report.dtype == "float16"
    assert report.max_logp_difference < 0.05
    exact = export_run(
        run, directory, "float32", False, export_format="hf"
    )  # replaces an earlier export of this run
    # Plain transformers with the directory, compared with our forward of the training state.
    assert exact.max_logp_difference < 1e-4
    assert exact.mean_logp_difference < 1e-5
    assert exact.tensors == len(report.state)
    config = json.loads((directory / "config.json").read_text())
    version, moe = run.name.startswith(("minimind3",)), "moe" in run.name
    assert config["model_type"] == CASES["head" if version else "seed"][moe]
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == 2
    card = (directory / "README.md").read_text()
    assert "An answer ends with `<|im_end|>`" in card or "An answer ends with `</s>`" in card
    assert "`vllm serve MODEL`" in card
    for secret in (str(run.path), str(place), run.name, "/tokenizer"):
        assert secret not in card
    assert "preference pairs with at most 128 tokens per side" in card
    assert "| accuracy |" in card
    plan = run.read_plan()
    assert plan is not None
    assert plan.pairs.truncated
    for caveat in plan.pairs.caveats():
        assert caveat in card
    exports = [event for event in history(run.events_path) if isinstance(event, Exported)]
    assert [event.path for event in exports] == [str(directory)] * 2
    assert exports[-1].commands["vLLM"] == f"vllm serve {quote(str(directory))}"
    assert exports[-1].commands["transformers"].startswith("python -c ")

    pipe = transformers.pipeline("text-generation", str(directory))
    turn = [{"role": "user", "content": "你好"}]
    result = pipe(turn, max_new_tokens=3, do_sample=False)
    assert result[0]["generated_text"][-1]["role"] == "assistant"

    file, back = import_directory(directory, place / "back.pth", "float32", False)
    plan = run.read_plan()
    assert plan is not None
    assert back.architecture.to_dict() == plan.model.shape
    assert all(torch.equal(back.state[name], exact.state[name]) for name in exact.state)
    assert set(read_state_dict(file)) == set(back.architecture.to_native_names(back.state))


def test_a_directory_that_plain_transformers_loads(trained: RunDirectory, tmp_path: Path) -> None:
    assert workers.call(partial(export_and_import, trained, tmp_path), SECONDS) == 0


def test_other_architectures_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "gemma").mkdir()
    make(tmp_path / "gemma", "gemma")
    with pytest.raises(DpoError, match="MiniMind has no model that computes gemma"):
        import_directory(tmp_path / "gemma/models/model", tmp_path / "x.pth", "float16", False)
    (tmp_path / "llama").mkdir()
    make(tmp_path / "llama", "llama")
    with pytest.raises(DpoError, match="no MiniMind model computes the same function") as caught:
        import_directory(tmp_path / "llama/models/model", tmp_path / "x.pth", "float16", False)
    assert caught.value.details == ("tie_word_embeddings = False, but True in MiniMind",)
    assert not list(tmp_path.glob("x.pth*"))


def test_through_dpo_itself(tmp_path: Path) -> None:
    """MiniMind's own published form works too."""
    place = tmp_path / "published"
    place.mkdir()
    torch.save(torch.load(REPOSITORY / "demo/full_sft_128.pth"), place / "pytorch_model.bin")
    settings = {"model_type": "minimind", "num_attention_heads": 8, "num_key_value_heads": 2}
    (place / "config.json").write_text(json.dumps(settings))
    done = dpo("import", "published", cwd=tmp_path, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert "full_sft_128.pth: MiniMind version 2, 128 x 4" in " ".join(done.stdout.split())
    ours, expected = (
        read_state_dict(folder / "full_sft_128.pth") for folder in (tmp_path, REPOSITORY / "demo")
    )
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    again = dpo("import", "published", cwd=tmp_path, timeout=SECONDS)
    assert again.returncode == 1
    assert "exists" in again.stderr
    over = dpo(
        *("import", "published", "--to", "published/pytorch_model.bin", "--force"),
        cwd=tmp_path,
        timeout=SECONDS,
    )
    assert over.returncode == 2
    assert "is a file of the imported directory" in " ".join(over.stderr.split())
    none = dpo("import", ".", cwd=tmp_path, timeout=SECONDS)
    assert none.returncode == 2
    assert "not a Hugging Face directory" in none.stderr

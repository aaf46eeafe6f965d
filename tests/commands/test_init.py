"""`dpo init`: what is found is filled in, what is there is never written over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_cli.profile.load import load_profile
from dpo_cli.profile.schema import Profile
from tests.commands.conftest import Cli
from tests.support.cli import environment

ROW = json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"}) + "\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory around which there is nothing."""
    folder = tmp_path / "far" / "away" / "here"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def checkout(folder: Path, *weights: str, thinks: bool = False) -> None:
    for name in ("out", "model", "dataset"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in weights:
        (folder / "out" / name).write_text("weights")
    (folder / "model/tokenizer.json").write_text("{}")
    (folder / "model/tokenizer_config.json").write_text('"<think>"' if thinks else "{}")
    (folder / "dataset/dpo.jsonl").write_text(ROW * 400)


def written(name: str = "my") -> Profile:
    return load_profile(Path(f"profiles/{name}.toml")).profile


def test_a_checkout_beside_is_filled_in(dpo: Cli, here: Path) -> None:
    checkout(here.parent / "minimind", "full_sft_512.pth")
    code, out, err = dpo("init", "my")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "weights: 1 found",
        "  -> ../minimind/out/full_sft_512.pth",
        "tokenizers: 1 found",
        "  -> ../minimind/model",
        "pairs: 1 found",
        "  -> ../minimind/dataset/dpo.jsonl",
        "  400 rows, read as plain (TRL's standard, explicit prompt), JSONL",
        "wrote profiles/my.toml (dense, recipe learn)",
        "next: dpo check profiles/my.toml",
    ]
    profile = written()
    assert profile.model.out_dir == here.parent / "minimind/out"
    assert profile.model.weights == "full_sft_512.pth"
    assert profile.data.data_path == here.parent / "minimind/dataset/dpo.jsonl"
    assert (profile.dpo.reduction, profile.dpo.beta) == ("sum", 0.1)
    assert (profile.eval.fraction, profile.train.learning_rate) == (0.1, 5e-6)
    schema = json.loads(Path("profiles/dpo.schema.json").read_text())
    assert schema["$schema"].endswith("draft-04/schema#")


def test_few_pairs_say_what_they_cannot_show(dpo: Cli, here: Path) -> None:
    checkout(here, "full_sft_512.pth")
    pairs = here / "dataset/dpo.jsonl"
    pairs.write_text("".join(pairs.read_text().splitlines(keepends=True)[:60]))
    lines = dpo("init", "my")[1].splitlines()
    assert lines[-2].startswith("few pairs: 20 held-out pairs show an accuracy of 0.75 or more;")
    assert (written().eval.fraction, written().train.learning_rate) == (0.33, 5e-6)


@pytest.mark.parametrize(
    ("weights", "thinks", "template"),
    [
        ("full_sft_512.pth", False, "dense"),
        ("full_sft_512_moe.pth", False, "moe"),
        ("full_sft_768.pth", True, "minimind3"),
        ("full_sft_768_moe.pth", True, "minimind3-moe"),
    ],
)
def test_the_files_suggest_the_template(
    dpo: Cli, here: Path, weights: str, thinks: bool, template: str
) -> None:
    checkout(here, weights, thinks=thinks)
    assert f"({template}, recipe minimind)" in dpo("init", "my", "--recipe", "minimind")[1]
    reference = load_profile(Path(template)).profile
    assert (written().train, written().dpo) == (reference.train, reference.dpo)


def model(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")


def test_another_model_beside_is_filled_in(dpo: Cli, here: Path) -> None:
    """Sum, 0.1, 1e-6; its tokenizer is its own, and nobody else's."""
    model(here.parent / "SmolLM2")
    model(here / "models/Qwen3")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = json.dumps({"chosen": turns, "rejected": [turns[0], {**turns[1], "content": "c"}]})
    (here / "dpo.jsonl").write_text(f"{row}\n" * 400)
    code, out, err = dpo("init", "my")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "models: 2 found",
        "  -> models/Qwen3",
        "     ../SmolLM2",
        "pairs: 1 found",
        "  -> dpo.jsonl",
        "  400 rows, read as MiniMind (TRL's conversational, implicit prompt), JSONL",
        "wrote profiles/my.toml (template hf)",
        "next: dpo check profiles/my.toml",
    ]
    profile = written()
    assert profile.model.weights == str(here / "models/Qwen3")
    assert (profile.model.tokenizer, profile.model.out_dir) == (None, None)
    assert (profile.dpo.reduction, profile.dpo.beta) == ("sum", 0.1)
    assert (profile.train.learning_rate, profile.eval.fraction) == (1e-6, 0.1)
    assert profile.eval.interval == 18
    text = Path("profiles/my.toml").read_text()
    assert "halves at a\n# margin of 0.05 nats" in text
    assert "an lr_sum (sum over all steps) of 5e-5" in text
    # MiniMind's weights come first, and with them MiniMind's own tokenizer.
    checkout(here, "full_sft_512.pth")
    assert "(dense, recipe learn)" in dpo("init", "other")[1]
    assert written("other").model.tokenizer == here / "model"
    assert "(template hf)" in dpo("init", "third", "--template", "hf")[1]


def test_a_model_of_the_hub_where_none_lies_around(dpo: Cli) -> None:
    code, out, _ = dpo("init", "my", "--template", "hf")
    assert code == 0
    assert "not found, fill in: model.weights, data.data_path" in out
    assert written().model.weights == "hf:HuggingFaceTB/SmolLM2-135M-Instruct"
    code, _, err = dpo("init", "other", "--template", "hf", "--recipe", "minimind")
    assert code == 2
    assert "MiniMind's script trains only MiniMind models" in err


def test_the_template_chooses_among_the_files(dpo: Cli, here: Path) -> None:
    checkout(here, "full_sft_512.pth", "full_sft_512_moe.pth")
    dpo("init", "my", "--template", "moe")
    assert written().model.weights == "full_sft_512_moe.pth"
    dpo("init", "other")
    assert written("other").model.weights == "full_sft_512.pth"


def test_unreadable_pairs_do_not_stop_init(dpo: Cli, here: Path) -> None:
    checkout(here, "full_sft_512.pth")
    (here / "dataset/dpo.jsonl").write_text('{"a": 1}\n')
    code, out, _ = dpo("init", "my")
    assert code == 0
    assert "the pairs cannot be read: " in out
    assert "the columns match no known format: 'a'" in out
    assert "data.columns = {" in out
    assert "the file could not be counted" in Path("profiles/my.toml").read_text()


def test_a_checkout_may_be_named(dpo: Cli, here: Path, tmp_path: Path) -> None:
    checkout(here, "full_sft_512.pth")
    checkout(tmp_path / "minimind", "full_sft_768.pth")
    assert dpo("init", "my", "--minimind", str(tmp_path / "minimind"))[0] == 0
    assert written().model.weights == "full_sft_768.pth"
    assert dpo("init", "other", "--minimind", "nowhere")[0] == 2


def test_what_is_not_found_is_to_be_filled_in(dpo: Cli) -> None:
    code, out, _ = dpo("init", "my")
    assert code == 0
    assert out.splitlines()[-2:] == [
        "not found, fill in: model.out_dir, model.tokenizer, data.data_path",
        "next: dpo check profiles/my.toml",
    ]
    assert Path("profiles/my.toml").read_text().count("# FILL IN") == 3


def test_a_profile_is_never_written_over_without_force(dpo: Cli) -> None:
    Path("profiles").mkdir()
    Path("profiles/my.toml").write_text("mine")
    code, _, err = dpo("init", "my")
    assert code == 2
    assert "profiles/my.toml exists" in err
    assert Path("profiles/my.toml").read_text() == "mine"
    assert not Path("profiles/dpo.schema.json").exists()
    assert dpo("init", "my", "--force")[0] == 0
    assert written()


@pytest.mark.parametrize("name", ["../my", "", ".toml", "a/b"])
def test_a_name_is_a_name(dpo: Cli, name: str) -> None:
    assert dpo("init", name)[0] == 2
    assert not Path("profiles").exists()


def test_a_file_in_the_place_of_the_folder(dpo: Cli) -> None:
    Path("profiles").write_text("")
    assert dpo("init", "my")[0] == 2
    Path("profiles").unlink()


def test_a_suffix_may_be_typed(dpo: Cli) -> None:
    assert dpo("init", "my.toml")[0] == 0
    assert written()


def test_on_a_terminal_the_user_chooses(
    dpo: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout(here, "full_sft_512.pth", "full_sft_768.pth")
    answers = iter([7, 2])
    asked: list[str] = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", lambda text, **_: (asked.append(text), next(answers))[1])
    code, out, _ = dpo("init", "my")
    assert code == 0
    assert asked == ["which?", "which?"]  # 7 was none; there is one tokenizer, and one file
    assert out.splitlines()[:3] == [
        "weights:",
        "  1  out/full_sft_512.pth",
        "  2  out/full_sft_768.pth",
    ]
    assert written().model.weights == "full_sft_768.pth"


def test_the_demo_is_copied(dpo: Cli) -> None:
    code, out, _ = dpo("init", "my", "--template", "demo")
    demo = load_profile(Path("demo")).profile
    assert code == 0
    assert "found" not in out
    assert written() == demo


def test_init_needs_no_torch(dpo: Cli, here: Path) -> None:
    script = (
        "import sys; from dpo_cli.app import main; code = main(['init', 'my']);"
        "sys.exit(code or sorted({'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

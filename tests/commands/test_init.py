"""Tests of `dpo init`: the profile names the files of the project, and no file is overwritten."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_cli.commands import missing_files
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.schema import Profile
from tests.commands.conftest import Cli
from tests.support.cli import REPOSITORY, environment

ROW = json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"}) + "\n"
LONG_ROW = json.dumps({"prompt": "p " * 2000, "chosen": "c", "rejected": "r"}) + "\n"
HUB_MODEL = ("--model", "hf:ORG/NAME")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with nothing around it."""
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
    (folder / "dataset/sft.jsonl").write_text('{"conversations": []}\n')


def model(folder: Path, *, template: bool = True, positions: int = 4096) -> None:
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": positions}))
    config = {"chat_template": "{{ messages }}"} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def written(name: str = "my") -> Profile:
    return load_profile(Path(f"profiles/{name}.toml")).profile


def test_a_checkout_is_filled_in(dpo: Cli, here: Path) -> None:
    checkout(here, "full_sft_512.pth")
    code, out, err = dpo("init", "my")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "model: 1 found",
        "  -> out/full_sft_512.pth",
        "tokenizer: 1 found",
        "  -> model",
        "data: 1 found",
        "  -> dataset/dpo.jsonl",
        "  400 rows, read as plain (TRL's standard, explicit prompt), JSONL",
        "wrote profiles/my.toml (dense, recipe learn)",
        "next: dpo check profiles/my.toml",
    ]
    profile = written()
    assert profile.model.out_dir == here / "out"
    assert profile.model.weights == "full_sft_512.pth"
    assert profile.data.data_path == here / "dataset/dpo.jsonl"
    assert profile.eval.fraction > 0
    schema = json.loads(Path("profiles/dpo.schema.json").read_text())
    assert schema["$schema"].endswith("draft-04/schema#")


def test_few_pairs_say_what_they_cannot_show(dpo: Cli, here: Path) -> None:
    checkout(here, "full_sft_512.pth")
    pairs = here / "dataset/dpo.jsonl"
    pairs.write_text("".join(pairs.read_text().splitlines(keepends=True)[:60]))
    lines = dpo("init", "my")[1].splitlines()
    assert lines[-2].startswith("few pairs: 20 held-out pairs distinguish an accuracy of 0.75")
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
    assert written().export.prefix == ("dpo" if thinks else "rlhf")  # as in the scripts


def test_a_huggingface_model_is_filled_in(dpo: Cli, here: Path) -> None:
    """The directory's own tokenizer is used. A base model without a chat template comes last."""
    model(here / "a-base", template=False)
    model(here / "models/Qwen3", positions=512)
    (here / "prefs.jsonl").write_text(LONG_ROW * 400)
    code, out, err = dpo("init", "my")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "model: 2 found",
        "  -> models/Qwen3",
        "     a-base  (no chat template)",
        "  for another: --model PATH",
        "data: 1 found",
        "  -> prefs.jsonl",
        "  400 rows, read as plain (TRL's standard, explicit prompt), JSONL",
        "wrote profiles/my.toml (template hf)",
        "next: dpo check profiles/my.toml",
    ]
    profile = written()
    assert profile.model.weights == str(here / "models/Qwen3")
    assert (profile.model.tokenizer, profile.model.out_dir) == (None, None)
    assert profile.data.max_seq_len == 512  # the model has no more positions
    text = Path("profiles/my.toml").read_text()
    assert "minimind:" not in text
    # MiniMind's weights come first, and with them MiniMind's own tokenizer.
    checkout(here, "full_sft_512.pth")
    assert "(dense, recipe learn)" in dpo("init", "other")[1]
    assert written("other").model.tokenizer == here / "model"
    assert "(template hf)" in dpo("init", "third", "--template", "hf")[1]


@pytest.mark.parametrize("name", ["pairs.jsonl", "data/a.csv", "datasets/b.json", "sub/x.jsonl"])
def test_pairs_are_recognized_by_their_columns(dpo: Cli, here: Path, name: str) -> None:
    path = here / name
    path.parent.mkdir(exist_ok=True)
    row = json.loads(ROW)
    text = {
        ".jsonl": ROW * 3,
        ".json": json.dumps([row] * 3),
        ".csv": "prompt,chosen,rejected\n" + "p,c,r\n" * 3,
    }[path.suffix]
    path.write_text(text)
    (here / "notes.jsonl").write_text('{"text": "a"}\n')
    (here / "runs").mkdir()
    (here / "runs/dpo.jsonl").write_text(ROW)
    assert f"  -> {name}" in dpo("init", "my", *HUB_MODEL)[1].splitlines()
    assert written().data.data_path == path


def test_parquet_is_recognized_by_its_columns(dpo: Cli, here: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist([json.loads(ROW)] * 3), here / "pairs.parquet")
    assert "  3 rows, read as plain" in dpo("init", "my", *HUB_MODEL)[1]
    assert written().data.data_path == here / "pairs.parquet"


def test_a_file_for_training_comes_before_one_for_evaluation(dpo: Cli, here: Path) -> None:
    for name in ("eval.jsonl", "train.jsonl", "my_dpo_test.jsonl"):
        (here / name).write_text(ROW)
    assert "  -> train.jsonl" in dpo("init", "my", *HUB_MODEL)[1]
    (here / "x_dpo.jsonl").write_text(ROW)
    assert "  -> x_dpo.jsonl" in dpo("init", "other", *HUB_MODEL)[1]


def test_nothing_outside_of_the_project_is_taken(
    dpo: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout(here.parent / "minimind", "full_sft_512.pth")
    model(here.parent / "SmolLM2")
    (here / "pairs.jsonl").write_text(ROW)
    monkeypatch.setattr(missing_files, "available_memory", lambda: 4 << 30)
    code, out, err = dpo("init", "my")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "error: no model in this directory",
        "  models outside of it: ../minimind/out/full_sft_512.pth, ../SmolLM2",
        "  models on the Hub that 4.3 GB of free memory can train:"
        " hf:jingyaogong/MiniMind2-Small (26M), hf:jingyaogong/minimind-3 (64M),"
        " hf:jingyaogong/MiniMind2 (104M), hf:HuggingFaceTB/SmolLM2-135M-Instruct (134M)",
        "help: Name MODEL, a path or hf:ORG/NAME: dpo init my --model MODEL"
        "  To try dpo without files: dpo init my --template demo",
    ]
    assert not Path("profiles").exists()


def test_nothing_at_all_is_one_error_with_the_options(dpo: Cli, here: Path) -> None:
    (here / "notes.jsonl").write_text('{"text": "a"}\n')
    code, out, err = dpo("init", "my")
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert lines[0] == "error: no model and no preference pairs in this directory"
    assert "  without columns of preference pairs: notes.jsonl" in lines
    assert "dpo init my --model MODEL --data DATA" in lines[-1]
    assert any("hf:hiyouga/DPO-En-Zh-20k:zh (10,000 pairs, Chinese)" in line for line in lines)


def test_a_model_may_be_named(dpo: Cli, here: Path) -> None:
    minimind = here.parent / "minimind"
    checkout(minimind, "full_sft_512.pth")
    model(here.parent / "SmolLM2")
    (here / "pairs.jsonl").write_text(ROW)
    # A checkout: its weights and its tokenizer, but the pairs of this directory.
    code, out, _ = dpo("init", "a", "--model", "../minimind")
    assert code == 0
    assert (written("a").model.out_dir, written("a").model.tokenizer) == (
        minimind / "out",
        minimind / "model",
    )
    assert written("a").data.data_path == here / "pairs.jsonl"
    # A weights file: the tokenizer beside it.
    dpo("init", "b", "--model", "../minimind/out/full_sft_512.pth", "--data", "../minimind")
    assert written("b").model == written("a").model
    assert written("b").data.data_path == minimind / "dataset/dpo.jsonl"
    dpo("init", "c", "--model", "../SmolLM2")
    assert written("c").model.weights == str(here.parent / "SmolLM2")
    code, out, _ = dpo("init", "d", "--model", "hf:ORG/NAME")
    assert code == 0
    assert "model: hf:ORG/NAME" in out
    assert "fill in" not in out
    assert written("d").model.weights == "hf:ORG/NAME"


def test_a_checkout_lends_its_pairs_only_where_there_are_no_others(dpo: Cli, here: Path) -> None:
    checkout(here.parent / "minimind", "full_sft_512.pth")
    dpo("init", "my", "--model", "../minimind")
    assert written().data.data_path == here.parent / "minimind/dataset/dpo.jsonl"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "--model nowhere does not exist"),
        (["--model", "pairs.jsonl"], "--model pairs.jsonl is not a weights file"),
        (["--model", "empty"], "--model empty: this folder has no model"),
        (["--model", "half"], "half has a config.json, but no model.safetensors"),
        (["--data", "nowhere"], "--data nowhere does not exist"),
        (["--data", "empty"], "--data empty: this folder has no preference pairs"),
        (["--tokenizer", "empty"], "--tokenizer empty has no tokenizer.json"),
        (["--template", "dense", "--model", "whole"], "--template dense does not fit"),
        (["--template", "demo", "--model", "whole"], "--template demo has its own files"),
        (["--out", "x.json"], "--out x.json: a profile is a .toml file"),
        (["--out", "no/such/x.toml"], "--out: no/such does not exist"),
        (["--template", "hf", "--recipe", "minimind"], "trains only MiniMind models"),
        (["--columns", "a"], "--columns: 'a' is not NAME=COLUMN"),
        (["--columns", "a=b"], "--columns: no format has a column 'a'"),
    ],
)
def test_a_wrong_name_is_an_error(dpo: Cli, here: Path, arguments: list[str], message: str) -> None:
    (here / "pairs.jsonl").write_text(ROW)
    (here / "empty").mkdir()
    (here / "half").mkdir()
    (here / "half/config.json").write_text("{}")
    model(here / "whole")
    if "--tokenizer" in arguments:
        checkout(here, "full_sft_512.pth")
    code, _, err = dpo("init", "my", *arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 2
    assert not Path("profiles").exists()


def test_a_folder_of_pairs_may_be_named(dpo: Cli, here: Path) -> None:
    (here / "parts").mkdir()
    for name in "ab":
        (here / f"parts/{name}.jsonl").write_text(ROW * 2)
    assert "  4 rows, read as" in dpo("init", "my", "--data", "parts", *HUB_MODEL)[1]
    assert written().data.data_path == here / "parts"


def test_the_template_chooses_among_the_files(dpo: Cli, here: Path) -> None:
    checkout(here, "full_sft_512.pth", "full_sft_512_moe.pth")
    dpo("init", "my", "--template", "moe")
    assert written().model.weights == "full_sft_512_moe.pth"
    dpo("init", "other")
    assert written("other").model.weights == "full_sft_512.pth"
    dpo("init", "third", "--template", "minimind2-2510", "--recipe", "minimind")
    assert written("third").export.prefix == "dpo"


def test_pairs_that_cannot_be_read(dpo: Cli, here: Path) -> None:
    checkout(here, "full_sft_512.pth")
    (here / "dataset/dpo.jsonl").write_text('{"a": "p", "b": "c", "c": "r"}\n')
    code, _, err = dpo("init", "my")
    assert code == 2
    assert "error: no preference pairs in this directory" in err
    assert "without columns of preference pairs: dataset/dpo.jsonl" in err
    named = ("--data", "dataset/dpo.jsonl")
    code, out, _ = dpo("init", "other", *named)
    assert code == 0
    assert "the pairs cannot be read: " in out
    assert "the columns match no known format: 'a'" in out
    assert "Name the columns: --columns prompt=COLUMN,chosen=COLUMN,rejected=COLUMN." in out
    assert written("other").data.data_path == here / "dataset/dpo.jsonl"
    code, out, _ = dpo("init", "third", *named, "--columns", "prompt=a,chosen=b,rejected=c")
    assert "  1 row, read as plain (TRL's standard, explicit prompt), JSONL" in out
    assert written("third").data.columns == {"prompt": "a", "chosen": "b", "rejected": "c"}


def test_the_length_follows_from_the_pairs(dpo: Cli, here: Path) -> None:
    (here / "pairs.jsonl").write_text(ROW * 300 + LONG_ROW * 9)
    dpo("init", "short", *HUB_MODEL)
    assert written("short").data.max_seq_len == 256  # of the first 200 pairs
    (here / "pairs.jsonl").write_text(LONG_ROW * 9 + ROW * 100)
    dpo("init", "long", *HUB_MODEL)
    assert written("long").data.max_seq_len == 2048
    assert (
        "# First 109 pairs: median 18 tokens, 95 % up to 1,351, longest 1,351 (estimated from"
        " characters)." in Path("profiles/long.toml").read_text()
    )
    (here / "pairs.jsonl").write_text(LONG_ROW.replace("p p", "p p p p p"))
    assert dpo("init", "longest", *HUB_MODEL)[0] == 0
    assert written("longest").data.max_seq_len == 2048
    dpo("init", "script", "--template", "dense", "--recipe", "minimind")
    assert written("script").data.max_seq_len == 1024  # as in the script


def test_a_tokenizer_counts_the_tokens(dpo: Cli, here: Path) -> None:
    checkout(here, "full_sft_512.pth")
    shutil.copytree(REPOSITORY / "demo/tokenizer", here / "model", dirs_exist_ok=True)
    (here / "dataset/dpo.jsonl").write_text(ROW.replace('"p"', '"Say goodbye to Anna."') * 9)
    dpo("init", "my")
    text = Path("profiles/my.toml").read_text()
    # 14 tokens, and 8 of the template for each of the two messages
    assert re.search(r"# First 9 pairs: median 30 tokens, .* \(by its tokenizer\)\.\n", text)


def test_a_template_can_be_filled_in(dpo: Cli) -> None:
    code, out, _ = dpo("init", "my", "--template", "dense")
    assert code == 0
    assert out.splitlines()[-2:] == [
        "not found, fill in: model.out_dir, model.tokenizer, data.data_path",
        "next: dpo check profiles/my.toml",
    ]
    assert Path("profiles/my.toml").read_text().count("# FILL IN") == 3
    code, out, _ = dpo("init", "other", "--template", "hf")
    assert "not found, fill in: model.weights, data.data_path" in out
    assert written("other").model.weights == "hf:HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_profile_of_adapters(dpo: Cli) -> None:
    code, out, _ = dpo("init", "adapters", "--template", "lora")
    assert code == 0
    assert "(template lora)" in out
    profile = written("adapters")
    assert profile.model.weights == "hf:HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (profile.lora.rank, profile.lora.alpha) == (16, 32)
    assert 1e-6 < profile.train.learning_rate <= 1e-5
    text = Path("profiles/adapters.toml").read_text()
    assert "usual in the" in text
    assert "[lora]" in text


def test_a_profile_is_never_written_over_without_force(dpo: Cli) -> None:
    Path("profiles").mkdir()
    Path("profiles/my.toml").write_text("mine")
    code, _, err = dpo("init", "my")
    assert code == 2
    assert "profiles/my.toml exists" in err
    assert Path("profiles/my.toml").read_text() == "mine"
    assert not Path("profiles/dpo.schema.json").exists()
    assert dpo("init", "my", "--template", "demo", "--force")[0] == 0
    assert written()


@pytest.mark.parametrize("name", ["../my", "", ".toml", "a/b"])
def test_a_name_that_is_no_file_name_is_refused(dpo: Cli, name: str) -> None:
    assert dpo("init", name)[0] == 2
    assert not Path("profiles").exists()


def test_a_file_in_the_place_of_the_folder(dpo: Cli) -> None:
    Path("profiles").write_text("")
    assert dpo("init", "my")[0] == 2
    Path("profiles").unlink()


def test_a_suffix_may_be_typed(dpo: Cli) -> None:
    assert dpo("init", "my.toml", "--template", "demo")[0] == 0
    assert written()


def test_the_profile_may_be_written_elsewhere(dpo: Cli, here: Path) -> None:
    checkout(here, "full_sft_512.pth")
    code, out, _ = dpo("init", "my", "--out", "mine.toml")
    assert code == 0
    assert "next: dpo check mine.toml" in out
    assert load_profile(Path("mine.toml")).profile.model.out_dir == here / "out"
    assert not Path("profiles").exists()


def test_the_short_and_the_full_profile_are_one(dpo: Cli, here: Path) -> None:
    checkout(here, "full_sft_768.pth", thinks=True)
    dpo("init", "short")
    dpo("init", "full", "--full")
    assert written("short") == written("full")
    short, full = (Path(f"profiles/{name}.toml").read_text() for name in ("short", "full"))
    assert len(short.splitlines()) < 70
    assert "hidden_size" not in short
    assert "#hidden_size =  # unset" in full
    assert 'prefix = "dpo"  # minimind: "dpo"' in full


def answers(monkeypatch: pytest.MonkeyPatch, *answers: int | str) -> list[str]:
    """Answer the questions on a terminal; return the questions in order."""
    waiting, asked = iter(answers), list[str]()
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", lambda text, **_: (asked.append(text), next(waiting))[1])
    return asked


def test_on_a_terminal_the_user_chooses(
    dpo: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout(here, "full_sft_512.pth", "full_sft_768.pth")
    asked = answers(monkeypatch, 7, 2)
    code, out, _ = dpo("init", "my")
    assert code == 0
    assert asked == ["which?", "which?"]  # 7 was not a choice; there is one tokenizer, and one file
    assert out.splitlines()[:3] == [
        "model (--model PATH answers this):",
        "  1  out/full_sft_512.pth",
        "  2  out/full_sft_768.pth",
    ]
    assert written().model.weights == "full_sft_768.pth"


def test_on_a_terminal_files_outside_are_offered(
    dpo: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout(here.parent / "minimind", "full_sft_512.pth")
    asked = answers(monkeypatch, "nowhere", 1, 1)
    code, out, _ = dpo("init", "my")
    assert code == 0
    assert asked == ["a number, a path or hf:ORG/NAME"] * 3
    lines = out.splitlines()
    assert lines[0] == "model: none in this directory. Some choices (--model answers this):"
    assert lines[1] == "  1  ../minimind/out/full_sft_512.pth"
    assert lines[2].startswith("  2  hf:jingyaogong/MiniMind2-Small ")
    assert any(line.startswith("  --model nowhere does not exist. ") for line in lines)
    assert written().model.out_dir == here.parent / "minimind/out"
    assert written().model.tokenizer == here.parent / "minimind/model"


def test_on_a_terminal_paths_are_requested_if_nothing_is_found(
    dpo: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = here.parent / "elsewhere.jsonl"
    far.write_text('{"q": "p", "good": "c", "bad": "r"}\n')
    asked = answers(monkeypatch, "hf:jingyaogong/MiniMind2-Small@main", str(far), 1, 2, 3)
    monkeypatch.setattr("typer.confirm", lambda text, **_: (asked.append(text), False)[1])
    code, out, err = dpo("init", "my")
    assert (code, err) == (0, "")
    assert asked == [
        *["a number, a path or hf:ORG/NAME"] * 2,
        "download hf:jingyaogong/MiniMind2-Small@main now (--download answers this)?",
        *["which?"] * 3,
    ]
    assert "  column of chosen (--columns chosen=COLUMN answers this):" in out
    profile = written()
    assert profile.model.weights == "hf:jingyaogong/MiniMind2-Small@main"
    assert profile.train.learning_rate == 5e-6  # the number of weights is known
    assert profile.data.data_path == far
    assert profile.data.columns == {"prompt": "q", "chosen": "good", "rejected": "bad"}


def test_a_misspelled_column_is_the_default_answer(
    dpo: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout(here, "full_sft_512.pth")
    (here / "near.jsonl").write_text('{"question": "p", "prompt": "q", "chosn": "c", "bad": "r"}\n')
    waiting, defaults = iter(["", "four", "5", "bad"]), list[str | None]()
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)

    def prompt(text: str, default: str | None) -> str:
        defaults.append(default)
        return next(waiting) or str(default)

    monkeypatch.setattr("typer.prompt", prompt)
    code, out, err = dpo("init", "my", "--data", "near.jsonl")
    assert (code, err) == (0, "")
    assert defaults == ["3", None, None, None]
    assert out.count("    Type a number from 1 to 4, or a column name.") == 2
    assert written().data.columns == {"chosen": "chosn", "rejected": "bad"}


def test_the_options_answer_in_advance(
    dpo: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout(here, "full_sft_512.pth", "full_sft_768.pth")
    (here / "more.jsonl").write_text(ROW)
    assert answers(monkeypatch) == []
    weights = "out/full_sft_768.pth"
    assert dpo("init", "my", "--model", weights, "--data", "more.jsonl")[0] == 0
    assert written().model.weights == "full_sft_768.pth"


def test_the_demo_is_copied(dpo: Cli) -> None:
    code, out, _ = dpo("init", "my", "--template", "demo")
    demo = load_profile(Path("demo")).profile
    assert code == 0
    assert "found" not in out
    assert written() == demo


def test_init_needs_no_torch(dpo: Cli, here: Path) -> None:
    checkout(here, "full_sft_512.pth")
    script = (
        "import sys; from dpo_cli.app import main; code = main(['init', 'my']);"
        "sys.exit(code or sorted({'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_settings_of_another_tool(dpo: Cli, here: Path) -> None:
    (here / "base").mkdir()
    (here / "pairs.jsonl").write_text(ROW)
    (here / "config.yaml").write_text(
        "loss_type: hinge\nmax_length: 64\nuse_peft: true\nlora_r: 8\nload_in_8bit: true\n"
        "frobnicate: 1\nlearning_rate: 5e-7\n"
    )
    code, out, err = dpo(
        *("init", "my", "--from", "config.yaml", "--model", "base", "--data", "pairs.jsonl")
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[-2:] == [
        "wrote profiles/my.toml (TRL, config.yaml)",
        "next: dpo check profiles/my.toml",
    ]
    assert "  load_in_8bit: only weights have 8 bits; activations are not rounded" in lines
    assert lines[lines.index("Unknown, not used:") + 1] == "  frobnicate = 1"
    profile = written()
    assert profile.dpo.loss == "hinge"
    assert (profile.lora.rank, profile.lora.alpha) == (8, 32)
    assert profile.model.quantization == "int8"
    assert profile.data.max_seq_len == 64
    assert profile.model.weights == str(here / "base")
    assert profile.data.data_path == here / "pairs.jsonl"
    text = Path("profiles/my.toml").read_text()
    assert 'loss = "hinge"  # trl: loss_type\n' in text
    assert "learning_rate = 5e-7  # trl: learning_rate\n" in text


def test_settings_of_another_tool_with_data_of_the_hub(dpo: Cli, here: Path) -> None:
    (here / "config.yaml").write_text("loss_type: hinge\nmodel_name_or_path: me/base\n")
    names = ("--model", "hf:me/other@v2", "--data", "hf:me/pairs:en/train")
    code, _, err = dpo("init", "my", "--from", "trl:config.yaml", *names)
    assert (code, err) == (0, "")
    assert written().model.weights == "hf:me/other@v2"
    assert str(written().data.data_path) == "hf:me/pairs:en/train"


def test_a_quoted_command_line(dpo: Cli, here: Path) -> None:
    checkout(here, "full_sft_768.pth", thinks=True)
    line = "python train_dpo.py --from_weight full_sft --beta 0.2 --save_dir out"
    code, out, err = dpo("init", "my", "--from", line, "--full")
    assert (code, err) == (0, "")
    assert "wrote profiles/my.toml (MiniMind, the command line)" in out
    profile = written()
    assert profile.dpo.beta == 0.2
    assert profile.model.weights == "full_sft_768.pth"
    assert profile.model.out_dir == here / "out"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from", "nothing.yaml"), "there is no such file"),
        (("--from", "config.yaml", "--recipe", "minimind"), "--recipe has no effect"),
        (("--from", "config.yaml", "--tokenizer", "base"), "--tokenizer has no effect"),
        (("--from", "config.yaml", "--template", "dense"), "--template has no effect"),
        (("--from", "list.yaml"), "has no settings"),
    ],
)
def test_wrong_settings_are_two_lines(
    dpo: Cli, here: Path, arguments: tuple[str, ...], message: str
) -> None:
    (here / "config.yaml").write_text("loss_type: hinge\n")
    (here / "list.yaml").write_text("- 1\n")
    code, out, err = dpo("init", "my", *arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert "help:" in err or "->" in err or len(err.splitlines()) >= 2
    assert "Traceback" not in err
    assert not Path("profiles/my.toml").exists()

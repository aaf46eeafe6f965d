"""Tests of names of models: the kind follows from the files, which are not read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dpo_cli.errors import UsageError
from dpo_cli.run.events import Exported, to_json
from dpo_cli.run.models import find_model, tokenizer_of

RUNS = Path("runs")
RUN = "dense-20260101-120000-ab12"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (f"runs/{RUN}/profile.toml", "out/rlhf_512.pth", "hf/config.json", "notes/x.txt"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text('[model]\ntokenizer = "t"\n[data]\ndata_path = "d"\n')
    Path("t").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        Path("t", name).write_text("{}")
    return tmp_path


@pytest.mark.parametrize("name", ["dense", RUN, RUN[:8], f"runs/{RUN}", f"runs/{RUN}/"])
def test_a_run(name: str) -> None:
    found = find_model(name, Path("runs"))
    assert found.run is not None
    assert found.title == found.run.name == RUN
    assert found.path == found.run.path


@pytest.mark.parametrize("name", ["out/rlhf_512.pth", "hf", "hf/"])
def test_kinds_of_paths(name: str) -> None:
    found = find_model(name, Path("runs"))
    assert found.run is None
    assert found.title == name.rstrip("/")


def test_a_path_takes_precedence_over_a_run_name() -> None:
    assert find_model("dense", Path("runs")).run is not None
    Path("hf").rename("dense")
    assert find_model("dense", Path("runs")).run is None
    assert find_model(RUN, Path("runs")).run is not None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "out/rlhf_511.pth",
            r"no such file; did you mean out/rlhf_512.pth\? \| out contains rlhf_512.pth",
        ),
        ("gone/rlhf_512.pth", r"gone/rlhf_512.pth: no such file \| $"),
        ("out", r"there is no run 'out' in runs"),
        ("./out/", r"neither a run nor a model: .* \| Name a file in it: rlhf_512.pth"),
        ("notes/x", r"notes/x: no such file or folder"),
        ("densy", r"there is no run 'densy' in runs \| Did you mean dense"),
    ],
)
def test_paths_without_a_model(name: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        find_model(name, Path("runs"))
    assert re.search(said, f"{raised.value.message} | {raised.value.remedy}")


def test_the_tokenizer_is_the_stated_one_or_that_of_the_first_model_with_one() -> None:
    run, file, folder = (find_model(n, Path("runs")) for n in ("dense", "out/rlhf_512.pth", "hf"))
    own = Path(f"runs/{RUN}/t").absolute()
    assert run.tokenizer() == own
    assert run.tokenizer([f"model.tokenizer={Path('t').absolute()}"]) == Path("t").absolute()
    assert tokenizer_of([run], Path("t"), RUNS) == Path("t")
    with pytest.raises(UsageError, match=r"model.tokenizer: .* does not exist"):
        tokenizer_of([file, folder, run], None, RUNS)
    with pytest.raises(UsageError, match=r"--tokenizer: hf has no tokenizer.json"):
        tokenizer_of([run], Path("hf"), RUNS)
    with pytest.raises(
        UsageError, match=r"out/rlhf_512.pth: the tokenizer of these weights is unknown"
    ):
        tokenizer_of([file, folder], None, RUNS)
    for each in Path("t").iterdir():
        each.rename(Path("hf") / each.name)
    assert tokenizer_of([file, folder, run], None, RUNS) == Path("hf")


@pytest.mark.parametrize("at", [f"runs/{RUN}/rlhf_512.pth", "out/rlhf_512.pth"])
def test_a_weights_file_of_a_run_has_the_tokenizer_of_the_run(at: str) -> None:
    Path("t").rename(f"runs/{RUN}/t")
    event = Exported(path=str(Path(at).absolute()), sha256="", dtype="float32", optimizer_step=1)
    Path(f"runs/{RUN}/events.jsonl").write_text(to_json(event) + "\n")
    Path(at).touch()
    assert tokenizer_of([find_model(at, RUNS)], None, RUNS) == Path(f"runs/{RUN}/t").absolute()


def test_the_error_has_the_option_for_a_tokenizer_nearby() -> None:
    Path("t").rename("model")
    with pytest.raises(UsageError) as raised:
        tokenizer_of([find_model("out/rlhf_512.pth", RUNS)], None, RUNS)
    assert raised.value.remedy.endswith("trained with: --tokenizer model")

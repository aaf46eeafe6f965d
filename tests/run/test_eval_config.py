"""Tests of the settings of an evaluation: profile, pairs and reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_cli.errors import UsageError
from dpo_cli.run.eval_config import EvalConfig, find_eval_config
from dpo_cli.run.models import NamedModel, find_model

RUN = "dense-20260101-120000-ab12"
RUNS = Path("runs")
PROFILE = """
[model]
weights = "{here}/full_sft_512.pth"
tokenizer = "{here}/t"
[data]
data_path = "{here}/train.jsonl"
max_seq_len = 300
[dpo]
beta = 5.0
[eval]
{held_out}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "test.jsonl", "full_sft_512.pth", "rlhf_512.pth"):
        Path(name).write_text("{}")
    for name in ("t/tokenizer.json", "t/tokenizer_config.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("{}")
    Path("runs", RUN).mkdir(parents=True)
    state(tmp_path, "fraction = 0.1")
    return tmp_path


def state(here: Path, held_out: str) -> None:
    """Write the profile of the run, with settings of held-out pairs."""
    Path("runs", RUN, "profile.toml").write_text(PROFILE.format(here=here, held_out=held_out))


def model(name: str) -> NamedModel:
    return find_model(name, RUNS)


def found(eval_config: EvalConfig | None) -> EvalConfig:
    assert eval_config is not None
    return eval_config


def test_a_run_is_evaluated_with_its_own_settings(here: Path) -> None:
    run = found(find_eval_config([model("dense")], runs_root=RUNS))
    assert run.owner is not None
    assert run.is_own
    assert run.has_reference
    assert run.profile.eval.fraction == 0.1
    assert run.profile.dpo.beta == 5.0
    state(here, f'path = "{here}/test.jsonl"')
    run = found(find_eval_config([model("dense")], runs_root=RUNS))
    assert run.is_own
    assert run.profile.eval.path == run.profile.data.data_path == here / "test.jsonl"
    state(here, "")
    assert find_eval_config([model("dense")], runs_root=RUNS) is None


@pytest.mark.parametrize("setting", ["data.max_seq_len=200", "train.seed=1", "eval.fraction=0.2"])
def test_other_pairs_are_not_called_held_out(here: Path, setting: str) -> None:
    run = [model("dense")]
    with pytest.raises(UsageError, match=rf"^{setting.split('=')[0]}: among the held-out"):
        find_eval_config(run, runs_root=RUNS, settings=[setting])
    assert find_eval_config(run, runs_root=RUNS, settings=[setting], data=Path("test.jsonl"))
    assert find_eval_config(run, runs_root=RUNS, settings=["train.batch_size=2"])
    state(here, f'path = "{here}/test.jsonl"')
    if "fraction" not in setting:
        assert find_eval_config(run, runs_root=RUNS, settings=[setting])


def test_other_pairs_another_tokenizer_other_keys(here: Path) -> None:
    Path("t").rename("u")
    run = found(
        find_eval_config(
            [model("dense")],
            runs_root=RUNS,
            data=Path("test.jsonl"),
            tokenizer=Path("u"),
            settings=["dpo.beta=2"],
        )
    )
    assert not run.is_own
    assert run.profile.eval.path == run.profile.data.data_path == here / "test.jsonl"
    assert run.profile.eval.fraction == 0
    assert run.profile.model.tokenizer == here / "u"
    assert (run.profile.dpo.beta, run.profile.data.max_seq_len) == (2, 300)


def test_a_file_by_a_profile(here: Path) -> None:
    path = Path("runs", RUN, "profile.toml")
    file = found(find_eval_config([model("rlhf_512.pth")], runs_root=RUNS, profile_path=path))
    assert file.owner is None
    assert file.is_own
    assert file.has_reference
    with pytest.raises(UsageError, match=r"--profile: dense-.* is evaluated with its own profile"):
        find_eval_config([model("dense")], runs_root=RUNS, profile_path=path)


def by_itself(
    *settings: str, tokenizer: Path | None = None, reference: NamedModel | None = None
) -> EvalConfig:
    return found(
        find_eval_config(
            [model("rlhf_512.pth")],
            runs_root=RUNS,
            data=Path("test.jsonl"),
            tokenizer=tokenizer,
            reference=reference,
            settings=settings,
        )
    )


def test_a_file_by_itself(here: Path) -> None:
    assert find_eval_config([model("rlhf_512.pth")], runs_root=RUNS) is None
    with pytest.raises(
        UsageError, match=r"rlhf_512.pth: the tokenizer of these weights is unknown"
    ):
        by_itself()
    alone = by_itself("data.max_seq_len=99", tokenizer=Path("t"))
    assert not alone.has_reference
    assert alone.profile.model.tokenizer == here / "t"
    assert alone.profile.data.max_seq_len == 99
    assert by_itself(tokenizer=Path("t"), reference=model("full_sft_512.pth")).has_reference
    # The other run has the tokenizer.
    assert by_itself(reference=model("dense")).profile.model.tokenizer == here / "t"
    with pytest.raises(UsageError) as raised:
        by_itself("dpo.bata=1", "dpo.beta", tokenizer=Path("t"))
    assert [line.split(";")[0] for line in raised.value.details] == [
        "--set  dpo.beta: needs a value",
        "--set  dpo.bata = 1: unknown key",
    ]


def test_the_first_run_defines_the_evaluation_settings() -> None:
    both = [model("rlhf_512.pth"), model("dense")]
    assert found(find_eval_config(both, runs_root=RUNS)).owner == both[1].run


def test_a_loss_without_a_reference() -> None:
    settings = ["dpo.loss=simpo"]
    run = found(find_eval_config([model("dense")], runs_root=RUNS, settings=settings))
    assert not run.has_reference
    with pytest.raises(UsageError, match=r"--reference: dpo.loss = simpo uses no reference"):
        find_eval_config(
            [model("dense")],
            runs_root=RUNS,
            settings=settings,
            reference=model("full_sft_512.pth"),
        )


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("train.jsonl", r"data.data_path: train.jsonl does not exist"),
        ("full_sft_512.pth", r"model.weights: full_sft_512.pth does not exist"),
        ("t/tokenizer.json", r"model.tokenizer: t has no tokenizer.json"),
    ],
)
def test_missing_files_are_reported_before_anything_is_read(gone: str, said: str) -> None:
    Path(gone).unlink()
    with pytest.raises(UsageError, match=said):
        find_eval_config([model("dense")], runs_root=RUNS)


def test_a_named_reference_stands_in_for_one_that_is_gone() -> None:
    Path("full_sft_512.pth").unlink()
    reference = model("rlhf_512.pth")
    assert found(find_eval_config([model("dense")], runs_root=RUNS, reference=reference)).reference
    with pytest.raises(UsageError, match=r"--data: gone.jsonl does not exist"):
        find_eval_config([model("dense")], runs_root=RUNS, data=Path("gone.jsonl"))

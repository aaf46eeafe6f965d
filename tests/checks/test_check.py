"""Tests of `dpo check`, which reports all problems of a profile at once and writes nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from dpo_cli.checks import first_step, resources
from dpo_cli.checks.torch_checks import TorchChecks
from dpo_cli.checks.trial_trainer import TARGET_TOKENS, small_micro_batch
from dpo_cli.compute.device import resolve
from dpo_cli.findings import Diagnosis, Finding, Level
from dpo_cli.models.loading import read_state_dict
from dpo_cli.models.minimind import MiniMind
from dpo_cli.profile.load import load_profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.training.inputs import read_inputs
from dpo_cli.training.plan import make_plan
from tests.checks.conftest import (
    ROWS,
    SUBJECTS,
    TOKENIZER,
    Examine,
    architecture,
    of,
    random_scorer,
    row,
    save,
)

OK, WARN, ERROR, SKIP = Level.OK, Level.WARN, Level.ERROR, Level.SKIP


def codes(diagnosis: Diagnosis, level: Level) -> list[str]:
    return [finding.code for finding in diagnosis.findings if finding.level is level]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- no problems -------------------------------------------------------------------------------


def test_a_start_model_that_repeats_itself_is_a_finding(
    examined: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_step, "greedy_answer", lambda *_: "- " * 40)
    finding = of(examined(), "start-repeats")
    assert finding.level is Level.WARN
    assert "the answers to 2 prompts already repeat themselves" in finding.message
    assert "chat template" in finding.remedy


def test_no_problems_and_nothing_is_written(examined: Examine, bench: Path) -> None:
    colors = ("red", "blue", "old", "new", "cold", "warm", "small", "large", "fine", "dark")
    kinds = [
        f"{color} {subject}" for color in (*colors, *map(str, range(5))) for subject in SUBJECTS
    ]
    sides = [(f"I like {each} a lot.", f"No idea, {each}.") for each in kinds]
    rows = [
        row(f"Tell me of {each}.", *(pair if number % 2 else reversed(pair)))
        for number, (each, pair) in enumerate(zip(kinds, sides, strict=True))
    ]
    (bench / "pairs.jsonl").write_text("".join(rows))
    before = contents(bench)
    diagnosis = examined()
    assert [(finding.code, finding.level) for finding in diagnosis.findings] == [
        (code, OK)
        for code in (
            *("profile", "files", "device", "weights", "tokenizer", "format", "data"),
            *("lengths", "texts", "masks", "held-out-pairs", "plan", "tokenizer-fit"),
            *("first-loss", "gradients", "start-answers", "lr-sum", "saturation"),
            *("update", "memory", "time", "disk"),
        )
    ]
    assert diagnosis.is_clean
    assert not any(finding.remedy for finding in diagnosis.findings)
    assert contents(bench) == before
    assert not (bench / "runs").exists()


def test_a_cpu_that_other_processes_use(examined: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []

    def contended(seconds: float, cpu_seconds: float) -> float:
        asked.append((seconds, cpu_seconds))
        return 3.0

    monkeypatch.setattr(resources, "contention", contended)
    found = of(examined(), "cpu-contention")
    assert found.level is WARN
    assert "a step takes 3.0 times its CPU time" in found.message
    [(seconds, cpu_seconds)] = asked
    assert 0 < cpu_seconds <= 1.01 * seconds


def test_the_plan_equals_the_plan_of_a_run(examined: Examine, bench: Path) -> None:
    profile = load_profile(bench / "my.toml").profile
    inputs = read_inputs(
        profile, resolve("cpu", "float32"), RunDirectory(bench / "runs/none"), lambda *_: None
    )
    diagnosis = examined()
    assert diagnosis.facts["plan"] == make_plan(inputs).to_dict()
    assert of(diagnosis, "plan").message == (
        "2 epochs x 2 micro-batches of 4 pairs = 4 micro-steps, 4 steps; learning rate 1.1e-4 to"
        " 2.5e-5; 2 held-out pairs, evaluated at the start and at the end"
    )


def test_the_plan_names_the_peak_idle_steps_and_intervals_beyond_the_run(
    examined: Examine,
) -> None:
    settings = (
        *("train.schedule=linear", "train.warmup_ratio=0.5"),
        *("eval.interval=400", "train.save_interval=99"),
    )
    message = of(examined(*settings), "plan").message
    assert "learning rate 0 over " in message
    assert "(1 step at 0, which changes nothing)" in message
    assert "evaluated at the start and at the end; " in message
    assert message.endswith("train.save_interval = 99, eval.interval = 400")


def test_the_first_loss_is_ln_2(examined: Examine) -> None:
    message = of(examined(), "first-loss").message
    assert message == "the loss is 0.6931 = ln 2, as expected; policy and reference agree exactly"


def test_the_first_loss_with_another_reference(examined: Examine, bench: Path) -> None:
    shape = architecture(2)
    save(bench / "other.pth", random_scorer(shape), shape)
    diagnosis = examined("model.reference=./other.pth", "dpo.beta=5")
    assert of(diagnosis, "reference").level is OK
    assert "not ln 2" in of(diagnosis, "first-loss").message
    # Random weights as the reference are an error of their own.
    assert "model.reference" in of(diagnosis, "tokenizer-mismatch").message


@pytest.mark.parametrize("settings", [["train.layout=padded"], ["model.dropout=0.5"]])
def test_layouts_and_dropout_start_at_ln_2(examined: Examine, settings: list[str]) -> None:
    assert of(examined(*settings), "first-loss").level is OK


# --- weights and tokenizer ---------------------------------------------------------------------


def test_a_wrong_tokenizer_of_the_right_size_is_an_error(examined: Examine, bench: Path) -> None:
    other = bench / "other"
    shutil.copytree(TOKENIZER, other)
    specification = json.loads((other / "tokenizer.json").read_bytes())
    vocabulary = specification["model"]["vocab"]
    special = {token["content"] for token in specification["added_tokens"]}
    ordinary = [token for token in vocabulary if token not in special]
    ids = [vocabulary[token] for token in ordinary]
    vocabulary.update(zip(ordinary, reversed(ids), strict=True))
    (other / "tokenizer.json").write_text(json.dumps(specification))

    diagnosis = examined("model.tokenizer=other")
    assert codes(diagnosis, ERROR) == ["tokenizer-mismatch"]
    mismatch = of(diagnosis, "tokenizer-mismatch")
    assert "random guessing" in mismatch.message
    assert "MiniMind's two versions" in mismatch.remedy
    assert of(diagnosis, "first-loss").level is OK  # the later checks still run


def test_a_tokenizer_larger_than_the_vocabulary_is_an_error(examined: Examine, bench: Path) -> None:
    state = read_state_dict(bench / "full_sft_32.pth")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][:100].clone()
    torch.save(state, bench / "full_sft_32.pth")
    diagnosis = examined()
    assert codes(diagnosis, ERROR) == ["inputs-misfit"]
    assert "100" in of(diagnosis, "inputs-misfit").message


def test_sequences_longer_than_the_positions_of_the_model(
    examined: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MiniMind, "max_positions", 10)
    diagnosis = examined()
    assert codes(diagnosis, ERROR) == ["inputs-misfit"]
    assert "the model has 10 positions: lines 1, 2" in of(diagnosis, "inputs-misfit").message
    assert of(diagnosis, "inputs-misfit").remedy == "Set data.max_seq_len to 10 or less."


def test_checkpointing_takes_less_memory_for_activations(examined: Examine, bench: Path) -> None:
    estimates = []
    for choice in ("false", "true"):
        loaded = load_profile(bench / "my.toml", [f"train.activation_checkpointing={choice}"])
        run = RunDirectory(bench / "runs/none")
        inputs = read_inputs(loaded.profile, resolve("cpu", "float32"), run, lambda *_: None)
        estimates.append(resources.estimate_memory(inputs))
    assert estimates[0].state == estimates[1].state
    assert estimates[1].activations < estimates[0].activations


def test_weights_that_cannot_learn(examined: Examine, bench: Path) -> None:
    state = read_state_dict(bench / "full_sft_32.pth")
    state["model.layers.1.mlp.down_proj.weight"].zero_()
    torch.save(state, bench / "full_sft_32.pth")
    missing = of(examined(), "gradient-missing")
    assert missing.level is ERROR
    assert "model.layers.1.mlp.gate_proj.weight, model.layers.1.mlp.up_proj" in missing.message


def test_experts_without_tokens_are_no_error(examined: Examine, bench: Path) -> None:
    shape = architecture(3, experts=4)
    save(bench / "full_sft_32_moe.pth", random_scorer(shape), shape)
    state = read_state_dict(bench / "full_sft_32_moe.pth")
    for layer in range(2):  # equal scores: the first expert wins every token
        state[f"model.layers.{layer}.mlp.gate.weight"].zero_()
    torch.save(state, bench / "full_sft_32_moe.pth")
    gradients = of(examined("model.weights=./full_sft_32_moe.pth"), "gradients")
    assert gradients.level is OK
    assert "6 of 8 experts got no token" in gradients.message


def test_routers_without_a_gradient(examined: Examine, bench: Path) -> None:
    shape = architecture(3, experts=2)
    save(bench / "full_sft_32_moe.pth", random_scorer(shape), shape)
    moe = "model.weights=./full_sft_32_moe.pth"
    assert of(examined(moe), "gradients").level is OK
    still = of(examined(moe, "train.router_aux_loss_coef=0"), "router-untrained")
    assert still.level is WARN
    assert still.remedy == "Set train.router_aux_loss_coef = 0.0005."


# --- bad input: each is reported, and hides no other problem ------------------------------------


def spoil(bench: Path) -> None:
    """Break rows 3 and 5: a second problem, which must be reported, too."""
    broken = ROWS[2][:-3] + "\n"
    no_rejected = json.dumps({"chosen": json.loads(ROWS[4])["chosen"]}) + "\n"
    rows = [*ROWS[:2], broken, ROWS[3], no_rejected, *ROWS[5:]]
    (bench / "pairs.jsonl").write_text("".join(rows))


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def make_bad_files(bench: Path) -> None:
    whole = (bench / "full_sft_32.pth").read_bytes()
    (bench / "empty.pth").write_bytes(b"")
    (bench / "cut.pth").write_bytes(whole[: len(whole) // 2])
    torch.save({"weight": _Evil()}, bench / "evil.pth")
    (bench / "folder").mkdir()
    (bench / "file").write_text("")


@pytest.mark.parametrize(
    ("setting", "code", "words"),
    [
        ("model.weights=./missing.pth", "file-unusable", "missing.pth does not exist"),
        ("model.weights=./folder", "file-unusable", "is a directory"),
        ("model.weights=./empty.pth", "file-unusable", "is empty"),
        ("model.weights=./cut.pth", "weights-unusable", "cut off"),
        ("model.weights=./evil.pth", "weights-unusable", "asks to run code"),
        ("model.weights=run:none", "weights-unusable", "no runs"),
        ("model.hidden_size=64", "weights-unusable", "model.hidden_size = 64 in the profile"),
        ("model.reference=./cut.pth", "reference-unusable", "cut off"),
        ("model.tokenizer=folder", "file-unusable", "has no tokenizer.json"),
        ("train.epoch=1", "profile-key", "unknown key"),
        ("train.epochs=1.5", "profile-key", "must be a whole number"),
        ("train.learning_rate=-1", "profile-key", "must be greater than 0"),
        ("data.max_seq_len=1", "profile-key", "must be greater than or equal to 2"),
        ("train.device=cuda:99", "device-unusable", "cuda:99"),
        ("eval.path=missing.jsonl", "profile-key", "not both"),
    ],
)
def test_each_bad_input_is_reported_beside_malformed_rows(
    examined: Examine, bench: Path, setting: str, code: str, words: str
) -> None:
    spoil(bench)
    make_bad_files(bench)
    diagnosis = examined(setting)
    finding = of(diagnosis, code)
    assert finding.level is ERROR
    assert words in finding.message
    assert finding.remedy
    assert not Path("executed").exists()
    if setting.startswith("model.tokenizer"):
        assert of(diagnosis, "data").level is SKIP
        assert of(diagnosis, "weights").level is OK
        return
    if code == "profile-key":  # reported at once
        assert {each.code for each in diagnosis.findings} <= {"profile-key", "files"}
        return
    malformed = of(diagnosis, "data-malformed").message.splitlines()
    assert malformed[0] == "2 of 8 rows are malformed (more than 1 %)"
    assert malformed[1].startswith("line 3: not JSON")
    assert malformed[2] == "line 5: no 'rejected'"


@pytest.mark.parametrize("text", ["[model\n", "extends = 'nothing.toml'\n"])
def test_an_unreadable_profile_is_the_only_finding(
    examined: Examine, bench: Path, text: str
) -> None:
    (bench / "my.toml").write_text(text)
    diagnosis = examined()
    assert codes(diagnosis, ERROR) == ["profile-unreadable"]
    assert diagnosis.findings == (of(diagnosis, "profile-unreadable"),)


def test_errors_of_the_profile_end_the_checks_before_torch(
    examined: Examine, bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the profile has errors")

    monkeypatch.setattr(TorchChecks, "run", fail)
    (bench / "my.toml").write_text(PROFILE_WITHOUT_DATA)
    diagnosis = examined("train.epochs=0", "model.weights=./none.pth")
    assert codes(diagnosis, ERROR) == ["profile-key", "profile-key", "file-unusable"]
    assert {each.subject for each in diagnosis.findings if each.code == "profile-key"} == {
        "my.toml  data.data_path",
        "--set  train.epochs = 0",
    }
    assert diagnosis.facts == {}


PROFILE_WITHOUT_DATA = f"""\
[model]
weights = "./full_sft_32.pth"
tokenizer = "{TOKENIZER}"
"""


def test_a_held_out_file_that_is_missing(examined: Examine, bench: Path) -> None:
    settings = ("eval.fraction=0", "eval.path=missing.jsonl")
    diagnosis = examined(*settings)
    assert codes(diagnosis, ERROR) == ["file-unusable"]
    assert codes(diagnosis, SKIP) == ["held-out"]
    assert of(diagnosis, "gradients").level is OK


def test_a_held_out_file_is_checked(examined: Examine, bench: Path) -> None:
    (bench / "missing.jsonl").write_text("".join(ROWS[:3]))
    diagnosis = examined("eval.fraction=0", "eval.path=missing.jsonl")
    assert [f.message for f in diagnosis.findings if f.code == "data"] == [
        "8 of 8 rows kept at 128 tokens",
        "3 of 3 rows kept at 128 tokens",
    ]
    assert diagnosis.facts["plan"]["pairs"]["held_out"] == 3


# --- data and preview --------------------------------------------------------------------------


def test_rows_that_a_larger_max_seq_len_would_keep(examined: Examine, bench: Path) -> None:
    long = row("Tell me all. " * 40, "Yes.", "No.")
    (bench / "pairs.jsonl").write_text("".join([*ROWS, long, ROWS[0].replace("No idea", "None")]))
    diagnosis = examined("data.max_seq_len=64")
    kept = of(diagnosis, "data-truncated")
    assert kept.level is WARN
    assert kept.message.startswith("9 of 10 rows kept at 64 tokens; skipped: 1 too long")
    assert kept.remedy.startswith("Set data.max_seq_len to 1536 to keep 10 (")
    assert "2048" not in kept.remedy  # a larger max_seq_len keeps no more rows
    lengths = diagnosis.facts["lengths"]
    assert lengths[64]["kept"] == 9
    assert lengths[1536] == lengths[2048]
    assert lengths[1536]["tokens"] > lengths[64]["tokens"]


def test_no_pair_left(examined: Examine) -> None:
    diagnosis = examined("data.max_seq_len=4")
    assert of(diagnosis, "data-none").message == "0 of 8 rows kept at 4 tokens; skipped: 8 too long"
    assert of(diagnosis, "data-none").remedy == "Set data.max_seq_len to 1536 to keep 8."
    assert of(diagnosis, "plan").message == "needs data"


def test_answers_that_are_mostly_cut(examined: Examine, bench: Path) -> None:
    rows = [row(f"Tell me {n}.", "Yes, of course. " * 40, "No, never. " * 40) for n in range(8)]
    (bench / "pairs.jsonl").write_text("".join(rows))
    kept = of(examined("data.max_seq_len=64"), "data-truncated")
    assert kept.level is WARN
    assert kept.message == "8 of 8 rows kept, 8 cut at 64 tokens"
    assert kept.remedy == "Set data.max_seq_len to 1536 to truncate none."


def test_rows_with_identical_sides(examined: Examine, bench: Path) -> None:
    followed = json.loads(row("Hm?", "No.", "No."))
    followed["rejected"].append({"role": "user", "content": "Why?"})
    alike = [row("Hm?", "Yes.", "Yes."), json.dumps(followed) + "\n"]
    (bench / "pairs.jsonl").write_text("".join([*ROWS, *alike]))
    found = of(examined(), "data-identical")
    assert found.level is WARN
    assert found.message == "8 of 10 rows kept at 128 tokens; skipped: 2 with identical sides"
    (bench / "pairs.jsonl").write_text(alike[0])
    assert of(examined(), "data-none").remedy == "Correct line 1: both sides are the same."


def test_one_malformed_row_among_many_warns(examined: Examine, bench: Path) -> None:
    (bench / "pairs.jsonl").write_text("".join([*ROWS * 20, "{}\n"]))
    malformed = of(examined(), "data-malformed")
    assert malformed.level is WARN
    assert malformed.message.splitlines()[1] == "line 161: no 'chosen'"


def test_a_file_without_rows(examined: Examine, bench: Path) -> None:
    (bench / "pairs.jsonl").write_text("\n\n")
    assert of(examined(), "data-unusable").message == "the file has no rows"


def test_a_template_that_rewrites_turns(examined: Examine, bench: Path) -> None:
    other = bench / "other"
    shutil.copytree(TOKENIZER, other)
    configuration = json.loads((other / "tokenizer_config.json").read_bytes())
    configuration["chat_template"] = (
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}|{% endfor %}"
    )
    (other / "tokenizer_config.json").write_text(json.dumps(configuration))
    several = json.dumps(
        {
            side: [
                *({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}),
                *({"role": "user", "content": "c"}, {"role": "assistant", "content": side}),
            ]
            for side in ("chosen", "rejected")
        }
    )
    (bench / "pairs.jsonl").write_text("".join([*ROWS, several]))
    rewritten = of(examined("model.tokenizer=other"), "mask-template")
    assert "in 1 pair (line 9); only what follows their prompt is scored" in rewritten.message
    assert rewritten.remedy.startswith('Set data.scored_turns = "last"')
    stated = examined("model.tokenizer=other", 'data.scored_turns="all"')
    assert 'line 9: the chat template rewrites earlier turns; set data.scored_turns = "last"' in (
        of(stated, "data-malformed").message
    )
    last = examined("model.tokenizer=other", 'data.scored_turns="last"')
    assert 'data.scored_turns = "last": only what follows the prompt' in of(last, "masks").message


def test_the_preview_shows_the_tokens_that_carry_loss(examined: Examine) -> None:
    preview = examined(pair="2").preview
    assert preview is not None
    assert preview.place == "line 2"
    [shared] = preview.shared
    assert shared.text.endswith("Tell me about rain.<|im_end|>\n<|im_start|>assistant\n")
    assert not shared.carries_loss
    [chosen] = preview.chosen
    assert (chosen.text, chosen.carries_loss) == ("I like rain very much.<|im_end|>\n", True)


def test_the_first_pair_that_is_kept_is_shown(examined: Examine, bench: Path) -> None:
    (bench / "pairs.jsonl").write_text("".join([row("Hm?", "Yes.", "Yes."), *ROWS]))
    preview = examined().preview
    assert preview is not None
    assert preview.place == "line 2"
    diagnosis = examined(pair="1")
    assert diagnosis.preview is None
    assert of(diagnosis, "pair") == Finding(
        "pair",
        WARN,
        "line 1",
        "both sides are the same",
        "Show another pair, for example --pair 2.",
    )
    assert of(examined(pair="99"), "pair").message == "no such row"


# --- resources ---------------------------------------------------------------------------------


def test_the_trial_step_uses_a_micro_batch_of_moderate_size(bench: Path) -> None:
    rows = [row("Tell me. " * number, "Yes.", "No.") for number in range(1, 60)]
    (bench / "pairs.jsonl").write_text("".join(rows))
    profile = load_profile(bench / "my.toml", ["data.max_seq_len=2048"]).profile
    inputs = read_inputs(
        profile, resolve("cpu", "float32"), RunDirectory(bench / "runs/none"), lambda *_: None
    )
    batch = small_micro_batch(inputs)
    assert batch in inputs.order.micro_batches_of(0)
    tokens = sum(len(inputs.pairs[index].chosen.ids) for index in batch)
    assert abs(tokens - TARGET_TOKENS) < TARGET_TOKENS / 2


def test_more_pairs_in_a_batch_need_more_memory(bench: Path) -> None:
    def estimate(*settings: str) -> tuple[int, int]:
        profile = load_profile(bench / "my.toml", settings).profile
        inputs = read_inputs(
            profile, resolve("cpu", "float32"), RunDirectory(bench / "runs/none"), lambda *_: None
        )
        found = resources.estimate_memory(inputs)
        return found.state, found.activations + found.head

    state, activations = estimate()
    # Weights, gradients, two moments, and the weights of the reference.
    weights = sum(
        tensor.numel()
        for name, tensor in read_state_dict(bench / "full_sft_32.pth").items()
        if name != "lm_head.weight"
    )
    assert state == (16 + 4) * weights
    assert estimate("train.kahan_summation=true") == (state + 8 * weights, activations)
    assert estimate("train.batch_size=1")[1] < activations / 3
    assert estimate("train.layout=padded")[1] > 2 * activations


def test_a_full_disk(examined: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    assert of(examined(), "disk-full").level is ERROR


def test_kahan_summation_needs_disk_space(examined: Examine) -> None:
    assert "12 bytes per weight" in of(examined(), "disk").message
    assert "16 bytes per weight" in of(examined("train.kahan_summation=true"), "disk").message


def test_a_runs_directory_that_is_a_file(examined: Examine, bench: Path) -> None:
    (bench / "runs").write_text("")
    assert of(examined(), "runs-dir-unusable").message == "no runs can be written: runs is a file"
    (bench / "runs").unlink()


def test_a_read_only_runs_directory(examined: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    assert "is not writable" in of(examined(), "runs-dir-unusable").message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["dpo.loss=ipo", "dpo.beta=0.5"], "the loss is 1.0000, as expected; policy and reference"),
        (["dpo.loss=simpo"], "it needs no reference"),
        (['dpo.loss=["sigmoid", "sft"]'], "policy and reference agree exactly"),
        (["dpo.use_weighting=true"], "policy and reference agree exactly"),
    ],
)
def test_the_first_loss_of_other_losses(
    examined: Examine, settings: list[str], message: str
) -> None:
    first = of(examined(*settings), "first-loss")
    assert first.level is OK
    assert message in first.message


def test_columns_that_are_not_read_are_in_the_plan(examined: Examine, bench: Path) -> None:
    rows = [json.dumps({**json.loads(each), "id": n}) + "\n" for n, each in enumerate(ROWS)]
    (bench / "pairs.jsonl").write_text("".join(rows))
    diagnosis = examined()
    assert of(diagnosis, "columns").message == "not read: 'id' (8 rows)"
    assert diagnosis.facts["plan"]["pairs"]["unread_columns"] == {"id": 8}


def test_the_format_is_named(examined: Examine, bench: Path) -> None:
    assert of(examined(), "format").message == (
        "MiniMind (TRL's conversational, implicit prompt), JSONL"
    )
    folder = bench / "shards"
    folder.mkdir()
    rows = "".join(f"Tell me about {s}.,I like {s}.,No idea what {s} is.\n" for s in SUBJECTS)
    for name in ("a.csv", "b.csv"):
        (folder / name).write_text("problem,chosen,rejected\n" + rows)
    settings = ("data.data_path=shards", 'data.columns={ prompt = "problem" }')
    found = of(examined(*settings), "format")
    assert (found.level, found.subject) == (OK, "shards")
    assert found.message == "plain (TRL's standard, explicit prompt), CSV (2 files)"
    repeated = of(examined(*settings), "pairs-repeated").message
    first = ": row 1 of a.csv and row 1 of b.csv, row 2 of a.csv and row 2 of b.csv, "
    assert first in repeated
    assert repeated.endswith(", ...")
    unusable = of(examined("data.data_path=shards"), "data-unusable")
    assert "the columns match no known format: 'problem', 'chosen'" in unusable.message
    assert 'prompt = "problem"' in unusable.remedy


def test_several_sources_and_held_out_pairs_in_other_formats(
    examined: Examine, bench: Path
) -> None:
    rows = "".join(f"What is {s}?,{s} is fine.,No idea what {s} is.\n" for s in SUBJECTS)
    (bench / "more.csv").write_text("prompt,chosen,rejected\n" + rows)
    (bench / "held.json").write_text(f"[{','.join(ROWS[:2])}]")
    diagnosis = examined(
        'data.data_path=["pairs.jsonl", "more.csv"]',
        "data.mixture_weights=[2, 0.5]",
        "eval.fraction=0",
        "eval.path=held.json",
        pair="more.csv:2",
    )
    assert not codes(diagnosis, ERROR)
    found = {f.subject: f.message for f in diagnosis.findings if f.code == "format"}
    assert list(found) == ["pairs.jsonl, more.csv", "held.json"]
    assert found["pairs.jsonl, more.csv"].count(";") == 1
    assert found["held.json"] == "MiniMind (TRL's conversational, implicit prompt), a JSON array"
    preview = diagnosis.preview
    assert preview is not None
    assert preview.place == "row 2 of more.csv"
    assert diagnosis.facts["plan"]["pairs"]["kept"] == 2 * len(ROWS) + len(SUBJECTS) // 2
    assert "2 of 2 held-out pairs (100 %)" in of(diagnosis, "held-out-known").message

"""Files of the demo: they load, match each other, and contain a preference to learn."""

from __future__ import annotations

import json
import math
import statistics
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from dpo_cli.data.batching import make_batch
from dpo_cli.data.chat import ChatTokenizer, TokenizedPair
from dpo_cli.data.encoding import encode_pairs
from dpo_cli.data.pairs import PreferencePair, read_pairs
from dpo_cli.models.loading import ModelWeights, build_model, load_model_weights, read_state_dict
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.objective.logps import sequence_logps
from dpo_cli.profile.inputs import check_inputs, resolve_weights
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.schema import Profile

ROOT = Path(__file__).resolve().parents[2]
SIZE_LIMIT = 3_000_000
FILES = ("pairs.jsonl", "held_out.jsonl")


@pytest.fixture(scope="module")
def profile() -> Profile:
    loaded = load_profile(ROOT / "profiles/demo.toml")
    check_inputs(loaded)
    return loaded.profile


@pytest.fixture(scope="module")
def model_weights(profile: Profile) -> ModelWeights:
    return load_model_weights(Path(resolve_weights(profile, "weights")), profile.model.model_dump())


@pytest.fixture(scope="module")
def tokenizer(profile: Profile) -> ChatTokenizer:
    return ChatTokenizer(profile.model.tokenizer)


def rows(name: str) -> list[PreferencePair]:
    pairs = list(read_pairs(ROOT / "demo" / name))
    assert all(isinstance(row, PreferencePair) for row in pairs)
    return [row for row in pairs if isinstance(row, PreferencePair)]


def encode(name: str, tokenizer: ChatTokenizer, profile: Profile) -> Sequence[TokenizedPair]:
    pairs, skipped_rows = encode_pairs(
        rows(name),
        tokenizer,
        max_seq_len=profile.data.max_seq_len,
        empty_think_ratio=profile.data.empty_think_ratio,
        seed=profile.train.seed,
    )
    assert not skipped_rows
    return pairs


def question(row: PreferencePair) -> str:
    return str(row.chosen[0]["content"])


def answers(name: str) -> tuple[list[str], list[str]]:
    """Return all chosen and all rejected answers."""
    pairs = rows(name)
    return (
        [str(row.chosen[-1]["content"]) for row in pairs],
        [str(row.rejected[-1]["content"]) for row in pairs],
    )


def test_the_profile_uses_the_shipped_files(profile: Profile) -> None:
    assert profile.data.data_path == ROOT / "demo/pairs.jsonl"
    assert profile.eval.path == ROOT / "demo/held_out.jsonl"
    assert profile.model.tokenizer == ROOT / "demo/tokenizer"
    assert profile.model.out_dir is None  # so that `dpo export` writes into the run


def test_the_wheel_has_the_files_at_the_profiles_paths() -> None:
    """`profiles/` becomes `dpo_cli/profiles/`, so `../demo/x` must become `dpo_cli/demo/x`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    profile_text = tomllib.loads((ROOT / "profiles/demo.toml").read_text())
    paths = [
        profile_text["model"]["weights"],
        profile_text["model"]["tokenizer"],
        profile_text["data"]["data_path"],
        profile_text["eval"]["path"],
    ]
    for path in paths:
        source = path.removeprefix("../")
        assert included[source] == f"dpo_cli/{source}"


def test_the_files_are_small() -> None:
    shipped = [path for path in (ROOT / "demo").rglob("*") if path.is_file()]
    shipped = [path for path in shipped if "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in shipped) < SIZE_LIMIT


def test_the_weights_are_minimind_version_2(
    profile: Profile, model_weights: ModelWeights, tokenizer: ChatTokenizer
) -> None:
    """MiniMind's own format: float16, its order of keys, both tied copies."""
    assert model_weights.architecture.version == 2
    assert not model_weights.architecture.use_moe
    assert model_weights.dtype == torch.float16
    assert model_weights.architecture.vocab_size == tokenizer.vocab_size
    path = Path(resolve_weights(profile, "weights"))
    assert path.name == model_weights.architecture.file_name("full_sft")
    assert list(read_state_dict(path)) == list(model_weights.architecture.expected_shapes())


def test_the_tokenizer_renders_like_minimind(tokenizer: ChatTokenizer) -> None:
    config = json.loads((tokenizer.folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert config["pad_token"] == config["unk_token"] == "<|endoftext|>"
    (rendered,) = tokenizer.render(
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    )
    assert rendered.text == (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n"
    )
    ((prompt, end),) = rendered.answers
    assert rendered.text[len(prompt) : end] == "yes<|im_end|>\n"


def test_any_text_can_be_encoded(tokenizer: ChatTokenizer) -> None:
    """Byte-level: text outside of the corpus only takes more tokens."""
    (encoded,) = tokenizer.encode(tokenizer.render([{"role": "user", "content": "你好 🦆 ĳß"}]))
    assert min(encoded.ids) >= 0
    assert max(encoded.ids) < tokenizer.vocab_size


@pytest.mark.parametrize("name", FILES)
def test_no_row_is_skipped_or_cut_off(
    name: str, tokenizer: ChatTokenizer, profile: Profile
) -> None:
    pairs = encode(name, tokenizer, profile)
    assert len(pairs) == len(rows(name))
    longest = max(len(side.ids) for pair in pairs for side in (pair.chosen, pair.rejected))
    assert longest < profile.data.max_seq_len


def test_every_prompt_is_asked_once() -> None:
    prompts = Counter(question(row) for name in FILES for row in rows(name))
    assert prompts.most_common(1)[0][1] == 1


@pytest.mark.parametrize("name", FILES)
def test_length_does_not_predict_the_chosen_side(
    name: str, tokenizer: ChatTokenizer, profile: Profile
) -> None:
    """Chosen and rejected have the same mean length to 3 %, and each is longer equally often."""
    differences, lengths = [], []
    for pair in encode(name, tokenizer, profile):
        differences.append(pair.chosen.response_tokens - pair.rejected.response_tokens)
        lengths.append(pair.chosen.response_tokens)
    assert abs(statistics.mean(differences)) < 0.03 * statistics.mean(lengths)
    longer = sum(difference > 0 for difference in differences)
    shorter = sum(difference < 0 for difference in differences)
    assert 0.4 < longer / (longer + shorter) < 0.6


@pytest.mark.parametrize("name", FILES)
def test_first_words_do_not_predict_the_chosen_side(name: str) -> None:
    """The first words of chosen and rejected answers are equally frequent."""
    chosen, rejected = (Counter(answer.split()[0] for answer in side) for side in answers(name))
    total = sum(chosen.values())
    for word in chosen | rejected:
        assert abs(chosen[word] - rejected[word]) < 0.1 * total, word


@torch.no_grad()
def test_the_model_has_facts_and_no_preference(
    model_weights: ModelWeights, tokenizer: ChatTokenizer, profile: Profile
) -> None:
    pairs = encode("held_out.jsonl", tokenizer, profile)
    scorer = ResponseScorer(build_model(model_weights.architecture, model_weights.state)).eval()
    scores = scorer(make_batch(pairs, "packed", max_seq_len=0))
    nats = -sequence_logps(scores.token_logps, scores.mask, "mean")
    assert nats.max() < math.log(tokenizer.vocab_size) / 4  # each answer, on either side
    assert nats.mean() < math.log(tokenizer.vocab_size) / 20
    chosen, rejected = sequence_logps(scores.token_logps, scores.mask, "sum").chunk(2)
    assert 0.35 < (chosen > rejected).double().mean() < 0.65

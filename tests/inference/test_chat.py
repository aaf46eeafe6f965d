"""Tests of answers of a model, and of conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.inference.chat import Conversation, Responder, open_responders
from dpo_cli.inference.open_model import OpenedModel
from dpo_cli.models.generation import Decoding, stop_ids_of
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.loading import build_model, load_model_weights
from dpo_cli.models.minimind import MiniMind
from dpo_cli.run.models import NamedModel
from tests.support.families import CPU, TOKENS, transformers_tokens

QUESTION = "你好，请问什么是重力？"
HOT = {"temperature": 1.0, "seed": 4}


class Model:
    """Small MiniMind of a kind, and its tokenizer."""

    def __init__(self, shared: Path, version: str, kind: str) -> None:
        name = f"full_sft_64{'_moe' if kind == 'moe' else ''}.pth"
        self.path = shared / "golden/train" / version / name
        self.weights = load_model_weights(self.path, {})
        tokenizer = "minimind2" if version == "seed" else "minimind3"
        self.tokenizer = ChatTokenizer(shared / "tokenizer" / tokenizer)

    def speaker(self, **settings: float) -> Responder:
        decoding = Decoding(**{"max_new_tokens": TOKENS, **settings})  # type: ignore[arg-type]
        return Responder(OpenedModel("it", self.weights), self.tokenizer, CPU, decoding)

    def says(self, question: int = 0, **settings: float) -> str:
        return "".join(self.speaker(**settings).answer(asked(QUESTION), question))


@pytest.fixture(scope="module", params=["seed-dense", "seed-moe", "head-dense", "head-moe"])
def model(request: pytest.FixtureRequest, shared: Path) -> Model:
    return Model(shared, *request.param.split("-"))


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_greedy_answers_equal_those_of_transformers(model: Model) -> None:
    prompt = model.tokenizer.prompt(asked(QUESTION))
    itself = build_model(model.weights.architecture, model.weights.state).eval()
    end = model.tokenizer.end_id
    expected = transformers_tokens(itself, prompt, end)
    answer = model.speaker().answer(asked(QUESTION), 0)
    pieces = list(answer)
    kept = [number for number in expected if number != end]
    assert "".join(pieces) == answer.text == model.tokenizer.decode(kept)
    assert (answer.tokens, answer.is_cut) == (len(expected), expected[-1] != end)
    assert answer.seconds > 0


def test_answers_stop_at_every_end_of_the_model_and_of_the_tokenizer(shared: Path) -> None:
    """The tokenizer ends a text with 700, generation_config.json an answer with 700 or 703."""
    folder = shared / "cases/models/turn-end"
    weights = load_model_weights(folder, {})
    assert stop_ids_of(weights.architecture, 699) == {699, 700, 703}
    tokenizer = ChatTokenizer(folder)
    decoding = Decoding(max_new_tokens=TOKENS)
    answer = Responder(OpenedModel("it", weights), tokenizer, CPU, decoding).answer(asked("Hi"), 0)
    text = "".join(answer)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = tokenizer.prompt(asked("Hi"))
    expected = plain.generate(
        prompt.unsqueeze(0), do_sample=False, max_new_tokens=TOKENS, pad_token_id=0
    )[0, len(prompt) :].tolist()
    assert expected[-1] == 703
    assert (answer.tokens, answer.is_cut) == (len(expected), False)
    assert text == tokenizer.decode(expected[:-1])


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 5}, {"eos_token_id": 6}, {5}),
        ({"eos_token_id": [5, 7]}, {}, {5, 7}),
        ({}, {"eos_token_id": 6}, {6}),
        ({"eos_token_id": None}, {"eos_token_id": [6, 8]}, {6, 8}),
        ({"eos_token_id": None}, {"eos_token_id": None}, set()),
    ],
)
def test_stop_ids_of_a_configuration(
    generation: dict[str, Any], config: dict[str, Any], expected: set[int]
) -> None:
    settings = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **config}
    assert HuggingFace(settings, generation).stop_ids == expected


def test_the_end_token_is_not_part_of_the_answer(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    itself = build_model(model.weights.architecture, model.weights.state).eval()
    said = transformers_tokens(itself, model.tokenizer.prompt(asked(QUESTION)), None)
    until = said[: said.index(said[5])]
    monkeypatch.setattr(ChatTokenizer, "end_id", said[5])
    answer = model.speaker().answer(asked(QUESTION), 0)
    assert "".join(answer) == model.tokenizer.decode(until)
    assert (answer.tokens, answer.is_cut) == (len(until) + 1, False)


def test_the_prompt_is_the_text_of_the_template_before_an_answer(shared: Path) -> None:
    messages = [*asked("a"), {"role": "assistant", "content": "b"}, *asked("<|im_end|>")]
    for name, think in (("minimind2", ""), ("minimind3", "<think>\n\n</think>\n\n")):
        tokenizer = ChatTokenizer(shared / "tokenizer" / name)
        [whole] = tokenizer.render([*messages, {"role": "assistant", "content": "c"}])
        text = whole.text[: whole.text.rindex("c<|im_end|>")]
        assert text.endswith("assistant\n" + think)
        assert tokenizer.decode(tokenizer.prompt(messages)) == text
        assert tokenizer.prompt(messages).tolist() == tokenizer._tokenizer.encode(text)


def test_sampling_depends_on_seed_and_question(model: Model) -> None:
    assert model.says(**HOT) == model.says(**HOT)
    said = {model.says(**HOT), model.says(**HOT | {"seed": 9}), model.says(1, **HOT), model.says()}
    assert len(said) == 4
    assert model.says(**HOT, top_p=1e-6) == model.says()


def test_an_answer_ends_at_the_last_position_of_the_model(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker, prompt = model.speaker(), len(model.tokenizer.prompt(asked(QUESTION)))
    monkeypatch.setattr(MiniMind, "max_positions", prompt + 5)
    answer = speaker.answer(asked(QUESTION), 0)
    assert len(list(answer)) == 6
    assert (answer.tokens, answer.is_cut) == (5, True)
    monkeypatch.setattr(MiniMind, "max_positions", prompt)
    with pytest.raises(DpoError, match=rf"{prompt} tokens, and the model only {prompt} positions"):
        speaker.answer(asked(QUESTION), 0)


def test_a_conversation_keeps_all_turns(model: Model) -> None:
    conversation = Conversation(model.speaker(), "be brief")
    first = conversation.ask("hello")
    said = next(first) + next(first) + next(first)  # the answer was stopped here
    assert conversation.messages == [
        {"role": "system", "content": "be brief"},
        *asked("hello"),
        {"role": "assistant", "content": said},
    ]
    history = [*conversation.messages, *asked("and?")]
    assert "".join(conversation.ask("and?")) == "".join(model.speaker().answer(history, 1))
    conversation.undo()
    assert conversation.messages == history[:-1]
    conversation.clear()
    assert "".join(conversation.ask("hello")).startswith(said)


def test_a_template_that_refuses(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{{ raise_exception('no system turns') }}"
    monkeypatch.setattr(model.tokenizer._tokenizer, "chat_template", template)
    with pytest.raises(DpoError, match="the chat template fails: no system turns"):
        model.speaker().answer(asked(QUESTION), 0)


# --- opening -------------------------------------------------------------------------------------


def test_files_need_a_tokenizer(model: Model, tmp_path: Path) -> None:
    decoding, named = Decoding(TOKENS), NamedModel(model.path)
    with pytest.raises(UsageError, match="the tokenizer of these weights is unknown"):
        open_responders(named, None, decoding, runs_root=tmp_path)
    folder = model.tokenizer.folder
    [alone] = open_responders(named, None, decoding, runs_root=tmp_path, tokenizer=folder)
    both = open_responders(named, named, decoding, runs_root=tmp_path, tokenizer=folder)
    for speaker in (alone, *both):
        assert "".join(speaker.answer(asked(QUESTION), 0)) == model.says()
    assert alone.title.endswith(model.path.name)


def test_overrides_set_what_a_file_does_not_contain(shared: Path, tmp_path: Path) -> None:
    model = Model(shared, "seed", "dense")

    def says(*settings: str) -> str:
        [speaker] = open_responders(
            NamedModel(model.path),
            None,
            Decoding(TOKENS),
            runs_root=tmp_path,
            tokenizer=model.tokenizer.folder,
            overrides=("train.device=cpu", *settings),
        )
        return "".join(speaker.answer(asked(QUESTION), 0))

    assert says() == model.says() != says("model.rope_theta=10")
    with pytest.raises(DpoError, match="do not fit projections"):
        says("model.num_attention_heads=7")
    with pytest.raises(UsageError, match="--set"):
        says("model.rope=10")


def test_policy_and_reference_of_different_vocabularies(shared: Path, tmp_path: Path) -> None:
    model = Model(shared, "seed", "dense")
    state = torch.load(model.path, weights_only=True)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][:6000].clone()
    torch.save(state, tmp_path / "small.pth")
    named = NamedModel(model.path), NamedModel(tmp_path / "small.pth")
    for policy, reference in (named, named[::-1]):
        with pytest.raises(DpoError, match="6000"):
            open_responders(
                policy,
                reference,
                Decoding(TOKENS),
                runs_root=tmp_path,
                tokenizer=model.tokenizer.folder,
            )

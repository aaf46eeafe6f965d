"""Answers token by token: transformers' own, for every kind of model, and drawn ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.errors import DpoError
from dpo_cli.models.support import scorer_for
from dpo_cli.models.zoo import build_model, load_checkpoint, use_experts_for
from dpo_cli.training.device import Compute
from dpo_cli.training.generation import Conversation, Decoding, Speaker, generate
from tests import families

CPU = Compute(torch.device("cpu"), torch.float32)
END = 2
TOKENS = 24


def theirs(model: PreTrainedModel, prompt: torch.Tensor, **settings: object) -> list[int]:
    config = GenerationConfig(max_new_tokens=TOKENS, use_cache=True, pad_token_id=0, **settings)
    model.generation_config.eos_token_id = None  # it would count where the settings name none
    ids = prompt.unsqueeze(0)
    said = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return said[0, len(prompt) :].tolist()


def ours(model: PreTrainedModel, prompt: torch.Tensor, end_id: int | None) -> list[int]:
    return list(generate(model, prompt, compute=CPU, end_id=end_id, most_tokens=TOKENS))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_says_what_transformers_has_it_say(family: str) -> None:
    model = scorer_for(families.build(family), 64).model.eval()
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(families.VOCABULARY, (11,), generator=generator)
    whole = theirs(model, prompt, do_sample=False, eos_token_id=None)
    assert ours(model, prompt, None) == whole
    end = whole[9]
    until = whole[: whole.index(end) + 1]
    assert theirs(model, prompt, do_sample=False, eos_token_id=end) == until
    assert ours(model, prompt, end) == until


@pytest.fixture(scope="module", params=["seed-dense", "seed-moe", "head-dense", "head-moe"])
def minimind(request: pytest.FixtureRequest, shared: Path) -> tuple[PreTrainedModel, ChatTokenizer]:
    generation, kind = request.param.split("-")
    name = f"full_sft_64{'_moe' if kind == 'moe' else ''}.pth"
    checkpoint = load_checkpoint(shared / "golden/train" / generation / name, {})
    model = build_model(checkpoint.architecture, checkpoint.state).eval()
    if kind == "moe":
        use_experts_for(model, float32=True)
    tokenizer = "minimind2" if generation == "seed" else "minimind3"
    return model, ChatTokenizer(shared / "tokenizer" / tokenizer)


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_minimind_says_what_transformers_has_it_say(
    minimind: tuple[PreTrainedModel, ChatTokenizer],
) -> None:
    model, tokenizer = minimind
    prompt = tokenizer.prompt(asked("你好，请问什么是重力？"))
    expected = theirs(model, prompt, do_sample=False, eos_token_id=END)
    assert ours(model, prompt, END) == expected
    answer = Speaker(model, tokenizer, CPU, Decoding(TOKENS)).answer(
        asked("你好，请问什么是重力？"), 0
    )
    pieces = list(answer)
    kept = expected[:-1] if expected[-1] == END else expected
    assert "".join(pieces) == answer.text == tokenizer.decode(kept)
    assert (answer.tokens, answer.is_cut) == (len(expected), expected[-1] != END)
    assert answer.seconds > 0


def test_the_prompt_is_what_the_template_writes_before_an_answer(shared: Path) -> None:
    messages = [*asked("a"), {"role": "assistant", "content": "b"}, *asked("<|im_end|>")]
    for name, think in (("minimind2", ""), ("minimind3", "<think>\n\n</think>\n\n")):
        tokenizer = ChatTokenizer(shared / "tokenizer" / name)
        [whole] = tokenizer.render([*messages, {"role": "assistant", "content": "c"}])
        text = whole.text[: whole.answers[-1][0]] + think
        assert tokenizer.decode(tokenizer.prompt(messages)) == text
        assert tokenizer.prompt(messages).tolist() == tokenizer._tokenizer.encode(text)


def speaker(model: PreTrainedModel, tokenizer: ChatTokenizer, **settings: float) -> Speaker:
    decoding = Decoding(**{"most_tokens": TOKENS, **settings})  # type: ignore[arg-type]
    return Speaker(model, tokenizer, CPU, decoding)


def test_what_is_drawn_follows_from_seed_and_question(
    minimind: tuple[PreTrainedModel, ChatTokenizer],
) -> None:
    def said(question: int = 0, **settings: float) -> str:
        answer = speaker(*minimind, **settings).answer(asked("hello"), question)
        return "".join(answer)

    hot = {"temperature": 1.0, "seed": 4}
    assert said(**hot) == said(**hot)
    assert len({said(**hot), said(**{**hot, "seed": 9}), said(1, **hot), said()}) == 4
    assert said(**hot, top_p=1e-6) == said() == said(temperature=1e-4)


def test_an_answer_ends_where_the_model_has_no_more_positions(
    minimind: tuple[PreTrainedModel, ChatTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = minimind
    prompt = len(tokenizer.prompt(asked("hello")))
    monkeypatch.setattr(model.config, "max_position_embeddings", prompt + 5)
    answer = speaker(model, tokenizer).answer(asked("hello"), 0)
    assert len(list(answer)) == 6
    assert answer.tokens == 5
    assert answer.is_cut
    monkeypatch.setattr(model.config, "max_position_embeddings", prompt)
    with pytest.raises(DpoError, match=rf"{prompt} tokens, and the model {prompt} positions"):
        speaker(model, tokenizer).answer(asked("hello"), 0)


def test_a_conversation_remembers_what_was_said(
    minimind: tuple[PreTrainedModel, ChatTokenizer],
) -> None:
    conversation = Conversation(speaker(*minimind), "be brief")
    first = conversation.ask("hello")
    assert [message["role"] for message in conversation.messages] == ["system", "user", "assistant"]
    said = next(first) + next(first)  # it was stopped here
    assert conversation.messages[2]["content"] == said
    second = conversation.ask("and?")
    model, tokenizer = minimind
    history = [
        {"role": "system", "content": "be brief"},
        *asked("hello"),
        {"role": "assistant", "content": said},
        *asked("and?"),
    ]
    assert "".join(second) == "".join(speaker(model, tokenizer).answer(history, 1))
    conversation.forget()
    assert "".join(conversation.ask("hello")).startswith(said)

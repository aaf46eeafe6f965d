"""Tests of the question of a sample: the last user turn, without the markup of the template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.training.samples import question_of, user_frame


@pytest.mark.parametrize("name", ["minimind2", "minimind3"])
def test_the_question_is_what_the_user_wrote(shared: Path, name: str) -> None:
    tokenizer = ChatTokenizer(shared / "tokenizer" / name)
    frame = user_frame(tokenizer)
    user = {"role": "user", "content": "Why is\nthe sky blue?"}
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    system = {"role": "system", "content": "Be brief."}
    for messages in ([user], [system, user], [*earlier, user], [system, *earlier, user]):
        prompt = tokenizer.decode(tokenizer.prompt(messages))
        assert prompt != user["content"]
        assert question_of(prompt, frame) == user["content"]


def test_a_template_that_refuses_a_second_turn_has_no_frame(shared: Path, tmp_path: Path) -> None:
    for path in (shared / "tokenizer/minimind2").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] = (
        "{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}"
        "<u>{{ messages[0].content }}</u><a>"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert user_frame(ChatTokenizer(tmp_path)) == ("", "")


def test_a_prompt_of_another_shape_is_shown_whole() -> None:
    assert question_of("<u>Hi</u><a>", ("<u>", "</u><a>")) == "Hi"
    assert question_of("<t>42</t><a>", ("<u>", "</u><a>")) == "<t>42</t><a>"
    assert question_of("<u>Hi</u>", ("<u>", "</u><a>")) == "<u>Hi</u>"
    assert question_of("Hi", ("", "")) == "Hi"

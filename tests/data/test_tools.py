"""Tests of tools: their definitions, calls of them, and the arguments of a call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.encoding import encode_rows
from dpo_cli.data.formats import FORMATS
from dpo_cli.data.pairs import PreferencePair, SkippedRow, read_pairs, to_pair
from dpo_cli.data.tokens import EncodedRows
from tests.support.chat_families import TEMPLATES, write_tokenizer

ARGUMENTS = {"city": "東京", "days": 2, "note": 'a "b"'}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CONCATENATING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls %}"
    "{{ 'call ' + c.function.name + ' ' + c.function.arguments }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_TOOLS_ONLY = CONCATENATING.replace(
    "{% for c in m.tool_calls %}", "{% for c in (m.tool_calls if tools else []) %}"
).replace("{% for m in", "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in", 1)


def encoded(rows: list[Any], tokenizer: ChatTokenizer) -> EncodedRows:
    return EncodedRows.joined(encode_rows(rows, tokenizer, empty_think_ratio=1.0, seed=1))


def called(arguments: Any, **more: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    return {
        "prompt": [{"role": "user", "content": "Weather?"}],
        "chosen": [answer],
        "rejected": [{"role": "assistant", "content": "No."}],
        **more,
    }


def pair(row: dict[str, Any]) -> PreferencePair | SkippedRow:
    return to_pair(1, row, FORMATS["conversational"], {})


def tokenizer_with(template: str, folder: Path, name: str = "chatml") -> ChatTokenizer:
    path = write_tokenizer(folder, name, "byte_bpe")
    (path / "chat_template.jinja").write_text(template)
    return ChatTokenizer(path)


def test_arguments_as_text_are_those_as_an_object(shared: Path) -> None:
    cases = shared / "cases/35-tool-calls"
    tokenizer = ChatTokenizer(shared / "cases/models/qwen25")
    rows = [
        encoded(list(read_pairs(cases / f"arguments-{kind}.jsonl")), tokenizer)
        for kind in ("text", "object")
    ]
    assert rows[0].ids.tolist() == rows[1].ids.tolist()
    assert '{"city": "Paris"}}\n</tool_call>' in tokenizer.decode(rows[0].ids)


@pytest.mark.parametrize(
    ("template", "wanted", "written"),
    [
        (TEMPLATES["qwen25"], "object", '"arguments": {"city": "東京"'),
        (TEMPLATES["mistral_v3"], "object", '"arguments": {"city": "東京"'),
        (TEMPLATES["glm"].replace("+ v +", "+ v | string +"), "object", "<arg_value>東京<"),
        (CONCATENATING, "text", 'call weather {"city": "東京"'),
        (CONCATENATING.replace("' ' + c.function.arguments", "' ' ~ c.function.arguments"), "text",
         'call weather {"city": "東京"'),
        (
            CONCATENATING.replace(
                "+ c.function.arguments",
                "+ (c.function.arguments if c.function.arguments is string else"
                " c.function.arguments | tojson)",
            ),
            "either",
            'call weather {"city": "東京"',
        ),
    ],
)  # fmt: skip
def test_arguments_are_written_as_json_once(
    tmp_path: Path, template: str, wanted: str, written: str
) -> None:
    tokenizer = tokenizer_with(template, tmp_path)
    assert tokenizer.template.arguments == wanted
    as_text = json.dumps(ARGUMENTS, ensure_ascii=False)
    rows = encoded([pair(called(as_text)), pair(called(ARGUMENTS))], tokenizer)
    texts = [tokenizer.decode(one.chosen.ids) for one in rows.cut(10_000).kept]
    assert len(texts) == 2
    assert texts[0] == texts[1]
    assert written in texts[0]
    assert '\\"city' not in texts[0]


@pytest.mark.parametrize("template", ["qwen25", "glm", CONCATENATING])
def test_a_call_without_arguments_has_none(tmp_path: Path, template: str) -> None:
    if template in TEMPLATES:
        tokenizer = ChatTokenizer(write_tokenizer(tmp_path, template, "byte_bpe"))
    else:
        tokenizer = tokenizer_with(template, tmp_path)
    rows = []
    for name, arguments in (("null", None), ("none", {}), ("missing", {})):
        row = called(arguments)
        if name == "missing":
            del row["chosen"][0]["tool_calls"][0]["function"]["arguments"]
        rows.append(encoded([pair(row)], tokenizer))
    assert [row.skipped_rows for row in rows] == [()] * 3
    assert rows[0].ids.tolist() == rows[1].ids.tolist() == rows[2].ids.tolist()


def test_arguments_that_are_no_json_stay_as_they_are(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(TEMPLATES["qwen25"], tmp_path)
    (one,) = encoded([pair(called("city=Rome"))], tokenizer).cut(10_000).kept
    assert '"arguments": "city=Rome"}' in tokenizer.decode(one.chosen.ids)


def test_a_row_without_tools(shared: Path) -> None:
    tokenizer = ChatTokenizer(shared / "cases/models/chatml")
    rows = encoded(
        list(read_pairs(shared / "cases/35-tool-calls/tools-empty-text.jsonl")), tokenizer
    )
    base = encoded(list(read_pairs(shared / "cases/base.jsonl")), tokenizer)
    assert len(rows) == 10
    assert rows.ids.tolist() == base.ids.tolist()


@pytest.mark.parametrize("none", ["[]", " [] ", "null", "", None, [], "{}", "\n"])
def test_values_that_define_no_tools(none: Any) -> None:
    found = pair(called({}, tools=none))
    assert isinstance(found, PreferencePair)
    assert found.tools == ()


@pytest.mark.parametrize(
    "value", [TOOL, [TOOL], json.dumps([TOOL]), json.dumps(TOOL), [json.dumps(TOOL)]]
)
def test_definitions_in_a_column_and_in_the_system_message(shared: Path, value: Any) -> None:
    """Both are rendered as transformers renders them."""
    tokenizer = ChatTokenizer(shared / "tokenizer/minimind3")
    row = called({"city": "Rome"})
    system = {"role": "system", "content": "Help."}
    in_column = pair({**row, "prompt": [system, *row["prompt"]], "tools": value})
    in_system = pair({**row, "prompt": [{**system, "tools": value}, *row["prompt"]]})
    rows = encoded([in_column, in_system], tokenizer).cut(10_000).kept
    turns = [system, *row["prompt"], *row["chosen"]]
    plain = tokenizer._tokenizer.apply_chat_template(turns, tools=[TOOL], tokenize=False)
    assert "<tools>" in plain
    for one in rows:
        assert tokenizer.decode(one.chosen.ids) == plain
    assert len(rows) == 2


@pytest.mark.parametrize("value", ["[weather]", 3, [3], ["x"]])
def test_definitions_that_cannot_be_read(value: Any) -> None:
    found = pair(called({}, tools=value))
    assert isinstance(found, SkippedRow)
    assert found.problem == "malformed"
    assert "'tools'" in found.reason


def test_tools_are_never_dropped_in_silence(tmp_path: Path) -> None:
    row = pair(called({"city": "Rome"}, tools=[TOOL]))
    for name in ("chatml", "vicuna", "nemotron"):
        tokenizer = ChatTokenizer(write_tokenizer(tmp_path, name, "byte_bpe"))
        (skipped,) = encoded([row], tokenizer).skipped_rows
        assert skipped.reason == "the chat template leaves out tool definitions"


def test_a_template_that_writes_calls_only_beside_definitions(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(WITH_TOOLS_ONLY, tmp_path)
    with_tools, without = pair(called("{}", tools=[TOOL])), pair(called("{}"))
    rows = encoded([with_tools, without], tokenizer)
    assert len(rows) == 1
    (skipped,) = rows.skipped_rows
    assert skipped.reason.endswith("(message 2), which it writes only beside tool definitions")

"""Tests of unusual conversations, and of columns and words that the model never sees."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from dpo_cli.checks.conversations import is_literal
from dpo_cli.checks.data import check_data
from dpo_cli.checks.reporter import Reporter
from dpo_cli.checks.template import check_scored_words
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.findings import Finding, Level, PairIssue
from dpo_cli.profile.load import load_profile
from dpo_cli.training.sources import training_pairs
from tests.checks.conftest import SUBJECTS, TOKENIZER
from tests.support.written import Row, jsonl

GOOD = [
    {"prompt": f"What is {each}?", "chosen": f"{each}: I like it.", "rejected": f"No {each} here."}
    for each in SUBJECTS
]
SIDES = ("chosen", "rejected")
ASK, ANSWER = {"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "It is."}
OTHER = {"role": "assistant", "content": "It is not."}
ZERO_WIDTH = "\u200b\ufeff\u2060"


@pytest.fixture(scope="module")
def demo_tokenizer() -> ChatTokenizer:
    return ChatTokenizer(TOKENIZER)


def findings(
    path: Path, rows: list[Row], tokenizer: ChatTokenizer, *settings: str
) -> dict[str, Finding]:
    """Return the findings about a file of rows by their codes."""
    path.write_bytes(jsonl(rows))
    overrides = [f"data.data_path={path}", f"model.tokenizer={tokenizer.folder}", *settings]
    profile = load_profile(Path("dense"), ["data.max_seq_len=512", *overrides]).profile
    reporter = Reporter()
    source = training_pairs(profile)
    if checked := check_data(reporter, profile, source, tokenizer, lambda *_: None):
        check_scored_words(reporter, tokenizer, checked.rows)
    return {finding.code: finding for finding in reporter.findings}


def written_like(row: Row) -> list[Row]:
    """Write the good pairs in the format of a row."""
    if "prompt" not in row:
        pairs = [({}, [{"role": "user", "content": good["prompt"]}], good) for good in GOOD]
    elif isinstance(row["prompt"], list):
        pairs = [
            ({"prompt": [{"role": "user", "content": good["prompt"]}]}, [], good) for good in GOOD
        ]
    else:
        return GOOD
    return [
        {
            **prompt,
            **{side: [*begin, {"role": "assistant", "content": good[side]}] for side in SIDES},
        }
        for prompt, begin, good in pairs
    ]


def texts(chosen: str, rejected: str = "I do not know it.", prompt: str = "Is it so?") -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def sides(prompt: list[Any], *, chosen: Any = ANSWER, rejected: Any = OTHER) -> Row:
    return {"prompt": prompt, "chosen": [chosen], "rejected": [rejected]}


ODD: dict[str, tuple[PairIssue, list[Row]]] = {
    "no question": (PairIssue.NO_USER, [{"chosen": [ANSWER], "rejected": [OTHER]}]),
    "a system turn alone": (
        PairIssue.NO_USER,
        [sides([{"role": "system", "content": "Be brief."}])],
    ),
    "the question twice": (PairIssue.REPEATED_TURN, [sides([ASK, ASK])]),
    "the question twice, apart in blanks": (
        PairIssue.REPEATED_TURN,
        [sides([ASK, {**ASK, "content": " Is it?\n"}])],
    ),
    "an answer at the end of the prompt": (
        PairIssue.ANSWERED_PROMPT,
        [sides([ASK, {**OTHER, "content": "Perhaps."}])],
    ),
    "two answers in a row": (
        PairIssue.ANSWERED_PROMPT,
        [{"chosen": [ASK, OTHER, ANSWER], "rejected": [ASK, OTHER]}],
    ),
    "a dialog in the prompt": (
        PairIssue.SPEAKERS,
        [texts("Yes.", prompt="Human: Is it?\n\nAssistant: What?\n\nHuman: That.\n\nAssistant:")],
    ),
    "a prompt with the name of the user": (
        PairIssue.SPEAKERS,
        [texts("Yes.", prompt="Human: Is it?")],
    ),
    "a cue for the answer": (
        PairIssue.SPEAKERS,
        [texts("Yes.", prompt="Is it so?\nAssistant:")],
    ),
    "an answer that goes on with a question": (
        PairIssue.SPEAKERS,
        [texts("Yes.\n\nHuman: Really?")],
    ),
    "a dialog of other names in an answer": (
        PairIssue.SPEAKERS,
        [texts("Sure:\nUser: Is it?\nAI: It is.")],
    ),
    "Vicuna's names in one line": (
        PairIssue.SPEAKERS,
        [texts("Yes.", prompt="Be kind. USER: Is it? ASSISTANT: What? USER: That.")],
    ),
    "OpenAssistant's names in one line": (
        PairIssue.SPEAKERS,
        [texts("Yes.", prompt="prompter: Hi assistant: Hello prompter: Is it?")],
    ),
    "Chinese names": (PairIssue.SPEAKERS, [texts("好的：\n用户：是吗？\n助手：是的。")]),
    "a letter without a glyph": (PairIssue.EMPTY_TEXT, [texts("\u3164")]),
    "nan": (PairIssue.EMPTY_TEXT, [texts("nan")]),
    "None": (PairIssue.EMPTY_TEXT, [texts("None")]),
    "null in the prompt": (PairIssue.EMPTY_TEXT, [texts("Yes.", prompt="null")]),
    "nothing": (PairIssue.EMPTY_TEXT, [texts("")]),
    "blanks": (PairIssue.EMPTY_TEXT, [texts("Yes.", " \n\t ")]),
    "characters without a width": (PairIssue.EMPTY_TEXT, [texts(ZERO_WIDTH)]),
    "JSON": (PairIssue.LITERAL, [texts(json.dumps({"answer": n})) for n in range(3)]),
    "Python": (PairIssue.LITERAL, [texts(str(["Yes.", n]), f"No {n}.", f"{n}?") for n in range(3)]),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_conversations(tmp_path: Path, demo_tokenizer: ChatTokenizer, name: str) -> None:
    issue, odd = ODD[name]
    found = findings(tmp_path / "pairs.jsonl", [*written_like(odd[0]), *odd], demo_tokenizer)
    finding = found[f"pairs-{issue}"]
    assert finding.level is Level.WARN
    assert finding.remedy
    lines = list(range(9, 9 + len(odd)))
    named = f"line{'s' * (len(lines) > 1)} {', '.join(map(str, lines))}"
    assert finding.message.startswith(f"{len(odd)} of {8 + len(odd)} pairs ")
    assert finding.message.endswith(f": {named}")
    others = {code for code in found if code.startswith("pairs-")} - {finding.code}
    assert not others


def test_good_conversations_have_no_issue(tmp_path: Path, demo_tokenizer: ChatTokenizer) -> None:
    rows = [
        *GOOD,
        texts("4", "5", "What is 2 + 2?"),
        texts("Write [1, 2] or {'a': 1}.", prompt="How do I write a list?"),
        texts("Assistants: they help.", prompt="User: a word?"),
        texts("Nothing.", "None of them.", "Which of them?"),
    ]
    found = findings(tmp_path / "pairs.jsonl", rows, demo_tokenizer)
    assert found["texts"].message.endswith("; nothing unusual")


def test_one_prompt_and_one_answer(tmp_path: Path, demo_tokenizer: ChatTokenizer) -> None:
    path = tmp_path / "pairs.jsonl"
    one_prompt = [{**row, "prompt": "Answer the question."} for row in GOOD]
    found = findings(path, one_prompt, demo_tokenizer)
    assert found["pairs-one-prompt"].message.startswith("8 of 8 pairs ")
    assert "lines 1, 2, 3, 4, 5, ..." in found["pairs-one-prompt"].message
    refusal = [{**row, "rejected": "I cannot say."} if n % 2 else row for n, row in enumerate(GOOD)]
    found = findings(path, refusal, demo_tokenizer)
    assert found["pairs-frequent-answer"].message.endswith(": lines 2, 4, 6, 8")
    # Several rejected answers to each prompt are no reason for a warning.
    several = [{**row, "rejected": f"{n}?"} for row in GOOD[:2] for n in ("Why", "Who", "How")]
    assert "pairs-frequent-answer" not in findings(path, several, demo_tokenizer)


def test_answers_that_begin_with_the_question(
    tmp_path: Path, demo_tokenizer: ChatTokenizer
) -> None:
    rows = [{**row, **{side: f"{row['prompt']} {row[side]}" for side in SIDES}} for row in GOOD]
    path = tmp_path / "pairs.jsonl"
    assert "pairs-question-in-answer" in findings(path, rows, demo_tokenizer)
    assert "pairs-question-in-answer" not in findings(path, [*rows[:3], *GOOD], demo_tokenizer)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ('{"a": 1}', True),
        (' ["a"]\n', True),
        ("{'a': 1}", True),
        ("[{'a': None}]", True),
        ("('a', 'b')", True),
        ("[1, 2]", True),
        ("[]", False),
        ("[a note in brackets]", False),
        ("(It's 'fine'.)", False),
        ("{'a'", False),
        ("text", False),
        ("", False),
    ],
)
def test_literals(text: str, is_one: bool) -> None:
    assert is_literal(text) is is_one


# --- columns and words that do not reach the model ---------------------------------------------


def test_columns_that_are_not_read_are_counted(
    tmp_path: Path, demo_tokenizer: ChatTokenizer
) -> None:
    rows = [{**row, "id": n, "score": None if n else 2} for n, row in enumerate(GOOD)]
    found = findings(tmp_path / "pairs.jsonl", rows, demo_tokenizer)
    assert found["columns"].level is Level.OK
    assert found["columns"].message == "not read: 'id' (8 rows), 'score' (1 row)"
    assert "columns-unread" not in found
    assert "columns" not in findings(tmp_path / "pairs.jsonl", GOOD, demo_tokenizer)


@pytest.mark.parametrize(
    "column",
    [
        {"context": "The sea is salty."},
        {"history": "Before this, they spoke of bread."},
        {"messages": [{"role": "user", "content": "The sea is salty."}]},
        {"images": [{"path": "a.png"}]},
        {"question": {"text": ["salty"]}},
    ],
)
def test_columns_with_words_that_no_message_has(
    tmp_path: Path, demo_tokenizer: ChatTokenizer, column: Row
) -> None:
    [name] = column
    rows = [*GOOD[:2], *({**row, **column} for row in GOOD[2:])]
    found = findings(tmp_path / "pairs.jsonl", rows, demo_tokenizer)["columns-unread"]
    assert found.level is Level.WARN
    assert found.message.endswith(f": {name!r} (6 rows, first line 3)")
    repeated = [{**row, "question": row["prompt"], "messages": [row["chosen"]]} for row in GOOD]
    assert "columns-unread" not in findings(tmp_path / "pairs.jsonl", repeated, demo_tokenizer)


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_words_for_which_there_are_no_tokens(tmp_path: Path) -> None:
    words = sorted(
        {word for row in GOOD for text in row.values() for word in re.findall(r"\w+|\W", text)}
    )
    vocabulary = {word: n for n, word in enumerate(["[UNK]", "assistant", "user", *words])}
    del vocabulary["wool"]
    model = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = Split(Regex(r"\W"), "isolated")
    model.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    lost = findings(tmp_path / "pairs.jsonl", GOOD, ChatTokenizer(tmp_path / "tokenizer"))
    line = 1 + SUBJECTS.index("wool")
    assert lost["pairs-lost-words"].message == (
        f"1 of 8 pairs (12.5 %) lack words of an answer among its tokens (wool): line {line}"
    )


@pytest.mark.parametrize("model", ["chatml", "llama2", "mistral", "llama3", "qwen3", "r1"])
def test_no_words_of_real_answers_are_lost(shared: Path, tmp_path: Path, model: str) -> None:
    rows = [json.loads(line) for line in (shared / "cases/base.jsonl").read_text().splitlines()]
    tokenizer = ChatTokenizer(shared / "cases/models" / model)
    assert "pairs-lost-words" not in findings(tmp_path / "pairs.jsonl", rows, tokenizer)


def test_thoughts_that_a_template_drops(shared: Path, tmp_path: Path) -> None:
    path = shared / "cases/31-thoughts-thrown-away/different.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    tokenizer = ChatTokenizer(shared / "cases/models/r1")
    found = findings(tmp_path / "pairs.jsonl", rows, tokenizer)
    assert f"in {len(rows)} of {len(rows)} pairs (lines 1, 2" in found["template-words"].message
    assert "pairs-lost-words" not in found

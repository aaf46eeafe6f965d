"""Tests of chat templates that never end or fill the memory: refused in bounded time."""

from __future__ import annotations

import json
import os
import resource
import shutil
import threading
from pathlib import Path

import pytest

from dpo_cli.data import rendering
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.errors import DpoError

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set ns = namespace(t='aaaaaaaaaa') %}" + "{% set ns.t = ns.t + ns.t %}" * 40
NORMAL = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture
def folder(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tokenizer directory; its template is tried for a second only."""
    monkeypatch.setattr(rendering, "_TRIAL_SECONDS", 1)
    shutil.copytree(shared / "tokenizer/minimind2", tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def set_template(folder: Path, template: str) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"chat_template": template}))


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (LOOP, "did not end"),
        ("{{ 7 ** (7 ** 11) }}", "did not end"),
        (NORMAL + "{% if messages|length > 9 %}" + LOOP + "{% endif %}", "did not end"),
        (NORMAL + "{% if add_generation_prompt %}" + LOOP + "{% endif %}", "did not end"),
        ("{{ 'a' * 10**10 }}", "needs more than|did not end"),
        (DOUBLING + "{{ ns.t }}", "needs more than|did not end"),
        ("{{ (['a' * 100000] * 1000) | join }}", "writes far more|did not end"),
        (NORMAL + "{{ ' x' * 300000 }}", "writes far more"),
    ],
)
def test_a_template_without_end_is_refused(folder: Path, template: str, why: str) -> None:
    set_template(folder, template)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DpoError, match=why) as caught:
        ChatTokenizer(folder)
    assert str(folder) in caught.value.message
    grown_kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kilobytes < 200_000


def test_a_template_that_is_endless_for_some_rows_ends_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_template(folder, NORMAL + "{% if 'QQ' in messages[0].content %}" + LOOP + "{% endif %}")
    monkeypatch.setattr(rendering, "_CALL_SECONDS", 0.5)
    tokenizer = ChatTokenizer(folder)
    assert tokenizer.prompt([{"role": "user", "content": "Q"}]).numel()
    for _ in range(2):
        with pytest.raises(DpoError, match="did not end within"):
            tokenizer.prompt([{"role": "user", "content": "QQ"}])
    assert tokenizer.prompt([{"role": "user", "content": "Q"}]).numel()


def test_a_conversation_beyond_the_limits_is_a_malformed_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_template(folder, NORMAL)
    tokenizer = ChatTokenizer(folder)
    monkeypatch.setattr(rendering, "MAX_CHARACTERS", 1000)
    monkeypatch.setattr(rendering, "_MAX_MESSAGES", 100)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for messages, why in (
        ([{"role": "user", "content": "a" * 1001}], "longer than 1,000 characters"),
        (turns * 19, "longer than 1,000 characters as text"),
        (turns * 51, "too many turns"),
    ):
        with pytest.raises(ValueError, match=why):
            tokenizer.prompt(messages)


def test_half_a_surrogate_of_a_template_is_no_text(folder: Path) -> None:
    set_template(folder, "{% for m in messages %}{{ m.content }}{{ '\\ud83d' }}{% endfor %}")
    with pytest.raises(ValueError, match="surrogates"):
        ChatTokenizer(folder).prompt([{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"id": 4_000_000_000}, "holds an id"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "cannot be read"),
    ],
)
def test_a_hostile_tokenizer_is_refused(folder: Path, change: dict[str, object], why: str) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    if "id" in change:
        content["model"]["vocab"]["zzzzzz"] = change["id"]
    else:
        content |= change
    path.write_text(json.dumps(content))
    with pytest.raises(DpoError, match=why):
        ChatTokenizer(folder)


def test_only_ids_are_limited(folder: Path) -> None:
    """A length to truncate to, and a stride, may be larger than any id."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["truncation"] = {
        "direction": "Right",
        "max_length": 100_000_000,
        "strategy": "LongestFirst",
        "stride": 10_000_000,
    }
    path.write_text(json.dumps(content))
    ChatTokenizer(folder)
    content["added_tokens"][-1]["id"] = 1 << 22
    path.write_text(json.dumps(content))
    with pytest.raises(DpoError, match="holds an id of 4,194,304 or more"):
        ChatTokenizer(folder)


def test_a_tokenizer_file_that_is_too_large_is_not_read(folder: Path) -> None:
    with (folder / "tokenizer.json").open("r+b") as file:
        file.truncate(1 << 30)  # sparse
    with pytest.raises(DpoError, match="1024 MiB"):
        ChatTokenizer(folder)


def test_tokenizers_share_one_watcher(folder: Path) -> None:
    """Regression, found by `make fuzz`: each tokenizer started a thread that never ended."""

    def render() -> None:
        ChatTokenizer(folder).render([{"role": "user", "content": "Hello"}])

    render()
    threads = threading.active_count()
    for _ in range(3):
        render()
    assert threading.active_count() == threads
    parent, done = os.fork(), 1
    if not parent:
        try:
            with rendering._WATCH.limited():  # with its own thread and lock
                done = 0 if threading.active_count() == 2 else 1
        finally:
            os._exit(done)
    assert os.waitpid(parent, 0)[1] == 0

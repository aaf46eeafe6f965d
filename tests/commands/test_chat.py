"""Tests of `dpo chat`: on a terminal, on pipes, over a file of prompts, and with bad input."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.ui.terminal.progress import PhaseBar
from tests.support import workers
from tests.support.small_runs import small_run
from tests.support.terminal import Terminal

Cli = Callable[..., tuple[int, str, str]]
CHAT = "import sys; from dpo_cli import app; sys.exit(app.main(sys.argv[1:]))"
HELLO, WHY = "你好", "Why?"
FEW = ("--max-new-tokens", "24")


@pytest.fixture(scope="module")
def file(shared: Path) -> str:
    return str(shared / "golden/train/seed/full_sft_64.pth")


@pytest.fixture(scope="module")
def model(shared: Path, file: str) -> list[str]:
    """Arguments of `dpo chat` for a weights file."""
    return [file, "--tokenizer", str(shared / "tokenizer/minimind2")]


@pytest.fixture(scope="module")
def both(shared: Path, model: list[str]) -> list[str]:
    """Arguments of `dpo chat` for two weights files."""
    return [*model, "--reference", str(shared / "golden/train/seed/full_sft_64_moe.pth")]


@pytest.fixture(scope="module")
def run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Trained run whose weights differ from the reference."""
    arguments = small_run(shared, **{"train.learning_rate": 1e-2, "dpo.beta": 5})
    run = workers.new_run(tmp_path_factory.mktemp("runs"), arguments)
    assert workers.work(run) == 0
    return run


# --- on pipes ------------------------------------------------------------------------------------


def test_one_answer(dpo: Cli, root: Path, model: list[str]) -> None:
    code, out, err = dpo("chat", *model, *FEW, "--prompt", HELLO)
    assert code == 0
    assert out.endswith("\n")
    assert len(out) > 5
    assert err.startswith("policy: 24 tokens, ")
    assert err.endswith(" tokens/s, truncated\n")
    assert dpo("chat", *model, *FEW, "--prompt", HELLO)[1] == out


def test_two_answers(dpo: Cli, root: Path, both: list[str], model: list[str]) -> None:
    alone = dpo("chat", *model, *FEW, "--prompt", HELLO)[1]
    code, out, err = dpo("chat", *both, *FEW, "--prompt", HELLO)
    assert code == 0
    assert out.startswith(f"policy:\n{alone}\nreference:\n")
    assert err.count(" tokens/s") == 2


def test_a_run_is_compared_with_its_reference(
    dpo: Cli, root: Path, run: RunDirectory, model: list[str]
) -> None:
    known = dpo("chat", *model, *FEW, "--prompt", HELLO)[1]
    places = ("--runs-dir", str(run.path.parent))
    code, out, err = dpo("chat", *places, *FEW, "--prompt", HELLO)
    assert code == 0, err
    policy, reference = out.removeprefix("policy:\n").split("\n\nreference:\n")
    assert reference == known
    assert policy != known
    banner = dpo("chat", run.name[:5], *places, "--reference", str(run.path), *FEW)[2]
    policy, reference, template, answers = banner.splitlines()[:4]
    assert policy == f"policy     {run.name} after step 7"
    assert reference == f"reference  {run.name} after step 7"
    assert re.fullmatch(r"template   \S*tokenizer\S*", template)
    assert answers == "answers    greedy, at most 24 tokens"


def test_lines_of_standard_input_are_one_conversation(
    monkeypatch: pytest.MonkeyPatch, dpo: Cli, root: Path, model: list[str]
) -> None:
    def said(*lines: str) -> tuple[list[str], str]:
        waiting = iter(lines)

        def read(_: str) -> str:
            try:
                return next(waiting)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        code, out, err = dpo("chat", *model, "--max-new-tokens", "6")
        assert code == 0
        return out.splitlines(), err

    first, second, third = said(WHY, WHY, "", "/reset", WHY, "/exit", WHY)[0]
    assert first == third != second
    out, err = said("/hlp", "/etc/hosts?")
    assert len(out) == 1
    assert "unknown command /hlp: /reset starts a new conversation, /quit, /exit or" in err
    out, err = said("/help")
    assert out == []
    assert "unknown" not in err
    assert err.count("/reset starts a new conversation") == 2  # at the start, and on request


def test_what_is_drawn_is_said_and_follows_from_the_seed(
    dpo: Cli, root: Path, both: list[str]
) -> None:
    hot = ("--prompt", HELLO, *FEW, "--temperature", "1.2")
    first = dpo("chat", *both, *hot, "--seed", "3")[1]
    assert first == dpo("chat", *both, *hot, "--seed", "3", "--top-p", "1")[1]
    assert first != dpo("chat", *both, *hot)[1]


# --- a file of prompts ---------------------------------------------------------------------------


def test_a_file_of_prompts(dpo: Cli, root: Path, both: list[str]) -> None:
    Path("prompts.txt").write_text(f"{HELLO}\n\n{WHY}\n")
    code, out, err = dpo("chat", *both, *FEW, "--prompts", "prompts.txt", "--out", "answers.jsonl")
    assert (code, out) == (0, "")
    assert err.startswith("2 of 2 prompts answered, 96 tokens, ")
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rows] == [1, 3]
    assert rows[0]["prompt"] == [{"role": "user", "content": HELLO}]
    assert rows[0]["cut"] == ["policy", "reference"]
    answers = dpo("chat", *both, *FEW, "--prompt", HELLO)[1]
    assert answers == f"policy:\n{rows[0]['policy']}\n\nreference:\n{rows[0]['reference']}\n"
    assert HELLO in Path("answers.jsonl").read_text()  # not as \u escapes


def test_rows_and_a_system_turn(dpo: Cli, root: Path, model: list[str]) -> None:
    own = {"role": "system", "content": "own"}
    user = {"role": "user", "content": WHY}
    rows = [{"prompt": WHY}, {"prompt": [own, user]}]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = dpo("chat", *model, *FEW, "--prompts", "prompts.jsonl", "--system", "be brief")[1]
    asked = [json.loads(line)["prompt"] for line in out.splitlines()]
    assert asked == [[{"role": "system", "content": "be brief"}, user], [own, user]]
    assert "reference" not in json.loads(out.splitlines()[0])


def test_an_interrupted_answer_is_kept(
    monkeypatch: pytest.MonkeyPatch, dpo: Cli, root: Path, both: list[str]
) -> None:
    def press_ctrl_c(_: PhaseBar, phase: str, done: int, total: int, unit: str) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(PhaseBar, "__call__", press_ctrl_c)
    Path("prompts.txt").write_text("\n".join([HELLO] * 5))
    code, _, err = dpo("chat", *both, *FEW, "--prompts", "prompts.txt", "--out", "answers.jsonl")
    assert code == 130
    assert err.startswith("2 of 5 prompts answered, 9")
    assert len(Path("answers.jsonl").read_text().splitlines()) == 2


# --- bad input -----------------------------------------------------------------------------------


def test_a_file_without_a_tokenizer(dpo: Cli, root: Path, file: str) -> None:
    code, out, err = dpo("chat", file, "--prompt", HELLO)
    assert (code, out) == (2, "")
    assert "the tokenizer of these weights is unknown" in err
    assert "--tokenizer DIR" in err


def test_a_folder_that_is_no_tokenizer(dpo: Cli, root: Path, file: str) -> None:
    Path("empty").mkdir()
    code, _, err = dpo("chat", file, "--prompt", HELLO, "--tokenizer", "empty")
    assert code == 2
    assert "--tokenizer: empty has no tokenizer.json and no tokenizer_config.json" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--prompt", "a", "--prompts", "b"), "--prompt and --prompts exclude each other"),
        (("--out", "a"), "--out needs --prompts"),
        (("--seed", "1"), "--seed: greedy answers sample nothing"),
        (("--top-p", "0.9"), "--top-p: greedy answers sample nothing"),
        (("--temperature", "1", "--top-p", "0"), "--top-p 0 leaves no token"),
        (("--prompt", " "), "--prompt: the text is empty"),
        (("--prompt", "\udcff"), "--prompt: not UTF-8"),
        (("--system", ""), "--system: the text is empty"),
        (("--temperature", "-1"), "--temperature"),
        (("--max-new-tokens", "0"), "--max-new-tokens"),
    ],
)
def test_options_that_cannot_be(dpo: Cli, root: Path, options: tuple[str, ...], said: str) -> None:
    code, out, err = dpo("chat", "any.pth", *options)
    assert (code, out) == (2, "")
    assert said in err


def test_models_that_are_not_there(dpo: Cli, root: Path, model: list[str]) -> None:
    assert dpo("chat")[0] == 2
    code, _, err = dpo("chat", "gone.pth", "--prompt", HELLO)
    assert (code, "gone.pth: no such file" in err) == (2, True)
    code, _, err = dpo("chat", *model, "--reference", "gone.pth", "--prompt", HELLO)
    assert (code, "gone.pth: no such file" in err) == (2, True)
    Path("cut.pth").write_bytes(Path(model[0]).read_bytes()[:5000])
    code, _, err = dpo("chat", "cut.pth", *model[1:], "--prompt", HELLO)
    assert (code, "cut.pth: cut off, corrupted, or no weights file" in err) == (1, True)
    code, _, err = dpo("chat", *model, "--best", "--prompt", HELLO)
    assert (code, "only a run has a best checkpoint" in err) == (1, True)


def test_lines_that_are_no_prompts(dpo: Cli, root: Path, model: list[str]) -> None:
    Path("empty.txt").write_text("\n")
    code, _, err = dpo("chat", *model, "--prompts", "empty.txt")
    assert (code, "empty.txt: the file has no prompt" in err) == (1, True)
    Path("rows.jsonl").write_text('{"question": "a"}\n')
    code, _, err = dpo("chat", *model, "--prompts", "rows.jsonl")
    assert code == 1
    assert "line 1: no 'prompt' among question, and not a pair" in err
    assert 'help: Write {"prompt": "text"} on each line' in err
    Path("long.txt").write_text(f"{HELLO}\n{'word ' * 33000}\n")
    code, out, err = dpo("chat", *model, "--prompts", "long.txt", "--out", "answers.jsonl")
    assert (code, out) == (1, "")
    assert "error: line 2: the conversation has" in err
    assert not Path("answers.jsonl").exists()


def test_a_place_that_cannot_be_written(dpo: Cli, root: Path, model: list[str]) -> None:
    Path("prompts.txt").write_text(HELLO)
    code, _, err = dpo("chat", *model, *FEW, "--prompts", "prompts.txt", "--out", "no/where.jsonl")
    assert code == 1
    assert "Traceback" not in err
    assert "cannot write no/where.jsonl" in err


# --- on a terminal -------------------------------------------------------------------------------


def test_a_conversation_on_a_terminal(tmp_path: Path, both: list[str]) -> None:
    """This uses real models; tests/ui/test_chat.py has the other tests of conversations."""
    with Terminal(CHAT, "chat", *both, "--max-new-tokens", 30000, cwd=tmp_path) as terminal:
        terminal.until(lambda: "\n> " in terminal.raw, 120)
        assert "policy     " in terminal.raw
        terminal.press(f"{HELLO}\n")
        terminal.until(lambda: " │ " in terminal.raw and "▌" in terminal.raw)
        terminal.press("\x03")
        terminal.until(lambda: terminal.raw.count(", stopped") == 2)
        terminal.until(lambda: "> " in terminal.raw.rpartition(", stopped")[2])
        terminal.press("\x04")
        assert terminal.wait() == 0
        assert terminal.modes_now() == terminal.modes
    terminal._output.decode()  # never a part of a character

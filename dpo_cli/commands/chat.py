"""`dpo chat`: ask policy and reference the same, and see their answers side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dpo_cli.commands.complete import complete_model
from dpo_cli.commands.console import plain_console
from dpo_cli.commands.options import MODEL_HELP, RunsDirOption, SetOption, TokenizerOption
from dpo_cli.data.formats import Message
from dpo_cli.data.prompts import Prompt, read_prompts
from dpo_cli.errors import DpoError, ExitCode, UsageError
from dpo_cli.formatting import format_count
from dpo_cli.run.directory import runs_root
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.run.lookup import find_run
from dpo_cli.run.models import NamedModel, find_model
from dpo_cli.ui.terminal.chat import ChatScreen
from dpo_cli.ui.terminal.keyboard import deferred_ctrl_c
from dpo_cli.ui.terminal.progress import PhaseBar

if TYPE_CHECKING:
    from dpo_cli.inference.chat import Answer, Conversation, Responder

ROLES = ("policy", "reference")
_COMMANDS = "/reset forgets what was said, /quit or Ctrl-D ends, Ctrl-C stops an answer"


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help=f"{MODEL_HELP} Without one it is the newest run.",
            show_default=False,
            autocompletion=complete_model,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Who answers beside it; else a run's own reference, and nobody beside a file.",
            show_default=False,
            autocompletion=complete_model,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Ask this, and end.", show_default=False),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Ask what stands in a file: a prompt a line, or in a .jsonl rows with 'prompt', "
            "or pairs. The answers come as JSONL.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the answers to --prompts there, not to standard output.",
            show_default=False,
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="What both are told before the first turn.", show_default=False
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Cut an answer after so many tokens.")
    ] = 512,
    temperature: Annotated[
        float,
        typer.Option(
            metavar="T",
            min=0.0,
            max=100.0,
            help="Draw each token, the more freely the higher; 0 takes the likeliest, so that the "
            "same question has the same answer.",
        ),
    ] = 0.0,
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            min=0.0,
            max=1.0,
            help="Draw among the likeliest tokens that have this probability together; else among "
            "all.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Of what is drawn; else 0.", show_default=False),
    ] = None,
    tokenizer: TokenizerOption = None,
    best: Annotated[
        bool,
        typer.Option(
            "--best", help="The run's state with the lowest held-out loss, not the newest."
        ),
    ] = False,
    settings: SetOption = None,
    runs_dir: RunsDirOption = None,
) -> None:
    """Talk to a model and its reference: both answer the same question, side by side.

    Each keeps the conversation that it had. On a pipe, answers are plain text, and all else goes to
    standard error. Answers are greedy unless --temperature says otherwise: what differs between
    the two is what training did, not chance.

    Example: `dpo chat dense --prompt "Who are you?"`
    """
    _refuse_contradictions(prompt, prompts, out, temperature, top_p, seed)
    _require_text(prompt=prompt, system=system)
    root = runs_root(runs_dir)
    if model is None:
        run = find_run(root, None)
        asked = NamedModel(run.path, run)
    else:
        asked = find_model(model, root)
    beside = None if reference is None else find_model(reference, root)
    rows = None if prompts is None else read_prompts(prompts)

    notes = plain_console(stderr=True)
    with notes.status("reading the weights"):
        from dpo_cli.inference.chat import Conversation, open_responders  # torch: seconds
        from dpo_cli.models.generation import Decoding

        decoding = Decoding(max_new_tokens, temperature, 1.0 if top_p is None else top_p, seed or 0)
        speakers = open_responders(
            asked,
            beside,
            decoding,
            runs_root=root,
            tokenizer=tokenizer,
            overrides=settings or (),
            best=best,
        )
    if rows is not None:
        _answer_rows(notes, speakers, rows, system, out)
        return
    screen = ChatScreen(plain_console(), notes, ROLES[: len(speakers)])
    conversations = [Conversation(speaker, system) for speaker in speakers]
    if prompt is not None:
        if screen.show(_ask(conversations, prompt)):
            raise typer.Exit(ExitCode.INTERRUPTED)
        return
    for role, speaker in zip(ROLES, speakers, strict=False):
        screen.tell(f"{role:<9}  {speaker.title}")
    manner = f"drawn at temperature {temperature:g}" if temperature else "greedy"
    screen.tell(f"{'answers':<9}  {manner}, at most {max_new_tokens:,} tokens")
    screen.tell(_COMMANDS)
    _converse(screen, conversations)


def _refuse_contradictions(
    prompt: str | None,
    prompts: Path | None,
    out: Path | None,
    temperature: float,
    top_p: float | None,
    seed: int | None,
) -> None:
    if prompt is not None and prompts is not None:
        raise UsageError("--prompt and --prompts: one of them", "put the prompt into the file")
    if out is not None and prompts is None:
        raise UsageError("--out: there is no --prompts to answer into a file")
    for option, value in (("--top-p", top_p), ("--seed", seed)):
        if value is not None and not temperature:
            raise UsageError(f"{option}: greedy answers draw nothing", "add --temperature 0.8")
    if top_p == 0:
        raise UsageError("--top-p 0 leaves no token", "the likeliest alone is --temperature 0")


def _require_text(**options: str | None) -> None:
    for name, value in options.items():
        if value is not None and not value.strip():
            raise UsageError(f"--{name}: the text is empty")
        try:
            (value or "").encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"--{name}: not UTF-8") from error


# --- one after another ---------------------------------------------------------------------------


def _converse(screen: ChatScreen, conversations: Sequence[Conversation]) -> None:
    """Answer until the user has had enough."""
    for text in screen.questions():
        if text == "/quit":
            return
        if text == "/reset":
            for conversation in conversations:
                conversation.clear()
            screen.tell("forgotten: the next question is the first")
        elif text.startswith("/") and text[1:].isalpha():
            screen.tell(f"{text} is no command: {_COMMANDS}")
        else:
            try:
                was_stopped = screen.show(_ask(conversations, text))
            except DpoError as error:
                if not screen.is_interactive:
                    raise
                screen.tell(f"error: {error.message}; /reset begins anew")
                continue
            except KeyboardInterrupt:  # the second Ctrl-C
                if not screen.is_interactive:
                    raise
                continue
            if was_stopped and not screen.is_interactive:
                raise typer.Exit(ExitCode.INTERRUPTED)


def _ask(conversations: Sequence[Conversation], text: str) -> list[Answer]:
    """The answers of all to a question, or of none."""
    answers: list[Answer] = []
    try:
        for conversation in conversations:
            answers.append(conversation.ask(text))
    except DpoError:
        for conversation, _ in zip(conversations, answers, strict=False):
            conversation.undo()
        raise
    return answers


# --- a file of prompts ---------------------------------------------------------------------------


def _answer_rows(
    notes: Console,
    speakers: Sequence[Responder],
    prompts: Sequence[Prompt],
    system: str | None,
    out: Path | None,
) -> None:
    """Write a row for each prompt as soon as it is answered: what is interrupted keeps its rows.

    Raises:
        DpoError: a prompt cannot be answered, before any is; or the file cannot be written.
        typer.Exit: interrupted.
    """
    conversations = [_with_system(prompt.messages, system) for prompt in prompts]
    answers = []
    for number, (prompt, messages) in enumerate(zip(prompts, conversations, strict=True)):
        try:
            answers.append([speaker.answer(messages, number) for speaker in speakers])
        except DpoError as error:
            raise DpoError(f"line {prompt.line}: {error.message}", error.remedy) from error
    answered = 0
    with (
        PhaseBar(notes) as bar,
        deferred_ctrl_c() as is_stopped,
        _written(out) as file,
    ):
        for prompt, messages, replies in zip(prompts, conversations, answers, strict=True):
            bar("answering", answered, len(prompts), "prompts")
            for reply in replies:
                while not is_stopped() and next(reply, None) is not None:
                    pass
            if is_stopped():
                break
            row = {"line": prompt.line, "prompt": messages}
            row |= {role: its.text for role, its in zip(ROLES, replies, strict=False)}
            cut = [role for role, its in zip(ROLES, replies, strict=False) if its.is_cut]
            file.write(json.dumps({**row, "cut": cut}, ensure_ascii=False) + "\n")
            file.flush()
            answered += 1
    tokens = sum(reply.tokens for replies in answers for reply in replies)
    seconds = sum(reply.seconds for replies in answers for reply in replies)
    words = (
        f"{answered:,} of {format_count(len(prompts), 'prompt')} answered,"
        f" {format_count(tokens, 'token')}"
    )
    if seconds:
        words += f", {tokens / seconds:.1f} tokens/s"
    notes.print(words + (f", in {out}" if out else ""))
    if answered < len(prompts):
        raise typer.Exit(ExitCode.INTERRUPTED)


def _with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """A conversation that begins with `system`, if it does not begin with one of its own."""
    if system is None or messages[0]["role"] == "system":
        return list(messages)
    return [{"role": "system", "content": system}, *messages]


@contextmanager
def _written(out: Path | None) -> Iterator[IO[str]]:
    """The file that rows go to, or standard output.

    Raises:
        NoSpaceError: the disk is full.
        DpoError: it cannot be written.
    """
    if out is None:
        yield sys.stdout
        return
    try:
        with explain_disk_errors(out.parent), out.open("w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise DpoError(f"cannot write {out}: {error.strerror}") from error

"""`dpo chat`: talk to policy and reference, with their answers side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dpo_cli.commands.complete import complete_model
from dpo_cli.commands.console import json_text, say
from dpo_cli.commands.options import (
    MODEL_HELP,
    BestOption,
    RunsDirOption,
    SetOption,
    TokenizerOption,
)
from dpo_cli.data.messages import Message
from dpo_cli.data.prompts import Prompt, read_prompts
from dpo_cli.errors import DpoError, ExitCode, UsageError, naming
from dpo_cli.formatting import format_count
from dpo_cli.profile.text import show_path
from dpo_cli.run.directory import runs_root
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.run.lookup import find_saved_run
from dpo_cli.run.models import NamedModel, find_model
from dpo_cli.streams import stream_name
from dpo_cli.ui.terminal.chat import ChatScreen
from dpo_cli.ui.terminal.console import line_console
from dpo_cli.ui.terminal.keyboard import deferred_ctrl_c
from dpo_cli.ui.terminal.progress import PhaseBar

if TYPE_CHECKING:
    from dpo_cli.inference.chat import Answer, Conversation, Responder

ROLES = ("policy", "reference")
_COMMANDS = (
    "/reset starts a new conversation, /quit, /exit or Ctrl-D exits, Ctrl-C stops an answer,"
    " /help shows this"
)


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help=f"{MODEL_HELP} Default: the newest run.",
            show_default=False,
            autocompletion=complete_model,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Show the answers of this model, too. Default: the reference of the run.",
            show_default=False,
            autocompletion=complete_model,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Ask this, print the answers and exit.", show_default=False
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Answer the prompts in a file and print JSONL. The file has a prompt per line, or "
            "is a .jsonl with 'prompt' fields or pairs.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the answers to --prompts to this file.",
            show_default=False,
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Set the system prompt of both models.", show_default=False
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Cut answers after N tokens.")
    ] = 512,
    temperature: Annotated[
        float,
        typer.Option(
            metavar="T",
            min=0.0,
            max=100.0,
            help="Sample tokens at this temperature. 0 takes the most likely token: the same "
            "question gets the same answer.",
        ),
    ] = 0.0,
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            min=0.0,
            max=1.0,
            help="Sample among the most likely tokens with this total probability. Default: among "
            "all tokens.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="Set the seed of sampling. Default: 0.", show_default=False
        ),
    ] = None,
    tokenizer: TokenizerOption = None,
    best: BestOption = False,
    settings: SetOption = None,
    runs_dir: RunsDirOption = None,
) -> None:
    """Talk to a model and its reference, with the answers side by side.

    Each model keeps its own conversation. Answers are greedy unless you set --temperature, so that
    differences come from training and not from chance. In a pipe, answers are plain text on
    standard output, and everything else goes to standard error.

    Example: `dpo chat dense --prompt "Who are you?"`
    """
    _refuse_contradictions(prompt, prompts, out, temperature, top_p, seed)
    _require_text(prompt=prompt, system=system)
    root = runs_root(runs_dir)
    if model is None:
        run = find_saved_run(root, None, say)
        named_policy = NamedModel(run.path, run)
    else:
        named_policy = find_model(model, root, say)
    named_reference = None if reference is None else find_model(reference, root, say)
    rows = None if prompts is None else read_prompts(prompts)

    notes = line_console(stderr=True)
    with notes.status("reading the weights"):
        from dpo_cli.inference.chat import Conversation, open_responders  # loads torch
        from dpo_cli.models.generation import Decoding

        decoding = Decoding(max_new_tokens, temperature, 1.0 if top_p is None else top_p, seed or 0)
        responders = open_responders(
            named_policy,
            named_reference,
            decoding,
            runs_root=root,
            tokenizer=tokenizer,
            overrides=settings or (),
            best=best,
        )
    if rows is not None:
        _answer_rows(notes, responders, rows, system, out)
        return
    screen = ChatScreen(line_console(), notes, ROLES[: len(responders)])
    conversations = [Conversation(responder, system) for responder in responders]
    if prompt is not None:
        if screen.show(_ask(conversations, prompt)):
            raise typer.Exit(ExitCode.INTERRUPTED)
        return
    for role, responder in zip(ROLES, responders, strict=False):
        screen.note(f"{role:<9}  {responder.title}")
    screen.note(f"{'template':<9}  {show_path(responders[0].template_folder)}")
    manner = f"sampled at temperature {temperature:g}" if temperature else "greedy"
    screen.note(f"{'answers':<9}  {manner}, at most {max_new_tokens:,} tokens")
    screen.note(_COMMANDS)
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
        raise UsageError("--prompt and --prompts exclude each other", "Add the prompt to the file.")
    if out is not None and prompts is None:
        raise UsageError("--out needs --prompts: it holds their answers")
    for option, value in (("--top-p", top_p), ("--seed", seed)):
        if value is not None and not temperature:
            raise UsageError(f"{option}: greedy answers sample nothing", "Add --temperature 0.8.")
    if top_p == 0:
        raise UsageError(
            "--top-p 0 leaves no token", "For the most likely token alone, set --temperature 0."
        )


def _require_text(**options: str | None) -> None:
    for name, value in options.items():
        if value is not None and not value.strip():
            raise UsageError(f"--{name}: the text is empty")
        try:
            (value or "").encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"--{name}: not UTF-8") from error


# --- questions of a user -------------------------------------------------------------------------


def _converse(screen: ChatScreen, conversations: Sequence[Conversation]) -> None:
    """Answer questions until the user quits."""
    for text in screen.questions():
        if text in ("/quit", "/exit"):
            return
        if text == "/help":
            screen.note(_COMMANDS)
        elif text == "/reset":
            for conversation in conversations:
                conversation.clear()
            screen.note("the conversation is empty again")
        elif text.startswith("/") and text[1:].isalpha():
            screen.note(f"unknown command {text}: {_COMMANDS}")
        else:
            try:
                was_stopped = screen.show(_ask(conversations, text))
            except DpoError as error:
                if not screen.is_interactive:
                    raise
                screen.note(f"error: {error.message}; /reset starts a new conversation")
                continue
            except KeyboardInterrupt:  # second Ctrl-C
                if not screen.is_interactive:
                    raise
                continue
            if was_stopped and not screen.is_interactive:
                raise typer.Exit(ExitCode.INTERRUPTED)


def _ask(conversations: Sequence[Conversation], text: str) -> list[Answer]:
    """Ask all models. If one fails, no conversation keeps the question."""
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
    responders: Sequence[Responder],
    prompts: Sequence[Prompt],
    system: str | None,
    out: Path | None,
) -> None:
    """Write a row per prompt as soon as it is answered, so that Ctrl-C keeps the rows.

    Raises:
        DpoError: a prompt cannot be answered (checked first), or the file cannot be written.
        typer.Exit: interrupted.
    """
    conversations = [_with_system(prompt.messages, system) for prompt in prompts]
    answers = []
    for number, (prompt, messages) in enumerate(zip(prompts, conversations, strict=True)):
        try:
            answers.append([responder.answer(messages, number) for responder in responders])
        except DpoError as error:
            raise DpoError(f"line {prompt.line}: {error.message}", error.remedy) from error
    answered = 0
    with (
        PhaseBar(notes) as bar,
        deferred_ctrl_c() as is_stopped,
        _open_output(out) as file,
    ):
        for prompt, messages, replies in zip(prompts, conversations, answers, strict=True):
            bar("answering", answered, len(prompts), "prompts")
            for reply in replies:
                while not is_stopped() and next(reply, None) is not None:
                    pass
            if is_stopped():
                break
            row = {"line": prompt.line, "prompt": messages}
            row |= {role: reply.text for role, reply in zip(ROLES, replies, strict=False)}
            cut = [role for role, reply in zip(ROLES, replies, strict=False) if reply.is_cut]
            file.write(json_text({**row, "cut": cut}) + "\n")
            file.flush()
            answered += 1
    tokens = sum(reply.tokens for replies in answers for reply in replies)
    seconds = sum(reply.seconds for replies in answers for reply in replies)
    summary = (
        f"{answered:,} of {format_count(len(prompts), 'prompt')} answered,"
        f" {format_count(tokens, 'token')}"
    )
    if seconds:
        summary += f", {tokens / seconds:.1f} tokens/s"
    notes.print(summary + (f", in {out}" if out else ""))
    if answered < len(prompts):
        raise typer.Exit(ExitCode.INTERRUPTED)


def _with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """Add a system message unless the conversation has one."""
    if system is None or messages[0]["role"] == "system":
        return list(messages)
    return [{"role": "system", "content": system}, *messages]


@contextmanager
def _open_output(out: Path | None) -> Iterator[IO[str]]:
    """Open the file `out` for writing; None yields standard output.

    Raises:
        NoSpaceError: the disk is full.
        DpoError: the file cannot be written.
    """
    if out is None:
        with naming(stream_name(sys.stdout)):
            yield sys.stdout
        return
    try:
        with (
            explain_disk_errors(out.parent),
            naming(out),
            out.open("w", encoding="utf-8") as file,
        ):
            yield file
    except OSError as error:
        raise DpoError(f"cannot write {out}: {error.strerror}") from error

"""Questions about GGUF files that llama.cpp answers, in a child process."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dpo_cli.data.messages import Message
from dpo_cli.errors import DpoError
from dpo_cli.run.processes import module_argv, run_child

_SECONDS = 3600.0
"""Bound for a child that hangs; answers of a model with billions of weights take minutes."""
_SHOWN_LINES = 5


@dataclass(frozen=True)
class Questions:
    """Questions about each of several files.

    Attributes:
        files: GGUF files.
        texts: texts to encode.
        conversations: conversations to render up to the header of an answer.
        prompts: token ids to answer greedily; at least one.
        length: length of an answer in tokens.
        probed: ids of tokens, to find those at which llama.cpp stops.
        context: positions of the cache, at least the longest prompt plus `length`.
        threads: CPU threads.
    """

    files: Sequence[str]
    texts: Sequence[str]
    conversations: Sequence[Sequence[Message]]
    prompts: Sequence[Sequence[int]]
    length: int
    probed: Sequence[int]
    context: int
    threads: int


@dataclass(frozen=True)
class GreedyAnswer:
    """Ids of a greedy answer, the token that ends it included.

    Attributes:
        ids: token ids.
        logps: log-probs of the first of them in nats; the server does not return all.
    """

    ids: Sequence[int]
    logps: Sequence[float]


@dataclass(frozen=True)
class Replies:
    """llama.cpp's replies for one file.

    Attributes:
        ids: token ids of each text.
        prompts: each conversation as rendered; None if llama.cpp cannot render it.
        answers: one for each prompt.
        stop_ids: probed tokens at which llama.cpp stops.
    """

    ids: Sequence[Sequence[int]]
    prompts: Sequence[str | None]
    answers: Sequence[GreedyAnswer]
    stop_ids: Sequence[int]


def is_installed() -> bool:
    """Return True if the package xllamacpp, which contains llama.cpp, is installed."""
    return find_spec("xllamacpp") is not None


def ask_llama_cpp(questions: Questions) -> list[Replies]:
    """Load each file in llama.cpp and ask it.

    Returns:
        Replies in the order of the files.

    Raises:
        DpoError: llama.cpp cannot load or compute a file.
    """
    with tempfile.TemporaryDirectory() as folder:
        request, replies = Path(folder, "request.json"), Path(folder, "replies.jsonl")
        request.write_text(json.dumps(asdict(questions)), encoding="utf-8")
        argv = module_argv("dpo_cli.export.gguf.llama_worker", str(request), str(replies))
        try:
            code, output = run_child(argv, _SECONDS)
        except subprocess.TimeoutExpired:
            code, output = 1, f"no reply after {_SECONDS:.0f} seconds"
        lines = replies.read_text(encoding="utf-8").splitlines() if replies.exists() else []
    if code:
        failed = Path(questions.files[min(len(lines), len(questions.files) - 1)])
        raise DpoError(
            f"{failed.name}: llama.cpp cannot use this file",
            "Nothing was written. Export with --format hf, and report this with the lines above.",
            [line for line in output.splitlines() if line.strip()][-_SHOWN_LINES:],
        )
    return [_replies(json.loads(line)) for line in lines]


def _replies(found: Any) -> Replies:
    answers = [GreedyAnswer(each["ids"], each["logps"]) for each in found["answers"]]
    return Replies(found["ids"], found["prompts"], answers, found["stop_ids"])

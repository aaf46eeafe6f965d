"""Rendering of chat templates within limits of time and memory.

A chat template is a program that comes with a downloaded model. Jinja's sandbox keeps it away from
files and processes, but it may loop for hours, or write gigabytes. So each template is first tried
in a child process, which the kernel ends at its limits. Later calls are bounded by the size of
their input and output, and by the processor time of one call.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2

from dpo_cli.data.trial import OUT_OF_MEMORY, TRIAL_BYTES, in_child, ran_too_long
from dpo_cli.errors import DpoError, first_line

MAX_CHARACTERS = 1 << 20
"""Longest conversation, as messages and as text. One million random characters take 300 MB while
they are encoded."""
_MAX_MESSAGES = 1 << 21
"""Messages of one call. To locate its answers, a conversation is rendered once for each turn."""
_CALL_SECONDS = 30.0
_TRIAL_SECONDS = 10
_WRITES_TOO_MUCH = 4  # exit code of the child; other codes are in `dpo_cli.data.trial`
_LONG_TEXT = "a longer text, 很长. " * 500
_MOST_WRITTEN = 1 << 17
_MOST_WRITTEN_PER_CHARACTER = 20

_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
"""Variables of a template that transformers leaves undefined if the tokenizer has no such token."""

Render = Callable[..., list[str]]
"""Renders conversations with the options of `apply_chat_template`."""

_tried: set[str] = set()


class TemplateRenderer:
    """Renders the chat template of a tokenizer.

    Args:
        tokenizer: a tokenizer of transformers.
        encode: returns the number of tokens of a text; tried together with the template.
        folder: where the tokenizer is, for error messages.

    Raises:
        DpoError: the template does not end, or writes or takes too much memory.
    """

    def __init__(self, tokenizer: Any, encode: Callable[[str], int], folder: Path) -> None:
        self._tokenizer = tokenizer
        self._folder = folder
        template = json.dumps([tokenizer.chat_template, str(folder.absolute())], sort_keys=True)
        if template not in _tried:
            self._try(encode)
            _tried.add(template)

    def __call__(self, conversations: Sequence[Sequence[Any]], **options: Any) -> list[str]:
        """Render conversations to texts.

        Raises:
            ValueError: the template fails, or a conversation or its text is too long.
            DpoError: the template does not end.
        """
        if sum(map(len, conversations)) > _MAX_MESSAGES:
            raise ValueError("too many turns")
        if any(_characters(messages) > MAX_CHARACTERS for messages in conversations):
            raise ValueError(f"longer than {MAX_CHARACTERS:,} characters")
        try:
            with _WATCH.limited():
                texts = self._render(conversations, **options)
        except _EndlessError:
            raise self._refused(f"did not end within {_CALL_SECONDS:.0f} seconds") from None
        except jinja2.UndefinedError as error:
            token = next((name for name in _TOKENS if f"'{name}' is undefined" == str(error)), "")
            why = f"the tokenizer has no {token}" if token else first_line(error)
            raise ValueError(f"the chat template fails: {why}") from error
        except Exception as error:  # Jinja runs the template's code, which may raise anything
            raise ValueError(f"the chat template fails: {first_line(error)}") from error
        for text in texts:
            if len(text) > MAX_CHARACTERS:
                raise ValueError(f"longer than {MAX_CHARACTERS:,} characters as text")
            text.encode()  # raises ValueError for an unpaired surrogate
        return texts

    def _render(self, conversations: Sequence[Sequence[Any]], **options: Any) -> list[str]:
        # One call for all conversations: every call inspects all attributes of the tokenizer.
        texts = self._tokenizer.apply_chat_template(list(conversations), tokenize=False, **options)
        assert isinstance(texts, list)
        return texts

    def _try(self, encode: Callable[[str], int]) -> None:
        """Render and encode a few conversations in a child process with limits."""
        status = in_child(lambda: self._render_probes(encode), "the chat template", _TRIAL_SECONDS)
        if status == OUT_OF_MEMORY or status == -signal.SIGABRT:
            raise self._refused(f"needs more than {TRIAL_BYTES >> 20} MiB for a short text")
        if status == _WRITES_TOO_MUCH:
            raise self._refused("writes far more than its messages")
        if ran_too_long(status):
            raise self._refused(f"did not end within {_TRIAL_SECONDS} seconds for a short text")
        if status < 0:
            name = signal.Signals(-status).name
            raise self._refused(f"ended the process that tried it ({name})")
        # Another status, for example a Python error, says nothing about the template.

    def _render_probes(self, encode: Callable[[str], int]) -> int:
        for messages in _probes():
            for prompted in (False, True):
                try:
                    [text] = self._render([messages], add_generation_prompt=prompted)
                    limit = _MOST_WRITTEN + _MOST_WRITTEN_PER_CHARACTER * _characters(messages)
                    if len(text) > limit or encode(text) > limit:
                        return _WRITES_TOO_MUCH
                except MemoryError:
                    return OUT_OF_MEMORY
                except Exception:
                    continue
        return 0

    def _refused(self, why: str) -> DpoError:
        return DpoError(
            f"{self._folder}: the chat template, or its tokenizer, {why}",
            "Use the tokenizer that the weights were fine-tuned with, from a source you trust.",
        )


class _EndlessError(BaseException):
    """Raised in a thread that renders for too long; no `except Exception` may catch it."""


class _Call:
    """Processor time of a thread since now, read from another thread."""

    def __init__(self, thread: int) -> None:
        self._thread = thread
        self._began = self._clocks()

    def used_seconds(self) -> float:
        return min(now - began for now, began in zip(self._clocks(), self._began, strict=True))

    def _clocks(self) -> tuple[float, ...]:
        if hasattr(time, "pthread_getcpuclockid"):
            return (time.clock_gettime(time.pthread_getcpuclockid(self._thread)),)
        # macOS and Windows do not report the time of another thread. The thread used at most the
        # time of the whole process, and at most the time that has passed.
        return time.process_time(), time.monotonic()


class _Watch:
    """Raises `_EndlessError` in threads whose call has taken too much processor time.

    One for the process: each has a thread that never ends.
    """

    def __init__(self) -> None:
        self._reset()
        if hasattr(os, "register_at_fork"):
            # The threads of the parent do not exist in its child, and one may hold the lock.
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[int, _Call] = {}
        self._is_watching = False

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """Watch the calling thread."""
        thread = threading.get_ident()
        with self._lock:
            self._calls[thread] = _Call(thread)
            if not self._is_watching:
                self._is_watching = True
                threading.Thread(target=self._watch, daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                del self._calls[thread]
                _set_exception(thread, None)  # one that was set but not raised yet

    def _watch(self) -> None:
        while True:
            time.sleep(1.0)
            with self._lock:
                for thread, call in self._calls.items():
                    if call.used_seconds() > _CALL_SECONDS:
                        _set_exception(thread, _EndlessError)


_WATCH = _Watch()


def _set_exception(thread: int, kind: type[BaseException] | None) -> None:
    value = None if kind is None else ctypes.py_object(kind)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), value)


def _probes() -> list[list[dict[str, Any]]]:
    """Return conversations of the kinds that occur in data."""
    ask, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    system = {"role": "system", "content": "c"}
    long = [{**ask, "content": _LONG_TEXT}, {**answer, "content": _LONG_TEXT}]
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    tool = {"role": "tool", "content": "d"}
    return [
        [ask, answer],
        [ask],
        [system, ask, answer],
        [ask, answer] * 8,
        [system, *long],
        [ask, calling, tool, answer],
    ]


def _characters(messages: Sequence[Any]) -> int:
    return sum(len(text) for message in messages for text in message.values() if type(text) is str)

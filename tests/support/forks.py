"""Processes without five seconds of imports: forks of a server that has imported all modules."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import cache
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

_PRELOADED = [
    "dpo_cli.training.session",
    "dpo_cli.export.export",
    "transformers.models.llama.modeling_llama",
    "transformers.models.granitemoeshared.modeling_granitemoeshared",
    "transformers.models.qwen3_moe.modeling_qwen3_moe",
    "transformers.tokenization_utils_tokenizers",
    "dpo_cli.app",
    "dpo_cli.commands.train",
    "dpo_cli.commands.resume",
    "dpo_cli.commands.export",
    "dpo_cli.commands.evaluate",
    "tests.support.workers",
]


@cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def forked(function: Callable[..., object], *arguments: object) -> BaseProcess:
    """Return a process like a worker's, not yet started, that runs any function."""
    return _server().Process(target=function, args=arguments)

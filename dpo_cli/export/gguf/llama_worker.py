"""Child process that loads GGUF files in llama.cpp and answers questions about them.

llama.cpp ends its process if a file is wrong in a way that it does not check, and prints to
standard error, so it never runs in the process of an export. Usage: `python -m ... REQUEST
REPLIES`; the replies have one line of JSON per file, each written when its file is done.
"""

from __future__ import annotations

import json
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HTTP_SECONDS = 600.0
_BIAS = 1e6
"""Added to the logit of a token that must be generated."""
_PROBE_TOKENS = 8
"""Tokens before that one; their number does not matter."""


class _Model:
    """Model in llama.cpp's server, which listens on this machine only, with a random key."""

    def __init__(self, path: str, context: int, threads: int) -> None:
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = path
        parameters.n_ctx = context
        parameters.n_gpu_layers = 0
        parameters.fit_params = False
        parameters.warmup = False
        parameters.verbosity = 0
        self._key = secrets.token_hex(16)
        parameters.api_keys = [self._key]
        for threading in (parameters.cpuparams, parameters.cpuparams_batch):
            threading.n_threads = threads
        # By default keys and values are float16, which changes logits in the third digit.
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        kinds = xllamacpp.llama_flash_attn_type
        parameters.flash_attn_type = kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(parameters)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Call an endpoint of the server."""
        request = urllib.request.Request(
            f"{self._server.listening_address}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"},
        )
        # Without the proxy that the environment may name.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_HTTP_SECONDS) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode(errors="replace")) from error


def _reply(request: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    model = _Model(path, request["context"], request["threads"])

    def ids(text: str) -> list[int]:
        body = {"content": text, "add_special": True, "parse_special": True}
        tokens: list[int] = model.post("/tokenize", body)["tokens"]
        return tokens

    def prompt(messages: Any) -> str | None:
        try:
            text: str = model.post("/apply-template", {"messages": messages})["prompt"]
        except RuntimeError:
            return None
        return text

    def answer(tokens: list[int], length: int, bias: list[list[float]]) -> Mapping[str, Any]:
        body = {"prompt": tokens, "n_predict": length, "temperature": 0, "return_tokens": True}
        body |= {"n_probs": 1, "cache_prompt": False, "logit_bias": bias}
        found = model.post("/completion", body)
        # The server leaves out the entries of some tokens, for example of those that end within a
        # character; then it is unknown to which token the next entry belongs.
        logps = []
        for id, entry in zip(
            found["tokens"], found.get("completion_probabilities", ()), strict=False
        ):
            if entry["id"] != id:
                break
            logps.append(entry["logprob"])
        return {"ids": found["tokens"], "logps": logps, "stops": found["stop_type"] == "eos"}

    first = request["prompts"][0][:_PROBE_TOKENS]
    return {
        "ids": [ids(text) for text in request["texts"]],
        "prompts": [prompt(messages) for messages in request["conversations"]],
        "answers": [answer(each, request["length"], []) for each in request["prompts"]],
        "stop_ids": [id for id in request["probed"] if answer(first, 2, [[id, _BIAS]])["stops"]],
    }


def main() -> int:
    """Answer a request file by file."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with Path(sys.argv[2]).open("w", encoding="utf-8") as replies:
        for path in request["files"]:
            replies.write(json.dumps(_reply(request, path)) + "\n")
            replies.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())

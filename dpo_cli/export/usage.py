"""Commands that use an export in other programs, and its section in the model card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dpo_cli.shell import quote


def directory_commands(path: Path, chat: str) -> dict[str, str]:
    """Return the commands for a Hugging Face directory, by program.

    Args:
        path: the directory.
        chat: command that chats in transformers.
    """
    return {"transformers": chat, "vLLM": f"vllm serve {quote(str(path))}"}


def gguf_commands(folder: str, file_name: str) -> dict[str, str]:
    """Return the commands for a GGUF file with a Modelfile beside it, by program."""
    model = Path(folder).name.lower().removesuffix("-gguf")
    create = f"ollama create {quote(model)} -f {quote(f'{folder}/Modelfile')}"
    return {
        "llama.cpp": f"llama-cli -m {quote(f'{folder}/{file_name}')}",
        "Ollama": f"{create} && ollama run {quote(model)}",
    }


def export_commands(run: str, *, is_minimind: bool) -> dict[str, str]:
    """Return the commands that export a run, by the programs that read the result."""
    export = f"dpo export {quote(run)} --format"
    minimind = {"MiniMind": f"{export} pth"} if is_minimind else {}
    return {
        "transformers, vLLM": f"{export} hf",
        "llama.cpp, Ollama": f"{export} gguf",
        **minimind,
    }


def card_section(stops: Sequence[str], warning: str, minimind: str | None) -> Iterator[str]:
    """Yield the lines of a model card on the use of its model, without a path.

    Args:
        stops: texts of the tokens at which generation stops; empty if they are not known.
        warning: why answers would not stop there; "" if they do.
        minimind: command for MiniMind's script, for a file of MiniMind; None for a directory.
    """
    if warning:
        yield f"Careful: {warning}. Set the stop token yourself in every program."
    elif stops:
        names = " or ".join(f"`{stop}`" for stop in stops)
        yield (
            f"An answer ends with {names}. A program that does not stop there goes"
            " on with a turn of the user."
        )
    yield ""
    if minimind is not None:
        yield from ("From the root of a MiniMind checkout, with the file in its folder `out`:", "")
        yield from ("```", minimind, "```", "")
        yield "Export with `--format hf` for transformers and vLLM, `--format gguf` for Ollama."
        return
    yield from (
        "transformers, with the name of this repository or the path of its files:",
        *("", "```python"),
        "from transformers import pipeline",
        "",
        'pipe = pipeline("text-generation", "MODEL")',
        'turns = pipe([{"role": "user", "content": "Hello"}], max_new_tokens=200)',
        'print(turns[0]["generated_text"][-1]["content"])',
        *("```", ""),
        "vLLM takes template and stop tokens from the same files: `vllm serve MODEL`.",
        "",
        "For Ollama and llama.cpp, `dpo export --format gguf` writes GGUF files, and a Modelfile"
        " with template and stop tokens for `ollama create my-model -f Modelfile`.",
    )

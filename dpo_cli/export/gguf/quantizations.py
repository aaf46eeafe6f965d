"""Names of the formats of weights in GGUF files; loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from dpo_cli.errors import UsageError

Quantization = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
"""Formats that the package gguf writes, from the most exact to the smallest."""
DEFAULT_QUANTIZATIONS: tuple[Quantization, ...] = ("f16",)


def parse_quantizations(names: str | Sequence[str] | None) -> list[Quantization]:
    """Return the named formats, from the most exact to the smallest, without repetitions.

    Args:
        names: a list, or a text with commas, for example "f16,q4_0"; None for the default.

    Raises:
        UsageError: there is no name, or one is unknown.
    """
    if names is None:
        return list(DEFAULT_QUANTIZATIONS)
    listed = names.split(",") if isinstance(names, str) else list(names)
    wanted = [name.strip().lower() for name in listed if name.strip()]
    unknown = [name for name in wanted if name not in QUANTIZATIONS]
    if not wanted or unknown:
        remedy = f"Use one or more of {', '.join(QUANTIZATIONS)}."
        if unknown and "_k" in unknown[0]:
            remedy += " For K-quants, write f16 and run llama.cpp's llama-quantize on the file."
        what = f"no format {unknown[0]!r:.40}" if unknown else "no format is named"
        raise UsageError(f"--quantization: {what}", remedy)
    return [name for name in QUANTIZATIONS if name in wanted]

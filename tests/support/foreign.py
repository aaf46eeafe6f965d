"""Translation of a few settings of another tool, as if they came from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo_cli.profile.foreign.source import ForeignSettings
from dpo_cli.profile.foreign.tools import TOOLS
from dpo_cli.profile.foreign.translate import Translation, translate


def translated(tool: str, values: dict[str, Any], folder: Path = Path("profiles")) -> Translation:
    settings = ForeignSettings(TOOLS[tool], values, {}, (), "a file", (Path.cwd(),), frozenset())
    return translate(settings, folder)

"""Description of the package for an index: README.md without links into a clone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

try:
    from hatchling.metadata.plugin.interface import MetadataHookInterface
except ImportError:  # the tests read this file without hatchling
    MetadataHookInterface = object

_IMAGE = re.compile(r"^!\[[^\]]*\]\((?!https?://)[^)]+\)\n+", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?://)[^)]+\)")


def description(readme: str) -> str:
    """Return a README for a reader without a clone: only links to other sites remain."""
    return _LINK.sub(r"\1", _IMAGE.sub("", readme))


class CustomMetadataHook(MetadataHookInterface):
    """Hook by which hatchling gets the description."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the description."""
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": description(readme)}

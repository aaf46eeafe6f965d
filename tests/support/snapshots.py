"""Comparison of terminal output with snapshots that a person approved."""

from __future__ import annotations

import os
from pathlib import Path

SNAPSHOTS = Path(__file__).parents[1] / "ui" / "snapshots"


def assert_snapshot(name: str, text: str) -> None:
    """Compare a text with the snapshot of this name; DPO_RENEW_SNAPSHOTS=1 replaces it."""
    file = SNAPSHOTS / f"{name}.txt"
    # Editors remove trailing spaces.
    text = "".join(line.rstrip() + "\n" for line in text.splitlines())
    if os.environ.get("DPO_RENEW_SNAPSHOTS") == "1":
        file.write_text(text, encoding="utf-8")
    expected = file.read_text(encoding="utf-8") if file.exists() else "(no snapshot)"
    assert text == expected, (
        f"the output differs from {file}\n\nnow:\n{text}\nbefore:\n{expected}\n"
        "if this is intended, run the test once with DPO_RENEW_SNAPSHOTS=1 and commit the file"
    )

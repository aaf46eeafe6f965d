"""Run commands of `dpo` in one process, one after another, on the stub platform of `stub/`.

Reads a JSON list from standard input and writes the results as JSON to the file given as argument.
Each item is {"words": [...], "cwd": "..."} for a command line, or {"code": "..."} for statements
that run as if they were a module of `dpo_cli`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    items = json.load(sys.stdin)
    Path(sys.argv[1]).write_text(json.dumps([_result(item) for item in items]), encoding="utf-8")


def _result(item: dict[str, Any]) -> dict[str, Any]:
    if "code" in item:
        return _execute(item["code"])
    from dpo_cli.app import main as run_command_line

    os.chdir(item["cwd"])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command_line(item["words"])
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def _execute(code: str) -> dict[str, Any]:
    """Execute statements as a module of the package."""
    try:
        exec(code, {"__name__": "dpo_cli.control", "__package__": "dpo_cli"})
    except Exception as error:
        return {"raised": type(error).__name__, "trace": traceback.format_exc()}
    return {}


if __name__ == "__main__":
    main()

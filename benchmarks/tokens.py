"""Time and memory of encoding, without and with the token cache.

    python benchmarks/tokens.py ../shared/tokenizer/minimind2 \\
        ../shared/data/dpo_en_zh_400.jsonl ../shared/data/dpo_judged_train.jsonl

The rows are those of the files. If more rows are needed, they are repeated with their lines in
another order and a line of another row, so that rows are distinct and words are real. `raw` is
`encode_batch_fast` of both sides of each row as whole texts, rendered beforehand and in the same
blocks as in `dpo`, without offsets, masks or storage. Each figure is measured in its own process;
the result is the minimum of the rounds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BLOCK_TEXTS = 512
MAX_SEQ_LEN = 1024


def write_rows(path: Path, sources: list[Path], count: int) -> None:
    """Write `count` distinct rows."""
    rows = [json.loads(line) for source in sources for line in source.open(encoding="utf-8")]
    draw = random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = rows[number % len(rows)]
            if number >= len(rows):
                row = alter(row, draw.choice(rows), draw)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def alter(row: dict[str, Any], other: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Return a row with shuffled texts; texts that both sides share stay shared."""
    altered: dict[str, str] = {}

    def text(content: str, others: str) -> str:
        if content not in altered:
            lines = [*content.split("\n"), draw.choice(others.split("\n"))]
            draw.shuffle(lines)
            altered[content] = "\n".join(lines)
        return altered[content]

    return {
        side: [
            {**message, "content": text(message["content"], other[side][-1]["content"])}
            for message in row[side]
        ]
        for side in ("chosen", "rejected")
    }


@contextmanager
def peak_memory(found: dict[str, Any]) -> Iterator[None]:
    """Record the growth of the peak memory of this process, in MB."""

    def resident() -> dict[str, int]:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        facts = dict(line.split(":", 1) for line in lines)
        return {name: int(facts[name].split()[0]) for name in ("RssAnon", "RssFile")}

    before, done = resident(), threading.Event()
    peak = dict(before)

    def watch() -> None:
        while not done.wait(0.02):
            for name, size in resident().items():
                peak[name] = max(peak[name], size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        found["anonymous_mb"] = round((peak["RssAnon"] - before["RssAnon"]) / 1e3, 1)
        found["mapped_mb"] = round((peak["RssFile"] - before["RssFile"]) / 1e3, 1)


def run_once(part: str, tokenizer_folder: Path, data: Path) -> dict[str, Any]:
    """Measure one part in this process."""
    from dpo_cli.data.chat import ChatTokenizer
    from dpo_cli.data.pairs import PreferencePair, read_pairs
    from dpo_cli.data.sources import Source
    from dpo_cli.data.token_cache import encode_source
    from dpo_cli.distributed.process_group import SINGLE_PROCESS
    from dpo_cli.files import sha256_file

    tokenizer = ChatTokenizer(tokenizer_folder)
    found: dict[str, Any] = {"seconds": 0.0}
    if part == "raw":
        texts: list[str] = []

        def encode() -> None:
            began = time.perf_counter()
            tokenizer._backend.encode_batch_fast(texts, add_special_tokens=False)
            found["seconds"] += time.perf_counter() - began
            texts.clear()

        for row in read_pairs(data):
            assert isinstance(row, PreferencePair)
            texts += [side.text for side in tokenizer.render(row.chosen, row.rejected)]
            if len(texts) >= BLOCK_TEXTS:
                encode()
        encode()
        return found
    if part == "second":
        sha256_file(data)  # brings the file into the page cache
    with peak_memory(found):
        began = time.perf_counter()
        rows = encode_source(
            Source((data,)),
            tokenizer,
            empty_think_ratio=0.2,
            seed=42,
            on_progress=lambda done, lines: None,
            ranks=SINGLE_PROCESS,
        )
        kept = rows.cut(MAX_SEQ_LEN).kept
        found["seconds"] = time.perf_counter() - began
    began = time.perf_counter()
    sha256_file(data)
    found["hashing_seconds"] = time.perf_counter() - began
    return {**found, "kept": len(kept), "stored_tokens": len(rows.ids)}


def measure(options: argparse.Namespace, part: str, data: Path, cache: str) -> dict[str, Any]:
    """Measure one part in its own process."""
    command = [sys.executable, __file__, str(options.tokenizer), str(data), "--part", part]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "DPO_CACHE_DIR": cache, "TOKENIZERS_PARALLELISM": "true"},
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(run_once(options.part, options.tokenizer, options.data[0])))
        return
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in (options.rows // 10, options.rows):
            data = Path(folder) / f"{count}.jsonl"
            write_rows(data, options.data, count)
            rounds: dict[str, list[dict[str, Any]]] = {"raw": [], "first": [], "second": []}
            for _ in range(options.rounds):
                with tempfile.TemporaryDirectory(dir=folder) as cache:
                    for part, figures in rounds.items():
                        figures.append(measure(options, part, data, cache))
                        print(f"{count:,} {part}: {figures[-1]}", file=sys.stderr)
            for part, figures in rounds.items():
                fastest = min(figures, key=lambda figure: float(figure["seconds"]))
                seconds = [round(figure["seconds"], 3) for figure in figures]
                results[f"{count} {part}"] = {**fastest, "all_seconds": seconds, "rows": count}
    print(f"{'':16}{'seconds':>9}{'hashing':>9}{'ms/row':>8}{'anonymous MB':>14}{'mapped MB':>11}")
    for name, row in results.items():
        print(
            f"{name:16}{row['seconds']:9.3f}{row.get('hashing_seconds', 0):9.3f}"
            f"{1e3 * row['seconds'] / row['rows']:8.3f}"
            f"{row.get('anonymous_mb', 0):14,.0f}{row.get('mapped_mb', 0):11,.0f}"
        )
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "tokenizer": str(options.tokenizer),
        "arguments": sys.argv[1:],
        "figures": results,
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

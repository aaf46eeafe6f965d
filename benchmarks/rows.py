"""Time and memory to read a large file of pairs, by kind of file.

    python benchmarks/rows.py ../shared/data/dpo_judged_train.jsonl --rows 1000000

The rows of the file (in MiniMind's format) are repeated, with a number before each text to make
them distinct. Each kind of file is measured in its own process, which inspects the file and reads
all pairs, as `dpo` does before it encodes them. Memory is the growth of the peak, which must not
depend on the number of rows. `texts` measures the search of `dpo check` for issues in the pairs.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import gzip
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = ("jsonl", "jsonl.gz", "jsonl.zst", "json", "csv", "parquet", "texts")
PARQUET_ROWS = 1000


def write(path: Path, kind: str, source: Path, count: int) -> None:
    """Write `count` rows to a file of a kind."""
    lines = numbered_lines(source, count)
    match kind:
        case "jsonl" | "texts":
            with path.open("w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
        case "jsonl.gz":
            with gzip.open(path, "wt", 1, encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
        case "jsonl.zst":
            from backports import zstd

            with zstd.open(path, "wt", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
        case "json":
            with path.open("w", encoding="utf-8") as file:
                file.write("[\n")
                file.writelines(f"{',' * (n > 0)}{line}\n" for n, line in enumerate(lines))
                file.write("]\n")
        case "csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(("chosen", "rejected"))
                writer.writerows(cells(line) for line in lines)
        case "parquet":
            write_parquet(path, lines)


def numbered_lines(source: Path, count: int) -> Iterator[str]:
    """Yield `count` distinct lines of JSON."""
    lines = [json.dumps(json.loads(line), ensure_ascii=False) for line in source.open("rb")]
    for number, line in enumerate(itertools.islice(itertools.cycle(lines), count)):
        yield line.replace('"content": "', f'"content": "{number} ')


def cells(line: str) -> tuple[str, ...]:
    """Return both sides of a row as JSON texts."""
    row = json.loads(line)
    return tuple(json.dumps(row[side], ensure_ascii=False) for side in ("chosen", "rejected"))


def write_parquet(path: Path, lines: Iterator[str]) -> None:
    """Write row groups of a thousand rows, as `datasets` does."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    writer = None
    while group := list(itertools.islice(lines, PARQUET_ROWS)):
        rows = [{side: json.loads(line)[side] for side in ("chosen", "rejected")} for line in group]
        table = pyarrow.Table.from_pylist(rows)
        writer = writer or ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def measure(path: Path, kind: str) -> dict[str, Any]:
    """Measure one file in this process."""
    from dpo_cli.checks.pair_issues import find_issues
    from dpo_cli.data.pairs import PreferencePair, read_pairs
    from dpo_cli.data.sources import Source

    source = Source((path,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    places = source.look()
    counted = time.perf_counter()
    if kind == "texts":
        kept = list(range(1, places.numbers + 1))
        pairs = len(find_issues(source, places, kept, ["<|im_end|>"], lambda *_: None).digests)
    else:
        pairs = sum(isinstance(row, PreferencePair) for row in read_pairs(source, None, places))
    return {
        "pairs": pairs,
        "file_mb": round(path.stat().st_size / 1e6),
        "counting_seconds": round(counted - began, 1),
        "reading_seconds": round(time.perf_counter() - counted, 1),
        "memory_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--measure", metavar="KIND", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.data, options.measure)))
        return
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            path = Path(folder) / f"pairs.{kind}"
            write(path, kind, options.data, options.rows)
            command = [sys.executable, __file__, str(path), "--measure", kind]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            figures[kind] = json.loads(done.stdout)
            print(f"{kind}: {figures[kind]}", flush=True)
            path.unlink()
    if options.json:
        report = {
            "date": datetime.date.today().isoformat(),
            "load": os.getloadavg()[0],
            "cores": os.cpu_count(),
            "rows": options.rows,
            "figures": figures,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

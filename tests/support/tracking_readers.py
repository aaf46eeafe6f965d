"""Readers of the files that TensorBoard and W&B write."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from typing import Any

from dpo_cli.run.directory import RunDirectory
from tests.support.cli import HANG_SECONDS


def scalars(run: RunDirectory) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def single(value: float) -> float:
    """Round a value to float32, as the file format does."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def history(run: RunDirectory) -> list[dict[str, Any]]:
    rows = [r.history for r in records(run) if r.WhichOneof("record_type") == "history"]
    named = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item}
        for row in rows
    ]
    its_own = ("_runtime", "_timestamp")
    return [{name: row[name] for name in row if name not in its_own} for row in named]


def records(run: RunDirectory) -> list[Any]:
    """Return the records of the only offline run, once W&B's service has written the last one.

    `finish` of a run may return before that, on a busy machine.
    """
    from wandb.proto import wandb_internal_pb2

    deadline = time.monotonic() + HANG_SECONDS
    while True:
        (file,) = (run.path / "wandb").glob("offline-run-*/*.wandb")
        found = []
        for data in logged(file.read_bytes()):
            found.append(wandb_internal_pb2.Record())
            found[-1].ParseFromString(data)
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        assert time.monotonic() < deadline, "W&B has not written its last record"
        time.sleep(0.05)


def logged(content: bytes) -> Iterator[bytes]:
    """Yield the records of a W&B file: a LevelDB log after a header of seven bytes."""
    header_bytes, block_bytes, first, last = 7, 32768, (1, 2), (1, 4)
    if not content:  # not begun yet
        return
    assert content.startswith(b":W&B")
    position, record = header_bytes, b""
    while position + header_bytes <= len(content):
        if block_bytes - position % block_bytes < header_bytes:
            position += block_bytes - position % block_bytes
        _, size, kind = struct.unpack_from("<IHB", content, position)
        position += header_bytes
        part = content[position : position + size]
        if len(part) < size:  # still being written
            return
        record = part if kind in first else record + part
        position += size
        if kind in last:
            yield record

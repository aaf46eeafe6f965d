"""Readers of the files that TensorBoard and W&B write."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

from dpo_cli.run.directory import RunDirectory


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


def records(run: RunDirectory) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    (file,) = (run.path / "wandb").glob("offline-run-*/*.wandb")
    for data in logged(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        yield record


def logged(content: bytes) -> Iterator[bytes]:
    """Yield the records of a W&B file: a LevelDB log after a header of seven bytes."""
    header_bytes, block_bytes, first, last = 7, 32768, (1, 2), (1, 4)
    assert content.startswith(b":W&B")
    position, record = header_bytes, b""
    while position < len(content):
        if block_bytes - position % block_bytes < header_bytes:
            position += block_bytes - position % block_bytes
        _, size, kind = struct.unpack_from("<IHB", content, position)
        position += header_bytes
        part = content[position : position + size]
        record = part if kind in first else record + part
        position += size
        if kind in last:
            yield record

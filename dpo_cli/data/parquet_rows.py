"""Rows of a Parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dpo_cli.data.compression import ROWS_PER_BATCH
from dpo_cli.data.rows import MAX_ROW_BYTES, TOO_LONG, MalformedError, Numbered

_OFFSET_BYTES = 8


def parquet_rows(file: Any, wanted: range | None) -> Numbered:
    """Iterate over the rows of a Parquet file, skipping row groups without wanted rows."""
    first = 1
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if wanted is None or (first < wanted.stop and wanted.start < first + rows):
            number = first
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, row_groups=[group]):
                for row in _objects(batch):
                    if wanted is None or number in wanted:
                        yield number, row
                    number += 1
        first += rows


def _objects(batch: Any) -> Iterator[dict[str, Any] | MalformedError]:
    """Convert a batch to rows; split it if a single row is too long or unreadable."""
    rows, why = None, TOO_LONG
    if _expanded_bytes(batch) <= MAX_ROW_BYTES:
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError) as error:  # not UTF-8, or a time outside Python's range
            why = f"cannot be read: {error}"[:200]
    if rows is not None:
        for row in rows:
            yield {name: _without_nulls(each) for name, each in row.items()}
    elif len(batch) == 1:
        yield MalformedError(why)
    else:
        for at in range(len(batch)):
            yield from _objects(batch.slice(at, 1))


def _without_nulls(value: Any) -> Any:
    """Drop null keys: a Parquet column gives each message the keys of all messages."""
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return value


def _expanded_bytes(columns: Any) -> int:
    """Return the bytes of a batch or array after each entry of a dictionary is written out."""
    import pyarrow
    from pyarrow import compute

    if isinstance(columns, pyarrow.RecordBatch):
        return sum(map(_expanded_bytes, columns.columns))
    if isinstance(columns, pyarrow.StructArray):
        return sum(map(_expanded_bytes, columns.flatten()))
    if pyarrow.types.is_nested(columns.type):  # lists of all kinds, and maps
        return _expanded_bytes(columns.flatten()) + _OFFSET_BYTES * len(columns)
    if not isinstance(columns, pyarrow.DictionaryArray):
        return int(columns.nbytes)
    lengths = compute.binary_length(columns.dictionary).cast("int64")
    total: int | None = compute.sum(lengths.take(columns.indices)).as_py()
    return (total or 0) + int(columns.indices.nbytes)

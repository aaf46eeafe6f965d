"""Opening of plain, gzip, zstd and Parquet files, with errors that name the file."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from dpo_cli.data.trial import OUT_OF_MEMORY, TRIAL_BYTES, in_child, ran_too_long
from dpo_cli.errors import DpoError, first_line

ROWS_PER_BATCH = 64
"""Rows of a Parquet file that are decoded at once."""
_MAX_EXPANDED_BYTES = 1 << 28
_MAX_RATIO = 100
"""Largest plausible compression ratio: human text compresses about 10 to 1."""
_MAX_DECOMPRESSED_BYTES, _MAX_STREAM_RATIO = 1 << 29, 200
"""Limits of a gzip or zstd stream: the ratio is checked beyond the first number of bytes."""
_MAX_VALUES = 1 << 25
_TRIAL_SECONDS = 10
_intact: set[tuple[str, int, int, int]] = set()
"""Files whose metadata was read without a crash: path, inode, size and time of each."""
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class MissingExtraError(DpoError):
    """File that needs a package of an extra, which this environment lacks."""

    def __init__(self, path: Path, what: str, extra: str) -> None:
        super().__init__(
            f"{path} is {what}, and the package that reads it is not installed",
            f"Run pip install '.[{extra}]' in a clone of this repository.",
        )


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn read errors into a `DpoError` that names `path`."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        if error.strerror is None:  # pyarrow reports a damaged page this way
            raise _damaged(path, first_line(error)) from error
        raise DpoError(
            f"{path}: {error.strerror}",
            "Set data.data_path to a file of preference pairs, or a folder of such files.",
        ) from error


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file and decompress it while it is read.

    Raises:
        DpoError: the file is damaged, or the package that reads it is not installed. Also raised
            while the file is read.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(reading(path))
        file = stack.enter_context(path.open("rb"))
        magic = file.peek(4)[:4]
        if magic.startswith(_GZIP):
            yield stack.enter_context(_bounded(path, gzip.GzipFile(fileobj=file)))
        elif magic == _ZSTD:
            zstd = _import_zstd(path)
            try:
                # ZstdFile is a raw stream to BufferedReader in all but its declared type.
                yield stack.enter_context(_bounded(path, zstd.ZstdFile(file)))
            except zstd.ZstdError as error:
                raise _damaged(path, str(error)) from error
        else:
            yield file


def _import_zstd(path: Path) -> ModuleType:
    try:
        from compression import zstd  # Python 3.14's own
    except ImportError:
        try:
            from backports import zstd
        except ImportError as error:
            raise MissingExtraError(path, "compressed by zstd", "zstd") from error
    module: ModuleType = zstd
    return module


def _bounded(path: Path, source: Any) -> io.BufferedReader:
    return io.BufferedReader(_BoundedStream(path, source))


class _BoundedStream(io.RawIOBase):
    """Decompressed stream that raises an error if a small file becomes endless text."""

    def __init__(self, path: Path, source: Any) -> None:
        self._path, self._source = path, source
        self._limit_bytes = max(_MAX_DECOMPRESSED_BYTES, _MAX_STREAM_RATIO * path.stat().st_size)
        self._read_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._source.readinto(buffer)
        self._read_bytes += count
        if self._read_bytes > self._limit_bytes:
            raise DpoError(
                f"{self._path} decompresses to more than {_MAX_STREAM_RATIO} times its size",
                "Decompress the file yourself if it really holds so many equal rows.",
            )
        return count

    def close(self) -> None:
        self._source.close()
        super().close()


@contextlib.contextmanager
def opened_parquet(path: Path) -> Iterator[Any]:
    """Open a `pyarrow.parquet.ParquetFile`; raises as `opened` does."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtraError(path, "a Parquet file", "parquet") from error
    try:
        with ParquetFile(path, pre_buffer=False) as file:
            metadata = file.metadata
            _try_metadata(path, metadata)
            shared = _check_chunks(path, metadata)
        # Large dictionaries are not expanded: one entry of 30 MiB (2 kB compressed) that every row
        # of a batch repeats would take gigabytes.
        with ParquetFile(
            path, metadata=metadata, pre_buffer=False, read_dictionary=sorted(shared)
        ) as file:
            yield file
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:  # also of a column's name
        raise _damaged(path, first_line(error)) from error


def _try_metadata(path: Path, metadata: Any) -> None:
    """Read all metadata in a child process first, because pyarrow aborts on damaged statistics.

    Raises:
        DpoError: a signal ended the child.
    """
    status = path.stat()
    key = (str(path.absolute()), status.st_ino, status.st_size, status.st_mtime_ns)
    if key in _intact:
        return

    def look() -> int:
        with contextlib.suppress(DpoError):  # reported by this process
            _check_chunks(path, metadata)
        return 0

    status_of_child = in_child(look, str(path), _TRIAL_SECONDS)
    if ran_too_long(status_of_child):
        raise _damaged(path, f"its metadata cannot be read within {_TRIAL_SECONDS} seconds")
    if status_of_child == OUT_OF_MEMORY:
        raise _damaged(path, f"its metadata needs more than {TRIAL_BYTES >> 20} MiB")
    if status_of_child < 0:
        raise _damaged(path, "its metadata is inconsistent")
    _intact.add(key)


def _check_chunks(path: Path, metadata: Any) -> set[str]:
    """Return the columns of texts whose dictionary may be large.

    Raises:
        DpoError: a column of a row group expands far more than usual data does.
    """
    shared = set()
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(number)
            size = chunk.total_uncompressed_size
            if size > _MAX_EXPANDED_BYTES and size > _MAX_RATIO * chunk.total_compressed_size:
                raise _bomb(path, f"{chunk.path_in_schema} has {size:,} bytes")
            if chunk.num_values > _MAX_VALUES:
                raise _bomb(path, f"{chunk.path_in_schema} has {chunk.num_values:,} values")
            column = metadata.schema.column(number)
            if column.physical_type == "BYTE_ARRAY" and chunk.has_dictionary_page:
                # Entries that one batch may repeat; a single row of lists may have all of them.
                repeated = chunk.num_values if column.max_repetition_level else ROWS_PER_BATCH
                if repeated * size > _MAX_EXPANDED_BYTES:
                    shared.add(chunk.path_in_schema)
    return shared


def _bomb(path: Path, why: str) -> DpoError:
    return DpoError(
        f"{path} is too large to be read: {why} in one row group",
        "Write it again in row groups of at most a million values.",
    )


def _damaged(path: Path, why: str) -> DpoError:
    return DpoError(f"{path} is damaged: {why}", "Copy or download it again.")

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

from dpo_cli.errors import DpoError, first_line

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


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
            yield stack.enter_context(io.BufferedReader(gzip.GzipFile(fileobj=file)))
        elif magic == _ZSTD:
            zstd = _import_zstd(path)
            try:
                # ZstdFile is a raw stream to BufferedReader in all but its declared type.
                yield stack.enter_context(io.BufferedReader(zstd.ZstdFile(file)))
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
            raise _not_installed(path, "compressed by zstd", "zstd") from error
    module: ModuleType = zstd
    return module


@contextlib.contextmanager
def opened_parquet(path: Path) -> Iterator[Any]:
    """Open a `pyarrow.parquet.ParquetFile`; raises as `opened` does."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise _not_installed(path, "a Parquet file", "parquet") from error
    try:
        with ParquetFile(path, pre_buffer=False) as file:
            yield file
    except pyarrow.ArrowException as error:
        raise _damaged(path, first_line(error)) from error


def _damaged(path: Path, why: str) -> DpoError:
    return DpoError(f"{path} is damaged: {why}", "Copy or download it again.")


def _not_installed(path: Path, what: str, extra: str) -> DpoError:
    return DpoError(
        f"{path} is {what}, and the package that reads it is not installed",
        f"Run pip install '.[{extra}]' in a clone of this repository.",
    )

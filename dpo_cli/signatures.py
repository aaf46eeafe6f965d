"""Recognition of files by their first bytes, for errors that name the kind of an unexpected file.

For example a download may have stored a pointer or a web page, or an archive may have the name of
its content. Nothing here decompresses or parses a file.
"""

from __future__ import annotations

import codecs
import html
import json
import re
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.errors import DpoError
from dpo_cli.shell import quote

HEAD_BYTES = 4096
_TAR_MAGIC = slice(257, 262)
_TAR_NAME = slice(0, 100)
_ZIP_NAME_LENGTH = slice(26, 28)
_ZIP_NAME = 30
_MAX_SHOWN = 60


@dataclass(frozen=True)
class Signature:
    """Kind of a file.

    Attributes:
        name: short name, for code that accepts some kinds.
        what: the kind in words, which continue "The file is".
        remedy: what to do; {path} stands for the quoted path.
    """

    name: str
    what: str
    remedy: str

    def error(self, path: Path) -> DpoError:
        """Return the error for a file of this kind if another kind was expected."""
        quoted = quote(str(path))
        return DpoError(f"{path} is {self.what}", self.remedy.replace("{path}", quoted))


_DOWNLOAD = "Download the file itself; the link may need a login, or lead to the file's page."
_UNPACK = "Unpack it ({command}), and use the file in it."
_DECOMPRESS = "Decompress it: {command}"
_TO_TEXT = "Save its table as CSV in UTF-8."
_TO_PARQUET = (
    'Convert it to Parquet: python -c "import sys, pyarrow as pa, pyarrow.parquet as pq;'
    " pq.write_table(pa.ipc.{opener}(sys.argv[1]).read_all(), sys.argv[1] + '.parquet')\" {path}"
)
_ORIGINAL = "Use the model's original weights in float32, float16 or bfloat16 (.safetensors)."
_NO_DATA = "Use a file of rows (JSONL, CSV or Parquet), or of weights (.safetensors or .pth)."

# First bytes, short name, description, remedy. The first match counts, so UTF-32 is before UTF-16:
# its little-endian mark begins with that of UTF-16.
_MAGICS: tuple[tuple[bytes, str, str, str], ...] = (
    (b"BZh", "bzip2", "compressed by bzip2", _DECOMPRESS.format(command="bunzip2 -k {path}")),
    (b"\xfd7zXZ\0", "xz", "compressed by xz", _DECOMPRESS.format(command="xz -dk {path}")),
    (b"]\0\0", "lzma", "compressed by lzma", _DECOMPRESS.format(command="xz -dk {path}")),
    (b"LZIP", "lzip", "compressed by lzip", _DECOMPRESS.format(command="lzip -dk {path}")),
    (b"\x04\x22\x4d\x18", "lz4", "compressed by lz4", _DECOMPRESS.format(command="lz4 -d {path}")),
    (b"\xff\x06\0\0sNaPpY", "snappy", "compressed by snappy", "Decompress it with snappy."),
    (b"\x1f\x9d", "compress", "compressed by compress", "Decompress it: uncompress {path}"),
    (b"\x1f\x8b", "gzip", "compressed by gzip", _DECOMPRESS.format(command="gunzip -k {path}")),
    (b"\x28\xb5\x2f\xfd", "zstd", "compressed by zstd", "Decompress it: unzstd {path}"),
    (b"7z\xbc\xaf\x27\x1c", "7z", "a 7z archive", _UNPACK.format(command="7z x {path}")),
    (b"Rar!\x1a\x07", "rar", "a RAR archive", _UNPACK.format(command="unrar x {path}")),
    (b"PK\x05\x06", "zip", "an empty zip archive", _DOWNLOAD),
    (b"PAR1", "parquet", "a Parquet file of rows", _NO_DATA),
    (b"ARROW1", "arrow", "an Arrow file", _TO_PARQUET.replace("{opener}", "open_file")),
    (b"FEA1", "arrow", "a Feather file", "Convert it to Parquet or JSONL."),
    (b"SQLite format 3\0", "sqlite", "an SQLite database", "Export its table as CSV or JSON."),
    (b"\x89HDF\r\n\x1a\n", "hdf5", "an HDF5 file", _NO_DATA),
    (b"Obj\x01", "avro", "an Avro file", "Convert it to Parquet or JSONL."),
    (b"\x93NUMPY", "numpy", "a NumPy array", _NO_DATA),
    (b"%PDF-", "pdf", "a PDF document", _NO_DATA),
    (b"{\\rtf", "rtf", "an RTF document", "Save it as plain text in UTF-8."),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "office", "an old Office document", _TO_TEXT),
    (b"GGUF", "gguf", "a GGUF file, mostly quantized, for inference only", _ORIGINAL),
    (b"\x89PNG\r\n", "image", "an image", _NO_DATA),
    (b"\xff\xd8\xff", "image", "an image", _NO_DATA),
    (b"\0GITCRYPT\0", "git-crypt", "encrypted by git-crypt", "Run git-crypt unlock there."),
    (b"-----BEGIN PGP", "pgp", "encrypted by PGP", "Decrypt it: gpg -d {path}"),
    (b"\0\0\xfe\xff", "utf-32", "text in UTF-32", "{utf}"),
    (b"\xff\xfe\0\0", "utf-32", "text in UTF-32", "{utf}"),
    (b"\xff\xfe", "utf-16", "text in UTF-16", "{utf}"),
    (b"\xfe\xff", "utf-16", "text in UTF-16", "{utf}"),
)
_POINTERS: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (
        re.compile(rb"version https://(git-lfs\.github|hawser\.github)\.com/spec/"),
        "a Git LFS pointer, not the file itself",
        "Run git lfs pull in its repository, or download the file itself.",
    ),
    (
        re.compile(rb"# xet version "),
        "a Xet pointer, not the file itself",
        "Run git xet checkout in its repository, or download the file itself.",
    ),
    (
        re.compile(rb"(\S*/)?annex/objects/\S+\s*\Z"),
        "a git-annex pointer, not the file itself",
        "Run git annex get {path} in its repository.",
    ),
    (
        re.compile(rb"(wdir:[^\n]*\n)?(md5: [0-9a-f]{32}\n|outs:\s*\n\s*- +(md5|hash|size|path):)"),
        "a DVC pointer, not the file itself",
        "Run dvc pull {path} in its repository, and use the file that it fetches.",
    ),
)
_TITLE = re.compile(rb"<title[^>]*>\s*([^<]+)", re.IGNORECASE)
_MESSAGE = re.compile(rb"<(?:message|code)>\s*([^<]+)", re.IGNORECASE)
_HTML = re.compile(rb"<(!doctype\s+html|html|head|body|script|meta|title)\b", re.IGNORECASE)
_MARKUP_STARTS = (b"<!doctype", b"<html", b"<head", b"<body", b"<script", b"<meta", b"<title")


def read_head(path: Path) -> bytes:
    """Return the first bytes of a file.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def recognize(head: bytes) -> Signature | None:
    """Recognize a file by its first bytes; None for plain text in UTF-8 and unknown kinds.

    Args:
        head: the first `HEAD_BYTES` bytes, or the whole file if it is shorter.
    """
    for pattern, what, remedy in _POINTERS:
        if pattern.match(head):
            return Signature("pointer", what, remedy)
    if head[_TAR_MAGIC] == b"ustar":
        what = f"a tar archive of files (the first is {_shown(head[_TAR_NAME].rstrip(bytes(1)))})"
        return Signature("tar", what, _UNPACK.format(command="tar xf {path}"))
    if head.startswith(b"PK\x03\x04"):
        return _zip(head)
    if head.startswith(b"\xff\xff\xff\xff") and len(head) > 8:
        remedy = _TO_PARQUET.replace("{opener}", "open_stream")
        return Signature("arrow", "an Arrow stream", remedy)
    for magic, name, what, remedy in _MAGICS:
        if head.startswith(magic):
            return Signature(name, what, remedy.replace("{utf}", _recoded(name.upper())))
    if head.startswith(b"\x80") and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return Signature("pickle", "a Python pickle, which may run code", _NO_DATA)
    if head[8:9] == b"{" and head[6:8] == bytes(2):  # length of the header, little-endian
        return Signature("safetensors", "a safetensors file of weights", _NO_DATA)
    if head and not head.strip(bytes(1)):
        return Signature("zeros", "filled with zero bytes: a copy was interrupted", _DOWNLOAD)
    return _markup(head) or _wide_text(head)


def refuse(path: Path, head: bytes, accepted: tuple[str, ...] = ()) -> None:
    """Raise the error for a recognized file, unless its kind is accepted.

    Args:
        path: the file, for the message.
        head: see `recognize`.
        accepted: names of kinds to accept.

    Raises:
        DpoError: the file is of another kind.
    """
    found = recognize(head)
    if found is not None and found.name not in accepted:
        raise found.error(path)


def recognize_folder(path: Path) -> Signature | None:
    """Recognize a folder that a library saved in a form that is not read."""
    splits = path / "dataset_dict.json"
    if splits.is_file():
        names = _split_names(splits)
        first = names[0] if names else "train"
        what = f"a saved DatasetDict ({', '.join(names) or 'no split'})"
        return Signature("dataset-dict", what, _to_parquet(f"[{first!r}]", f"-{first}"))
    if (path / "state.json").is_file() and any(path.glob("*.arrow")):
        return Signature("dataset", "a Dataset saved by save_to_disk", _to_parquet("", ""))
    return None


def _to_parquet(split: str, ending: str) -> str:
    return (
        'Convert it to Parquet: python -c "import sys, datasets;'
        f" datasets.load_from_disk(sys.argv[1]){split}.to_parquet(sys.argv[1] +"
        f" '{ending}.parquet')\" {{path}}"
    )


def _split_names(path: Path) -> list[str]:
    try:
        splits = json.loads(path.read_bytes())["splits"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in splits if re.fullmatch(r"[\w-]+", str(name))]


def _recoded(encoding: str) -> str:
    return f"Save it as UTF-8: iconv -f {encoding} -t UTF-8 {{path}} > {{path}}.utf8"


def _zip(head: bytes) -> Signature:
    """Distinguish zip archives by the name of their first file."""
    length = int.from_bytes(head[_ZIP_NAME_LENGTH], "little")
    name = head[_ZIP_NAME : _ZIP_NAME + length]
    if name.endswith((b"/data.pkl", b"/.format_version", b"/.data/serialization_id", b"/version")):
        return Signature("torch", "a PyTorch file of weights", _NO_DATA)
    if name.endswith(b".npy"):
        return Signature("numpy", "an archive of NumPy arrays", _NO_DATA)
    if name == b"[Content_Types].xml" or name.startswith((b"xl/", b"_rels/", b"docProps/")):
        return Signature("office", "an Excel workbook or other Office document", _TO_TEXT)
    what = f"a zip archive (the first file is {_shown(name)})"
    return Signature("zip", what, _UNPACK.format(command="unzip {path}"))


def _markup(head: bytes) -> Signature | None:
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    lowered = text[:16].lower()
    if lowered.startswith((b"<?xml", b"<error")) and not _HTML.search(text):
        found = _MESSAGE.search(text)
        said = f' ("{_shown(found[1])}")' if found else ""
        return Signature("xml", f"an XML document{said}", _DOWNLOAD)
    is_page = lowered.startswith(_MARKUP_STARTS)
    if is_page or (lowered.startswith((b"<?xml", b"<!--")) and _HTML.search(text)):
        found = _TITLE.search(text)
        said = f' ("{_shown(found[1])}")' if found else ""
        return Signature("html", f"a web page{said}, not the file itself", _DOWNLOAD)
    return None


def _wide_text(head: bytes) -> Signature | None:
    """Recognize UTF-16 and UTF-32 without a byte order mark: ASCII characters with zero bytes."""
    start = head[:4]
    for encoding, zeros in (
        ("UTF-32LE", (1, 2, 3)),
        ("UTF-32BE", (0, 1, 2)),
        ("UTF-16LE", (1, 3)),
        ("UTF-16BE", (0, 2)),
    ):
        if len(start) == 4 and all((start[at] == 0) == (at in zeros) for at in range(4)):
            name = encoding[:6]
            return Signature(name.lower(), f"text in {name}", _recoded(encoding))
    return None


def _shown(text: bytes) -> str:
    """Return a name or a title in one short printable line."""
    line = " ".join(html.unescape(text.decode("utf-8", errors="replace")).split())
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= _MAX_SHOWN else line[: _MAX_SHOWN - 3] + "..."

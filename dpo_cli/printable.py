"""Text that is safe to print: without control characters, bidirectional overrides and surrogates.

Names of files and runs, error texts, data and answers of models come from outside. Printed as they
are, they could move the cursor, change colors, set the window title or reverse the reading order.
All output of `dpo` passes one of the functions below: `dpo_cli/ui/terminal/console.py` applies them
to the terminal, `dpo_cli/ui/html/markup.py` to HTML and SVG.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
import unicodedata

_TAB = " " * 4
_CONTROL_PICTURES = 0x2400  # first Unicode sign for a control character, for example ␛
_REPLACEMENT = "\ufffd"
_PLAIN = re.compile(r"[\n -~\u00a0-\u00ac\u00ae-\u05ff\u2010-\u2027\u2190-\ud7ff]*")
"""Text without any unsafe character; a fast path for the common scripts."""
DEGRADE = "dpo_degrade"
"""Name of the handler of encoding errors that replaces what an encoding lacks."""
_ASCII = {
    **dict.fromkeys("─━═┄┈╌–—‐‑−", "-"),
    **dict.fromkeys("│┃║┆┊╎", "|"),
    **dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼╞╡╪┏┓┗┛┠┨┯┷╷╵╶╴", "+"),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys("•·●○◆▪", "*"),
    "…": ".",
    "→": ">",
    "←": "<",
    "×": "x",
}


def printable(text: str) -> str:
    """Make a text from outside safe to print; newlines are kept.

    Control characters below 32 are replaced by their Unicode signs and surrogates by U+FFFD. The
    other control characters and invisible ones, such as the right-to-left override, are removed.
    """
    if _PLAIN.fullmatch(text):
        return text
    return "".join(map(_printable, text))


def one_line(text: str) -> str:
    """Make a text from outside safe to print on one line; white space becomes single spaces."""
    return " ".join(printable(" ".join(text.split())).split())


def escape_json(text: str) -> str:
    r"""Replace the unsafe characters inside the strings of a JSON text by \u escapes."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(c if c == "\n" or _printable(c) == c else json.dumps(c)[1:-1] for c in text)


def escape_toml(text: str) -> str:
    r"""Replace the unsafe characters inside the strings of a TOML text by \U escapes."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(c if c in "\t\n" or _printable(c) == c else f"\\U{ord(c):08x}" for c in text)


def degrade_streams() -> None:
    """Let standard output and error replace what their encoding lacks, instead of failing.

    On a terminal in ASCII or Latin-1, lines of frames become +, - and |, other characters "?".
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a closed stream is None
        if reconfigure is not None:
            reconfigure(errors=DEGRADE)


def _printable(character: str) -> str:
    if character == "\t":
        return _TAB
    category = unicodedata.category(character)
    if category == "Cs" or ord(character) & 0xFFFE == 0xFFFE:  # XML has no U+FFFE and U+FFFF
        return _REPLACEMENT
    if character == "\n" or category not in ("Cc", "Cf", "Zl", "Zp"):
        return character
    return chr(_CONTROL_PICTURES + ord(character)) if ord(character) < 32 else ""


def _degrade(error: UnicodeError) -> tuple[str, int]:
    """Replace the characters that an encoding lacks, one for each terminal cell."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_in_ascii, error.object[error.start : error.end])), error.end


def _in_ascii(character: str) -> str:
    if known := _ASCII.get(character):
        return known
    if "\u2800" <= character <= "\u28ff":  # braille dots of a plot; the first has no dot
        return " " if character == "\u2800" else "*"
    if "\u2580" <= character <= "\u259f":  # blocks of a bar
        return "#"
    return "??" if unicodedata.east_asian_width(character) in "WF" else "?"


codecs.register_error(DEGRADE, _degrade)

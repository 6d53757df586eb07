"""Makes text that a model, a checkpoint or a file wrote safe to print: no control sequence reaches the terminal."""

from __future__ import annotations

import unicodedata

# Characters that turn the reading direction of everything after them.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


def escape(character: str) -> str:
    r"""A character as an escape: \x1b, \u202e."""
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def safe(text: str) -> str:
    """Running text with its lines and tabs, every other control character and every bidi mark escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(escape(each) if _is_control(each) else each for each in text)


def safe_line(text: str) -> str:
    """Text for one line: line breaks and tabs escaped too."""
    return safe(text).replace("\n", "\\n").replace("\t", "\\t")


def _is_control(character: str) -> bool:
    if character in "\n\t":
        return False
    return unicodedata.category(character) == "Cc" or character in _BIDI or character in "\u2028\u2029"


def is_unseen(character: str) -> bool:
    """Whether a character shows nothing of itself: controls, joiners, private use, the unassigned."""
    return unicodedata.category(character) in _UNSEEN


def is_combining(character: str) -> bool:
    """Whether a character sits upon the one before it."""
    return unicodedata.category(character) in ("Mn", "Me")

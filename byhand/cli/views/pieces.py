"""One token's piece as it is shown: white space made visible, raw bytes as hex, specials quiet."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, takewhile
from unicodedata import east_asian_width

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from byhand.cli.views.safe import escape, is_combining, is_unseen, safe, safe_line
from byhand.cli.views.terminal import QUIET, Glyphs
from byhand.types import Token

REPLACEMENT = "\ufffd"


def hex_bytes(data: bytes) -> str:
    """Bytes as hex pairs: "e2 80 a6"."""
    return data.hex(" ")


def is_raw(token: Token) -> bool:
    """Whether the token is a part of a character only, so that its bytes say more than its text."""
    return REPLACEMENT in token.text and REPLACEMENT.encode() not in token.bytes


def piece(token: Token, marks: Glyphs, style: Style | None = None) -> Text:
    """A token's piece on one line."""
    if token.special:
        return Text(safe_line(token.text) or f"[{token.id}]", style=QUIET, no_wrap=True, end="")
    if is_raw(token):
        return Text(f"<{hex_bytes(token.bytes)}>", style=style or QUIET, no_wrap=True, end="")
    text = Text("", style=style or "", no_wrap=True, end="")
    for place, character in enumerate(token.text):
        shown, quiet = _shown(character, place == 0, marks)
        text.append(shown, style=QUIET if quiet else None)
    return text if token.text else Text(f"<id {token.id}>", style=QUIET, no_wrap=True, end="")


def _shown(character: str, is_first: bool, marks: Glyphs) -> tuple[str, bool]:
    """How a character is shown, and whether quietly."""
    marked = {" ": marks.space, "\n": marks.newline, "\t": marks.tab}.get(character)
    if marked is not None:
        return marked, True
    if is_unseen(character) or (character.isspace() and character != "\u3000"):
        return escape(character), True
    if is_first and is_combining(character):
        return (marks.circle + character, False) if marks.circle else (escape(character), True)
    return character, False


def plain_piece(token: Token, marks: Glyphs) -> str:
    """The same piece without colours."""
    return piece(token, marks).plain


def columns(text: str) -> int:
    """The columns that a text takes at most: joined emoji are counted apart, as many terminals show them."""
    if text.isascii():
        return len(text)
    return sum(2 if east_asian_width(character) in "WF" else cell_len(character) for character in text)


def _count_that_fits(text: Iterable[str], width: int) -> int:
    """How many characters of a text fit into `width` columns."""
    sizes = accumulate(map(columns, text))
    return sum(1 for _ in takewhile(lambda size: size <= width, sizes))


def fit(text: Text, width: int, marks: Glyphs) -> Text:
    """Exactly `width` columns: padded on the right, or cut with a sign of more."""
    size = columns(text.plain)
    if size > width:
        text = text[: _count_that_fits(text.plain, width - len(marks.more))]
        text.append(marks.more, style=QUIET)
        size = columns(text.plain)
    return text if size == width else Text.assemble(text, " " * (width - size), no_wrap=True, end="")


def fit_start(text: str, width: int, marks: Glyphs) -> str:
    """At most `width` columns of the text's start."""
    if columns(text) <= width:
        return text
    return text[: _count_that_fits(text, width - len(marks.more))].rstrip() + marks.more


def fit_end(text: str, width: int, marks: Glyphs) -> str:
    """At most `width` columns of the text's END, with a sign of more before it."""
    if columns(text) <= width:
        return text
    return marks.more + text[len(text) - _count_that_fits(reversed(text), width - len(marks.more)) :]


def text_of(tokens: Iterable[Token]) -> str:
    """The text of tokens together: characters that were split between them are whole again."""
    return b"".join(token.bytes for token in tokens).decode(errors="replace")


def one_line(text: str, marks: Glyphs) -> str:
    """Running text on one line."""
    return safe(text.replace("\n", marks.newline).replace("\t", marks.tab))


def quoted(text: str) -> str:
    """A text in quotation marks, on one line and safe."""
    return f'"{safe_line(text)}"'

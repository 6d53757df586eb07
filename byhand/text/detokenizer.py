"""Turns token ids into text as they come: never half a character, never a lost or an invented space.

    ByteLevelText      bytes collect until they make a character
    ByteFallbackText   a row of byte pieces collects until it ends, for it stands or falls as a whole
    WholeText          any other decoder: decode everything again and show what is new (slow, and right)
    Detokenizer        ids in, text out

Whatever is pushed and flushed, joined, is what `Tokenizer.decode` says of all the ids.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from copy import copy
from typing import TYPE_CHECKING, Protocol, Self

from byhand.text.spelling import ByteFallback, ByteLevel, Other, Spelling

if TYPE_CHECKING:
    from byhand.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"


class GrowingText(Protocol):
    """A text that grows by one piece at a time."""

    def push(self, piece: str) -> str:
        """Take one piece; the text that no later piece can change any more."""
        ...

    @property
    def held(self) -> str:
        """The text still held back, as it reads if nothing follows."""
        ...

    def release(self) -> str:
        """Give out what is held."""
        ...

    def copy(self) -> Self:
        """One more of the same, to grow on its own."""
        ...


class ByteLevelText:
    """Pieces are bytes: those of an unfinished character (three at most) wait."""

    def __init__(self, spelling: ByteLevel) -> None:
        self.spelling = spelling
        self.unfinished = b""

    def push(self, piece: str) -> str:
        """Take one piece; the characters that are now finished, broken ones as U+FFFD."""
        data = self.unfinished + self.spelling.bytes_of(piece)
        text, used = codecs.utf_8_decode(data, "replace", False)
        self.unfinished = data[used:]
        return text

    @property
    def held(self) -> str:
        """The unfinished character, as U+FFFD."""
        return self.unfinished.decode(errors="replace")

    def release(self) -> str:
        """Give out what is held."""
        held, self.unfinished = self.held, b""
        return held

    def copy(self) -> Self:
        """One more of the same: it holds nothing but values."""
        return copy(self)


class ByteFallbackText:
    """Pieces are text or single bytes, and one broken byte turns its whole row of bytes into U+FFFD, each by each.

    So a row's characters are safe only when the row has ended, or is known to be broken.
    """

    def __init__(self, spelling: ByteFallback) -> None:
        self.spelling = spelling
        self.to_strip = spelling.stripped
        self._start_row()

    def push(self, piece: str) -> str:
        """Take one piece; the text that is now certain."""
        byte = self.spelling.byte_of(piece)
        if byte is not None:
            return self._strip(self._take_byte(byte))
        return self.release() + self._strip(self.spelling.text_of(piece))

    @property
    def held(self) -> str:
        """The row of bytes so far, as it reads if it ends here."""
        return copy(self)._strip(self._row_text())

    def release(self) -> str:
        """End the row of bytes and give it out."""
        text = self._strip(self._row_text())
        self._start_row()
        return text

    def copy(self) -> Self:
        """One more of the same: it holds nothing but values."""
        return copy(self)

    def _start_row(self) -> None:
        self.characters = ""
        self.unfinished = b""
        self.row_bytes = 0
        self.is_broken = False

    def _row_text(self) -> str:
        return REPLACEMENT * self.row_bytes if self.unfinished else self.characters

    def _take_byte(self, byte: int) -> str:
        if self.is_broken:
            return REPLACEMENT
        self.row_bytes += 1
        data = self.unfinished + bytes([byte])
        try:
            text, used = codecs.utf_8_decode(data, "strict", False)
        except UnicodeDecodeError:
            return self._break_row()
        self.characters += text
        self.unfinished = data[used:]
        return ""

    def _break_row(self) -> str:
        text = REPLACEMENT * self.row_bytes
        self._start_row()
        self.is_broken = True
        return text

    def _strip(self, text: str) -> str:
        """Take the spaces in front of the whole text away, as many as the encoder put there."""
        while self.to_strip and text.startswith(" "):
            text = text[1:]
            self.to_strip -= 1
        if text:
            self.to_strip = 0
        return text


class WholeText:
    """The general way: all pieces are decoded again at every push, which costs time with the text's length.

    Exact for every decoder that does not rewrite what it has written.
    """

    def __init__(self, spelling: Other) -> None:
        self.spelling = spelling
        self.pieces: list[str] = []
        self.shown = 0

    def push(self, piece: str) -> str:
        """Take one piece; the new text, unless its last character may be unfinished."""
        self.pieces.append(piece)
        held = self.held
        if held.endswith(REPLACEMENT) or (piece.startswith("<0x") and piece.endswith(">")):
            return ""
        self.shown += len(held)
        return held

    @property
    def held(self) -> str:
        """The text beyond what was shown."""
        return self.spelling.decode(self.pieces)[self.shown :] if self.pieces else ""

    def release(self) -> str:
        """Give out what is held."""
        held = self.held
        self.shown += len(held)
        return held

    def copy(self) -> Self:
        """One more of the same, with a list of its own."""
        other = copy(self)
        other.pieces = self.pieces.copy()
        return other


def growing_text(spelling: Spelling) -> GrowingText:
    """An empty text in this spelling."""
    match spelling:
        case ByteLevel():
            return ByteLevelText(spelling)
        case ByteFallback():
            return ByteFallbackText(spelling)
        case Other():
            return WholeText(spelling)


class Detokenizer:
    """Text from ids, one at a time. `context_ids` were read before: they shape the text but are not in it."""

    def __init__(
        self, tokenizer: Tokenizer, context_ids: Iterable[int] = (), *, skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._text = growing_text(tokenizer.spelling)
        self._before = 0  # characters of the context that are still held
        for token_id in context_ids:
            self.push(token_id)
        # A whole character is the context's, though it waits with its row; one that is cut off becomes whole after it.
        self._before = len(self._text.held.rstrip(REPLACEMENT))

    def push(self, token_id: int) -> str:
        """Take one id; the text newly safe to show."""
        piece = None if token_id in self._skipped else self._tokenizer.piece(token_id)
        if piece is None:
            return ""
        text = self._text.push(piece)
        return self._without_context(text) if self._before else text

    @property
    def held(self) -> str:
        """What `flush` would give now: a stop string may already be complete in it."""
        return self._text.held[self._before :]

    def flush(self) -> str:
        """The rest at the end of a run: unfinished bytes as U+FFFD."""
        return self._without_context(self._text.release())

    def copy(self) -> Detokenizer:
        """A detokenizer at the same place, for a fork."""
        other = copy(self)
        other._text = self._text.copy()
        return other

    def _without_context(self, text: str) -> str:
        known, self._before = self._before, max(0, self._before - len(text))
        return text[known:]

"""How a vocabulary spells text: the bytes behind a piece, and the pieces that could spell a text.

A piece is a vocabulary entry as it is written there: "Ġred" (GPT-2), "▁red" or "<0x0A>" (Llama 2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Decoder(Protocol):
    """What the tokenizers library calls a decoder: pieces in, text out."""

    def decode(self, tokens: list[str]) -> str:
        """The text of these pieces."""
        ...


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each of the 256 bytes: itself where it prints, else one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {byte: chr(byte) for byte in printable}
    hidden = [byte for byte in range(256) if byte not in alphabet]
    return alphabet | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


_CHARACTER_OF = byte_alphabet()
_BYTE_OF = {character: byte for byte, character in _CHARACTER_OF.items()}


class ByteLevel:
    """Byte-level BPE (GPT-2, OPT, Llama 3, Qwen): every character of a piece stands for one byte."""

    def bytes_of(self, piece: str) -> bytes:
        """The bytes a piece stands for; a piece written outside the alphabet (an added token) stands for itself."""
        try:
            return bytes(map(_BYTE_OF.__getitem__, piece))
        except KeyError:
            return piece.encode()

    def pieces_of(self, text: str) -> list[str]:
        """The piece that would spell exactly this text."""
        return ["".join(_CHARACTER_OF[byte] for byte in text.encode())]


@dataclass(frozen=True, slots=True)
class ByteFallback:
    """SentencePiece-style BPE (Llama 2, Mistral, Phi-3): "▁" is a space, "<0x0A>" a byte that has no piece."""

    space: str = "▁"
    has_bytes: bool = True
    stripped: int = 0  # spaces taken from the front of a whole text, where encoding has put one

    def byte_of(self, piece: str) -> int | None:
        """The byte a piece like "<0x0A>" stands for, None for any other piece."""
        match = _BYTE_PIECE.fullmatch(piece) if self.has_bytes else None
        return int(match[1], 16) if match else None

    def text_of(self, piece: str) -> str:
        """The text of a piece that is no byte."""
        return piece.replace(self.space, " ")

    def bytes_of(self, piece: str) -> bytes:
        """The bytes a piece stands for."""
        byte = self.byte_of(piece)
        return self.text_of(piece).encode() if byte is None else bytes([byte])

    def pieces_of(self, text: str) -> list[str]:
        """The piece that would spell exactly this text."""
        return [text.replace(" ", self.space)]


@dataclass(frozen=True, slots=True)
class Other:
    """Any other way of spelling (WordPiece, Metaspace, ...): only the decoder itself knows it."""

    decoder: Decoder | None

    def decode(self, pieces: list[str]) -> str:
        """The text of these pieces as the tokenizers library gives it."""
        return self.decoder.decode(pieces) if self.decoder else " ".join(pieces)

    def bytes_of(self, piece: str) -> bytes:
        """The bytes a piece adds in the middle of a text."""
        before = self.decode(["a"])
        return self.decode(["a", piece])[len(before) :].encode()

    def pieces_of(self, text: str) -> list[str]:
        """No piece can be told from a text alone."""
        return []


Spelling = ByteLevel | ByteFallback | Other


def spelling_of(state: Mapping[str, Any] | None, decoder: Decoder | None) -> Spelling:
    """Recognise a decoder by its description in tokenizer.json; what is not recognised goes the general way."""
    steps = _steps(state)
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return ByteLevel()
    return _byte_fallback(steps) or Other(decoder)


def _steps(state: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if state is None:
        return []
    return list(state["decoders"]) if state["type"] == "Sequence" else [state]


def _byte_fallback(steps: list[Mapping[str, Any]]) -> ByteFallback | None:
    """Replace "▁" by a space, ByteFallback, Fuse, and perhaps Strip at the front: in this order and nothing else."""
    match [step["type"] for step in steps]:
        case ["Replace", "ByteFallback", "Fuse", *rest] if rest in ([], ["Strip"]):
            space = steps[0]["pattern"].get("String")
            stripped = steps[3]["start"] if rest else 0
            plain = not rest or (steps[3]["content"] == " " and steps[3]["stop"] == 0)
            if space and steps[0]["content"] == " " and plain:
                return ByteFallback(space=space, stripped=stripped)
    return None

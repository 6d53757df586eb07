"""How many tokens a text has at least, told from its length: what cannot fit is refused before it is encoded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal
from unicodedata import is_normalized

import tokenizers
from tokenizers import models

from byhand.text.spelling import byte_alphabet

State = Mapping[str, Any]

NO_TEXT = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that UTF-8 never has
Form = Literal["NFC", "NFKC"]

COMPOSING = ("NFC", "NFKC")
COMPOSED = 4  # code points that one composed character may stand for: U+1F82 is four
GROWING = ("Prepend", "Lowercase", "NFD", "NFKD", "ByteLevel")  # normalizers after which a text is no shorter
KEEPING = ("ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "FixedLength")  # pre-tokenizers that drop nothing
CUTTING = ("Split", "Punctuation")  # those that drop something only where they are told to


@dataclass(frozen=True, slots=True)
class Reach:
    """What one token stands for at most: so many characters, beside any white space where tokens take that too.

    `form`: characters are first composed into this one, NFC or NFKC.
    """

    characters: int
    takes_space: bool
    form: Form | None

    def fewest(self, text: str) -> int:
        """The tokens that a text has at least."""
        length = sum(map(len, text.split())) if self.takes_space else len(text)
        composed = self.form is None or is_normalized(self.form, text)
        return -(-length // (self.characters if composed else self.characters * COMPOSED))


def part_state(part: Any) -> dict[str, Any] | None:
    """A part of a tokenizer as tokenizer.json describes it."""
    if part is None:
        return None
    state: dict[str, Any] = json.loads(part.__getstate__())
    return state


def parts_of(state: State) -> list[dict[str, Any]]:
    """What a normalizer or pre-tokenizer is made of."""
    return list(state.get("normalizers") or state.get("pretokenizers") or [])


def longest_piece(backend: tokenizers.Tokenizer) -> int:
    """Characters of the longest entry of a vocabulary, added tokens included."""
    return max(map(len, backend.get_vocab()), default=0)


def reach_of(backend: tokenizers.Tokenizer) -> Reach | None:
    """What one token stands for at most; None where a tokenizer may drop text, or have one for much that is unknown.

    Only what is known to be so counts: an entry of the vocabulary is no shorter than the text it stands for where
    every byte has one, and nothing on the way from text to pieces drops anything.
    """
    changes, words = _steps(part_state(backend.normalizer)), part_state(backend.pre_tokenizer)
    form: Form | None = changes[0]["type"] if changes and changes[0]["type"] in COMPOSING else None
    shrinks = _shrinks({"type": "Sequence", "normalizers": changes[1:] if form else changes})
    if shrinks is None or not _keeps_all(words) or not _spells_all(backend, [*changes, *_steps(words)]):
        return None
    added = backend.get_added_tokens_decoder().values()
    normalize = backend.normalizer.normalize_str if backend.normalizer else str
    longest = max(longest_piece(backend), *(len(normalize(token.content)) for token in added), 1)
    return Reach(longest * shrinks, any(token.lstrip or token.rstrip for token in added), form)


def _steps(state: State | None) -> Sequence[State]:
    """What a normalizer or pre-tokenizer does, one after another."""
    if state is None:
        return []
    return parts_of(state) if state["type"] == "Sequence" else [state]


def _shrinks(state: State) -> int | None:
    """Characters of a text that may become one by normalizing; None where it has no bound."""
    if state["type"] == "Sequence":
        each = [_shrinks(part) for part in parts_of(state)]
        return None if None in each else prod(each)  # type: ignore[arg-type]
    if state["type"] in COMPOSING:
        return COMPOSED
    if state["type"] == "Replace":
        pattern, content = state["pattern"].get("String"), state["content"]
        return -(-len(pattern) // len(content)) if pattern and content else None
    return 1 if state["type"] in GROWING else None


def _keeps_all(state: State | None) -> bool:
    """Whether a pre-tokenizer drops nothing of a text."""
    if state is None or state["type"] in KEEPING:
        return True
    if state["type"] == "Sequence":
        return all(map(_keeps_all, parts_of(state)))
    return state["type"] in CUTTING and state["behavior"] != "Removed"


def _spells_all(backend: tokenizers.Tokenizer, steps: Sequence[State]) -> bool:
    """Whether every byte has an entry of its own, so that no text is unknown."""
    model = backend.model
    if not isinstance(model, models.BPE):
        return False
    if any(step["type"] == "ByteLevel" for step in steps):
        spelled = [letter for byte, letter in byte_alphabet().items() if byte not in NO_TEXT]
    elif model.byte_fallback:
        spelled = [f"<0x{byte:02X}>" for byte in range(256) if byte not in NO_TEXT]
    else:
        return False
    return all(backend.token_to_id(piece) is not None for piece in spelled)

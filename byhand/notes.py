"""What people are told while they wait: notes are plain sentences, and some of them say how far a long work is."""

from __future__ import annotations


class Progress(str):
    """A note that may take the place of the Progress before it; the last one says that the work is done."""

    __slots__ = ("is_last",)

    is_last: bool

    @classmethod
    def of(cls, sentence: str, *, is_last: bool = False) -> Progress:
        """A sentence, and whether it is the last."""
        note = cls(sentence)
        note.is_last = is_last
        return note

"""Stop strings in a growing text: found wherever the tokens' borders fall, and nothing shown too early.

The match that ENDS first wins, for a run stops there; of several that end at the same character, the
longest. So the answer does not depend on how the text was cut into tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from byhand.errors import BadRequest


def borders(word: str) -> list[int]:
    """For every prefix of `word`, how long its longest proper prefix is that is also its suffix (Knuth-Morris-Pratt).

    It is where a search goes on after a mismatch: in "aaab", "aab" is found although "aa" was read twice.
    """
    lengths = [0] * len(word)
    for end in range(1, len(word)):
        lengths[end] = advance(word, lengths, lengths[end - 1], word[end])
    return lengths


def advance(word: str, lengths: Sequence[int], matched: int, character: str) -> int:
    """How much of `word` is matched after one more character, when `matched` of it was before."""
    while matched and (matched == len(word) or word[matched] != character):
        matched = lengths[matched - 1]
    return matched + 1 if word[matched] == character else 0


def check_stops(stops: Sequence[str]) -> tuple[str, ...]:
    """The stop strings, or an error that names the one that is none."""
    if isinstance(stops, str):
        return check_stops([stops])
    for place, stop in enumerate(stops):
        if not isinstance(stop, str) or not stop:
            raise BadRequest(f"stop[{place}] is {stop!r}; a stop string is text and not empty", param="stop")
    return tuple(stops)


class StopStrings:
    """Holds back only what could still become a stop string. `matched` is the one found, or None."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = check_stops(stops)
        self.matched: str | None = None
        self._borders = tuple(tuple(borders(stop)) for stop in self.stops)
        self._lengths = (0,) * len(self.stops)  # of each stop, how much the end of the text matches
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text: what is safe to show of it, and the stop string found. After a stop nothing is shown."""
        if not self.stops:
            return text, None
        if self.matched is not None:
            return "", self.matched
        for end, character in enumerate(text, start=1):
            self._advance(character)
            if self.matched is not None:
                seen = self._held + text[:end]
                self._held = ""
                return seen[: -len(self.matched)], self.matched
        return self._show(self._held + text), None

    def flush(self) -> str:
        """The text held back, when nothing more comes; a new search begins after it."""
        held, self._held = self._held, ""
        self._lengths = (0,) * len(self.stops)
        return held

    def copy(self) -> StopStrings:
        """One more at the same place, for a fork: it holds nothing but values."""
        return copy(self)

    def _advance(self, character: str) -> None:
        self._lengths = tuple(
            advance(stop, lengths, matched, character)
            for stop, lengths, matched in zip(self.stops, self._borders, self._lengths, strict=True)
        )
        found = [stop for stop, length in zip(self.stops, self._lengths, strict=True) if length == len(stop)]
        self.matched = max(found, key=len, default=None)

    def _show(self, seen: str) -> str:
        safe = len(seen) - max(self._lengths, default=0)
        self._held = seen[safe:]
        return seen[:safe]

"""Stop strings in a growing text: found wherever the tokens' borders fall, and nothing shown too early.

The match that ENDS first wins, for a run stops there; of several that end at the same character, the
longest. So the answer does not depend on how the text was cut into tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import compress

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
    """Holds back only what could still become a stop string. `matched` is the one found, or None.

    What is searched is the text as it is written: a special token counts with its name, though it is not shown.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = check_stops(stops)
        self.matched: str | None = None
        self._borders = tuple(tuple(borders(stop)) for stop in self.stops)
        self._lengths = (0,) * len(self.stops)  # of each stop, how much the end of the text matches
        self._held = ""
        self._shown = b""  # for each character held, whether it is to be shown

    def push(self, text: str, *, hidden: bool = False, ends: bool = True) -> tuple[str, str | None]:
        """Take more text: what is safe to show of it, and the stop string found. After a stop nothing is shown.

        hidden: the text counts for the search alone. Without `ends`, a stop string that is complete in it is passed by.
        """
        if not self.stops:
            return "" if hidden else text, None
        if self.matched is not None:
            return "", self.matched
        for end, character in enumerate(text, start=1):
            self._advance(character, ends)
            if self.matched is not None:
                self._hold(text[:end], hidden)
                shown = self._give(len(self._held) - len(self.matched))
                self._held, self._shown = "", b""
                return shown, self.matched
        self._hold(text, hidden)
        return self._give(len(self._held) - max(self._lengths)), None

    def flush(self) -> str:
        """The text held back, when nothing more comes; a new search begins after it."""
        self._lengths = (0,) * len(self.stops)
        return self._give(len(self._held))

    def copy(self) -> StopStrings:
        """One more at the same place, for a fork: it holds nothing but values."""
        return copy(self)

    def _advance(self, character: str, ends: bool) -> None:
        self._lengths = tuple(
            advance(stop, lengths, matched, character)
            for stop, lengths, matched in zip(self.stops, self._borders, self._lengths, strict=True)
        )
        found = [stop for stop, length in zip(self.stops, self._lengths, strict=True) if length == len(stop)]
        if found and ends:
            self.matched = max(found, key=len)
        elif found:  # a later one may begin inside it
            self._lengths = tuple(
                lengths[-1] if length == len(lengths) else length
                for length, lengths in zip(self._lengths, self._borders, strict=True)
            )

    def _hold(self, text: str, hidden: bool) -> None:
        self._held += text
        self._shown += bytes([not hidden]) * len(text)

    def _give(self, count: int) -> str:
        given = "".join(compress(self._held[:count], self._shown))
        self._held, self._shown = self._held[count:], self._shown[count:]
        return given

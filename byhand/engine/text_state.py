"""A run's text after the prompt as it grows: ids in, safe text out, a stop string noticed. No torch here."""

from __future__ import annotations

from copy import copy
from enum import Enum
from typing import NamedTuple

from byhand.text import Detokenizer, StopStrings, Tokenizer


class Way(Enum):
    """What a token's text means for the stop strings."""

    ENDS = "a stop string that ends in it ends the run"
    PASSES = "it is searched, but no stop string ends the run in it"
    FREE = "it is the user's own: it is never held back, and the search begins anew after it"


class Part(NamedTuple):
    """One token's part of the text that waits to be whole: up to which character, and the name of a special token."""

    end: int
    way: Way
    name: str


class TextState:
    """The text after the prompt as it grows: ids in, safe text out, a stop string noticed.

    The text's last characters may wait for the bytes that complete them, and may read otherwise then. A token's part of
    it ends where the text ended when it came, or, if the text was ever shorter since, where it ended at its shortest.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: list[int], stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, prompt_ids)
        self._matcher = StopStrings(stop)
        self._parts: tuple[Part, ...] = ()  # of what the detokenizer holds

    def push(self, token: int, way: Way = Way.ENDS) -> tuple[str, str | None]:
        """Add one id; give the text that is safe to show, and the stop string that ended it."""
        text = self._detokenizer.push(token)
        if not self._matcher.stops:
            return text, None
        is_special = token in self._tokenizer.special_ids
        return self._take(text, way, self._tokenizer.token(token).text if is_special else "")

    def end(self, token: int, way: Way = Way.ENDS) -> tuple[str, str | None]:
        """Add the id that ends the run and is not shown: the rest of the text, and the stop string it completes."""
        text, matched = self._take("", way, self._tokenizer.token(token).text)
        return (text + self.flush(), None) if matched is None else (text, matched)

    def flush(self) -> str:
        """Give what was held back: the run is over."""
        text, _ = self._take(self._detokenizer.flush(), Way.PASSES, "")
        return text + self._matcher.flush()

    @classmethod
    def reread(
        cls, tokenizer: Tokenizer, prompt_ids: list[int], ids: list[int], stop: tuple[str, ...]
    ) -> tuple[TextState, list[str]]:
        """The state after `ids`, as if they had come one by one and none had ended the run, and the text of each."""
        state = cls(tokenizer, prompt_ids, stop)
        return state, [state.push(token, Way.PASSES)[0] for token in ids]

    def copy(self) -> TextState:
        """An independent twin, for a fork."""
        twin = copy(self)
        twin._detokenizer = self._detokenizer.copy()
        twin._matcher = self._matcher.copy()
        return twin

    def _take(self, text: str, way: Way, name: str) -> tuple[str, str | None]:
        held = self._detokenizer.held
        parts = [*self._parts, Part(len(text + held), way, name)]
        if way is not Way.ENDS:  # what was held may read otherwise by now, and must not end the run late
            parts = [part._replace(way=Way.PASSES) if part.way is Way.ENDS else part for part in parts]
        parts = [part._replace(end=min(part.end, len(text + held))) for part in parts]
        ready = [part for part in parts if part.end <= len(text)]
        waiting = [part for part in parts if part.end > len(text)]
        begun = [waiting[0]._replace(end=len(text), name="")] if waiting else []
        self._parts = tuple(part._replace(end=part.end - len(text)) for part in waiting)
        safe, matched = _search(self._matcher, text, [*ready, *begun])
        if held and matched is None:
            # A newline that is a byte piece waits for the bytes after it; a stop need not wait with it.
            set_idle, matched = _search(self._matcher.copy(), held, self._parts)
            safe += set_idle if matched is not None else ""
        return safe, matched


def _search(matcher: StopStrings, text: str, parts: list[Part] | tuple[Part, ...]) -> tuple[str, str | None]:
    """Give the text to the matcher, part by part."""
    shown, start = "", 0
    for end, way, name in parts:
        piece, start = text[start:end], end
        if way is Way.FREE:
            shown += matcher.flush() + piece
            continue
        for written, hidden in ((piece, False), (name, True)):
            safe, matched = matcher.push(written, hidden=hidden, ends=way is Way.ENDS)
            shown += safe
            if matched is not None:
                return shown, matched
    return shown, None

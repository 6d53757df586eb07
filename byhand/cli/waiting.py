"""How far a long work is, on stderr: one line that renews itself on a terminal, elsewhere a line now and then."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TextIO

from byhand.notes import Progress

# Seconds between two lines where lines stay.
SELDOM = 10.0


class Waiting:
    """What stands there of a long work."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now, self._told, self._columns = now, -SELDOM, 0

    def show(self, note: Progress, stream: TextIO, width: int | None) -> None:
        """Say how far it is; `width` of a terminal, None for a stream that keeps its lines."""
        text = f"byhand: {note}"
        if width is None:
            if note.is_last or self._now() - self._told >= SELDOM:
                self._told = self._now()
                print(text, file=stream, flush=True)
            return
        text = text[:width]
        print(f"\r{text:{self._columns}}", end="\n" if note.is_last else "", file=stream, flush=True)
        self._columns = 0 if note.is_last else len(text)

    def leave(self, stream: TextIO) -> None:
        """Let others write: the line that renewed itself stays as it is."""
        if self._columns:
            self._columns = 0
            print(file=stream, flush=True)

"""Decides which tokens are computed next. Numbers in, chunks out: no tensors here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from byhand.engine.state import RunState


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of one run for the next pass: tokens `start` to `end` of its list, not yet in the cache."""

    run: RunState
    start: int
    end: int

    @property
    def rows(self) -> int:
        """Tokens in this chunk."""
        return self.end - self.start

    @property
    def is_last(self) -> bool:
        """True when the pass reaches the end of the list, so that its last row predicts a new token."""
        return self.end == len(self.run.ids)


def phase(positions_computed: int) -> str:
    """The label that people use; no code branches on it."""
    return "prefill" if positions_computed > 1 else "decode"


def schedule(runs: Sequence[RunState], max_rows: int) -> list[Chunk]:
    """Fill a pass of at most `max_rows` tokens, oldest run first; a long prompt gets what is left and goes on later."""
    chunks: list[Chunk] = []
    room = max_rows
    # Runs with one token to compute are served first: a long prompt must not stall those that are streaming.
    for run in sorted(runs, key=lambda run: run.uncomputed > 1):
        rows = min(room, run.uncomputed)
        if rows > 0:
            chunks.append(Chunk(run, run.computed, run.computed + rows))
            room -= rows
    return chunks

"""Decides which tokens are computed next, and whose pages give way. Numbers in, chunks out: no tensors here."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

from byhand.cache.pages import PagePool
from byhand.engine.sequence import Sequence

# Rows of a pass that also serves runs in the middle of their streams: what one chunk may hold them up.
MIXED_ROWS = 128
# Tokens to come for which each sequence is to find room before one more is let in: the more, the fewer are preempted in
# the middle and computed again, and the fewer run together (tests/test_one_loop.py counts both).
LOOKAHEAD = 8


class Chunk(NamedTuple):
    """A piece of one sequence for the next pass: `rows` tokens, `start` to `end` of its list, not yet in the cache."""

    sequence: Sequence
    start: int
    end: int
    rows: int


def phase(positions_computed: int) -> str:
    """The label that people use; no code branches on it."""
    return "prefill" if positions_computed > 1 else "decode"


def schedule(sequences: list[Sequence], max_rows: int, page_size: int, mixed_rows: int | None = None) -> list[Chunk]:
    """Fill a pass of at most `max_rows` tokens; the chunks stand in the order of `runs`, which is by age.

    Runs with one token to compute are served first: a long prompt must not stall those that are streaming, and beside
    them it gets no more than what is left of `mixed_rows`. Of the others the oldest is sure of half of what is left;
    the rest goes to the shortest, so that a short prompt need not wait for a long one to end. A run whose tokens an
    older one computes in this very pass sits it out: it takes over the pages afterwards.
    """
    chunks = _fill(sequences, max_rows, mixed_rows)
    while len(chunks) > 1 and (idle := _repeated(chunks, page_size)):
        sequences = [sequence for sequence in sequences if sequence not in idle]
        chunks = _fill(
            sequences, max_rows, mixed_rows
        )  # what is left to the others, the older ones included, only grows
    return chunks


def _fill(sequences: list[Sequence], max_rows: int, mixed_rows: int | None) -> list[Chunk]:
    left = {sequence: len(sequence.ids) - sequence.computed for sequence in sequences}
    rows = dict.fromkeys([sequence for sequence in sequences if left[sequence] == 1][:max_rows], 1)
    longer = [sequence for sequence in sequences if left[sequence] > 1]
    room = (max_rows if mixed_rows is None or not rows else min(max_rows, mixed_rows)) - len(rows)
    if longer and room > 0:
        oldest = longer[0]
        rows[oldest] = min(left[oldest], room if len(longer) == 1 else -(-room // 2))
        room -= rows[oldest]
        for sequence in [*sorted(longer[1:], key=left.__getitem__), oldest]:
            more = min(room, left[sequence] - rows.get(sequence, 0))
            rows[sequence] = rows.get(sequence, 0) + more
            room -= more
    return [
        Chunk(sequence, sequence.computed, sequence.computed + count, count)
        for sequence in sequences
        if (count := rows.get(sequence, 0))
    ]


def _repeated(chunks: list[Chunk], page_size: int) -> set[Sequence]:
    """The runs of which an older chunk computes, in full pages, at least half of what they would: none falls behind."""
    oldest: dict[tuple[int, ...], Chunk] = {}  # by the place and the ids of the page in which a chunk begins
    repeated = set()
    for chunk in chunks:
        if chunk.rows > 1:
            sequence, page = chunk.sequence, chunk.start // page_size * page_size
            older = oldest.setdefault((page, *sequence.ids[page : page + page_size]), chunk)
            end = -(-(chunk.start + chunk.rows // 2) // page_size) * page_size
            found = page == chunk.start < end <= min(older.end, sequence.next_needed or 0)
            if older is not chunk and found and older.sequence.ids[:end] == sequence.ids[:end]:
                repeated.add(sequence)
    return repeated


class Scheduler:
    """Which runs are computed now, which wait for a place, and which rest with their pages.

    `waiting` and `running` are in order of arrival. A run is in one of the three lists, or in none.
    """

    def __init__(self, pools: list[PagePool], *, max_running: int, max_rows: int, mixed_rows: int = MIXED_ROWS) -> None:
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.idle: list[Sequence] = []  # the one that was used longest ago first
        self.preemptions = 0
        self._pools = pools
        self._max_running = max_running
        self._max_rows = max(max_rows, max_running)
        self._mixed_rows = max(mixed_rows, max_running + 1)
        self._arrival: dict[Sequence, tuple[int, int]] = {}  # (number in the queue, choice)
        self._arrivals = 0

    def arrive(self, sequence: Sequence, beside: Sequence | None = None) -> None:
        """Put a run at the end of the queue, or a choice at the place of the first one of its prompt."""
        self.leave(sequence)
        self._arrivals += 1
        number = self._arrivals if beside is None else self._arrival[beside][0]
        self._arrival[sequence] = (number, sequence.choice)
        insort(self.waiting, sequence, key=self._arrival.__getitem__)

    def set_idle(self, sequence: Sequence) -> None:
        """Compute it no more for now; its pages stay until others need them."""
        self.leave(sequence)
        self.idle.append(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Forget a run, whichever list it is in."""
        for sequences in (self.waiting, self.running, self.idle):
            if sequence in sequences:
                sequences.remove(sequence)
        self._arrival.pop(sequence, None)

    def admit(self, adopt: Callable[[Sequence], None]) -> list[Sequence]:
        """Let the first in the queue in while there are places and pages; nobody overtakes.

        `adopt` gives a run the pages that are known already, so that only the others count.
        """
        admitted: list[Sequence] = []
        while self.waiting and len(self.running) < self._max_running:
            sequence = self.waiting[0]
            if not sequence.page_tables[0]:
                adopt(sequence)
            if self.running and not self._fits(sequence):
                break
            del self.waiting[0]
            insort(self.running, sequence, key=self._arrival.__getitem__)
            admitted.append(sequence)
        return admitted

    def _fits(self, sequence: Sequence) -> bool:
        """Whether its whole list finds pages beside what the running have still to get, and some tokens for each."""
        return all(self._fits_in(pool, group, sequence) for group, pool in enumerate(self._pools))

    def _fits_in(self, pool: PagePool, group: int, sequence: Sequence) -> bool:
        promised = sum(max(0, _pages_missing(pool, group, other)) for other in self.running)
        reclaimable = sum(len(other.page_tables[group]) for other in self.idle)
        return promised + _pages_missing(pool, group, sequence) <= pool.available + reclaimable

    def plan(self, sequences: list[Sequence]) -> list[Chunk]:
        """The chunks of the next pass over those of the running that need one."""
        return schedule(sequences, self._max_rows, self._pools[0].page_size, self._mixed_rows)

    def victim(self, sequence: Sequence) -> Sequence | None:
        """Who gives its pages up for this run: those at rest, then those that wait, then the youngest that is younger.

        A running one goes back to the queue, at the place of its arrival.
        """
        younger = self.running[self.running.index(sequence) + 1 :] if sequence in self.running else []
        candidates = chain(self.idle, reversed(self.waiting), reversed(younger))
        victim = next((other for other in candidates if other.page_tables[0] and other is not sequence), None)
        if victim in self.running:
            self.running.remove(victim)
            insort(self.waiting, victim, key=self._arrival.__getitem__)
            self.preemptions += 1
        return victim


def _pages_missing(pool: PagePool, group: int, sequence: Sequence) -> int:
    return -(-(len(sequence.ids) + LOOKAHEAD) // pool.page_size) - len(sequence.page_tables[group])

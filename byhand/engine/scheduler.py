"""Decides which tokens are computed next, and whose pages give way. Numbers in, chunks out: no tensors here."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from byhand.engine.state import RunState
from byhand.pages import PagePool

# Rows of a pass that also serves runs in the middle of their streams: what one chunk may hold them up.
MIXED_ROWS = 128


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


def phase(positions_computed: int) -> str:
    """The label that people use; no code branches on it."""
    return "prefill" if positions_computed > 1 else "decode"


def schedule(runs: Sequence[RunState], max_rows: int, page_size: int, mixed_rows: int | None = None) -> list[Chunk]:
    """Fill a pass of at most `max_rows` tokens; the chunks stand in the order of `runs`, which is by age.

    Runs with one token to compute are served first: a long prompt must not stall those that are streaming, and beside
    them it gets no more than what is left of `mixed_rows`. Of the others the oldest is sure of half of what is left;
    the rest goes to the shortest, so that a short prompt need not wait for a long one to end. A run whose tokens an
    older one computes in this very pass sits it out: it takes over the pages afterwards.
    """
    chunks = _fill(runs, max_rows, mixed_rows)
    while idle := _repeated(chunks, page_size):
        runs = [run for run in runs if run not in idle]
        chunks = _fill(runs, max_rows, mixed_rows)  # what is left to the others, the older ones included, only grows
    return chunks


def _fill(runs: Sequence[RunState], max_rows: int, mixed_rows: int | None) -> list[Chunk]:
    rows = dict.fromkeys([run for run in runs if run.uncomputed == 1][:max_rows], 1)
    longer = [run for run in runs if run.uncomputed > 1]
    room = (max_rows if mixed_rows is None or not rows else min(max_rows, mixed_rows)) - len(rows)
    if longer and room > 0:
        oldest = longer[0]
        rows[oldest] = min(oldest.uncomputed, room if len(longer) == 1 else -(-room // 2))
        room -= rows[oldest]
        for run in [*sorted(longer[1:], key=lambda run: run.uncomputed), oldest]:
            more = min(room, run.uncomputed - rows.get(run, 0))
            rows[run] = rows.get(run, 0) + more
            room -= more
    return [Chunk(run, run.computed, run.computed + rows[run]) for run in runs if rows.get(run)]


def _repeated(chunks: Sequence[Chunk], page_size: int) -> set[RunState]:
    """The runs of which an older chunk computes, in full pages, at least half of what they would: none falls behind."""
    oldest: dict[tuple[int, ...], Chunk] = {}  # by the place and the ids of the page in which a chunk begins
    repeated = set()
    for chunk in chunks:
        if chunk.rows > 1:
            run, page = chunk.run, chunk.start // page_size * page_size
            older = oldest.setdefault((page, *run.ids[page : page + page_size]), chunk)
            end = -(-(chunk.start + chunk.rows // 2) // page_size) * page_size
            found = page == chunk.start < end <= min(older.end, run.next_needed or 0)
            if older is not chunk and found and older.run.ids[:end] == run.ids[:end]:
                repeated.add(run)
    return repeated


class Scheduler:
    """Which runs are computed now, which wait for a place, and which rest with their pages.

    `waiting` and `running` are in order of arrival. A run is in one of the three lists, or in none.
    """

    def __init__(self, pool: PagePool, *, max_running: int, max_rows: int, mixed_rows: int = MIXED_ROWS) -> None:
        self.waiting: list[RunState] = []
        self.running: list[RunState] = []
        self.resting: list[RunState] = []  # the one that was used longest ago first
        self.preemptions = 0
        self._pool = pool
        self._max_running = max_running
        self._max_rows = max(max_rows, max_running)
        self._mixed_rows = max(mixed_rows, max_running + 1)
        self._arrival: dict[RunState, tuple[int, int]] = {}  # (number in the queue, choice)
        self._arrivals = 0

    def arrive(self, run: RunState, beside: RunState | None = None) -> None:
        """Put a run at the end of the queue, or a choice at the place of the first one of its prompt."""
        self.leave(run)
        self._arrivals += 1
        number = self._arrivals if beside is None else self._arrival[beside][0]
        self._arrival[run] = (number, run.choice)
        insort(self.waiting, run, key=self._arrival.__getitem__)

    def rest(self, run: RunState) -> None:
        """Compute it no more for now; its pages stay until others need them."""
        self.leave(run)
        self.resting.append(run)

    def leave(self, run: RunState) -> None:
        """Forget a run, whichever list it is in."""
        for runs in (self.waiting, self.running, self.resting):
            if run in runs:
                runs.remove(run)
        self._arrival.pop(run, None)

    def admit(self, adopt: Callable[[RunState], None]) -> list[RunState]:
        """Let the first in the queue in while there are places and pages; nobody overtakes.

        `adopt` gives a run the pages that are known already, so that only the others count.
        """
        admitted: list[RunState] = []
        while self.waiting and len(self.running) < self._max_running:
            run = self.waiting[0]
            if not run.pages:
                adopt(run)
            if self.running and not self._fits(run):
                break
            del self.waiting[0]
            insort(self.running, run, key=self._arrival.__getitem__)
            admitted.append(run)
        return admitted

    def _fits(self, run: RunState) -> bool:
        """Whether its whole list finds pages, beside what the running have still to get and one token more for each."""
        promised = sum(max(0, self._pages_missing(other)) for other in self.running)
        reclaimable = sum(len(other.pages) for other in self.resting)
        return promised + self._pages_missing(run) <= self._pool.available + reclaimable

    def _pages_missing(self, run: RunState) -> int:
        return -(-(len(run.ids) + 1) // self._pool.page_size) - len(run.pages)

    def plan(self, runs: Sequence[RunState]) -> list[Chunk]:
        """The chunks of the next pass over `runs`, those of the running that need one."""
        return schedule(runs, self._max_rows, self._pool.page_size, self._mixed_rows)

    def victim(self, run: RunState) -> RunState | None:
        """Who gives its pages up for this run: those at rest, then those that wait, then the youngest that is younger.

        A running one goes back to the queue, at the place of its arrival.
        """
        younger = self.running[self.running.index(run) + 1 :] if run in self.running else []
        candidates = chain(self.resting, reversed(self.waiting), reversed(younger))
        victim = next((other for other in candidates if other.pages and other is not run), None)
        if victim in self.running:
            self.running.remove(victim)
            insort(self.waiting, victim, key=self._arrival.__getitem__)
            self.preemptions += 1
        return victim

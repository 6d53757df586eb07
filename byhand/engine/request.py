"""A run as the worker sees it, and the handles that other threads hold: tickets. No torch here."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from byhand.engine.breakpoint import Breakpoint
from byhand.engine.events import Listener
from byhand.engine.sequence import Sequence, Snapshot

if TYPE_CHECKING:
    from byhand.engine.worker import Worker
    from byhand.types import Step

# Undo goes back so many operations.
HISTORY = 64


class RequestHandle:
    """One submission: `choices` runs of one prompt. Every method may be called from any thread and returns at once."""

    is_interactive = False

    def __init__(self, worker: Worker, choices: int, listener: Listener) -> None:
        self.choices = choices
        self.listener = listener
        self.held = False
        self.open = set(range(choices))  # choices that have not ended; the worker's thread writes it
        self._worker = worker

    @property
    def is_done(self) -> bool:
        """True when every choice has ended."""
        return not self.open

    def cancel(self) -> None:
        """End every open choice with "abort"; their pages are free before the next pass."""
        self._worker.post(lambda loop: loop.cancel(self))

    def hold(self) -> None:
        """Compute it no further until it is released; a listener calls this when nobody takes its events."""
        self.held = True

    def release(self) -> None:
        """Go on after `hold`."""
        self.held = False
        self._worker.post(lambda loop: loop.unhold(self))


@dataclass(slots=True, eq=False)
class Request:
    """One run in the worker's hands."""

    handle: RequestHandle
    choice: int
    sequence: Sequence
    budget: float = inf  # tokens that it may still take
    until: Breakpoint | None = None
    forced: int | None = None
    followers: int = 0  # choices to be forked from it once its prompt is computed
    settling: str | None = None  # it is computed to its end and then rests; the word says why
    before: Snapshot | None = None  # what to go back to when the settling fails
    done: Future[list[Step]] | None = None
    told: list[Step] = field(default_factory=list)  # Steps of the operation under way
    passed: int | None = None  # the position where a breakpoint has already paused it
    deadline: float | None = None
    shown: int = -1  # prompt tokens of which a Progress has told
    was_admitted: bool = False
    is_held: bool = False  # it rests because its ticket is held
    history: list[Snapshot] = field(default_factory=list)

    @property
    def is_interactive(self) -> bool:
        """Whether it rests at its endings instead of leaving."""
        return self.handle.is_interactive

    @property
    def is_active(self) -> bool:
        """Whether there is something to compute for it."""
        return self.settling is not None or (self.budget > 0 and not self.sequence.is_finished)

    def remember(self, before: Snapshot | None = None) -> None:
        """Note how it stands, or stood, for undo."""
        self.history.append(before or self.sequence.snapshot())
        del self.history[:-HISTORY]

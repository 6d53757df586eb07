"""A request in the loop's hands, and the handle that other threads hold. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from byhand.engine.breakpoint import Breakpoint
from byhand.engine.events import Listener
from byhand.engine.sequence import Sequence, Snapshot

if TYPE_CHECKING:
    from byhand.types import Step

# Undo goes back so many operations.
HISTORY = 64


class Driver(Protocol):
    """Whoever turns a loop: the worker on its own thread, or a script inline. A message is called with the loop."""

    def post(self, message: Callable[[Any], object], done: Future[Any] | None = None) -> bool:
        """Have a message carried out between two steps; what it raises goes to `done`. False: there is no loop more."""

    def ask(self, work: Callable[[Any], Any]) -> Future[Any]:
        """The same, for a function whose result is wanted."""


class RequestHandle:
    """`choices` sequences of one prompt. Every method may be called from any thread and returns at once."""

    is_interactive = False

    def __init__(self, driver: Driver, choices: int, listener: Listener) -> None:
        self.choices = choices
        self.listener = listener
        self.held = False
        self.open = set(range(choices))  # choices that have not ended; the loop's thread writes it
        self._driver = driver

    @property
    def is_done(self) -> bool:
        """True when every choice has ended."""
        return not self.open

    def cancel(self) -> None:
        """End every open choice with "abort"; their pages are free before the next pass."""
        self._driver.post(lambda loop: loop.cancel(self))

    def hold(self) -> None:
        """Compute it no further until it is released; a listener calls this when nobody takes its events."""
        self.held = True

    def release(self) -> None:
        """Go on after `hold`."""
        self.held = False
        self._driver.post(lambda loop: loop.unhold(self))


@dataclass(slots=True, eq=False)
class Request:
    """One choice of a request: its sequence, which goes on until it ends."""

    handle: RequestHandle
    choice: int
    sequence: Sequence
    deadline: float | None = None
    followers: int = 0  # choices to be forked from it once its prompt is computed
    prompt_told: int = -1  # prompt tokens of which a Progress has told
    was_admitted: bool = False
    is_held: bool = False  # it waits because its handle is held

    is_interactive: ClassVar[bool] = False

    @property
    def wants_token(self) -> bool:
        """Whether a token is to be taken once its list is computed."""
        return self.sequence.finish_reason is None

    @property
    def is_active(self) -> bool:
        """Whether there is something to compute for it."""
        return self.wants_token

    def asked(self) -> tuple[int | None, Breakpoint | None]:
        """The caller's own next token, and what to look out for before another is taken."""
        return None, None

    def took(self, step: Step) -> str | None:
        """A token was taken: why it pauses now, if it does."""
        return None


@dataclass(slots=True, eq=False)
class InteractiveRequest(Request):
    """One that is driven from outside: it goes as far as it is told, rests, and can be changed in between."""

    budget: float = 0  # tokens that it may still take
    until: Breakpoint | None = None
    force: int | None = None  # the next token
    settling: str | None = None  # it is computed to its end and then rests; the word says why
    before: Snapshot | None = None  # what to go back to when the operation under way fails
    done: Future[list[Step]] | None = None  # the operation under way
    outputs: list[Step] = field(default_factory=list)  # Steps of the operation under way
    passed: int | None = None  # the position where a breakpoint has already paused it
    history: list[Snapshot] | None = field(default_factory=list)  # for undo; None keeps none

    is_interactive: ClassVar[bool] = True

    @property
    def wants_token(self) -> bool:
        """Whether a token is to be taken once its list is computed."""
        return self.budget > 0 and self.settling is None and self.sequence.finish_reason is None

    @property
    def is_active(self) -> bool:
        """Whether there is something to compute for it."""
        return self.settling is not None or self.wants_token

    def asked(self) -> tuple[int | None, Breakpoint | None]:
        """The caller's own next token, and what to look out for before another is taken."""
        looks = self.force is None and self.passed != len(self.sequence.ids)
        return self.force, self.until if looks else None

    def took(self, step: Step) -> str | None:
        """A token was taken: why it pauses now, if it does."""
        self.budget -= 1
        self.force = None
        why = self.until.after(self.sequence.text, step) if self.until is not None else None
        return why or ("count" if self.budget <= 0 else None)

    def stand_still(self) -> None:
        """Nothing is to be done for it."""
        self.budget, self.until, self.force, self.deadline, self.is_held = 0, None, None, None, False

    def settle(self, why: str, deadline: float) -> None:
        """Compute it to its end; then it rests, for this reason."""
        self.settling, self.deadline = why, deadline

    def go(self, count: float, until: Breakpoint | None, force: int | None, deadline: float) -> None:
        """Let it take tokens."""
        self.budget, self.until, self.force, self.deadline = count, until, force, deadline

    def remember(self, before: Snapshot | None = None) -> None:
        """Note how it stands, or stood, for undo."""
        if self.history is not None:
            self.history.append(before or self.sequence.snapshot())
            del self.history[:-HISTORY]

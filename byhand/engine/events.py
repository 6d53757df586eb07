"""What a run tells whoever listens: progress, predictions, steps, and exactly one ending. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from byhand.types import FinishReason, Position, Step, Usage


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of the prompt's `total` tokens are in the cache; told once for each pass that computed some of them."""

    choice: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Read:
    """The predictions after the next prompt positions, in order; asked for by `read_prompt`."""

    choice: int
    positions: tuple[Position, ...]


@dataclass(frozen=True, slots=True)
class Stepped:
    """One token, sampled, forced or inserted."""

    choice: int
    step: Step


@dataclass(frozen=True, slots=True)
class Paused:
    """It stands still: `why` is what its breakpoint saw, or "prefilled", "count", "pause", "changed", "parked"."""

    choice: int
    why: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A choice has ended with a reason."""

    choice: int
    finish_reason: FinishReason
    stop_reason: int | str | None
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """A choice has ended with an error, which is its own alone."""

    choice: int
    error: Exception


Event = Progress | Read | Stepped | Paused | Finished | Failed
Listener = Callable[[Event], None]

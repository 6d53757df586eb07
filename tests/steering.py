"""For tests that steer a run through the worker: its helm, a clock that stands, and a stage that fails on demand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import inf
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from byhand import SamplingParams
from byhand.engine import operations
from byhand.engine.breakpoint import Breakpoint
from byhand.engine.events import Event, Failed, Finished, Listener, Paused, Read, Stepped
from byhand.engine.sequence import Sequence
from byhand.engine.worker import InteractiveHandle, Worker
from byhand.types import Position, Step

GREEDY = SamplingParams(ignore_eos=True)


def inserting(ids: list[int]) -> Callable[[Any, Sequence], list[Step]]:
    """The operation that appends ids of the user's."""
    return lambda engine, run: operations.insert(engine, run, ids)


class Helm:
    """A steered run and all that it tells; `open` and `go` return when it rests."""

    def __init__(self, take: Callable[[Listener], InteractiveHandle]) -> None:
        self.events: list[Event] = []
        self.react: Callable[[Event], None] = lambda _: None
        self._rests: SimpleQueue[Paused | Finished | Failed] = SimpleQueue()
        self.handle = take(self.hear)

    @classmethod
    def open(cls, worker: Worker, ids: list[int], params: SamplingParams = GREEDY) -> Helm:
        """A new run, its prompt computed."""
        helm = cls(lambda listener: worker.open(ids, params, listener))
        helm.rest()
        return helm

    def fork(self, seed: int | None = None) -> Helm:
        """The helm of a fork."""
        return Helm(lambda listener: self.handle.fork(listener, seed).result(20))

    def hear(self, event: Event) -> None:
        """The listener, on the worker's thread."""
        self.events.append(event)
        self.react(event)
        if isinstance(event, Paused | Finished | Failed):
            self._rests.put(event)

    def rest(self) -> Paused | Finished | Failed:
        """The next event after which the run stands still."""
        return self._rests.get(timeout=20)

    def go(self, count: float = inf, *, until: Breakpoint | None = None, force: int | None = None) -> Any:
        """Take tokens; the event that ended it."""
        self.handle.go(count, until=until, force=force).result(20)
        return self.rest()

    def insert(self, ids: list[int]) -> list[int]:
        """Append ids of the user's; the ids of their Steps."""
        return [step.token.id for step in self.handle.change(inserting(ids)).result(20)]

    def edit(self, position: int, token: int) -> None:
        """Put a token at a position."""
        self.handle.change(lambda engine, run: operations.edit(engine, run, position, token)).result(20)

    def rewind(self, count: int) -> None:
        """Take tokens back."""
        self.handle.change(lambda engine, run: operations.rewind(engine, run, count)).result(20)

    def undo(self) -> None:
        """Take the last operation back."""
        self.handle.undo().result(20)

    @property
    def ids(self) -> list[int]:
        """All ids of the run as it is now."""
        return self.handle.look(lambda _, run: list(run.ids)).result(20)

    @property
    def text(self) -> str:
        """Its text after the prompt."""
        return self.handle.look(lambda _, run: run.text).result(20)

    @property
    def told(self) -> list[int]:
        """The ids of all Steps that were told, those taken back included."""
        return [event.step.token.id for event in self.events if isinstance(event, Stepped)]

    @property
    def read(self) -> list[Position]:
        """The predictions after prompt positions that were told."""
        return [position for event in self.events if isinstance(event, Read) for position in event.positions]

    @property
    def failures(self) -> list[Exception]:
        """The errors that were told."""
        return [event.error for event in self.events if isinstance(event, Failed)]


class Clock:
    """What the engine takes for the time: it stands still until it is put forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for name, module in list(sys.modules.items()):
            if name.startswith("byhand.engine.") and hasattr(module, "perf_counter"):
                monkeypatch.setattr(module, "perf_counter", lambda: self.now)

    def pass_by(self, seconds: float) -> None:
        """Put it forward."""
        self.now += seconds


class Trap:
    """A stage that raises when the token at `position`, or a later one, is looked at; None lets all pass."""

    __name__ = "trap"

    def __init__(self) -> None:
        self.position: int | None = None

    def __call__(self, ids: Any, logits: torch.Tensor) -> torch.Tensor:
        if self.position is not None and len(ids) >= self.position:
            raise RuntimeError("the trap has closed")
        return logits

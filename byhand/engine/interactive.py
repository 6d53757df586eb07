"""The handle on a request that is driven from outside: it goes as far as it is told, rests, and can be changed.

`Run` drives one inline, `/live` one on the worker's thread. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar, cast

from byhand.engine.breakpoint import Breakpoint
from byhand.engine.events import Listener
from byhand.engine.loop import EngineLoop
from byhand.engine.request import Driver, InteractiveRequest, RequestHandle
from byhand.engine.sequence import Sequence
from byhand.errors import BadRequest, ByhandError, RunFinished

if TYPE_CHECKING:
    from byhand.engine.engine import Engine
    from byhand.types import Step

T = TypeVar("T")

# A change to a sequence's list of ids, made between two passes: `operations.insert` and its like. What it returns are
# the Steps that it could make at once.
Operation = Callable[["Engine", Sequence], "list[Step]"]

# Called on the loop's thread right before an operation takes effect, between the events before it and after it.
Mark = Callable[[], None]


class InteractiveHandle(RequestHandle):
    """The handle. `Finished` and `Failed` leave the request where it is: it can be rewound and go on.

    Every method may be called from any thread. Futures are completed on the loop's thread, after the events of what
    they stand for, with the value or with the error. `undoes`: whether operations are remembered for `undo`.
    """

    is_interactive = True

    def __init__(self, driver: Driver, listener: Listener, *, undoes: bool = True) -> None:
        super().__init__(driver, 1, listener)
        self._undoes = undoes
        self._request: InteractiveRequest | None = None

    def begin(self, loop: EngineLoop, sequence: Sequence, settling: str | None) -> None:
        """On the loop's thread: hand it its sequence, to be computed to its end where `settling` says why."""
        request = InteractiveRequest(self, 0, sequence, settling=settling, history=[] if self._undoes else None)
        if settling is not None:
            request.deadline = loop.deadline()
        self._request = request
        loop.add(request)

    @property
    def sequence(self) -> Sequence | None:
        """The sequence, while it is open; for the loop's thread alone."""
        return None if self._request is None or not self.open else self._request.sequence

    def request(self, loop: EngineLoop) -> InteractiveRequest:
        """On the loop's thread: the request, while it is open and nothing is under way that must end first."""
        request = self.request_in(loop)
        if request.settling is not None:
            raise BadRequest("the run is still being computed after the last operation", param="run")
        return request

    def request_in(self, loop: EngineLoop) -> InteractiveRequest:
        """On the loop's thread: the request, while it is open."""
        if self._request is None or self._request.sequence not in loop.requests:
            raise ByhandError("the run was closed")
        return self._request

    def go(
        self, count: float = inf, *, until: Breakpoint | None = None, force: int | None = None, mark: Mark | None = None
    ) -> Future[None]:
        """Take `count` tokens, or one of the caller's. Done as soon as it is under way."""
        return self._driver.ask(lambda loop: start(loop, self.request(loop), count, until, force, mark))

    def pause(self, why: str = "pause", *, mark: Mark | None = None) -> Future[None]:
        """Stand still before the next token; `Paused` says so, or `Finished` where the run has ended."""

        def pause(loop: EngineLoop) -> None:
            request = self.request(loop)
            if mark is not None:
                mark()
            if request.sequence.is_finished:
                loop.emit(self, loop.finished(request))
            else:
                loop.pause(request, why)

        return self._driver.ask(pause)

    def change(self, operation: Operation, *, mark: Mark | None = None) -> Future[list[Step]]:
        """Change the run between two passes: its Steps, when all is computed. If that fails, the run is as before."""
        done: Future[list[Step]] = Future()

        def change(loop: EngineLoop) -> None:
            from byhand.engine import operations

            request = self._standing(loop)
            if mark is not None:
                mark()
            request.before = before = request.sequence.snapshot()
            try:
                steps = operation(loop.engine, request.sequence)
            except BaseException:
                operations.restore(loop.engine, request.sequence, before)
                request.before = None
                raise
            request.remember(before)
            self._settle(loop, request, done, steps)

        self._driver.post(change, done)
        return done

    def undo(self, *, mark: Mark | None = None) -> Future[list[Step]]:
        """Take the last operation back, whatever it was."""
        done: Future[list[Step]] = Future()

        def undo(loop: EngineLoop) -> None:
            from byhand.engine import operations

            if not self.request(loop).history:
                raise BadRequest("there is nothing to undo", param="op")
            request = self._standing(loop)
            if mark is not None:
                mark()
            assert request.history
            operations.restore(loop.engine, request.sequence, request.history.pop())
            request.before = None
            self._settle(loop, request, done, [])

        self._driver.post(undo, done)
        return done

    def _standing(self, loop: EngineLoop) -> InteractiveRequest:
        """The request, paused where it was going; a listener that raised over that has closed it."""
        request = self.request(loop)
        if request.is_active:
            loop.pause(request, "pause")
        return self.request_in(loop)

    def _settle(
        self, loop: EngineLoop, request: InteractiveRequest, done: Future[list[Step]], steps: list[Step]
    ) -> None:
        """Have what an operation wrote computed; `done` gets all its Steps."""
        request.outputs, request.done = [], done
        for step in steps:
            loop.emit_given(request, step)
        if request.sequence in loop.requests:  # else a listener raised, and closing it has answered
            loop.settle(request, "changed")

    def set(self, params: dict[str, Any]) -> Future[None]:
        """Other settings for the tokens to come; a run that is going goes on with them."""

        def change(loop: EngineLoop) -> None:
            from byhand.engine import operations

            request = self.request(loop)
            loop.limits.check_params(request.sequence.params.replace(**params))
            before = request.sequence.snapshot()
            operations.change_params(loop.engine, request.sequence, params)
            request.remember(before)

        return self._driver.ask(change)

    def fork(self, listener: Listener, seed: int | None = None) -> Future[InteractiveHandle]:
        """A second run from here, on the same pages, at rest."""
        twin = InteractiveHandle(self._driver, listener, undoes=self._undoes)

        def fork(loop: EngineLoop) -> InteractiveHandle:
            from byhand.engine import operations

            twin.begin(loop, operations.fork(loop.engine, self.request(loop).sequence, seed=seed), None)
            return twin

        return self._driver.ask(fork)

    def look(self, work: Callable[[Engine, Sequence], T]) -> Future[T]:
        """Look at the run between two passes."""
        return cast("Future[T]", self._driver.ask(lambda loop: work(loop.engine, self.request_in(loop).sequence)))

    def park(self) -> None:
        """Pause it and let its pages go: what is left are its ids."""

        def park(loop: EngineLoop) -> None:
            if self._request is None or self._request.sequence not in loop.requests:
                return
            if self._request.is_active and self._request.settling is None:
                loop.pause(self._request, "parked")
            loop.engine.release(self._request.sequence)

        self._driver.post(park)


def start(
    loop: EngineLoop,
    request: InteractiveRequest,
    count: float,
    until: Breakpoint | None,
    force: int | None,
    mark: Mark | None = None,
) -> None:
    """On the loop's thread: let a request take `count` tokens, or one of the caller's."""
    if request.sequence.finish_reason is not None:
        raise RunFinished(
            f"the run has ended ({request.sequence.finish_reason}); no step can be taken",
            hint="rewind, edit or insert to go on",
        )
    if mark is not None:
        mark()
    request.remember()
    request.go(count, until, force, loop.deadline())
    loop.scheduler.arrive(request.sequence)

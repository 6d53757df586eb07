"""A run that is steered: it goes as far as it is told, rests, and can be changed in between. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from byhand.engine.breakpoint import Breakpoint
from byhand.engine.events import Listener
from byhand.engine.loop import EngineLoop
from byhand.engine.request import Request, RequestHandle
from byhand.engine.sequence import Sequence
from byhand.errors import BadRequest, ByhandError, RunFinished

if TYPE_CHECKING:
    from byhand.engine.engine import Engine
    from byhand.engine.worker import Worker
    from byhand.types import Step

T = TypeVar("T")

# A change to a run's list of ids, made between two passes: `operations.begin_insert` and its like. What it returns are
# the Steps that it could make at once.
Operation = Callable[["Engine", Sequence], "list[Step]"]

# Called on the worker's thread right before an operation takes effect, between the events before it and after it.
Mark = Callable[[], None]


def _call(mark: Mark | None) -> None:
    if mark is not None:
        mark()


class InteractiveHandle(RequestHandle):
    """The handle on one such run. `Finished` and `Failed` leave it where it is: it can be rewound and go on.

    Every method may be called from any thread. Futures are completed on the worker's thread, after the events of what
    they stand for, with the value or with the error.
    """

    is_interactive = True

    def __init__(self, worker: Worker, listener: Listener) -> None:
        super().__init__(worker, 1, listener)
        self._request: Request | None = None

    def begin(self, loop: EngineLoop, sequence: Sequence, settling: str | None) -> None:
        """On the worker's thread: hand it its run."""
        self._request = loop.add(Request(self, 0, sequence, budget=0, settling=settling))

    @property
    def state(self) -> Sequence | None:
        """The run, while it is open; for the worker's thread alone."""
        return None if self._request is None or not self.open else self._request.sequence

    def request(self, loop: EngineLoop) -> Request:
        """On the worker's thread: the job, while it is open and nothing is under way that must end first."""
        if self._request is None or self._request.sequence not in loop.requests:
            raise ByhandError("the run was closed")
        if self._request.settling is not None:
            raise BadRequest("the run is still being computed after the last operation", param="run")
        return self._request

    def go(
        self, count: float = inf, *, until: Breakpoint | None = None, force: int | None = None, mark: Mark | None = None
    ) -> Future[None]:
        """Take `count` tokens, or one of the caller's. Done as soon as it is under way."""

        def start(loop: EngineLoop) -> None:
            request = self.request(loop)
            if request.sequence.is_finished:
                raise RunFinished(
                    f"the run has ended ({request.sequence.finish_reason}); no step can be taken",
                    hint="rewind, edit or insert to go on",
                )
            _call(mark)
            request.remember()
            request.until, request.forced = until, force
            loop.set_going(request, count)

        return self._worker.ask(start)

    def pause(self, why: str = "pause", *, mark: Mark | None = None) -> Future[None]:
        """Stand still before the next token; `Paused` says so, or `Finished` where the run has ended."""

        def pause(loop: EngineLoop) -> None:
            request = self.request(loop)
            _call(mark)
            if request.sequence.is_finished:
                self.listener(loop.finished(request))
            else:
                loop.pause(request, why)

        return self._worker.ask(pause)

    def change(self, operation: Operation, *, mark: Mark | None = None) -> Future[list[Step]]:
        """Change the run between two passes: its Steps, when all is computed. If that fails, the run is as before."""
        done: Future[list[Step]] = Future()

        def change(loop: EngineLoop) -> None:
            from byhand.engine import operations

            request = self.request(loop)
            if request.is_active:
                loop.pause(request, "pause")
            _call(mark)
            request.remember()
            try:
                told = operation(loop.engine, request.sequence)
            except BaseException:
                operations.restore(loop.engine, request.sequence, request.history.pop())
                raise
            request.told, request.before, request.done = [], request.history[-1], done
            for step in told:
                loop.show(request, step)
            loop.settle(request, "changed")

        self._worker.post(change, done)
        return done

    def undo(self, *, mark: Mark | None = None) -> Future[list[Step]]:
        """Take the last operation back, whatever it was."""
        done: Future[list[Step]] = Future()

        def undo(loop: EngineLoop) -> None:
            from byhand.engine import operations

            request = self.request(loop)
            if not request.history:
                raise BadRequest("there is nothing to undo", param="op")
            if request.is_active:
                loop.pause(request, "pause")
            _call(mark)
            operations.restore(loop.engine, request.sequence, request.history.pop())
            request.told, request.before, request.done = [], None, done
            loop.settle(request, "changed")

        self._worker.post(undo, done)
        return done

    def set(self, params: dict[str, Any]) -> Future[None]:
        """Other settings for the tokens to come; a run that is going goes on with them."""

        def change(loop: EngineLoop) -> None:
            from byhand.engine import operations

            request = self.request(loop)
            loop.limits.check_params(request.sequence.params.replace(**params))
            before = request.sequence.snapshot()
            operations.change_params(loop.engine, request.sequence, params)
            request.remember(before)

        return self._worker.ask(change)

    def fork(self, listener: Listener, seed: int | None = None) -> Future[InteractiveHandle]:
        """A second run from here, on the same pages, at rest."""
        twin = InteractiveHandle(self._worker, listener)

        def fork(loop: EngineLoop) -> InteractiveHandle:
            from byhand.engine import operations

            request = self.request(loop)
            twin.begin(loop, operations.fork(loop.engine, request.sequence, seed=seed), None)
            return twin

        return self._worker.ask(fork)

    def look(self, work: Callable[[Engine, Sequence], T]) -> Future[T]:
        """Look at the run between two passes."""

        def look(loop: EngineLoop) -> T:
            if self._request is None or self._request.sequence not in loop.requests:
                raise ByhandError("the run was closed")
            return work(loop.engine, self._request.sequence)

        return self._worker.ask(look)

    def park(self) -> None:
        """Pause it and let its pages go: what is left are its ids."""

        def park(loop: EngineLoop) -> None:
            if self._request is None or self._request.sequence not in loop.requests:
                return
            if self._request.is_active and self._request.settling is None:
                loop.pause(self._request, "parked")
            loop.engine.release(self._request.sequence)

        self._worker.post(park)

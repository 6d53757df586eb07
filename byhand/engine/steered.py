"""A run that is steered: it goes as far as it is told, rests, and can be changed in between. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from byhand.engine.events import Listener
from byhand.engine.jobs import Job, Ticket
from byhand.engine.state import RunState
from byhand.engine.turns import Turns
from byhand.engine.until import Until
from byhand.errors import BadRequest, ByhandError, RunFinished

if TYPE_CHECKING:
    from byhand.engine.engine import Engine
    from byhand.engine.worker import Worker
    from byhand.types import Step

T = TypeVar("T")

# A change to a run's list of ids, made between two passes: `operations.begin_insert` and its like. What it returns are
# the Steps that it could make at once.
Operation = Callable[["Engine", RunState], "list[Step]"]

# Called on the worker's thread right before an operation takes effect, between the events before it and after it.
Mark = Callable[[], None]


def _call(mark: Mark | None) -> None:
    if mark is not None:
        mark()


class Steered(Ticket):
    """The handle on one such run. `Finished` and `Failed` leave it where it is: it can be rewound and go on.

    Every method may be called from any thread. Futures are completed on the worker's thread, after the events of what
    they stand for, with the value or with the error.
    """

    is_steered = True

    def __init__(self, worker: Worker, listener: Listener) -> None:
        super().__init__(worker, 1, listener)
        self._job: Job | None = None

    def begin(self, turns: Turns, run: RunState, settling: str | None) -> None:
        """On the worker's thread: hand it its run."""
        self._job = turns.add(Job(self, 0, run, budget=0, settling=settling))

    @property
    def state(self) -> RunState | None:
        """The run, while it is open; for the worker's thread alone."""
        return None if self._job is None or not self.open else self._job.run

    def job(self, turns: Turns) -> Job:
        """On the worker's thread: the job, while it is open and nothing is under way that must end first."""
        if self._job is None or self._job.run not in turns.jobs:
            raise ByhandError("the run was closed")
        if self._job.settling is not None:
            raise BadRequest("the run is still being computed after the last operation", param="run")
        return self._job

    def go(
        self, count: float = inf, *, until: Until | None = None, force: int | None = None, mark: Mark | None = None
    ) -> Future[None]:
        """Take `count` tokens, or one of the caller's. Done as soon as it is under way."""

        def start(turns: Turns) -> None:
            job = self.job(turns)
            if job.run.is_finished:
                raise RunFinished(
                    f"the run has ended ({job.run.finish_reason}); no step can be taken",
                    hint="rewind, edit or insert to go on",
                )
            _call(mark)
            job.remember()
            job.until, job.forced = until, force
            turns.set_going(job, count)

        return self._worker.ask(start)

    def pause(self, why: str = "pause", *, mark: Mark | None = None) -> Future[None]:
        """Stand still before the next token; `Paused` says so, or `Finished` where the run has ended."""

        def pause(turns: Turns) -> None:
            job = self.job(turns)
            _call(mark)
            if job.run.is_finished:
                self.listener(turns.finished(job))
            else:
                turns.pause(job, why)

        return self._worker.ask(pause)

    def change(self, operation: Operation, *, mark: Mark | None = None) -> Future[list[Step]]:
        """Change the run between two passes: its Steps, when all is computed. If that fails, the run is as before."""
        done: Future[list[Step]] = Future()

        def change(turns: Turns) -> None:
            from byhand.engine import operations

            job = self.job(turns)
            if job.is_active:
                turns.pause(job, "pause")
            _call(mark)
            job.remember()
            try:
                told = operation(turns.engine, job.run)
            except BaseException:
                operations.restore(turns.engine, job.run, job.history.pop())
                raise
            job.told, job.before, job.done = [], job.history[-1], done
            for step in told:
                turns.show(job, step)
            turns.settle(job, "changed")

        self._worker.post(change, done)
        return done

    def undo(self, *, mark: Mark | None = None) -> Future[list[Step]]:
        """Take the last operation back, whatever it was."""
        done: Future[list[Step]] = Future()

        def undo(turns: Turns) -> None:
            from byhand.engine import operations

            job = self.job(turns)
            if not job.history:
                raise BadRequest("there is nothing to undo", param="op")
            if job.is_active:
                turns.pause(job, "pause")
            _call(mark)
            operations.restore(turns.engine, job.run, job.history.pop())
            job.told, job.before, job.done = [], None, done
            turns.settle(job, "changed")

        self._worker.post(undo, done)
        return done

    def set(self, params: dict[str, Any]) -> Future[None]:
        """Other settings for the tokens to come; a run that is going goes on with them."""

        def change(turns: Turns) -> None:
            from byhand.engine import operations

            job = self.job(turns)
            turns.limits.check_params(job.run.params.replace(**params))
            before = job.run.snapshot()
            operations.change_params(turns.engine, job.run, params)
            job.remember(before)

        return self._worker.ask(change)

    def fork(self, listener: Listener, seed: int | None = None) -> Future[Steered]:
        """A second run from here, on the same pages, at rest."""
        twin = Steered(self._worker, listener)

        def fork(turns: Turns) -> Steered:
            from byhand.engine import operations

            job = self.job(turns)
            twin.begin(turns, operations.fork(turns.engine, job.run, seed=seed), None)
            return twin

        return self._worker.ask(fork)

    def look(self, work: Callable[[Engine, RunState], T]) -> Future[T]:
        """Look at the run between two passes."""

        def look(turns: Turns) -> T:
            if self._job is None or self._job.run not in turns.jobs:
                raise ByhandError("the run was closed")
            return work(turns.engine, self._job.run)

        return self._worker.ask(look)

    def park(self) -> None:
        """Pause it and let its pages go: what is left are its ids."""

        def park(turns: Turns) -> None:
            if self._job is None or self._job.run not in turns.jobs:
                return
            if self._job.is_active and self._job.settling is None:
                turns.pause(self._job, "parked")
            turns.engine.release(self._job.run)

        self._worker.post(park)

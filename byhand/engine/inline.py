"""The loop in the caller's own thread, as a script drives its runs; a server has a thread for it (`worker.py`)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from math import inf
from typing import Any, TypeVar

from byhand.engine import operations
from byhand.engine.engine import Engine
from byhand.engine.events import Event, Failed, Finished, Listener, Stepped
from byhand.engine.interactive import InteractiveHandle, start
from byhand.engine.limits import Limits
from byhand.engine.loop import EngineLoop
from byhand.engine.request import InteractiveRequest, Request, RequestHandle
from byhand.errors import ByhandError
from byhand.sampling.chain import Settings
from byhand.types import Completion, Step

T = TypeVar("T")


class InlineDriver:
    """Carries a message out at once, and steps the loop while somebody waits for what it gives. Nothing is limited."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        rows = engine.max_batched_tokens
        # Nobody reads along while a script waits: a prompt beside running sequences may fill its passes.
        self.loop = EngineLoop(engine, Limits(running=rows, seconds=inf), mixed_rows=rows)
        self.is_stepping = False

    def post(self, message: Callable[[EngineLoop], object], done: Future[Any] | None = None) -> bool:
        """Carry a message out; what it raises goes to `done`, if there is one."""
        with self.engine.lock:
            try:
                message(self.loop)
            except Exception as error:
                if done is None:
                    raise
                done.set_exception(error)
        return True

    def ask(self, work: Callable[[EngineLoop], T]) -> Future[T]:
        """The result of a function, in a future that is done."""
        self.engine.collect()
        done: Future[T] = Future()
        self.post(lambda loop: done.set_result(work(loop)), done)
        return done

    def submit(self, ids: list[int], settings: Settings, listener: Listener) -> RequestHandle:
        """Queue the choices of one prompt: `n` sequences."""
        with self.engine.lock:
            sequence, choices = self.engine.open(ids, settings), settings.params.n
            handle = RequestHandle(self, choices, listener)
            self.loop.meter.enter(choices, sys.maxsize)
            self.loop.add(Request(handle, 0, sequence, followers=choices - 1))
            return handle

    def open(self, ids: list[int], settings: Settings, *, choice: int, listener: Listener) -> InteractiveHandle:
        """A request that is driven by hand; nothing of it is computed yet, and it rests."""
        with self.engine.lock:
            sequence = self.engine.open(ids, settings, choice=choice)
            handle = InteractiveHandle(self, listener, undoes=False)
            handle.begin(self.loop, sequence, None)
            return handle

    def take(self, handle: InteractiveHandle, force: int | None) -> None:
        """One token of a request, the sampler's or `force`."""
        with self.engine.lock:
            request = handle.request(self.loop)  # what is under way is another's, and is not taken back
            self._to_rest(request, partial(start, self.loop, request, 1, None, force))

    def run(self, is_over: Callable[[], bool]) -> None:
        """Step the loop until something is over."""
        while not is_over():
            self._step()

    def _step(self) -> None:
        with self.engine.lock:
            if self.is_stepping:
                raise ByhandError("a stage cannot take a step of a run while its own run's step waits for it")
            self.is_stepping = True
            try:
                self.engine.collect()
                self.loop.step()
            except BaseException:
                self._drop_unfinished()
                raise
            finally:
                self.is_stepping = False

    def _drop_unfinished(self) -> None:
        """What goes on belongs to other threads: each id that a step has chosen has its Step, or is taken again."""
        for sequence in self.loop.scheduler.running:
            request = self.loop.requests.get(sequence)
            if not isinstance(request, InteractiveRequest) or request.settling is None:
                operations.drop_unfinished(self.engine, sequence)

    def run_to_rest(self, handle: InteractiveHandle, begin: Callable[[], object] = bool) -> None:
        """Begin something, step the loop until it is done; who interrupts that finds the run as after its last step."""
        self._to_rest(handle.request_in(self.loop), begin)

    def _to_rest(self, request: InteractiveRequest, begin: Callable[[], object]) -> None:
        try:
            begin()
            while request.is_active:
                self._step()
        except BaseException:
            with self.engine.lock:
                if request.is_active or request.before is not None:
                    self._take_back(request)
            raise

    def _take_back(self, request: InteractiveRequest) -> None:
        before = request.before
        request.settling = request.before = request.done = None
        self.loop.set_idle(request)
        operations.drop_unfinished(self.engine, request.sequence)
        if before is not None:
            operations.restore(self.engine, request.sequence, before)


class Collector:
    """Listens to the choices of one prompt, and puts together what they gave."""

    def __init__(self, prompt_ids: list[int], choices: int) -> None:
        self._prompt_ids = prompt_ids
        self._steps: list[list[Step]] = [[] for _ in range(choices)]
        self._ends: dict[int, Finished] = {}
        self.error: Exception | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case Stepped(choice=choice, step=step):
                self._steps[choice].append(step)
            case Finished(choice=choice):
                self._ends[choice] = event
            case Failed(error=error):
                self.error = self.error or error

    def completions(self) -> list[Completion]:
        """One for each choice, once all have finished."""
        return [
            Completion(
                prompt_ids=list(self._prompt_ids),
                ids=[step.token.id for step in steps],
                text="".join([step.text for step in steps]),
                finish_reason=self._ends[choice].finish_reason,
                stop_reason=self._ends[choice].stop_reason,
                steps=steps,
                usage=self._ends[choice].usage,
            )
            for choice, steps in enumerate(self._steps)
        ]

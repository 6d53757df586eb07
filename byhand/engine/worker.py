"""The one thread that owns the model. Every operation is a message to it, carried out between two passes.

Importing this loads no torch: the model's libraries come with the model, on the worker's own thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from byhand.engine.events import Listener
from byhand.engine.interactive import InteractiveHandle
from byhand.engine.limits import Limits
from byhand.engine.loop import EngineLoop
from byhand.engine.meter import Stats
from byhand.engine.request import Request, RequestHandle
from byhand.engine.sequence import RecentRows, Sequence
from byhand.errors import Busy, LimitExceeded, NotServing
from byhand.sampling.params import SamplingParams

if TYPE_CHECKING:
    from byhand import LLM
    from byhand.engine.engine import Engine
    from byhand.sampling.chain import Settings

__all__ = ["InteractiveHandle", "RequestHandle", "Stats", "Worker"]

T = TypeVar("T")
Message = Callable[[EngineLoop], object]

log = logging.getLogger(__name__)

# While nothing can be computed, but somebody's time may run out, the thread looks at the clock this often.
TICK = 0.2
# Rows of logits kept for an interactive request, in bytes and in number.
RECENT_BYTES = 16 << 20
RECENT_ROWS = 64

WHY = {
    "starting": "the model is being opened",
    "draining": "the server is shutting down and takes no new runs",
    "closed": "the server was shut down",
    "failed": "the model could not be opened",
}


class Worker:
    """Owns an LLM: one that is open, or one that `opener` opens on the worker's thread. All methods are thread-safe."""

    def __init__(self, opener: LLM | Callable[[], LLM], limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.state = "starting"
        self.failure: BaseException | None = None
        self.opened: Future[LLM] = Future()
        self._opener = opener
        self._loop: EngineLoop | None = None
        self._messages: SimpleQueue[tuple[Message, Future[Any] | None]] = SimpleQueue()
        self._lock = Lock()
        self._is_over = False
        self._drain_deadline: float | None = None
        self._ended: Future[None] = Future()
        for future in (self.opened, self._ended):
            future.set_running_or_notify_cancel()  # who waits for one may give up; nobody can cancel it
        self._thread = Thread(target=self._live, name="byhand-engine", daemon=True)
        self._thread.start()

    # From any thread.

    @property
    def llm(self) -> LLM:
        """The model, once it is open."""
        if not self.opened.done() or self.opened.exception() is not None:
            raise self._not_serving()
        return self.opened.result()

    def check(self, params: SamplingParams) -> Settings:
        """The settings of a request, once at its border; `submit` and `open` take them, or check params themselves."""
        self.limits.check_params(params)
        return self.llm.engine.check(params)

    def submit(
        self, ids: list[int], params: SamplingParams | Settings, listener: Listener, *, read_prompt: int | None = None
    ) -> RequestHandle:
        """Queue the `n` runs of one prompt; `listener` is told everything, on the worker's thread.

        read_prompt=k: with the best k predictions after every position of the prompt. What is wrong with the request is
        raised here; every choice of a handle that is given out ends with exactly one Finished or Failed.
        """
        loop, ids, settings = self._checked(ids, params, read_prompt)
        choices = settings.params.n
        room = self.limits.running + self.limits.waiting
        if not loop.meter.enter(choices, room):
            raise Busy(f"{room} runs are computed or waiting, which is this server's limit (running, waiting)")
        handle = RequestHandle(self, choices, listener)
        deadline = perf_counter() + self.limits.seconds
        if not self.post(lambda loop: _arrive(loop, handle, ids, settings, read_prompt, deadline)):
            raise self._not_serving()
        return handle

    def read(self, ids: list[int], top: int, listener: Listener) -> RequestHandle:
        """The prediction after every position, in Read events."""
        return self.submit(ids, SamplingParams(max_tokens=0), listener, read_prompt=top)

    def open(
        self,
        ids: list[int],
        params: SamplingParams | Settings,
        listener: Listener,
        *,
        read_prompt: int | None = None,
        prepare: Callable[[Engine, Sequence], None] | None = None,
    ) -> InteractiveHandle:
        """A request that is driven from outside: it is computed to its end, and rests.

        `prepare` is called with it on the worker's thread before anything is computed or told.
        """
        loop, ids, settings = self._checked(ids, params, read_prompt)
        if len(loop.scheduler.waiting) >= self.limits.waiting:
            loop.meter.rejected += 1
            raise Busy(f"{self.limits.waiting} runs are waiting, which is this server's limit (waiting)")
        handle = InteractiveHandle(self, listener)

        def begin(loop: EngineLoop) -> None:
            sequence = loop.open(ids, settings, read_prompt)
            sequence.recent = RecentRows(max(1, min(RECENT_ROWS, RECENT_BYTES // (4 * loop.engine.model.vocab_size))))
            if prepare is not None:
                prepare(loop.engine, sequence)
            handle.begin(loop, sequence, "prefilled")

        if not self.post(lambda loop: _or_failed(loop, handle, lambda: begin(loop))):
            raise self._not_serving()
        return handle

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Run a function on the worker's thread, between two passes."""
        return self.ask(lambda _: work())

    def ask(self, work: Callable[[EngineLoop], T]) -> Future[T]:
        """The same, for a function that wants to see the jobs."""
        done: Future[T] = Future()
        self.post(lambda loop: done.set_result(work(loop)), done)
        return done

    def post(self, message: Message, done: Future[Any] | None = None) -> bool:
        """Queue a message; what it raises goes to `done`. False after the end, when nothing is carried out any more."""
        with self._lock:
            if not self._is_over:
                self._messages.put((message, done))
                return True
        if done is not None and done.set_running_or_notify_cancel():
            done.set_exception(self._not_serving())
        return False

    def stats(self) -> Stats:
        """A snapshot of what goes on."""
        loop = self._loop
        if loop is None:
            return Stats(self.state)
        meter, pools, scheduler = loop.meter, loop.pools, loop.scheduler
        prefill_rate, decode_rate = meter.rates()
        return Stats(
            state=self.state,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            idle=len(scheduler.idle),
            pages_total=sum(pool.num_pages for pool in pools),
            pages_used=sum(pool.in_use for pool in pools),
            pages_unused=sum(pool.unused for pool in pools),
            pages_free=sum(pool.available - pool.unused for pool in pools),
            prefill_rate=prefill_rate,
            decode_rate=decode_rate,
            prompt_tokens=meter.prompt_tokens,
            cached_tokens=meter.cached_tokens,
            generated_tokens=meter.generated_tokens,
            passes=meter.passes,
            preemptions=scheduler.preemptions,
            rejected=meter.rejected,
            finished=dict(meter.finished),
            busy_seconds=meter.busy_seconds,
        )

    def drain(self, grace: float) -> Future[None]:
        """Take nothing new, finish what runs within `grace` seconds, end the rest with an error, end the thread."""
        with self._lock:
            if self.state in ("starting", "ready"):
                self.state = "draining"
            self._drain_deadline = perf_counter() + grace
            self._messages.put((lambda _: None, None))
        return self._ended

    def close(self, timeout: float | None = 10.0) -> None:
        """End everything now: each open choice is told NotServing; wait for the thread."""
        self.drain(0.0)
        if self.opened.done():
            self._thread.join(timeout)

    # What is wrong with a request.

    def _not_serving(self) -> NotServing:
        return NotServing(f"{WHY.get(self.state, WHY['closed'])}; try again later", state=self.state)

    def _checked(
        self, ids: list[int], params: SamplingParams | Settings, read_prompt: int | None
    ) -> tuple[EngineLoop, list[int], Settings]:
        loop = self._loop
        if self.state != "ready" or loop is None:
            raise self._not_serving()
        ids = self.llm.encode(ids)
        self.limits.check("prompt_tokens", len(ids), param="prompt")
        settings = self.check(params) if isinstance(params, SamplingParams) else params
        self._check_length(loop, len(ids), settings.params.max_tokens or 0)
        self.limits.check("logprobs", read_prompt or 0, param="top")
        return loop, ids, settings

    def _check_length(self, loop: EngineLoop, length: int, max_tokens: int) -> None:
        self.limits.check("total_tokens", length + max_tokens, param="max_tokens")
        if length > loop.longest():
            message = f"the prompt has {length} tokens; one run of this server may hold {loop.longest()} (pages)"
            way = "a server started with a larger --cache-tokens, or --limit-pages if it has one, holds more"
            raise LimitExceeded(message, param="prompt", hint=way)

    # On the worker's thread.

    def _live(self) -> None:
        try:
            llm = self._opener() if callable(self._opener) else self._opener
            self._loop = EngineLoop(llm.engine, self.limits)
        except BaseException as error:  # noqa: BLE001 (whoever waits for the model is told)
            self.failure = error
            self._end("failed")
            self.opened.set_exception(error)
            return
        with self._lock:
            self.state = "ready" if self.state == "starting" else self.state
        self.opened.set_result(llm)
        while not self._should_end(self._loop):
            self._take_messages(self._loop)
            self._step(self._loop)
        self._end("closed")

    def _should_end(self, loop: EngineLoop) -> bool:
        if self._drain_deadline is None:
            return False
        # An interactive one whose reader went away stays where it is, in its prompt too, and holds nobody up.
        waited_for = (
            not request.is_interactive or (request.is_active and not request.handle.held)
            for request in loop.requests.values()
        )
        busy = any(waited_for) or not self._messages.empty()
        return not busy or perf_counter() > self._drain_deadline

    def _take_messages(self, loop: EngineLoop) -> None:
        """Carry out what came; wait for something when there is nothing else to do."""
        timed = self._drain_deadline is not None or any(
            request.deadline is not None for request in loop.requests.values()
        )
        try:
            if not loop.has_work:
                self._carry_out(*self._messages.get(timeout=TICK if timed else None))
            while True:
                self._carry_out(*self._messages.get_nowait())
        except Empty:
            return

    def _carry_out(self, message: Message, done: Future[Any] | None) -> None:
        assert self._loop is not None
        if done is not None and not done.set_running_or_notify_cancel():
            return
        try:
            with self._loop.engine.lock:
                message(self._loop)
        except Exception as error:
            if done is None:
                log.exception("a message to the engine failed")
            elif not done.done():
                done.set_exception(error)

    def _step(self, loop: EngineLoop) -> None:
        try:
            with loop.engine.lock:
                loop.engine.collect()
                loop.step()
        except Exception as error:
            log.exception("a turn of the engine failed; its runs end, the engine goes on")
            for request in [
                loop.requests[sequence] for sequence in loop.scheduler.running if sequence in loop.requests
            ]:
                loop.fail(request, error)

    def _end(self, state: str) -> None:
        """Close the queue, carry out what is in it, and give everybody an ending."""
        with self._lock:
            self._is_over, self.state = True, state
        while not self._messages.empty():
            message, done = self._messages.get()
            if self._loop is not None:
                self._carry_out(message, done)
            elif done is not None and done.set_running_or_notify_cancel():
                done.set_exception(self._not_serving())
        if self._loop is not None:
            for handle in {request.handle for request in self._loop.requests.values()}:
                self._loop.cancel(handle, self._not_serving())
        self._ended.set_result(None)


def _arrive(
    loop: EngineLoop,
    handle: RequestHandle,
    ids: list[int],
    settings: Settings,
    read_prompt: int | None,
    deadline: float,
) -> None:
    def begin() -> None:
        sequence = loop.open(ids, settings, read_prompt)
        loop.add(Request(handle, 0, sequence, followers=settings.params.n - 1, deadline=deadline))

    _or_failed(loop, handle, begin)


def _or_failed(loop: EngineLoop, handle: RequestHandle, begin: Callable[[], None]) -> None:
    """A run that cannot even be opened ends like any other: with an event."""
    try:
        begin()
    except Exception as error:  # noqa: BLE001 (it is this run's alone)
        loop.cancel(handle, error)

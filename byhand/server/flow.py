"""From the worker's thread to the event loop: what several submissions tell, as one stream that a slow reader slows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from byhand.engine.events import Event, Failed, Finished, Stepped
from byhand.engine.worker import RequestHandle, Worker
from byhand.sampling.params import SamplingParams
from byhand.types import Step

if TYPE_CHECKING:
    from byhand.sampling.chain import Settings

T = TypeVar("T")

# Says on the worker's thread whether a choice ends with this step, though its run would go on.
Ends = Callable[[int, Step], bool]

QUEUED = 256  # events that wait for the reader before its runs are held


class Flow:
    """The events of one request's submissions, each with the place of its prompt; leaving it ends what still runs."""

    def __init__(self, worker: Worker, queued: int = QUEUED) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._queued = queued
        self._events: deque[tuple[int, Event]] = deque()
        self._more = asyncio.Event()
        self._handles: list[RequestHandle] = []
        self._open = 0
        self._held = False

    def submit(
        self,
        ids: list[int],
        params: SamplingParams | Settings,
        *,
        read_prompt: int | None = None,
        ends: Ends | None = None,
    ) -> None:
        """Ask for the choices of one more prompt; raises at once where they cannot be had."""
        place = len(self._handles)

        def listen(event: Event) -> None:
            self._loop.call_soon_threadsafe(self._put, place, event)
            if ends is not None and isinstance(event, Stepped) and ends(event.choice, event.step):
                self._worker.post(lambda loop: loop.stop(submitted.result(), event.choice))

        submitted: Future[RequestHandle] = Future()  # its first step may be told before `submit` has returned
        self._handles.append(self._worker.submit(ids, params, listen, read_prompt=read_prompt))
        submitted.set_result(self._handles[place])
        self._open += self._handles[-1].choices

    def _put(self, place: int, event: Event) -> None:
        self._events.append((place, event))
        self._more.set()
        if not self._held and len(self._events) >= self._queued:
            self._hold(True)

    def _hold(self, held: bool) -> None:
        self._held = held
        for handle in self._handles:
            (handle.hold if held else handle.release)()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        """(place of the prompt, event) until every choice has ended."""
        while self._open:
            while not self._events:
                self._more.clear()
                await self._more.wait()
            place, event = self._events.popleft()
            if self._held and len(self._events) <= self._queued // 2:
                self._hold(False)
            self._open -= isinstance(event, Finished | Failed)
            yield place, event

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.cancel()

    def cancel(self) -> None:
        """End what still runs."""
        for handle in self._handles:
            if not handle.is_done:
                handle.cancel()


class ClientGone(Exception):
    """Nobody is there any more to read an answer."""


async def _gone(receive: Callable[[], Awaitable[object]]) -> None:
    while True:
        message = await receive()
        if isinstance(message, dict) and message.get("type") == "http.disconnect":
            return


async def while_there(receive: Callable[[], Awaitable[object]], work: Awaitable[T]) -> T:
    """The result of the work; where the client hangs up first the work is cancelled, and ClientGone raised."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)

"""One /live connection without its transport: frames in, frames out, and the runs that it steers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from secrets import token_hex, token_urlsafe
from typing import Any, Protocol

from byhand.engine.events import Event, Failed, Finished, Paused, Progress, Read, Stepped
from byhand.engine.limits import Limits
from byhand.engine.sequence import Sequence
from byhand.engine.worker import InteractiveHandle, Worker
from byhand.errors import NotServing, RecordError
from byhand.jsonable import step_to_json, usage_to_json
from byhand.server.live import views
from byhand.server.live.frames import WITHOUT_RUN, Frame, FrameError, client_frame, error_frame
from byhand.server.live.outbox import Outbox
from byhand.server.service import beside
from byhand.types import Position

Json = dict[str, Any]

# Frames of one connection that are carried out at once; who sends more waits.
IN_FLIGHT = 64


@dataclass(slots=True, eq=False)
class Handle:
    """A run of this connection. `mark` is the client's id of the operation whose events come now."""

    name: str
    parent: str | None = None
    at: int | None = None
    request: InteractiveHandle | None = None
    run: Sequence | None = None  # for the worker's thread alone
    mark: str | int | None = None
    wants_record: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    standing: asyncio.Event = field(default_factory=asyncio.Event)  # it has come to rest for the first time

    def interactive(self) -> InteractiveHandle:
        """The handle on its request, once it was started."""
        if self.request is None:
            raise FrameError("unknown_run", f"the run `{self.name}` could not be started", param="run")
        return self.request


class Connections(Protocol):
    """What a session asks of the place where all of them are kept."""

    machine: Json | None  # this machine's limit, once somebody asked

    async def hand_over(self, token: str, to: Session) -> list[Handle]:
        """Give a lost connection's runs to another; a token works once."""


# What an op does: (session, frame, handle); what it raises becomes an error frame.
Operations = Mapping[str, Callable[["Session", Frame, Any], Awaitable[None]]]


class Session:
    """The runs of one client. `receive` takes frames one by one; `outbox` holds what is to be sent."""

    def __init__(self, live: Connections, worker: Worker, limits: Limits, operations: Operations) -> None:
        self.live = live
        self.worker = worker
        self.limits = limits
        self.token = token_urlsafe(24)
        self.runs: dict[str, Handle] = {}
        self.current: str | None = None
        self.loop = asyncio.get_running_loop()
        self.outbox = Outbox(limits.live_queue, self._hold, self._release)
        self._operations = operations
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self._tasks: set[asyncio.Task[None]] = set()

    def hello(self) -> None:
        """The first frame."""
        limits = {name: getattr(self.limits, name) for name in Limits.__slots__}
        model = views.model_view(self.worker.llm)
        self.outbox.put({"event": "hello", "model": model, "resume": self.token, "limits": limits})

    def _hold(self) -> None:
        for handle in list(self.runs.values()):
            if handle.request is not None:
                handle.request.hold()

    def _release(self) -> None:
        for handle in list(self.runs.values()):
            if handle.request is not None:
                handle.request.release()

    def steer(self, handle: Handle, request: InteractiveHandle) -> None:
        """Give a run its request; it waits like the others where nobody takes their events."""
        handle.request = request
        if self.outbox.is_full:
            request.hold()

    # Frames in.

    async def receive(self, text: str | bytes) -> None:
        """Take one frame; what is wrong with it becomes an error frame. Returns as soon as it is under way."""
        frame = await beside(len(text), lambda: client_frame(text, self.limits.body_bytes))
        if not isinstance(frame, Frame):
            self.outbox.put(frame)
            return
        try:
            handle = self._handle_for(frame)
        except FrameError as error:
            self.outbox.put(error_frame(error, frame.id, None))
            return
        await self._room.acquire()
        task = self.loop.create_task(self._carry_out(frame, handle))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()

    def _handle_for(self, frame: Frame) -> Handle | None:
        """The run that a frame means: a new one, the one it names, the one switched to, or the only one."""
        if frame.op in ("start", "load"):
            return self.add_run()
        if frame.op in WITHOUT_RUN:
            return None
        name = frame.run or self.current or (next(iter(self.runs)) if len(self.runs) == 1 else None)
        if name is None:
            message = "there is no run yet" if not self.runs else "there are several runs: say which"
            raise FrameError("missing_field", f"`{frame.op}` needs `run`: {message}", param="run")
        if name not in self.runs:
            raise FrameError("unknown_run", f"there is no run `{name[:60]}` on this connection", param="run")
        return self.runs[name]

    def add_run(self, parent: str | None = None, at: int | None = None) -> Handle:
        """A place for one more run; its name is made here."""
        if len(self.runs) >= self.limits.live_runs:
            message = f"this connection has {len(self.runs)} runs, which is the limit (live_runs): stop one first"
            raise FrameError("limit_exceeded", message, param="op")
        handle = Handle(token_hex(6), parent, at)
        self.runs[handle.name] = handle
        return handle

    def remove_run(self, handle: Handle) -> None:
        """Forget a run; its name can be used no more."""
        self.runs.pop(handle.name, None)
        if self.current == handle.name:
            self.current = None

    async def _carry_out(self, frame: Frame, handle: Handle | None) -> None:
        name = handle.name if handle is not None else None
        try:
            if handle is None or frame.op == "stop":
                await self._operations[frame.op](self, frame, handle)
            else:
                async with handle.lock:
                    await self._operations[frame.op](self, frame, handle)
        except Exception as error:  # noqa: BLE001 (whatever it is, the client is told and the connection stays)
            if isinstance(error, RecordError):
                error = FrameError("invalid_record", str(error), param="record")
            self.outbox.put(error_frame(error, frame.id, name))
            if handle is not None and handle.request is None:
                self.remove_run(handle)

    # Events out.

    def listener(self, handle: Handle) -> Callable[[Event], None]:
        """What a run's events become. Called on the worker's thread."""

        def listen(event: Event) -> None:
            items = event.positions if isinstance(event, Read) else (event,)
            reused = 0 if handle.run is None else handle.run.cached
            for item in items:
                self.outbox.put(partial(_event_frame, handle.name, handle.mark, item, reused))
            if isinstance(event, Paused | Finished | Failed) and not self.loop.is_closed():
                self.loop.call_soon_threadsafe(handle.standing.set)
                if isinstance(event, Finished) and handle.wants_record:
                    self.loop.call_soon_threadsafe(self._send_record, handle)

        return listen

    def _send_record(self, handle: Handle) -> None:
        frame = Frame("record", {}, handle.mark, handle.name)
        self._tasks.add(task := self.loop.create_task(self._carry_out(frame, handle)))
        task.add_done_callback(self._tasks.discard)

    def answer(self, frame: Frame, event: str, handle: Handle | None, values: Json) -> None:
        """The answer to an operation, with the client's own id."""
        run = {} if handle is None else {"run": handle.name}
        self.outbox.put({"event": event, **run, "id": frame.id, **values})

    # Coming and going.

    async def finish_tasks(self) -> None:
        """Cancel what is still being carried out for a client that is gone."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def park(self) -> None:
        """Keep the runs as ids only: their pages are let go before the next pass."""
        for handle in self.runs.values():
            if handle.request is not None:
                handle.request.hold()
                handle.request.park()

    def end(self) -> None:
        """End every run."""
        for handle in self.runs.values():
            if handle.request is not None:
                handle.request.cancel()
        self.runs.clear()

    def adopt(self, other: Session) -> list[Handle]:
        """Take over the runs of a session whose connection is gone."""
        handles = list(other.runs.values())
        if len(self.runs) + len(handles) > self.limits.live_runs:
            raise FrameError("limit_exceeded", "this connection would have too many runs (live_runs)", param="token")
        other.runs = {}
        for handle in handles:
            request = handle.request
            if request is not None:
                handle.lock, handle.standing, handle.mark = asyncio.Lock(), asyncio.Event(), None
                self.runs[handle.name] = handle
                request.listener = self.listener(handle)
                request.release()
                self.steer(handle, request)
        self.current = other.current
        return [handle for handle in handles if handle.request is not None]


def _event_frame(run: str, mark: str | int | None, item: Event | Position, reused: int) -> Json:
    """What the engine tells, as a frame; made when it is about to be sent. `reused`: prompt tokens of known pages."""
    match item:
        case Progress(done=done, total=total):
            values = {"event": "prefill", "done": done, "total": total, "reused": reused}
        case Position():
            values = {"event": "reading", **views.position_view(item)}
        case Stepped(step=step):
            values = {"event": "step", "step": step_to_json(step)}
        case Paused(why=why):
            values = {"event": "paused", "why": why}
        case Finished(finish_reason=reason, stop_reason=stop, usage=usage):
            ended = {"finish_reason": reason, "stop_reason": stop, "usage": usage_to_json(usage)}
            values = {"event": "finished", **ended}
        case Failed(error=error):
            return error_frame(error, mark, run)
        case _:
            raise AssertionError(item)
    return {"event": values.pop("event"), "run": run, "id": mark, **values}


def not_ready(worker: Worker) -> Exception | None:
    """Why no session can begin now."""
    try:
        _ = worker.llm
    except NotServing as error:
        return error
    return None

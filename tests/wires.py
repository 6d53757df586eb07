"""A /live connection without a network: the endpoint's own frames in and out, in a loop of another thread."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.websockets import WebSocket

from byhand import LLM
from byhand.engine.limits import Limits
from byhand.engine.worker import Worker
from byhand.server.live import Live

T = TypeVar("T")
Json = dict[str, Any]
SECONDS = 20


class Station:
    """A worker and its /live; `do` carries out work in its loop."""

    def __init__(self, llm: LLM, limits: Limits) -> None:
        self.llm = llm
        self.loop = asyncio.new_event_loop()
        self.worker = Worker(llm, limits)
        self.worker.opened.result(SECONDS)
        self.live = Live(self.worker, limits)
        self.errors: list[Json] = []  # of what nobody waits for
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, SECONDS), self.loop).result(SECONDS + 5)

    def stop(self) -> None:
        self.do(self.live.close())
        self.worker.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(SECONDS)
        self.loop.close()

    @property
    def pages(self) -> int:
        """Pages that are held, once the worker has heard all that was said before."""
        for _ in range(2):
            self.worker.call(lambda: None).result(SECONDS)
        return self.worker.stats().pages_used

    def tokens(self, prompt: str | list[int], count: int, **params: Any) -> list[int]:
        """The tokens of the same run in Python."""

        def work() -> list[int]:
            run = self.llm.start(prompt, **{"temperature": 0, "ignore_eos": True, **params})
            return [run.step().token.id for _ in range(count)]

        return self.worker.call(work).result(SECONDS)


@contextmanager
def station(llm: LLM, **limits: Any) -> Iterator[Station]:
    """One that is closed at the end, with no page held."""
    one = Station(llm, Limits(**limits))
    try:
        yield one
    finally:
        one.stop()
        assert one.worker.stats().pages_used == 0
        assert one.errors == []


class Wire:
    """A client of it. `room`: frames that lie between the server and a client that does not read."""

    def __init__(self, at: Station, room: int = 0) -> None:
        self.at = at
        self.seen: list[Json] = []
        self._in: asyncio.Queue[Json] = asyncio.Queue()
        self._out: asyncio.Queue[Json] = asyncio.Queue(room)
        scope = {"type": "websocket", "path": "/live", "headers": [], "subprotocols": []}
        websocket = WebSocket(scope, self._in.get, self._out.put)  # type: ignore[arg-type]
        self._put({"type": "websocket.connect"})
        self._task = asyncio.run_coroutine_threadsafe(at.live.endpoint(websocket), at.loop)
        assert self._take()["type"] == "websocket.accept"
        self.hello = self.next()

    def _put(self, message: Json) -> None:
        self.at.loop.call_soon_threadsafe(self._in.put_nowait, message)

    def _take(self) -> Json:
        return self.at.do(self._out.get())

    def close(self) -> None:
        """Hang up, and wait until the server knows it."""
        self._put({"type": "websocket.disconnect", "code": 1000})
        self._task.result(SECONDS)

    def code(self) -> int:
        """The code with which the server hangs up."""
        while (message := self._take())["type"] != "websocket.close":
            pass
        return int(message["code"])

    def send(self, op: str, **fields: Any) -> None:
        self._put({"type": "websocket.receive", "text": json.dumps({"op": op, **fields})})

    def next(self) -> Json:
        frame: Json = json.loads(self._take()["text"])
        self.seen.append(frame)
        return frame

    def get(self, *events: str, run: str | None = None) -> Json:
        """The next frame of one of these events; an error that was not asked for fails the test."""
        while True:
            frame = self.next()
            if frame["event"] in events and run in (None, frame.get("run")):
                return frame
            assert frame["event"] != "error", frame

    def ask(self, answer: str, op: str, **fields: Any) -> Json:
        self.send(op, **fields)
        return self.get(answer)

    def refused(self, op: str, **fields: Any) -> Json:
        """The error that answers it."""
        self.send(op, **fields)
        frame = self.next()
        assert frame["event"] == "error", frame
        return frame

    def begin(self, prompt: str | list[int], *, top: int = 0, **params: Any) -> Json:
        """A greedy run at rest; the frame that names it."""
        fields = {"temperature": 0, "ignore_eos": True, **params}
        started = self.ask("started", "start", prompt=prompt, params=fields, top=top)
        self.get("paused", "finished")
        return started

    def state(self, run: str | None = None) -> Json:
        """All that its record says, but for the time."""
        record = self.ask("record", "record", **({} if run is None else {"run": run}))["record"]
        return {name: value for name, value in record.items() if name != "created"}

    def kinds(self) -> list[tuple[str, Any]]:
        """The events since the last look, with their ids, each kind once in a row."""
        found = [(frame["event"], frame.get("id")) for frame in self.seen]
        self.seen.clear()
        return [each for place, each in enumerate(found) if place == 0 or found[place - 1] != each]

    def steps(self) -> list[int]:
        """Token ids of every step since the last look."""
        found = [frame["step"]["token"]["id"] for frame in self.seen if frame["event"] == "step"]
        self.seen.clear()
        return found


@contextmanager
def wire(at: Station, room: int = 0) -> Iterator[Wire]:
    """One that hangs up at the end."""
    one = Wire(at, room)
    try:
        yield one
    finally:
        one.close()

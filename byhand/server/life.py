"""Life and death: SIGTERM lets what runs come to its end within a grace time, a second one ends it at once.

While it drains the server still answers, with 503: a load balancer hears it, and no client is met by silence.
"""

from __future__ import annotations

import asyncio
import signal
from types import FrameType
from typing import Any

import uvicorn

from byhand.engine.worker import Worker
from byhand.server.app import create_app
from byhand.server.guard import Rules
from byhand.server.live import Live
from byhand.server.metrics import Metrics
from byhand.server.protocol import TimedProtocol
from byhand.server.service import Service

GRACE = 30.0
LAST_WORDS = 3.0  # seconds for the last frames to be read


class Server(uvicorn.Server):
    """uvicorn on sockets that listen already, but a signal means: drain for `grace` seconds, then exit 0."""

    def __init__(self, worker: Worker, name: str, rules: Rules, *, grace: float = GRACE, **options: Any) -> None:
        self.worker = worker
        self.live = Live(worker, worker.limits)
        self.signals: list[int] = []
        self._grace = grace
        self._ending: asyncio.Task[None] | None = None
        metrics = Metrics(worker, lambda: self.live.connections)
        self.app = create_app(Service(worker, name, metrics), self.live, rules)
        given: dict[str, Any] = {
            "http": TimedProtocol,
            "ws_max_size": 4 * worker.limits.body_bytes,  # up to here a frame that is too large is told so
            "ws_per_message_deflate": False,  # a third of a megabyte for each connection, and time for each token
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "lifespan": "off",
            "timeout_graceful_shutdown": int(LAST_WORDS),
        }
        super().__init__(uvicorn.Config(self.app, **{**given, **options}))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal; the next tick acts on it. uvicorn would die of it in the end, instead of exiting with 0."""
        self.signals.append(sig)

    def stop(self) -> None:
        """The same as a signal, from any thread."""
        self.signals.append(signal.SIGTERM)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: is it time to drain, or to go? A model that is still being opened holds nobody up."""
        await super().on_tick(counter)
        if self.signals and not self.worker.opened.done():
            return True
        if self.signals and self._ending is None:
            self._ending = asyncio.create_task(self._end())
        if len(self.signals) > 1 or self.worker.state == "failed":
            return True
        return self._ending is not None and self._ending.done()

    async def _end(self) -> None:
        await asyncio.wrap_future(self.worker.drain(self._grace))

    async def shutdown(self, sockets: Any = None) -> None:
        """Nothing runs any more, or nothing shall: every stream gets its last words."""
        await asyncio.to_thread(self.worker.close)
        if self._ending is not None:
            self._ending.cancel()
            await asyncio.gather(self._ending, return_exceptions=True)
        await self.live.close(code=1001)
        await super().shutdown(sockets)

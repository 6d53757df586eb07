"""The WebSocket at /live: connections, and the runs of those that were lost, kept for a while as ids."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from byhand.engine.limits import Limits
from byhand.server.live.frames import FrameError, error_frame
from byhand.server.live.operate import OPERATIONS
from byhand.server.live.session import Handle, Session, not_ready

if TYPE_CHECKING:
    from byhand.engine.worker import Worker

TRY_AGAIN_LATER = 1013
TAKEN_OVER = 4000


class Live:
    """All /live connections of a server."""

    def __init__(self, worker: Worker, limits: Limits) -> None:
        self._worker = worker
        self._limits = limits
        self._open: dict[str, tuple[Session, WebSocket]] = {}
        self._lost: dict[str, tuple[Session, asyncio.TimerHandle]] = {}
        self.machine: dict[str, Any] | None = None  # its limit, once somebody asked

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._open)

    async def endpoint(self, websocket: WebSocket) -> None:
        """Serve one connection until either side ends it."""
        await websocket.accept()
        refusal = not_ready(self._worker)
        if refusal is None and self.connections >= self._limits.connections:
            message = f"{self.connections} live connections are open, which is this server's limit (connections)"
            refusal = FrameError("server_full", message)
        if refusal is not None:
            await websocket.send_text(json.dumps(error_frame(refusal, None, None)))
            await websocket.close(TRY_AGAIN_LATER)
            return
        session = Session(self, self._worker, self._limits, OPERATIONS)
        self._open[session.token] = session, websocket
        session.hello()
        sender = asyncio.create_task(self._send(session, websocket))
        try:
            await self._receive(session, websocket)
        finally:
            self._open.pop(session.token, None)
            session.outbox.close()
            await session.finish_tasks()
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            self._lose(session)

    async def _receive(self, session: Session, websocket: WebSocket) -> None:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            await session.receive(text if text is not None else message.get("bytes") or b"")

    async def _send(self, session: Session, websocket: WebSocket) -> None:
        """One frame after another; a reader that is slow makes this wait, and nothing else."""
        with suppress(WebSocketDisconnect, RuntimeError):
            while (frame := await session.outbox.take()) is not None:
                await websocket.send_text(json.dumps(frame, allow_nan=False))

    # Lost and found.

    def _lose(self, session: Session) -> None:
        """Keep the runs of a connection that ended, without their pages."""
        if not session.runs:
            return
        if not self._limits.resume_seconds:
            session.end()
            return
        session.park()
        timer = asyncio.get_running_loop().call_later(self._limits.resume_seconds, self._forget, session.token)
        self._lost[session.token] = session, timer

    def _forget(self, token: str) -> None:
        session, _ = self._lost.pop(token)
        session.end()

    async def hand_over(self, token: str, to: Session) -> list[Handle]:
        """Give a lost connection's runs to another; a token works once. One that still hangs open is closed first."""
        if token in self._open and token != to.token:
            _, websocket = self._open[token]
            with suppress(WebSocketDisconnect, RuntimeError):
                await websocket.close(TAKEN_OVER)
            for _ in range(100):
                if token not in self._open:
                    break
                await asyncio.sleep(0.01)
            await asyncio.sleep(0)
        if token not in self._lost:
            raise FrameError("unknown_token", "there are no runs to resume under this token", param="token")
        session, timer = self._lost[token]
        handles = to.adopt(session)
        timer.cancel()
        del self._lost[token]
        return handles

    async def close(self, code: int = 1001) -> None:
        """Send every connection what it still has to hear, then the closing frame."""
        for session, timer in list(self._lost.values()):
            timer.cancel()
            session.end()
        self._lost.clear()
        for session, websocket in list(self._open.values()):
            for _ in range(100):
                if not len(session.outbox):
                    break
                await asyncio.sleep(0.01)
            session.end()
            if websocket.application_state is WebSocketState.CONNECTED:
                with suppress(WebSocketDisconnect, RuntimeError):
                    await websocket.close(code)

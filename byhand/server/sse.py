"""Answers that come piece by piece: server-sent events and NDJSON. They never just stop: the last piece says why."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from byhand.server.answers import Answer
from byhand.server.flow import ClientGone, Flow, while_there
from byhand.server.problems import problem_of

QUIET_SECONDS = 15.0  # without a word for so long, proxies and clients give up: a comment keeps them


def compact(value: Any) -> str:
    """JSON on one line; NaN and infinity are refused, for JSON has none."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def as_json(value: Any) -> str:
    """A chunk, or anything else that JSON knows, on one line."""
    return value.model_dump_json(exclude_unset=True) if isinstance(value, Answer) else compact(value)


class Pieces(Response):
    """An answer of many pieces; an error on the way is the last. `encode` writes one, `end` follows all."""

    media_type = "application/x-ndjson"
    end = b""
    quiet = b""

    def __init__(self, pieces: AsyncIterator[Any], flow: Flow) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.headers["X-Accel-Buffering"] = "no"
        self._pieces = pieces
        self._flow = flow

    def encode(self, value: Any) -> bytes:
        """One piece."""
        return as_json(value).encode() + b"\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all pieces, and stop making them when the client has gone."""
        with self._flow, suppress(ClientGone, OSError):
            await while_there(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for data in self._encoded():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": self.end})

    async def _encoded(self) -> AsyncIterator[bytes]:
        try:
            async for value in _with_pauses(self._pieces, QUIET_SECONDS if self.quiet else None):
                yield self.quiet if value is _PAUSE else self.encode(value)
        except Exception as error:  # noqa: BLE001 - whatever it was, the client hears that it is over
            yield self.encode(problem_of(error).body)
        finally:
            closing = getattr(self._pieces, "aclose", None)
            if closing is not None:
                await closing()


class EventStream(Pieces):
    """Server-sent events as OpenAI sends them: `data:` and JSON, a blank line; `[DONE]` at the end."""

    media_type = "text/event-stream"
    end = b"data: [DONE]\n\n"
    quiet = b": still here\n\n"

    def encode(self, value: Any) -> bytes:
        """One event."""
        return b"data: " + as_json(value).encode() + b"\n\n"


_PAUSE = object()


async def _with_pauses(pieces: AsyncIterator[Any], seconds: float | None) -> AsyncIterator[Any]:
    """The pieces, and a mark for every stretch of time in which none came."""
    waiting: asyncio.Future[Any] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(pieces))
            done, _ = await asyncio.wait({waiting}, timeout=seconds)
            if not done:
                yield _PAUSE
                continue
            try:
                value = waiting.result()
            except StopAsyncIteration:
                return
            waiting = None
            yield value
    finally:
        if waiting is not None and not waiting.done():
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

"""uvicorn's HTTP connection with time limits: for the head, for the body, and for a reader that does not read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

HEAD_SECONDS = 10.0
BODY_SECONDS = 75.0  # a little more than the guard's, which can still answer
STALLED_SECONDS = 60.0
CONNECTIONS = 512  # at once; more would take the descriptors that the process itself needs


def _refusal(status: int, message: str, kind: str, code: str, *more: tuple[bytes, bytes]) -> tuple[h11.Event, ...]:
    """An answer to what never became a request, and the end of its connection."""
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close"), *more]
    headers.append((b"content-length", str(len(body)).encode()))
    head = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
    return head, h11.Data(data=body), h11.EndOfMessage()


class TimedProtocol(H11Protocol):
    """Hangs up on a client that dawdles; what it had asked for ends like that of any client that hangs up."""

    head_seconds = HEAD_SECONDS
    body_seconds = BODY_SECONDS
    stalled_seconds = STALLED_SECONDS
    most_connections = CONNECTIONS

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._stage: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is here: its first head is awaited, if there is room for one more."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            message = f"{self.most_connections} connections are open, and this server takes no more"
            self._refuse(*_refusal(429, message, "rate_limit_error", "server_full", (b"retry-after", b"1")))
            return
        self._await("head")

    def handle_events(self) -> None:
        """Read what came; what is still missing has its time."""
        super().handle_events()
        # Who was handed on to another protocol has no body to send.
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            self._await(None)
        elif self.conn.their_state is h11.SEND_BODY:
            self._await("body")
        elif self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._await("head")
        else:
            self._await(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._await(None)
        self._end_stall()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads too slowly: it may, for a while."""
        super().pause_writing()
        self._end_stall()
        self._stalled = self.loop.call_later(self.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read again."""
        self._end_stall()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What cannot be parsed as HTTP is answered as every other error is."""
        self._refuse(*_refusal(400, "this is no HTTP request", "invalid_request_error", "invalid_http"))

    def _refuse(self, *answer: h11.Event) -> None:
        try:
            for event in answer:
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            pass  # an answer is on its way already: it cannot be followed by another
        self.transport.close()

    def _await(self, stage: str | None) -> None:
        """Start the time of a stage, once; None ends it."""
        if stage == self._stage:
            return
        self._stage = stage
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if stage is not None:
            seconds = self.head_seconds if stage == "head" else self.body_seconds
            self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _end_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

"""What the server says while it runs: one line a request on stderr, as text or JSON, only where it was asked for."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from byhand.server.metrics import Metrics

FORMATS = ("none", "text", "json")
_requests = logging.getLogger("byhand.requests")


class TextLines(logging.Formatter):
    """`14:03:21 POST /read 200 0.012 s`: for people."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback below it where there is one."""
        line = f"{datetime.fromtimestamp(record.created).strftime('%H:%M:%S')} {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """One object a line: for programs."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, event, and what belongs to it."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)


def set_up(form: str) -> None:
    """Send byhand's own log, and uvicorn's warnings, to stderr in this form; errors are told in any."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    levels = {"byhand": logging.WARNING if form == "none" else logging.INFO, "uvicorn": logging.ERROR}
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


class RequestLog:
    """ASGI middleware: counts and times every request, the refused ones too."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through and write down what became of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = perf_counter()
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            self._note(scope, status, perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        # The route's pattern, not the path as sent: a client must not be able to make labels without end.
        route = scope.get("route")
        path = getattr(route, "path", "other")
        method = scope["method"] if scope["method"] in ("GET", "POST", "OPTIONS") else "other"
        self.metrics.requests.labels(method, path, str(status)).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        fields = {"method": scope["method"][:20], "path": scope["path"][:200], "status": status, "seconds": seconds}
        line = f"{fields['method']} {fields['path']!a} {status} {seconds:.3f} s"
        _requests.info(line, extra={"fields": {**fields, "seconds": round(seconds, 4)}})

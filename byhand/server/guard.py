"""What stands before every route, for HTTP and the WebSocket handshake: Host, Origin, key, size and time.

A page of another site must not reach a server on this machine: not by a form (Origin), and not by a name of its own
that suddenly means 127.0.0.1 (Host: DNS rebinding). Plain ASGI: nothing is read or buffered that need not be.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import reprlib
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from byhand.server.problems import ApiError

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = ("/", "/health")  # what a browser or a probe asks for before it has a key
OPEN_PREFIXES = ("/web/", "/source/")  # the page's own files: the package's, the same for everyone
BODY_SECONDS = 60.0
HEAD_BYTES = 32 * 2**10
SUBPROTOCOL = "byhand"
KEY_PREFIX = "byhand.key."

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def split_host(netloc: str) -> tuple[str, int | None] | None:
    """Name and port of a Host header or an origin, None where it is neither."""
    if not netloc or any(character in netloc for character in " /?#@\\,\t"):
        return None
    try:
        parts = urlsplit(f"//{netloc}")
        port = parts.port
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname else None


def _foreign_host(hosts: list[str]) -> str:
    if len(hosts) != 1:
        return f"a request has one Host header; this one has {len(hosts)}"
    named = split_host(hosts[0])
    way = f"; start it with --allow-host {named[0]} to let it be called so" if named else ""
    return f"the Host header, {reprlib.repr(hosts[0])}, does not name this server{way}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to this host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Rules:
    """Who may come in. `host` is what the server is bound to; names and origins beyond its own are listed."""

    host: str = "127.0.0.1"
    api_key: str | None = None
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    body_bytes: int = 4 * 2**20
    body_seconds: float = BODY_SECONDS
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        own: Iterable[str] = () if is_loopback(self.host) else (socket.gethostname().lower(),)
        object.__setattr__(self, "names", frozenset({*LOCAL_NAMES, self.host, *own, *self.hosts}))

    def allows_host(self, netloc: str) -> bool:
        """Whether a Host header names this server. An address cannot be made to mean another one; a name can."""
        parts = split_host(netloc)
        if parts is None:
            return False
        return parts[0] in self.names or (not is_loopback(self.host) and _is_address(parts[0]))

    def allows_origin(self, origin: str, netloc: str) -> bool:
        """Whether a page of this origin may ask: the server's own pages, and origins that were listed."""
        if origin in self.origins:
            return True
        scheme, _, rest = origin.partition("://")
        return scheme in ("http", "https") and rest.lower() == netloc.lower()

    def knows_key(self, headers: Headers, *, websocket: bool) -> bool:
        """Whether the key is there, compared in constant time. A browser's WebSocket can only say it as a protocol."""
        if self.api_key is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        offered = [given.strip()] if scheme.lower() == "bearer" else []
        if websocket:
            offered += [_unpack(word) for word in _words(headers) if word.startswith(KEY_PREFIX)]
        # Every one is compared, so that the time does not tell which was right.
        found = [hmac.compare_digest(key.encode(errors="replace"), self.api_key.encode()) for key in offered]
        return any(found)


def _words(headers: Headers) -> list[str]:
    return [word.strip() for word in headers.get("sec-websocket-protocol", "").split(",")]


def _unpack(word: str) -> str:
    packed = word.removeprefix(KEY_PREFIX)
    try:
        return base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)).decode()
    except ValueError:
        return ""


class Guard:
    """ASGI middleware: refuses, or lets through with a body that cannot grow or dawdle without end."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app = app
        self.rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request or handshake."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        send = self._with_headers(scope, send, origin)
        try:
            self._check(scope, headers, origin)
            if self._is_preflight(scope, headers):
                await self._preflight()(scope, receive, send)
            elif scope["type"] == "websocket":
                await self.app(scope, receive, _with_subprotocol(headers, send))
            else:
                self._check_length(headers)
                await self.app(scope, self._bounded(receive), send)
        except ApiError as problem:
            await _answer(problem, scope, receive, send)

    def _check(self, scope: Scope, headers: Headers, origin: str | None) -> None:
        if sum(len(name) + len(value) for name, value in headers.raw) + len(scope.get("raw_path", b"")) > HEAD_BYTES:
            raise ApiError(431, f"the head is larger than {HEAD_BYTES} bytes", code="head_too_large")
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.rules.allows_host(hosts[0]):
            raise ApiError(403, _foreign_host(hosts), code="foreign_host")
        if origin is not None and not self.rules.allows_origin(origin, hosts[0]):
            way = "start it with --allow-origin and the page's own to let them"
            raise ApiError(403, f"pages of this origin may not use this server; {way}", code="foreign_origin")
        path = scope["path"]
        is_page = path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)
        is_open = scope["type"] == "http" and (is_page or self._is_preflight(scope, headers))
        if not is_open and not self.rules.knows_key(headers, websocket=scope["type"] == "websocket"):
            raise ApiError(
                401,
                "the API key is missing or wrong: send Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    # The body.

    def _check_length(self, headers: Headers) -> None:
        declared = headers.get("content-length", "0")
        # A number of more digits than these is a number of terabytes, and int() need not read it.
        if len(declared) > 15 or (declared.isascii() and declared.isdigit() and int(declared) > self.rules.body_bytes):
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self.rules.body_bytes} bytes", code="body_too_large")

    def _bounded(self, receive: Receive) -> Receive:
        """The request's messages, until they are too many or too late."""
        taken = 0
        complete = False
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.rules.body_seconds

        async def bounded() -> Message:
            nonlocal taken, complete
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - loop.time()))
            except TimeoutError:
                headers = {"Connection": "close"}
                raise ApiError(408, "the body did not come in time", code="body_too_slow", headers=headers) from None
            taken += len(message.get("body", b""))
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            if taken > self.rules.body_bytes:
                raise self._too_large()
            return message

        return bounded

    # Headers of the answer.

    def _with_headers(self, scope: Scope, send: Send, origin: str | None) -> Send:
        async def with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if origin in self.rules.origins:
                    headers["Access-Control-Allow-Origin"] = str(origin)
                    headers["Access-Control-Expose-Headers"] = "Retry-After, x-byhand-ignored"
                    headers["Cross-Origin-Resource-Policy"] = "cross-origin"
                if self.rules.origins:
                    headers.add_vary_header("Origin")
            await send(message)

        return with_headers

    def _is_preflight(self, scope: Scope, headers: Headers) -> bool:
        return (
            scope["type"] == "http"
            and scope["method"] == "OPTIONS"
            and "access-control-request-method" in headers
            and headers.get("origin") in self.rules.origins
        )

    def _preflight(self) -> Response:
        allowed = {
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Allow-Headers": "Authorization, Content-Type",
            "Access-Control-Max-Age": "600",
        }
        return Response(status_code=204, headers=allowed)


def _with_subprotocol(headers: Headers, send: Send) -> Send:
    """A browser that offers protocols hangs up unless one of them is taken."""
    if SUBPROTOCOL not in _words(headers):
        return send

    async def with_subprotocol(message: Message) -> None:
        if message["type"] == "websocket.accept":
            message = {**message, "subprotocol": SUBPROTOCOL}
        await send(message)

    return with_subprotocol


async def _answer(problem: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await problem.response(scope, receive, send)
    elif "websocket.http.response" in scope.get("extensions", {}):
        await receive()  # websocket.connect
        await problem.response(scope, receive, send)
    else:
        closing: dict[str, Any] = {"type": "websocket.close", "code": 1008, "reason": problem.detail[:100]}
        await send(closing)

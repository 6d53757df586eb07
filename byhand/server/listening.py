"""Where the server listens: bound before anything heavy is imported, so that a taken port is told at once."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from byhand.errors import BadRequest

BACKLOG = 2048  # connections that wait until they are accepted: as many as uvicorn's own


def listen(host: str, port: int) -> list[socket.socket]:
    """A listening socket for every address of a host's name, all on one port; port 0 takes a free one.

    Who connects already waits until the server accepts. Raises BadRequest with the system's reason.
    """
    listening: list[socket.socket] = []
    try:
        for family, _, _, _, address in _addresses(host, port):
            taken = listening[0].getsockname()[1] if listening else port
            with suppress(_Unsupported):
                listening.append(_bound(family, (address[0], taken, *address[2:])))
        if not listening:
            raise OSError("no address of its name can be listened on")
    except OSError as error:
        for one in listening:
            one.close()
        raise BadRequest(f"{host}:{port} cannot be listened on: {_why(error)}", param="port", hint=_way(port)) from None
    return listening


def url_of(listening: socket.socket) -> str:
    """What to open in a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Unsupported(OSError):
    """This machine has no such family of addresses, IPv6 for instance."""


def _addresses(host: str, port: int) -> list[tuple[int, int, int, str, tuple[str, ...]]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # IPv4 first: it is what "localhost" means to most clients, and what is named to people.
    return sorted(dict.fromkeys(found), key=lambda each: each[0] != socket.AF_INET)  # type: ignore[arg-type]


def _bound(family: int, address: tuple[object, ...]) -> socket.socket:
    try:
        # With the protocol named, asyncio sends what is small at once (TCP_NODELAY). Else an answer's second piece
        # waits until the client has acknowledged the first: 40 ms for each request but the first on a connection.
        one = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise _Unsupported from error
    try:
        if os.name == "posix":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
        one.listen(BACKLOG)
    except BaseException:
        one.close()
        raise
    return one


def _why(error: OSError) -> str:
    known = not isinstance(error, socket.gaierror) and error.errno is not None
    return (os.strerror(error.errno) if known else error.strerror or str(error)).lower()  # type: ignore[arg-type]


def _way(port: int) -> str | None:
    return None if port == 0 else "--port takes another one, and --port 0 any that is free"

"""`byhand serve`: the server. Everything that it needs is imported when it is asked for."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from byhand.checkpoint import EMBEDDED, is_hub_id, open_checkpoint
from byhand.cli.options import Commands, UsageError, add_model_options, integer, model_name
from byhand.cli.talk import INTERRUPTED, open_model, talk
from byhand.engine.limits import Limits
from byhand.lookalikes import check_architecture

if TYPE_CHECKING:
    import socket
    from concurrent.futures import Future

    from byhand import LLM
    from byhand.server.guard import Rules

LOGS = ("none", "text", "json")


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "serve",
        help="the server: OpenAI's API, and runs that are watched and steered",
        usage="byhand serve [options]",
        description="Serve a model over HTTP and WebSocket, to this machine alone unless told otherwise. "
        "SIGTERM lets what runs come to its end; a second one ends it at once.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=integer, default=8000, metavar="N", help="0 takes a free one (default 8000)")
    parser.add_argument(
        "--api-key", metavar="KEY", help="asked of every client; else $BYHAND_API_KEY; needed beyond this machine"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that the server goes by; may be repeated",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a page that may use the server, as https://example.com; may be repeated",
    )
    parser.add_argument("--served-name", metavar="NAME", help="what /v1/models calls the model")
    parser.add_argument("--grace", type=float, default=30.0, metavar="S", help="seconds to drain in (default 30)")
    parser.add_argument("--log", choices=LOGS, default="none", help="a line for every request (default none)")
    _add_limits(parser)
    add_model_options(parser)
    parser.set_defaults(command=command)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    for info in fields(Limits):
        told = (
            "none" if info.default is None else f"{info.default:g}" if isinstance(info.default, float) else info.default
        )
        group.add_argument(
            f"--limit-{info.name.replace('_', '-')}",
            dest=f"limit_{info.name}",
            type=float if isinstance(info.default, float) else integer,
            default=info.default,
            metavar="N",
            help=f"{info.metadata['help']} (default {told})",
        )


def limits_from(arguments: argparse.Namespace) -> Limits:
    """The limits as they were typed, checked."""
    return Limits(**{info.name: getattr(arguments, f"limit_{info.name}") for info in fields(Limits)})


def rules_from(arguments: argparse.Namespace, limits: Limits) -> Rules:
    """Who may come in; a server that others can reach must ask for a key."""
    from byhand.server.guard import Rules, is_loopback, split_host

    key = arguments.api_key if arguments.api_key is not None else os.environ.get("BYHAND_API_KEY")
    if key is not None and (len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key):
        raise UsageError("--api-key must be at least 8 printable ASCII characters without spaces")
    if key is None and not is_loopback(arguments.host):
        raise UsageError(f"--host {arguments.host} lets other machines in: give an --api-key")
    if not 0 <= arguments.port <= 65535:
        raise UsageError(f"--port is {arguments.port}; it must be at least 0 and at most 65535")
    if not 0 <= arguments.grace <= 3600:
        raise UsageError(f"--grace is {arguments.grace:g}; it must be at least 0 and at most 3600")
    for origin in arguments.allow_origin:
        scheme, separator, rest = origin.partition("://")
        if scheme not in ("http", "https") or not separator or split_host(rest) is None:
            raise UsageError(f"--allow-origin {origin!r} is no origin", hint="such as https://example.com")
    return Rules(
        host=arguments.host,
        api_key=key,
        hosts=frozenset(name.lower() for name in arguments.allow_host),
        origins=frozenset(arguments.allow_origin),
        body_bytes=limits.body_bytes,
    )


def served_name(arguments: argparse.Namespace) -> str:
    """What clients call the model: never a path of this machine."""
    name = arguments.served_name or model_name(arguments) or EMBEDDED
    return Path(name).resolve().name if Path(name).exists() else str(name)


def opened_warm(arguments: argparse.Namespace) -> LLM:
    """The model, warm: the first request waits for no kernel, and no stream for the garbage collector."""
    from byhand.sampling.params import SamplingParams

    llm = open_model(arguments)
    llm.generate([0] * min(40, llm.context_length), SamplingParams(max_tokens=2))
    gc.collect()
    gc.freeze()  # else every full collection walks through all that was imported: 0.2 s, in which no token comes
    return llm


def command(arguments: argparse.Namespace) -> int:
    """Serve until a signal says otherwise."""
    with _going_at_once():
        limits = limits_from(arguments)
        rules = rules_from(arguments, limits)
        name = served_name(arguments)
        check_model(arguments)
        from byhand.server.listening import listen, url_of

        sockets = listen(arguments.host, arguments.port)
        url = url_of(sockets[0])
        talk(f"starting at {url}: opening {name}")
        return _serve(arguments, limits, rules, name, sockets, url)


def check_model(arguments: argparse.Namespace) -> None:
    """Refuse now what lies on this machine and cannot be opened; the hub is asked when the server listens."""
    source = model_name(arguments)
    if source is None or not is_hub_id(source):
        checkpoint = open_checkpoint(source, arguments.revision)
        check_architecture(checkpoint.folder, checkpoint.config)


@contextmanager
def _going_at_once() -> Iterator[None]:
    """SIGTERM ends what only starts: nothing runs yet that could come to its end."""
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _serve(
    arguments: argparse.Namespace, limits: Limits, rules: Rules, name: str, sockets: list[socket.socket], url: str
) -> int:
    from byhand.engine.worker import Worker
    from byhand.server import log
    from byhand.server.life import Server
    from byhand.server.line import LiveLine

    log.set_up(arguments.log)
    worker = Worker(lambda: opened_warm(arguments), limits)

    def opened(model: Future[LLM]) -> None:
        if model.exception() is None and worker.state == "ready":
            talk(f"serving {name} at {url} (Ctrl-C stops)")

    try:
        server = Server(worker, name, rules, grace=arguments.grace)
        worker.opened.add_done_callback(opened)
        with LiveLine(worker) if arguments.log == "none" else nullcontext():
            server.run(sockets)
    finally:
        worker.close()
    code = INTERRUPTED if server.signals and server.signals[0] == signal.SIGINT else 0
    if not worker.opened.done():
        talk(f"stopped before {name} was open")
        sys.stderr.flush()
        os._exit(code)  # the worker is inside libraries that would not survive an interpreter that ends around them
    if worker.failure is not None:
        raise worker.failure
    print(end="", file=sys.stderr, flush=True)
    return code

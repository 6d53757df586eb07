"""A real server on a free port for tests: uvicorn in a thread, or `byhand serve` in a process."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from byhand import LLM
from byhand.engine.limits import Limits
from byhand.engine.worker import Worker
from byhand.server.guard import Rules
from byhand.server.life import Server
from byhand.server.listening import listen


@dataclass
class Answer:
    """What a request got."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object, which holds these four and nothing else."""
        assert list(self.json) == ["error"]
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return dict(error)

    @property
    def events(self) -> list[Any]:
        """The events of a stream, which must end with [DONE]."""
        text = self.body.decode()
        blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
        assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
        assert blocks[-1] == "data: [DONE]"
        return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


@dataclass
class Client:
    """The plainest HTTP client."""

    port: int
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """One request on a connection of its own."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if body is not None else {}
        try:
            connection.request(method, path, data, {**sent, **self.headers, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, **body: Any) -> Answer:
        return self.ask("POST", path, body)

    def raw(self, data: bytes, *, seconds: float = 10.0) -> bytes:
        """Bytes as they are; all that comes back until the server hangs up or nothing comes any more."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(data)
            got = b""
            try:
                while more := connection.recv(65536):
                    got += more
            except (TimeoutError, ConnectionResetError):
                pass
            return got

    def opened(self, path: str, body: dict[str, Any]) -> socket.socket:
        """A request that was sent and not read; the caller hangs up."""
        data = json.dumps(body).encode()
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return connection


@dataclass
class Running(Client):
    """A server in a thread."""

    worker: Any = None
    server: Any = None
    thread: Any = None

    def stop(self, seconds: float = 30.0) -> None:
        """Drain, and wait for the end."""
        self.server.stop()
        self.thread.join(seconds)
        assert not self.thread.is_alive()

    @property
    def is_empty(self) -> bool:
        """Whether no run is left and no page is held, once everything that was said has been heard."""
        self.worker.call(lambda: None).result(30)
        stats = self.worker.stats()
        return bool(stats.running + stats.waiting + stats.idle + stats.pages_used == 0)

    @property
    def generated(self) -> int:
        """Tokens that the engine has made so far."""
        numbers = self.get("/metrics").body.decode()
        return int(float(re.findall(r"^byhand_generated_tokens_total (\S+)", numbers, re.MULTILINE)[0]))


def serve(
    opener: LLM | Callable[[], LLM],
    *,
    limits: Limits | None = None,
    rules: Rules | None = None,
    name: str = "byhand-tiny",
    protocol: type | None = None,
    port: int = 0,
    grace: float = 30.0,
) -> Running:
    """Start a server that listens, in a thread, and wait until it runs; the model may still be opening."""
    worker = Worker(opener, limits or Limits())
    sockets = listen("127.0.0.1", port)
    options = {} if protocol is None else {"http": protocol}
    server = Server(worker, name, rules or Rules(), grace=grace, **options)
    thread = threading.Thread(target=server.run, args=[sockets], name="test server", daemon=True)
    thread.start()
    assert until(lambda: server.started, 30)
    return Running(sockets[0].getsockname()[1], worker=worker, server=server, thread=thread)


def until(claim: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@dataclass
class Process(Client):
    """`byhand serve` in a process of its own."""

    process: Any = None
    said: list[str] = field(default_factory=list)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 30.0) -> int:
        """The exit code."""
        code: int = self.process.wait(seconds)
        return code


def byhand_serve(*arguments: str, ready: bool = True) -> Process:
    """Start `byhand serve --port 0`, and wait until it listens and, if wished, until its model is open."""
    environment = {name: value for name, value in os.environ.items() if name != "BYHAND_API_KEY"}
    process = subprocess.Popen(
        [sys.executable, "-m", "byhand", "serve", "--port", "0", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1],
    )
    started = Process(0, process=process)
    assert process.stderr is not None

    def listen() -> None:
        for line in process.stderr or ():
            started.said.append(line.rstrip("\n"))
            found = re.search(r"at http://127\.0\.0\.1:(\d+)", line)
            started.port = int(found[1]) if found else started.port

    threading.Thread(target=listen, daemon=True).start()
    assert until(lambda: bool(started.port) or process.poll() is not None, 60), started.said
    if ready:
        assert until(lambda: process.poll() is not None or started.get("/health").status == 200, 60), started.said
    return started


def ended(process: Process) -> None:
    """Make sure that nothing is left."""
    if process.process.poll() is None:
        process.process.kill()
        process.process.wait()


def served(model: Any, *, may_keep_runs: bool = False, **options: Any) -> Iterator[Running]:
    """For fixtures: a server with an open model, which must be empty when it is given back, unless it may keep runs."""
    running = serve(model, **options)
    running.worker.opened.result(60)
    yield running
    assert may_keep_runs or until(lambda: running.is_empty), running.worker.stats()
    running.stop()

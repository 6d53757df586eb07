"""The guard, and what is thrown at it: foreign pages, wrong keys, hostile bytes, clients that dawdle."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from byhand import LLM
from byhand.server.bodies import parse
from byhand.server.guard import Rules, is_loopback, split_host
from byhand.server.problems import ApiError
from byhand.server.protocol import TimedProtocol
from tests.serving import Answer, Running, serve, served, until

ROUTES = [
    ("GET", "/"),
    ("GET", "/style.css"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/byhand-tiny"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/apply-template"),
    ("POST", "/read"),
    ("GET", "/live"),
    ("GET", "/nothing"),
]
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE")
FOREIGN_HOSTS = (
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example:80",
    "evil.example@127.0.0.1",
    "",
    "[::1",
    "0x7f.1",
)
FOREIGN_ORIGINS = ("https://evil.example", "null", "http://localhost:1", "file://", "http://127.0.0.1.evil.example")
KEY = "sesame-open-0123"


class Hasty(TimedProtocol):
    """The same with little patience, for tests."""

    head_seconds = 0.6
    body_seconds = 1.5
    stalled_seconds = 1.0


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    yield from served(LLM(), rules=Rules(body_bytes=1 << 20, body_seconds=0.8), protocol=Hasty)


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    rules = Rules(api_key=KEY, origins=frozenset({"https://friend.example"}), hosts=frozenset({"box.local"}))
    yield from served(LLM(), rules=rules)


# Who may come in.


@pytest.mark.parametrize("method", METHODS)
def test_foreign_hosts_and_origins_reach_no_route(server: Running, method: str) -> None:
    for _, path in ROUTES:
        for header in [
            *({"Host": host} for host in FOREIGN_HOSTS),
            *({"Origin": origin} for origin in FOREIGN_ORIGINS),
        ]:
            answer = server.ask(method, path, None, header)
            assert answer.status == 403, (method, path, header)
            assert "access-control-allow-origin" not in answer.headers
            if method != "HEAD":
                assert answer.error["code"] in ("foreign_host", "foreign_origin")


@pytest.mark.parametrize(
    ("header", "flag"),
    [
        ({"Host": "box.example:8000"}, "--allow-host box.example "),
        ({"Host": "a b"}, "does not name this server"),
        ({"Origin": "https://page.example"}, "--allow-origin"),
    ],
)
def test_a_refusal_names_the_flag_that_lets_in(server: Running, header: dict[str, str], flag: str) -> None:
    assert flag in server.ask("GET", "/v1/models", None, header).error["message"]


def test_doubled_and_missing_hosts(server: Running) -> None:
    for hosts in (b"", b"Host: 127.0.0.1\r\nHost: evil.example\r\n"):
        assert server.raw(b"GET /health HTTP/1.1\r\n" + hosts + b"Connection: close\r\n\r\n").startswith(
            b"HTTP/1.1 400"
        )
    assert server.raw(b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 403")


def test_a_websocket_handshake_is_guarded(server: Running, locked: Running) -> None:
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    upgrade += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    for names, status in [
        ("Host: localhost", 101),
        ("Host: evil.example", 403),
        ("Host: localhost\r\nOrigin: https://evil.example", 403),
        ("Host: localhost\r\nOrigin: null", 403),
    ]:
        got = server.raw(f"GET /live HTTP/1.1\r\n{names}\r\n{upgrade}\r\n".encode(), seconds=1)
        assert got.startswith(f"HTTP/1.1 {status}".encode()), (names, got[:200])
    with pytest.raises(InvalidStatus) as refused, connect(f"ws://127.0.0.1:{locked.port}/live"):
        pass
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body or b"{}")["error"]["code"] == "invalid_api_key"


def test_a_websocket_key_may_come_as_a_protocol(locked: Running) -> None:
    packed = base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("=")
    url = f"ws://127.0.0.1:{locked.port}/live"
    with connect(url, subprotocols=["byhand", f"byhand.key.{packed}"]) as socket_:  # type: ignore[list-item]
        assert socket_.subprotocol == "byhand"
        assert json.loads(socket_.recv())
    with connect(url, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket_:
        assert json.loads(socket_.recv())


def test_own_pages_and_listed_origins(server: Running, locked: Running) -> None:
    assert server.get("/v1/models", Origin=f"http://127.0.0.1:{server.port}").status == 200
    assert server.get("/v1/models", Host="localhost:9", Origin="http://localhost:9").status == 200
    key = {"Authorization": f"Bearer {KEY}"}
    friend = locked.ask("GET", "/v1/models", None, {"Origin": "https://friend.example", **key})
    assert (friend.status, friend.headers["access-control-allow-origin"]) == (200, "https://friend.example")
    assert "origin" in friend.headers["vary"].lower()
    asking = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
    preflight = locked.ask("OPTIONS", "/v1/completions", None, asking)
    assert (preflight.status, preflight.headers["access-control-allow-methods"]) == (204, "GET, POST")
    assert locked.ask("OPTIONS", "/v1/completions", None, {**asking, "Origin": "https://foe.example"}).status == 403
    assert locked.ask("GET", "/v1/models", None, {"Host": "box.local:8000", **key}).status == 200


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_but_two_asks_for_the_key(locked: Running, method: str, path: str) -> None:
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}):
        answer = locked.ask(method, path, None, header)
        if path in ("/", "/health"):
            assert answer.status == 200
        else:
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert locked.ask(method, path, None, {"Authorization": f"Bearer {KEY}"}).status != 401


def test_names_and_addresses() -> None:
    assert split_host("[::1]:80") == ("::1", 80)
    assert split_host("LocalHost") == ("localhost", None)
    assert all(split_host(text) is None for text in ("a b", "a/b", "a@b", "a:x", "a:99999", "", "[::1"))
    assert is_loopback("127.3.2.1")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    open_rules = Rules(host="0.0.0.0", api_key=KEY)
    assert open_rules.allows_host("192.168.1.7:8000")
    assert open_rules.allows_host("localhost")
    assert not open_rules.allows_host("rebound.example")
    assert not Rules().allows_host("192.168.1.7")


# What is thrown at it.


def _deep(opening: str, depth: int) -> bytes:
    closing = {"[": "]", '{"a":': "}"}[opening]
    return (opening * depth + "1" + closing * depth).encode()


PROMPT = '{"prompt": "a", "max_tokens": 1, %s}'
HOSTILE: list[tuple[str, bytes, int]] = [
    ("/v1/completions", b"", 400),
    ("/v1/completions", b"{", 400),
    ("/v1/completions", b"null", 400),
    ("/v1/completions", b"[]", 400),
    ("/v1/completions", b'"text"', 400),
    ("/v1/completions", b"{}{}", 400),
    ("/v1/completions", b"\xff\xfe{\x00}\x00", 400),
    ("/v1/completions", b'{"prompt": "\xc3\x28"}', 400),
    ("/v1/completions", b'{"prompt": "\\ud800"}', 400),
    ("/v1/completions", b'{"prompt": "\\udc00\\ud800", "n": 1}', 400),
    ("/v1/completions", b'{"prompt": "a\\u0000b", "max_tokens": 1}', 200),
    ("/v1/completions", b'{"prompt": "a", "max_tokens": 1, "prompt": "b"}', 200),
    ("/v1/completions", _deep("[", 100_000), 400),
    ("/v1/completions", _deep('{"a":', 50_000), 400),
    ("/v1/completions", b'{"prompt": ' + _deep("[", 900) + b"}", 400),
    ("/v1/completions", b'{"prompt": "a", "response_format": ' + _deep('{"a":', 300) + b"}", 400),
    ("/apply-template", b'{"messages": [{"role": "user", "content": "a"}], "tools": ' + _deep("[", 300) + b"}", 400),
    ("/v1/completions", (PROMPT % '"temperature": NaN').encode(), 400),
    ("/v1/completions", (PROMPT % '"temperature": Infinity').encode(), 400),
    ("/v1/completions", (PROMPT % '"temperature": 1e999').encode(), 400),
    ("/v1/completions", (PROMPT % '"temperature": -0.5').encode(), 400),
    ("/v1/completions", (PROMPT % '"temperature": true').encode(), 400),
    ("/v1/completions", (PROMPT % '"temperature": "1"').encode(), 400),
    ("/v1/completions", (PROMPT % '"n": 1000000000').encode(), 400),
    ("/v1/completions", (PROMPT % '"n": -1').encode(), 400),
    ("/v1/completions", (PROMPT % '"seed": 1e400').encode(), 400),
    ("/v1/completions", (PROMPT % ('"seed": ' + "9" * 5000)).encode(), 400),
    ("/v1/completions", (PROMPT % '"seed": 18446744073709551616').encode(), 400),
    ("/v1/completions", (PROMPT % '"top_p": 0').encode(), 400),
    ("/v1/completions", (PROMPT % '"logprobs": 1e9').encode(), 400),
    ("/v1/completions", (PROMPT % '"stop": [1]').encode(), 400),
    ("/v1/completions", (PROMPT % ('"stop": ' + json.dumps(["x"] * 1000))).encode(), 400),
    ("/v1/completions", (PROMPT % '"logit_bias": {"-1": 1}').encode(), 400),
    ("/v1/completions", (PROMPT % '"logit_bias": {"5": 1e300}').encode(), 400),
    ("/v1/completions", (PROMPT % '"allowed_ids": []').encode(), 400),
    ("/v1/completions", (PROMPT % '"__proto__": {}').encode(), 400),
    ("/v1/completions", (PROMPT % ('"' + "k" * 10_000 + '": 1')).encode(), 400),
    ("/v1/completions", (PROMPT % '"stream": "yes"').encode(), 400),
    ("/v1/completions", b'{"prompt": [1.5]}', 400),
    ("/v1/completions", b'{"prompt": [-1]}', 400),
    ("/v1/completions", b'{"prompt": [4096]}', 400),
    ("/v1/completions", b'{"prompt": [1, "a"]}', 400),
    ("/v1/completions", b'{"prompt": [[1], "a"]}', 400),
    ("/v1/completions", b'{"prompt": [' + b"1," * 400_000 + b"1]}", 400),
    ("/v1/completions", b'{"prompt": [' + b'"",' * 200_000 + b'""]}', 400),
    ("/v1/completions", b'{"prompt": [' + b'"x",[],' * 50_000 + b'""]}', 400),
    ("/v1/completions", b'{"prompt": "' + b"a" * 900_000 + b'"}', 400),
    ("/v1/completions", b'{"prompt": "' + b"a" * 2_000_000 + b'"}', 413),
    ("/v1/completions", b'{"prompt": [' + b"1," * 1_000_000 + b"1]}", 413),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": null}]}', 400),
    ("/v1/chat/completions", b'{"messages": {"role": "user"}}', 400),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', 400),
    (
        "/v1/chat/completions",
        b'{"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"messages": 1}}',
        400,
    ),
    ("/v1/chat/completions", b'{"messages": [' + b'{"role": "user"},' * 9000 + b"1]}", 400),
    ("/tokenize", b'{"text": 1}', 400),
    ("/tokenize", b'{"text": "a", "messages": []}', 400),
    ("/detokenize", b'{"ids": [1e999]}', 400),
    ("/detokenize", b'{"ids": "1"}', 400),
    ("/read", b'{"prompt": "a", "top": 0}', 400),
    ("/read", b'{"prompt": ["a", "b"]}', 400),
]


@pytest.fixture(scope="module")
def beside(server: Running) -> Iterator[None]:
    """A stream that runs while hostile things arrive, and must be what it is alone."""
    asked = {"prompt": "Once upon a time", "seed": 4, "max_tokens": 300, "stream": True, "ignore_eos": True}
    alone = said(server.post("/v1/completions", **asked))
    results: list[bool] = []
    over = threading.Event()

    def again_and_again() -> None:
        while not over.is_set():
            results.append(said(server.post("/v1/completions", **asked)) == alone)

    thread = threading.Thread(target=again_and_again)
    thread.start()
    yield
    over.set()
    thread.join()
    assert results
    assert all(results)


def said(answer: Answer) -> list[Any]:
    return [event["choices"] for event in answer.events]


@pytest.mark.parametrize(("path", "body", "status"), HOSTILE, ids=lambda value: str(value)[:40])
def test_hostile_bodies(server: Running, beside: None, path: str, body: bytes, status: int) -> None:
    answer = server.ask("POST", path, body)
    assert answer.status == status, answer.body[:300]
    if status != 200:
        message = answer.error["message"]
        assert len(message) < 600
        assert not any(word in message for word in ("/home", "site-packages", "byhand.", "Error(", "Traceback", ".py"))


def test_depth_is_bounded() -> None:
    assert parse(_deep("[", 201))
    for deep in (_deep("[", 202), _deep('{"a":', 202), _deep("[", 100_000)):
        with pytest.raises(ApiError, match="nested more than 200 deep"):
            parse(deep)


POST = b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
RAW: list[tuple[bytes, bytes]] = [
    (b"\x00\x01\x02\r\n\r\n", b"HTTP/1.1 400"),
    (b"GET / HTTP/9.9\r\n\r\n", b"HTTP/1.1 4"),
    (b"GET /\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"HTTP/1.1 400"),
    (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: \x00\r\n\r\n", b"HTTP/1.1 400"),
    (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 100_000 + b"\r\nConnection: close\r\n\r\n", b"HTTP/1.1 4"),
    (b"GET /%00%ff HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", b"HTTP/1.1 404"),
    (b"GET /../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", b"HTTP/1.1 404"),
    (b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n", b"HTTP/1.1 400"),
    (b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", b"HTTP/1.1 400"),
    (b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999999999999\r\n\r\n", b"HTTP/1.1 4"),
    (b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999999999\r\n\r\n", b"HTTP/1.1 413"),
    (
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"fffff\r\n" + b"a" * 0xFFFFF + b"\r\n2\r\naa\r\n0\r\n\r\n",
        b"HTTP/1.1 413",
    ),
    (
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 4",
    ),
]


@pytest.mark.parametrize(("data", "status"), RAW, ids=lambda value: str(value)[:40])
def test_hostile_bytes(server: Running, beside: None, data: bytes, status: bytes) -> None:
    got = server.raw(data, seconds=1)
    assert got.startswith(status), got[:200]
    assert b"500" not in got.split(b"\r\n", 1)[0]


def test_a_slow_head_is_hung_up_on(server: Running, beside: None) -> None:
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as silent,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as dribbling,
    ):
        began = time.monotonic()
        for byte in b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n":
            try:
                dribbling.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.05)
        assert _is_over(silent)
        assert _is_over(dribbling)
        assert time.monotonic() - began < 4


def test_a_websocket_is_no_slow_body(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hasty, "body_seconds", 0.2)
    with connect(f"ws://127.0.0.1:{server.port}/live") as live:
        live.recv()
        time.sleep(0.4)
        live.send('{"op": "tree"}')
        assert '"event": "tree"' in str(live.recv(timeout=5))


class Narrow(TimedProtocol):
    """The same for few, for tests."""

    most_connections = 3


def test_connections_are_bounded(tiny_folder: Path) -> None:
    full = serve(LLM(tiny_folder), protocol=Narrow)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", full.port), timeout=5))
        assert until(lambda: len(full.server.server_state.connections) == 3)
        answer = full.get("/health")
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (429, "server_full", "1")
    assert until(lambda: not full.server.server_state.connections)
    full.worker.opened.result(30)
    assert full.get("/health").status == 200
    full.stop()


def test_a_slow_body_is_refused_and_hung_up_on(server: Running, beside: None) -> None:
    head = f"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
    got = server.raw(f"{head}Content-Length: 100\r\n\r\n{{".encode(), seconds=5)
    assert got.startswith(b"HTTP/1.1 408")
    assert b"body_too_slow" in got


def test_a_reader_of_one_byte_holds_nobody_up(server: Running, beside: None) -> None:
    """Its buffers fill, its runs are held, and in the end it is hung up on."""
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.settimeout(10)
        slow.connect(("127.0.0.1", server.port))
        asked = {"prompt": "A", "max_tokens": 1500, "n": 8, "stream": True, "ignore_eos": True, "logprobs": 20}
        data = json.dumps(asked).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
        slow.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        for _ in range(10):
            assert slow.recv(1)
            time.sleep(0.02)
        began = time.monotonic()
        assert server.post("/v1/completions", prompt="A", max_tokens=5).status == 200
        assert time.monotonic() - began < 5
        assert until(lambda: server.worker.stats().running + server.worker.stats().idle <= 1, 30), server.worker.stats()


def test_the_server_still_serves(server: Running) -> None:
    assert server.get("/health").status == 200
    assert server.post("/v1/completions", prompt="Once", max_tokens=3).status == 200


def _is_over(connection: socket.socket) -> bool:
    try:
        return connection.recv(65536) == b"" or _is_over(connection)
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def test_inner_errors_say_nothing(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("/secret/path")

    monkeypatch.setattr("byhand.server.own.token_to_json", fail)
    answer = server.post("/tokenize", text="a")
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert b"secret" not in answer.body
    assert b"KeyError" not in answer.body


def test_while_starting_and_when_opening_fails() -> None:
    let_go = threading.Event()

    def opener() -> LLM:
        let_go.wait(20)
        raise RuntimeError("no such luck")

    running = serve(opener)
    assert running.get("/health").status == 503
    assert running.get("/health").json["status"] == "starting"
    answer = running.post("/v1/completions", prompt="a")
    assert (answer.status, answer.error["code"]) == (503, "starting")
    assert int(answer.headers["retry-after"]) >= 1
    assert running.get("/v1/models").status == 503
    assert running.get("/openapi.json").status == 200
    assert running.get("/metrics").status == 200
    let_go.set()
    running.thread.join(20)
    assert not running.thread.is_alive()
    assert isinstance(running.worker.failure, RuntimeError)

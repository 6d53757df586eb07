"""Long texts: what cannot fit is refused before it is encoded, and nobody else waits while one is handled."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from statistics import median
from typing import Any

import pytest
from websockets.sync.client import connect

from byhand import LLM
from byhand.collector import without_collector
from byhand.engine.limits import Limits
from byhand.errors import PromptTooLong
from tests.serving import Running, served

LONG = "the cat and the dog " * 195_000  # nearly 4 MB


class Deaf:
    """A tokenizer's backend that can be asked anything, but must not be given a text."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        assert not name.startswith("encode"), "a text that cannot fit was encoded"
        return getattr(self._backend, name)


def insert(llm: LLM, text: str) -> None:
    llm.start([1, 2, 3]).insert(text)


WAYS: list[Callable[[LLM, str], Any]] = [
    LLM.encode,
    LLM.generate,
    LLM.start,
    LLM.read,
    LLM.score,
    lambda llm, text: llm.generate(["a", text]),
    lambda llm, text: next(llm.stream(text)),
    lambda llm, text: llm.chat([{"role": "user", "content": text}]),
    insert,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded(
    embedded: LLM, monkeypatch: pytest.MonkeyPatch, way: Callable[[LLM, str], Any]
) -> None:
    embedded.encode("a")
    if way is not WAYS[5]:
        monkeypatch.setattr(embedded.tokenizer, "_backend", Deaf(embedded.tokenizer._backend))
    with pytest.raises(PromptTooLong, match=r"has 3900\d\d\d characters, which are \d+ tokens or more; this model"):
        way(embedded, LONG)
    assert embedded.engine.pages_in_use == 0


def test_ids_that_cannot_fit_are_counted_before_they_are_looked_at(embedded: LLM) -> None:
    with pytest.raises(PromptTooLong, match="has 3000 tokens"):
        embedded.encode(["no id"] * 3000)  # type: ignore[list-item]


# The server.


@pytest.fixture(scope="module")
def server(embedded: LLM) -> Iterator[Running]:
    yield from served(embedded, limits=Limits(listed_tokens=60_000, resume_seconds=0))


def waits(server: Running, over: threading.Event) -> Iterator[float]:
    """How long /health takes, again and again on one connection."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    while not over.is_set():
        began = time.perf_counter()
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        yield time.perf_counter() - began
        time.sleep(0.002)
    connection.close()


@contextmanager
def asking_beside(server: Running) -> Iterator[list[float]]:
    """Somebody else asks for /health meanwhile: how long it took each time."""
    found: list[float] = []
    over = threading.Event()
    thread = threading.Thread(target=lambda: found.extend(waits(server, over)))
    thread.start()
    time.sleep(0.02)
    try:
        yield found
    finally:
        over.set()
        thread.join()


def post(path: str, **body: Any) -> Callable[[Running], tuple[str, str]]:
    """A request that is refused: its code and param."""
    data = json.dumps(body).encode()

    def ask(server: Running) -> tuple[str, str]:
        answer = server.ask("POST", path, data)
        assert answer.status == 400, answer.body[:300]
        return answer.error["code"], answer.error["param"]

    return ask


def frames(*operations: dict[str, Any]) -> Callable[[Running], tuple[str, str]]:
    """Frames to /live, the last of which is refused."""
    sent = [json.dumps(operation) for operation in operations]

    def ask(server: Running) -> tuple[str, str]:
        with connect(f"ws://127.0.0.1:{server.port}/live", max_size=None) as live:
            for number, frame in enumerate(sent):
                live.send(frame)
                while (event := json.loads(live.recv(60)))["event"] not in ("paused", "error"):
                    pass
                assert (event["event"] == "error") == (number == len(sent) - 1), event
            return event["code"], event["param"]

    return ask


CHAT = [{"role": "user", "content": LONG}]
TOO_LONG = "context_length_exceeded"
REFUSED: dict[str, tuple[Callable[[Running], tuple[str, str]], str, str]] = {
    "completions": (post("/v1/completions", prompt=LONG), TOO_LONG, "prompt"),
    "completions of ids": (post("/v1/completions", prompt=[7] * 1_300_000), TOO_LONG, "prompt"),
    "chat": (post("/v1/chat/completions", messages=CHAT), TOO_LONG, "prompt"),
    "apply-template": (post("/apply-template", messages=CHAT), TOO_LONG, "prompt"),
    "read": (post("/read", prompt=LONG), TOO_LONG, "prompt"),
    "tokenize": (post("/tokenize", text=LONG), "limit_exceeded", "text"),
    "tokenize a chat": (post("/tokenize", messages=CHAT), TOO_LONG, "prompt"),
    "detokenize": (post("/detokenize", ids=[7] * 1_300_000), "limit_exceeded", "ids"),
    "allowed ids": (
        post("/v1/completions", prompt="a", allowed_ids=[9999] * 100_000),
        "invalid_value",
        "allowed_ids",
    ),
    "live": (frames({"op": "start", "prompt": LONG}), TOO_LONG, "prompt"),
    "live, of ids": (frames({"op": "start", "prompt": [7] * 1_300_000}), TOO_LONG, "prompt"),
    "live, of a chat": (frames({"op": "start", "messages": CHAT}), TOO_LONG, "prompt"),
    "live, inserted": (frames({"op": "start", "prompt": "A"}, {"op": "insert", "text": LONG}), TOO_LONG, "text"),
    "live, forced": (frames({"op": "start", "prompt": "A"}, {"op": "force", "token": LONG}), "invalid_value", "token"),
}


def test_a_connection_that_is_kept_waits_for_no_acknowledgement(server: Running) -> None:
    """Held back until the client acknowledges what came before, every answer but the first would take 40 ms."""
    took = [wait for wait, _ in zip(waits(server, threading.Event()), range(10), strict=False)]
    assert min(took[1:]) < 0.03, took


@pytest.mark.parametrize("name", REFUSED)
def test_nobody_waits_for_a_text_that_is_refused(server: Running, name: str) -> None:
    ask, code, param = REFUSED[name]
    usual = median(wait for wait, _ in zip(waits(server, threading.Event()), range(5), strict=False))
    with asking_beside(server) as found:
        assert ask(server) == (code, param)
    assert max(found) < max(1.0, 30 * usual), (usual, max(found))


def test_nobody_waits_for_a_long_text_that_is_taken(server: Running, embedded: LLM) -> None:
    """Relative to its own time, so that a slow machine says the same: it is never the others' as well."""
    text = LONG[:200_000]
    with asking_beside(server) as found:
        began = time.perf_counter()
        answer = server.post("/tokenize", text=text)
        took = time.perf_counter() - began
    assert max(found) < took / 2, (max(found), took)
    with without_collector():
        ids = [token["id"] for token in answer.json["tokens"]]
    assert ids == embedded.tokenizer.encode(text)
    assert server.post("/detokenize", ids=ids).json["text"] == text


def test_what_is_listed_is_bounded(server: Running) -> None:
    exact = server.post("/tokenize", text="\n☃" * 20_000)
    assert (exact.status, exact.error["code"]) == (400, "limit_exceeded")
    assert "this server's limit is 60000 (listed_tokens)" in exact.error["message"]
    assert "or more" not in exact.error["message"]
    assert "or more" in server.post("/tokenize", text=LONG).error["message"]

"""Life and death: clients that hang up, faults at every step, drain on SIGTERM, the end on a second one."""

from __future__ import annotations

import gc
import json
import os
import pkgutil
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from byhand import LLM, SamplingParams
from byhand.engine.limits import Limits
from byhand.engine.meter import Stats
from byhand.server.line import describe
from tests.serving import Process, Running, byhand_serve, ended, served, until

STORY = "Once upon a time"
LONG: dict[str, Any] = {"prompt": STORY, "max_tokens": 1500, "ignore_eos": True}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    yield from served(LLM(), limits=Limits(running=8, waiting=8000))


# Clients that hang up.


def kinds() -> list[tuple[str, dict[str, Any]]]:
    chat = {"messages": [{"role": "user", "content": "Tell me a long story."}], "max_tokens": 1500, "ignore_eos": True}
    return [
        ("/v1/completions", {**LONG, "stream": True}),
        ("/v1/completions", LONG),
        ("/v1/completions", {**LONG, "prompt": "the cat and the dog " * 200, "n": 2, "stream": True}),
        ("/v1/completions", {**LONG, "prompt": [STORY, "A dog"], "logprobs": 5, "echo": True}),
        ("/v1/chat/completions", {**chat, "stream": True}),
        ("/v1/chat/completions", chat),
        ("/read", {"prompt": "the cat and the dog " * 200, "top": 10}),
    ]


def hang_up(server: Running, number: int) -> None:
    """Ask for something long and hang up at some moment: at once, while it waits or reads, in the middle."""
    generator = random.Random(number)
    path, body = kinds()[number % len(kinds())]
    with server.opened(path, {**body, "seed": number} if path != "/read" else body) as connection:
        time.sleep(generator.choice([0, 0.002, 0.02, 0.1, 0.3]) * generator.random())
        if generator.random() < 0.5:
            connection.setblocking(False)
            with suppress(BlockingIOError):
                connection.recv(generator.choice([1, 100, 10_000]))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH112, PTH208


def cancelled(server: Running, count: int) -> None:
    server.post("/apply-template", messages=[{"role": "user", "content": "a"}])  # starts the process that renders
    hang_up(server, 0)
    assert until(lambda: server.is_empty)
    before, threads = descriptors(), threading.active_count()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: hang_up(server, number), range(count)))
    assert until(lambda: server.is_empty), server.worker.stats()
    assert until(lambda: not server.server.server_state.tasks), server.server.server_state.tasks
    gc.collect()
    assert until(lambda: descriptors() <= before + 1), (descriptors(), before)
    assert threading.active_count() <= threads + 8  # the pool of asyncio's own threads may have grown
    assert server.worker.stats().rejected == 0  # all of them came in
    assert server.post("/v1/completions", prompt=STORY, max_tokens=3).status == 200


def test_clients_that_hang_up_leave_nothing(server: Running) -> None:
    cancelled(server, 60)


@pytest.mark.full
def test_two_thousand_clients_that_hang_up_leave_nothing(server: Running) -> None:
    cancelled(server, 200)
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cancelled(server, 2000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_a_hang_up_frees_the_run_within_a_step(server: Running) -> None:
    connection = server.opened("/v1/completions", {**LONG, "n": 4, "stream": True})
    assert connection.recv(1000)
    assert server.worker.stats().pages_used > 0
    connection.close()
    assert until(lambda: server.is_empty, 1.0), server.worker.stats()


@pytest.fixture
def narrow() -> Iterator[Running]:
    yield from served(LLM(), limits=Limits(running=1, waiting=4))


def test_one_that_waits_can_hang_up_too(narrow: Running) -> None:
    first = narrow.opened("/v1/completions", {**LONG, "stream": True})
    assert first.recv(10)
    second = narrow.opened("/v1/completions", LONG)
    assert until(lambda: narrow.worker.stats().waiting == 1)
    second.close()
    assert until(lambda: narrow.worker.stats().waiting == 0)
    assert narrow.worker.stats().running == 1
    first.close()


# A fault ends one request alone.


def is_marked(arguments: tuple[Any, ...]) -> bool:
    """Whether a call belongs to the request under test, which says FAULT and takes the best 37."""
    texts = (value for value in arguments if isinstance(value, str))
    settings = (value for value in arguments if isinstance(value, SamplingParams))
    stops = (getattr(value, "_stop", ()) for value in arguments)
    return (
        any("FAULT" in text for text in texts)
        or any(params.top_k == 37 for params in settings)
        or any(stop == ("FAULT",) for stop in stops)
    )


@pytest.mark.parametrize(
    ("place", "only_marked"),
    [
        ("byhand.text.tokenizer.Tokenizer.encode", True),
        ("byhand.llm.LLM.render_chat", False),
        ("byhand.engine.engine.choose", True),
        ("byhand.engine.state.TextState.push", True),
        ("byhand.server.chat.chat_step", False),
        ("byhand.server.sse.compact", False),
    ],
)
def test_a_fault_ends_its_own_request_alone(
    server: Running, monkeypatch: pytest.MonkeyPatch, place: str, only_marked: bool
) -> None:
    asked = {"messages": [{"role": "user", "content": "FAULT"}], "stop": ["FAULT"], "top_k": 37, "max_tokens": 40}
    beside = {"prompt": STORY, "max_tokens": 400, "ignore_eos": True, "seed": 3}
    alone = server.post("/v1/completions", **beside).json["choices"]
    original = pkgutil.resolve_name(place)
    broken: list[bool] = []

    def fail_once(*arguments: Any, **named: Any) -> Any:
        if not broken and (not only_marked or is_marked(arguments)):
            broken.append(True)
            raise RuntimeError("injected")
        return original(*arguments, **named)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(server.post, "/v1/completions", **beside)
        assert until(lambda: server.worker.stats().running == 1)
        monkeypatch.setattr(place, fail_once)
        answer = server.post("/v1/chat/completions", **asked, stream=True, logprobs=True)
        assert broken
        if answer.status == 200:
            assert answer.events[-1]["error"]["code"] == "internal_error"
        else:
            assert (answer.status, answer.error["code"]) == (500, "internal_error")
        assert b"injected" not in answer.body
        assert other.result(60).json["choices"] == alone
    assert until(lambda: server.is_empty)


# Signals.


@pytest.fixture
def process() -> Iterator[Process]:
    started = byhand_serve()
    yield started
    ended(started)


def streaming(process: Process, **fields: Any) -> Any:
    """A stream that has begun."""
    connection = process.opened("/v1/completions", {**LONG, "stream": True, **fields})
    connection.settimeout(30)
    first = connection.recv(4000)
    assert b"200 OK" in first
    return connection, first


def rest(connection: Any, first: bytes) -> bytes:
    got = first
    while more := connection.recv(65536):
        got += more
    connection.close()
    return bytes(got)


def test_sigterm_drains_and_exits_with_0(process: Process) -> None:
    connection, first = streaming(process, max_tokens=600)
    process.signal()
    assert until(lambda: process.get("/health").status == 503)
    assert process.get("/health").json["status"] == "draining"
    refused = process.post("/v1/completions", prompt="a")
    assert (refused.status, refused.error["code"]) == (503, "draining")
    assert int(refused.headers["retry-after"]) >= 1
    whole = rest(connection, first)
    assert b'"finish_reason":"length"' in whole
    assert b"data: [DONE]\n\n" in whole
    assert process.wait() == 0


def test_a_second_sigterm_ends_each_stream_with_an_error(process: Process) -> None:
    streams = [streaming(process, max_tokens=2000, seed=seed) for seed in range(3)]
    process.signal()
    assert until(lambda: process.get("/health").status == 503)
    process.signal()
    began = time.monotonic()
    for connection, first in streams:
        whole = rest(connection, first)
        assert b'"error":{' in whole
        assert b"data: [DONE]\n\n" in whole
    assert process.wait() == 0
    assert time.monotonic() - began < 8


def test_what_outlives_the_grace_ends_with_an_error() -> None:
    process = byhand_serve("--grace", "0.3", "--log", "json")
    try:
        connection, first = streaming(process, max_tokens=2000)
        process.signal()
        whole = rest(connection, first)
        assert b'"error":{' in whole
        assert b"data: [DONE]\n\n" in whole
        assert process.wait() == 0
        assert until(lambda: any('"path": "/v1/completions"' in line for line in process.said)), process.said
        lines = [json.loads(line) for line in process.said if line.startswith("{")]
        assert any(line["path"] == "/v1/completions" and line["status"] == 200 for line in lines)
    finally:
        ended(process)


def test_ctrl_c_is_an_interruption(process: Process) -> None:
    process.signal(signal.SIGINT)
    assert process.wait() == 130
    assert not any("Traceback" in line for line in process.said)


def test_a_taken_port_is_a_sentence(process: Process) -> None:
    second = byhand_serve("--port", str(process.port), ready=False)
    assert second.wait() == 2
    assert any("cannot be listened on" in line for line in second.said), second.said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--host", "0.0.0.0"], "lets other machines in: give an --api-key"),
        (["--api-key", "short"], "at least 8 printable"),
        (["--port", "70000"], "--port is 70000"),
        (["--limit-running", "0"], "the limit `running` is 0"),
        (["--grace", "-1"], "--grace is -1"),
        (["--allow-origin", "example.com"], "is no origin"),
        (["--model", "no/such/folder"], "no/such/folder"),
    ],
)
def test_flags_are_checked(arguments: list[str], sentence: str) -> None:
    process = byhand_serve(*arguments, ready=False)
    assert process.wait() == 2
    assert until(lambda: any(sentence in line for line in process.said)), process.said
    assert not any("Traceback" in line for line in process.said)


def test_the_line_says_what_runs() -> None:
    assert describe(Stats("draining", running=2)) == "draining: 2 running"
    busy = Stats("ready", running=3, waiting=1, pages_total=128, pages_used=10, pages_unused=5, decode_rate=1234.5)
    line = (
        "3 running, 1 waiting · prefill 0 tokens/s, decode 1,234 tokens/s · 15 of 128 pages, 5 of them known prefixes"
    )
    assert describe(busy) == line

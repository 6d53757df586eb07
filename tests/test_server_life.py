"""Life and death: clients that hang up, faults at every step, drain on SIGTERM, the end on a second one."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pkgutil
import random
import signal
import socket
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from byhand import LLM
from byhand.cli import serve
from byhand.engine.limits import Limits
from byhand.engine.meter import Stats
from byhand.engine.text_state import TextState
from byhand.sampling.chain import Settings
from byhand.server.line import describe
from tests.conftest import tiny_llama
from tests.serving import Process, Running, byhand_serve, ended, served, until

STORY = "Once upon a time"
LONG: dict[str, Any] = {"prompt": STORY, "max_tokens": 1500, "ignore_eos": True}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    yield from served(LLM(), limits=Limits(running=8, waiting=8000, resume_seconds=0.2))


def test_the_collector_does_not_walk_through_what_was_there_before_the_first_request(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "open_model", lambda _: LLM(tiny_folder))
    llm = serve.opened_warm(Namespace())
    frozen = gc.get_freeze_count()
    assert frozen > 50_000
    assert len(gc.get_objects()) < frozen / 10
    assert llm.engine.pages_in_use == 0


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


def hang_up_live(server: Running, generator: random.Random) -> None:
    """A steered run, whose client says goodbye, or just is not there any more."""
    with connect(f"ws://127.0.0.1:{server.port}/live", max_size=None, close_timeout=1) as live:
        prompt = generator.choice([STORY, "the cat and the dog " * 200])
        live.send(json.dumps({"op": "start", "prompt": prompt, "params": {"ignore_eos": True}}))
        for op in generator.choice([(), ("run",), ("run", "fork"), ("step", "rewind", "run")]):
            live.send(json.dumps({"op": op}))
        time.sleep(generator.choice([0, 0.02, 0.1, 0.3]) * generator.random())
        if generator.random() < 0.5:
            live.socket.shutdown(socket.SHUT_RDWR)


def hang_up(server: Running, number: int) -> None:
    """Ask for something long and hang up at some moment: at once, while it waits or reads, in the middle."""
    generator = random.Random(number)
    if number % 5 == 4:
        hang_up_live(server, generator)
        return
    path, body = kinds()[number % len(kinds())]
    with server.opened(path, {**body, "seed": number} if path != "/read" else body) as connection:
        time.sleep(generator.choice([0, 0.002, 0.02, 0.1, 0.3]) * generator.random())
        if generator.random() < 0.5:
            connection.setblocking(False)
            with suppress(BlockingIOError):
                connection.recv(generator.choice([1, 100, 10_000]))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH112, PTH208


def resident() -> int:
    """Bytes of this process in memory, the clients' too, without what the allocator only keeps for later."""
    gc.collect()
    if not Path("/proc/self/statm").exists():
        return 0
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def cancelled(server: Running, count: int) -> None:
    server.post("/apply-template", messages=[{"role": "user", "content": "a"}])  # starts the process that renders
    hang_up(server, 0)
    assert until(lambda: server.is_empty)
    before, threads = descriptors(), threading.active_count()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: hang_up(server, number), range(count)))
    assert until(lambda: server.is_empty), server.worker.stats()
    assert until(lambda: not server.server.server_state.tasks), server.server.server_state.tasks
    assert until(lambda: not server.server.server_state.connections)
    assert server.server.live.connections == 0
    gc.collect()
    assert until(lambda: descriptors() <= before + 1), (descriptors(), before)
    assert threading.active_count() <= threads + 8  # the pool of asyncio's own threads may have grown
    assert server.worker.stats().rejected == 0  # all of them came in
    assert server.post("/v1/completions", prompt=STORY, max_tokens=3).status == 200


def test_clients_that_hang_up_leave_nothing(server: Running) -> None:
    cancelled(server, 60)


@pytest.mark.full
def test_two_thousand_clients_that_hang_up_leave_nothing(server: Running) -> None:
    cancelled(server, 500)
    before = resident()
    cancelled(server, 2000)
    assert resident() - before < 32 * 2**20


def test_a_hang_up_frees_the_run_within_a_step(server: Running) -> None:
    connection = server.opened("/v1/completions", {**LONG, "n": 4, "stream": True})
    assert connection.recv(1000)
    assert until(lambda: server.worker.stats().pages_used > 0)  # the answer's head may come before
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


# A long prompt beside streams.


@pytest.fixture
def long_reader(tmp_path: Path) -> Iterator[Running]:
    yield from served(LLM(tiny_llama(tmp_path / "long", max_position_embeddings=4352)))


def test_a_prompt_of_4000_tokens_stalls_no_stream(long_reader: Running) -> None:
    """While it is read every pass has a row of each stream too, and their clients go on getting tokens."""
    engine, passes = long_reader.worker.llm.engine, list[list[int]]()
    forward = engine.forward

    def noting(chunks: Any, **options: Any) -> Any:
        passes.append([chunk.rows for chunk in chunks])
        return forward(chunks, **options)

    engine.forward = noting
    asked = {"max_tokens": 4000, "ignore_eos": True, "stream": True}
    streams = [long_reader.opened("/v1/completions", {"prompt": [5 + i] * 10, **asked}) for i in range(3)]
    heard = [0] * 3

    def listen(number: int) -> None:
        with suppress(OSError):
            while data := streams[number].recv(65536):
                heard[number] += data.count(b"data: ")

    threads = [threading.Thread(target=listen, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    assert until(lambda: min(heard) > 3)
    before = list(heard)
    prompt = random.Random(1).choices(range(2, 384), k=4000)
    answer = long_reader.post("/v1/completions", prompt=prompt, max_tokens=1)
    during = [after - number for after, number in zip(heard, before, strict=True)]
    for connection in streams:
        connection.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    assert answer.json["usage"]["prompt_tokens"] == 4000
    chunks = [rows for rows in passes if max(rows) > 1 and sum(rows) > 30]
    assert len(chunks) >= 4000 // 128
    assert all(sum(rows) <= 128 and sorted(rows)[:3] == [1, 1, 1] for rows in chunks)
    assert min(during) >= 4000 // 128 - 3  # as many tokens as passes, up to what is still on its way


# A fault ends one request alone.


def is_marked(arguments: tuple[Any, ...]) -> bool:
    """Whether a call belongs to the request under test, which says FAULT and takes the best 37."""
    texts = (value for value in arguments if isinstance(value, str))
    settings = (value for value in arguments if isinstance(value, Settings))
    states = (value for value in arguments if isinstance(value, TextState))
    return (
        any("FAULT" in text for text in texts)
        or any(one.params.top_k == 37 for one in settings)
        or any(state._matcher.stops == ("FAULT",) for state in states)
    )


@pytest.mark.parametrize(
    ("place", "only_marked"),
    [
        ("byhand.text.tokenizer.Tokenizer.encode", True),
        ("byhand.llm.LLM.render_chat", False),
        ("byhand.engine.sampler.choose", True),
        ("byhand.engine.text_state.TextState.push", True),
        ("byhand.server.chat.chat_step", False),
        ("byhand.server.sse.as_json", False),
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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--host", "0.0.0.0"], "lets other machines in: give an --api-key"),
        (["--api-key", "short"], "at least 8 printable"),
        (["--port", "70000"], "--port is 70000"),
        (["--limit-running", "0"], "the limit `running` is 0"),
        (["--grace", "-1"], "--grace is -1"),
        (["--allow-origin", "example.com"], "is no origin"),
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

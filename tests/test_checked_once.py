"""A request is checked once, at its border: whoever is handed the settings on checks nothing again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import pytest
from websockets.sync.client import connect

from byhand import LLM, SamplingParams
from byhand.sampling.constraints import Grammars
from tests.serving import Running, served

PROMPT = "Once upon a time"
ONCE = {"__post_init__": 1, "check_vocabulary": 1, "check": 1}


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often all fields of params, their ids, and their constraint were checked."""
    count: Counter[str] = Counter()

    def counted(owner: type, name: str) -> None:
        check = getattr(owner, name)

        def counting(*args: object) -> object:
            count[name] += 1
            return check(*args)

        monkeypatch.setattr(owner, name, counting)

    counted(SamplingParams, "__post_init__")
    counted(SamplingParams, "check_vocabulary")
    counted(Grammars, "check")
    return count


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    yield from served(LLM())


def test_a_call_checks_once(embedded: LLM, checks: Counter[str]) -> None:
    embedded.generate([PROMPT, "The end"], max_tokens=20, temperature=1.0, n=2)
    assert checks == ONCE


def test_a_call_with_params_of_the_callers_checks_what_it_changes_alone(embedded: LLM, checks: Counter[str]) -> None:
    params = SamplingParams(max_tokens=20)
    embedded.generate(PROMPT, params, temperature=1.0)
    assert checks == ONCE


def test_a_run_of_many_steps_checks_once(embedded: LLM, checks: Counter[str]) -> None:
    run = embedded.start(PROMPT, temperature=0.9, top_p=0.9, ignore_eos=True)
    for _ in range(30):
        run.step()
    assert checks == ONCE


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_checks_once(server: Running, checks: Counter[str], stream: bool) -> None:
    asked = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 20, "ignore_eos": True}
    assert server.post("/v1/chat/completions", **asked, stream=stream).status == 200
    assert checks == ONCE


def test_a_live_run_checks_once(server: Running, checks: Counter[str]) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/live", open_timeout=20) as socket:
        assert json.loads(socket.recv(timeout=20))["event"] == "hello"
        checks.clear()  # the model's own hints are shown there
        socket.send(json.dumps({"op": "start", "prompt": PROMPT, "params": {"temperature": 0.9, "max_tokens": 20}}))
        until(socket, "paused")
        socket.send(json.dumps({"op": "run"}))
        until(socket, "finished")
        socket.send(json.dumps({"op": "stop"}))  # the last word: the server must be empty in the end
        until(socket, "finished")
    assert checks == ONCE


def until(socket: object, event: str) -> None:
    """Read frames up to one of this kind."""
    while json.loads(socket.recv(timeout=20))["event"] != event:  # type: ignore[attr-defined]
        pass

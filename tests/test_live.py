"""/live over real sockets: every op, several runs, breakpoints, back-pressure, bad frames, a lost connection."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from websockets.sync.client import ClientConnection, connect

from byhand import LLM, SamplingParams
from byhand.engine.limits import Limits
from byhand.engine.worker import Worker
from byhand.record import Record
from byhand.server.live import Live
from byhand.server.live.operate import OPERATIONS
from byhand.server.live.session import Session
from tests.serving import serve, until

PROMPT = "the quick brown fox"
GREEDY = {"temperature": 0, "ignore_eos": True}
Json = dict[str, Any]


class Served:
    """A worker and its /live on a port of this machine."""

    def __init__(self, llm: LLM, limits: Limits) -> None:
        self.llm = llm
        self.worker = Worker(llm, limits)
        self.worker.opened.result(30)
        self.live = Live(self.worker, limits)
        app = Starlette(routes=[WebSocketRoute("/live", self.live.endpoint)])
        config = uvicorn.Config(app, port=0, log_level="error", ws_max_size=1 << 24, lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"ws://127.0.0.1:{port}/live"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.worker.close()

    def pages(self) -> int:
        return self.worker.stats().pages_used

    def soon(self, claim: Callable[[], bool], seconds: float = 5.0) -> bool:
        return until(claim, seconds)


@contextmanager
def serving(llm: LLM, **limits: Any) -> Iterator[Served]:
    served = Served(llm, Limits(**limits))
    try:
        yield served
    finally:
        served.stop()


@pytest.fixture(scope="module")
def served(tiny_folder: Path) -> Iterator[Served]:
    with serving(LLM(tiny_folder), live_runs=6, body_bytes=20_000, resume_seconds=30.0) as server:
        yield server


class Client:
    """A socket that speaks frames."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.seen: list[Json] = []
        self.hello = self.get("hello")

    def send(self, op: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"op": op, **fields}))

    def next(self) -> Json:
        frame = json.loads(self.socket.recv(timeout=20))
        self.seen.append(frame)
        return frame  # type: ignore[no-any-return]

    def get(self, *events: str) -> Json:
        """The next frame of one of these events; an error that was not asked for fails the test."""
        while True:
            frame = self.next()
            if frame["event"] in events:
                return frame
            assert frame["event"] != "error", frame

    def ask(self, answer: str, op: str, **fields: Any) -> Json:
        self.send(op, **fields)
        return self.get(answer)

    def steps(self) -> list[int]:
        """Token ids of every step seen, and forget them."""
        found = [frame["step"]["token"]["id"] for frame in self.seen if frame["event"] == "step"]
        self.seen.clear()
        return found


@contextmanager
def client(served: Served) -> Iterator[Client]:
    with connect(served.url, max_size=None) as socket:
        yield Client(socket)


@pytest.fixture
def live(served: Served) -> Iterator[Client]:
    with client(served) as one:
        yield one


def expected(served: Served, prompt: str | list[int], count: int, **params: Any) -> list[int]:
    """The tokens of the same run in Python."""

    def work() -> list[int]:
        run = served.llm.start(prompt, SamplingParams(**{**GREEDY, **params}))  # type: ignore[arg-type]
        return [run.step().token.id for _ in range(count)]

    return served.worker.call(work).result(20)


def begin(live: Client, prompt: str | list[int] = PROMPT, **fields: Any) -> Json:
    started = live.ask("started", "start", prompt=prompt, params={**GREEDY, **fields.pop("params", {})}, **fields)
    live.get("paused", "finished")
    return started


# Start, step, run.


def test_hello_names_the_model_and_the_limits_and_leaks_no_path(served: Served, live: Client) -> None:
    model = live.hello["model"]
    assert (model["vocab_size"], model["context_length"], model["name"]) == (384, 256, "llama")
    assert live.hello["limits"]["live_runs"] == 6
    assert len(live.hello["resume"]) >= 24
    assert "/" not in json.dumps(live.hello)


def test_start_reads_the_prompt_and_pauses(served: Served, live: Client) -> None:
    live.send("start", id="a", prompt=PROMPT, params=GREEDY, top=3)
    paused = live.get("paused")
    kinds = [frame["event"] for frame in live.seen[1:]]
    ids = served.llm.encode(PROMPT)
    assert kinds == ["started", "prefill", *["reading"] * len(ids), "paused"]
    assert all(frame["id"] == "a" for frame in live.seen[1:])
    assert live.seen[1]["ids"] == ids
    assert [token["id"] for token in live.seen[1]["tokens"]] == ids
    assert live.seen[2]["done"] == live.seen[2]["total"] == len(ids)
    readings = [frame for frame in live.seen if frame["event"] == "reading"]
    reading = served.worker.call(lambda: served.llm.read(PROMPT, top=3)).result(10)
    assert [frame["predicted"]["id"] for frame in readings] == [at.predicted.token.id for at in reading]
    assert [len(frame["top"]) for frame in readings] == [3] * len(ids)
    assert readings[-1]["actual"] is None
    assert readings[0]["actual"]["logprob"] == pytest.approx(reading[0].actual.logprob, abs=1e-4)  # type: ignore[union-attr]
    assert paused["why"] == "prefilled"


def test_steps_are_those_of_the_library(served: Served, live: Client) -> None:
    begin(live)
    assert live.ask("paused", "step", id=1)["why"] == "count"
    live.ask("paused", "step", id=2, count=5)
    assert {frame["id"] for frame in live.seen if frame["event"] == "step"} == {1, 2}
    first = next(frame["step"] for frame in live.seen if frame["event"] == "step")
    assert {"token", "text", "logprob", "top", "chain", "phase", "cache_pages"} <= first.keys()
    assert live.steps() == expected(served, PROMPT, 6)


def test_a_run_goes_to_its_end_and_says_why(served: Served, live: Client) -> None:
    begin(live, params={"max_tokens": 12})
    finished = live.ask("finished", "run", id="go")
    assert (finished["finish_reason"], finished["id"]) == ("length", "go")
    assert finished["usage"]["completion_tokens"] == 12
    assert live.steps() == expected(served, PROMPT, 12)
    live.send("step", id=7)
    assert live.next()["code"] == "run_finished"
    assert live.ask("changed", "rewind", count=2)["dropped"] == 2
    assert live.ask("paused", "step", count=1)


def test_pause_stops_a_run_in_the_middle(served: Served, live: Client) -> None:
    begin(live, [5])
    live.send("run", id="run")
    for _ in range(3):
        live.get("step")
    paused = live.ask("paused", "pause", id="pause")
    assert (paused["why"], paused["id"]) == ("pause", "pause")
    live.ask("paused", "step")
    count = len(live.steps())
    assert 4 <= count < 250


def test_without_a_temperature_the_dice_are_thrown(live: Client) -> None:
    started = live.ask("started", "start", prompt=[5, 6])
    assert started["params"]["temperature"] == 1.0
    assert isinstance(started["params"]["seed"], int)


# Steering.


def test_force_insert_edit_rewind_undo(served: Served, live: Client) -> None:
    ids = begin(live)["ids"]
    live.ask("paused", "force", token=" dog")
    step = live.seen[-2]["step"]
    assert (step["token"]["text"], step["forced"]) == (" dog", True)
    changed = live.ask("changed", "insert", id=4, text=" jumps over")
    inserted = [
        frame["step"]["token"]["id"] for frame in live.seen if frame.get("id") == 4 and frame["event"] == "step"
    ]
    assert changed["ids"] == [*ids, step["token"]["id"], *inserted]
    assert (changed["computed"], changed["dropped"]) == (len(changed["ids"]), 0)
    assert changed["text"] == " dog jumps over"
    edited = live.ask("changed", "edit", position=len(ids), token=" fox")
    assert (len(edited["ids"]), edited["dropped"], edited["text"]) == (len(ids) + 1, 1 + len(inserted), " fox")
    undone = live.ask("changed", "undo")
    assert undone["ids"] == changed["ids"]
    assert live.ask("changed", "undo")["ids"] == [*ids, step["token"]["id"]]
    assert live.ask("changed", "undo")["ids"] == ids
    live.send("undo", id=9)
    assert "nothing to undo" in live.next()["message"]
    live.steps()
    live.ask("paused", "step", count=4)
    assert live.steps() == expected(served, PROMPT, 4)
    assert live.ask("changed", "rewind", count=4 + len(ids) - 1)["prompt_length"] == 1


def test_a_prompt_token_is_edited_and_read_again(served: Served, live: Client) -> None:
    ids = begin(live)["ids"]
    live.seen.clear()
    changed = live.ask("changed", "edit", position=2, token=" dog")
    assert changed["prompt_length"] == 3
    dog = served.llm.tokenizer.one_token(" dog")
    read = [(frame["position"], frame["token"]["id"]) for frame in live.seen if frame["event"] == "reading"]
    assert read == [(2, dog)]
    live.ask("paused", "step", count=3)
    assert live.steps() == expected(served, [*ids[:2], dog], 3)


def test_settings_change_between_steps(live: Client) -> None:
    begin(live)
    params = live.ask("set", "set", id=3, params={"banned_ids": [7], "temperature": 0.5, "seed": 3})["params"]
    assert (params["banned_ids"], params["temperature"], params["seed"]) == ([7], 0.5, 3)
    live.ask("paused", "step")
    assert live.seen[-2]["step"]["draw"] is not None
    live.send("set", params={"temperature": -1})
    assert live.next()["param"] == "temperature"
    live.send("set", params={"n": 2})
    assert live.next()["param"] == "n"


def test_forks_share_pages_and_stand_in_the_tree(served: Served, live: Client) -> None:
    parent = begin(live, [5] * 40)["run"]
    forked = live.ask("forked", "fork", run=parent)
    twin = forked["run"]
    assert (forked["parent"], forked["at"], forked["ids"]) == (parent, 40, [5] * 40)
    tree = live.ask("tree", "tree")
    assert [(run["run"], run["parent"], run["pages"], run["shared"]) for run in tree["runs"]] == [
        (parent, None, 3, 3),
        (twin, parent, 3, 3),
    ]
    assert tree["pages"] == {"held": 3, "shared": 3}
    assert tree["bytes"] == 3 * served.llm.engine.cache.page_bytes
    live.send("step")
    assert live.next()["code"] == "missing_field"
    assert live.ask("switched", "switch", run=twin)["run"] == twin
    live.seen.clear()
    live.ask("paused", "step", count=3)
    assert {frame["run"] for frame in live.seen} == {twin}
    both = live.steps()
    live.ask("paused", "step", run=parent, count=3)
    assert live.steps() == both == expected(served, [5] * 40, 3)
    live.ask("finished", "stop", run=twin)
    assert [run["run"] for run in live.ask("tree", "tree")["runs"]] == [parent]


def test_several_runs_go_at_once(served: Served, live: Client) -> None:
    prompts = [[5 + i] * (3 + 10 * i) for i in range(4)]
    names = [begin(live, prompt, params={"max_tokens": 20})["run"] for prompt in prompts]
    live.seen.clear()
    for name in names:
        live.send("run", run=name)
    for _ in names:
        live.get("finished")
    for name, prompt in zip(names, prompts, strict=True):
        steps = [f["step"]["token"]["id"] for f in live.seen if f["event"] == "step" and f["run"] == name]
        assert steps == expected(served, prompt, 20)


# Breakpoints.


def test_breakpoints_pause_before_the_token(served: Served, live: Client) -> None:
    tokens = expected(served, PROMPT, 30)
    place = next(i for i in range(4, 30) if tokens[i] not in tokens[:i])
    begin(live)
    paused = live.ask("paused", "run", until={"token": tokens[place]})
    assert paused["why"] == "token"
    assert live.steps() == tokens[:place]
    live.ask("paused", "step")
    assert live.steps() == tokens[place : place + 1]


@pytest.mark.parametrize("bound", ["entropy", "margin", "end_probability"])
def test_bounds_pause_before_the_token_and_are_passed_on_the_second_go(
    served: Served, live: Client, bound: str
) -> None:
    begin(live)
    live.ask("paused", "step", count=12)
    steps = [frame["step"] for frame in live.seen if frame["event"] == "step"]
    if bound == "end_probability":
        logits = served.worker.call(lambda: served.llm.logits(served.llm.encode(PROMPT) + live.steps())).result(10)
        probs = logits.softmax(-1)[-13:-1, 1].tolist()
        value, place = max(probs[1:]), 1 + probs[1:].index(max(probs[1:]))
        value *= 0.999
        place = next(i for i, prob in enumerate(probs) if prob >= value)
    else:
        numbers = [step[bound] for step in steps]
        value = sorted(numbers)[-1] if bound == "entropy" else sorted(numbers)[0]
        place = numbers.index(value)
        value *= 0.999 if bound == "entropy" else 1.001
    live.ask("changed", "rewind", count=12)
    live.steps()
    assert live.ask("paused", "run", until={bound: value})["why"] == bound
    assert len(live.steps()) == place
    live.send("run", until={bound: value})
    live.get("step")


def test_a_text_pauses_after_it_appeared(served: Served, live: Client) -> None:
    begin(live)
    live.ask("paused", "step", count=15)
    text = "".join(frame["step"]["text"] for frame in live.seen if frame["event"] == "step")
    word = text[6:9]
    live.ask("changed", "rewind", count=15)
    live.seen.clear()
    assert live.ask("paused", "run", until={"text": word})["why"] == "text"
    seen = "".join(frame["step"]["text"] for frame in live.seen if frame["event"] == "step")
    assert word in seen
    assert word not in seen[: -len(live.seen[-2]["step"]["text"])]


# Looks.


def test_logits_are_those_of_the_step(live: Client) -> None:
    begin(live)
    live.ask("paused", "step", count=3)
    for frame in [frame for frame in live.seen if frame["event"] == "step"]:
        answer = live.ask("logits", "logits", index=frame["step"]["index"])
        row = np.frombuffer(b64decode(answer["data"]), "<f4")
        assert len(row) == 384
        assert int(row.argmax()) == frame["step"]["top"][0]["id"]
    live.send("logits", index=40)
    assert live.next()["param"] == "index"


def test_logits_are_of_the_runs_own_past(live: Client) -> None:
    """After an undo, and beside a fork, those of another past are not taken for them."""

    def best(index: int, **fields: Any) -> list[int]:
        live.send("logits", index=index, **fields)
        frame = live.next()
        return [] if frame["event"] == "error" else [token["id"] for token in frame["tokens"]]

    started = begin(live)
    live.ask("paused", "step", count=4)
    mine = best(3)
    assert mine
    live.ask("changed", "edit", position=len(started["ids"]), token=" dog")
    live.ask("paused", "step", count=4)
    other = best(3)
    assert other != mine
    live.ask("changed", "undo")
    live.ask("changed", "undo")
    assert best(3) in ([], mine)
    live.ask("changed", "rewind", count=4)
    live.ask("paused", "step", count=4)
    twin = live.ask("forked", "fork")["run"]
    live.ask("changed", "edit", run=twin, position=len(started["ids"]), token=" dog")
    live.ask("paused", "step", run=twin, count=4)
    assert (best(3, run=started["run"]), best(3, run=twin)) == (mine, other)


def test_a_record_is_given_and_loaded(served: Served, live: Client) -> None:
    begin(live, params={"temperature": 1.0, "seed": 5})
    live.ask("paused", "step", count=6)
    document = live.ask("record", "record")["record"]
    record = Record.from_json(document)
    assert [step.token.id for step in record.steps] == live.steps()
    assert "/" not in record.model.name
    live.ask("paused", "step", count=3)
    onward = live.steps()
    with client(served) as other:
        started = other.ask("started", "load", record=document)
        assert (started["ids"], started["text"]) == (record.ids, record.text)
        assert [step["token"]["id"] for step in started["steps"]] == record.ids[record.usage.prompt_tokens :]
        other.get("paused")
        other.ask("paused", "step", count=3)
        assert other.steps() == onward
        assert other.ask("changed", "rewind", count=8)["ids"] == record.ids[: len(record.ids) - 5]
    live.send("load", record={**document, "model": {**document["model"], "digest": "other"}})
    assert live.next()["code"] == "other_model"
    live.send("load", record={"format": "x"})
    assert live.next()["code"] == "invalid_record"


def test_a_record_follows_the_end_where_it_was_asked_for(live: Client) -> None:
    begin(live, params={"max_tokens": 3}, record=True)
    live.ask("finished", "run", id="r")
    record = live.get("record")
    assert (record["id"], len(record["record"]["steps"])) == ("r", 3)


# Bad frames.

BAD: list[tuple[str | bytes, str, str | None]] = [
    ("", "invalid_json", None),
    ("{", "invalid_json", None),
    (b"\xff\xfe", "invalid_json", None),
    ('{"op": NaN}', "invalid_json", None),
    ("[" * 5000, "invalid_json", None),
    ("9" * 5000, "invalid_json", None),
    ("[]", "invalid_frame", None),
    ("null", "invalid_frame", None),
    ("{}", "unknown_op", "op"),
    ('{"op": 5}', "unknown_op", "op"),
    ('{"op": "dance"}', "unknown_op", "op"),
    ('{"op": "start"}', "missing_field", "prompt"),
    ('{"op": "start", "prompt": "a", "messages": [{}]}', "missing_field", "prompt"),
    ('{"op": "start", "prompt": 5}', "invalid_value", "prompt"),
    ('{"op": "start", "prompt": []}', "invalid_value", "prompt"),
    ('{"op": "start", "prompt": [384]}', "invalid_value", "prompt"),
    ('{"op": "start", "prompt": [-1]}', "invalid_value", "prompt"),
    ('{"op": "start", "prompt": [1.5]}', "invalid_value", "prompt"),
    ('{"op": "start", "prompt": "a", "top": 1000000000}', "limit_exceeded", "top"),
    ('{"op": "start", "prompt": "a", "params": {"temperature": "hot"}}', "invalid_value", "temperature"),
    ('{"op": "start", "prompt": "a", "params": {"n": 3}}', "invalid_value", "n"),
    ('{"op": "start", "prompt": "a", "params": {"hotness": 1}}', "invalid_value", "hotness"),
    ('{"op": "start", "prompt": "a", "run": "x"}', "invalid_value", "run"),
    ('{"op": "start", "prompt": "a", "color": 1}', "unknown_field", "color"),
    ('{"op": "start", "messages": [{"role": 5}]}', "*", "*"),
    ('{"op": "step"}', "missing_field", "run"),
    ('{"op": "step", "run": "nobody"}', "unknown_run", "run"),
    ('{"op": "step", "count": 0}', "invalid_value", "count"),
    ('{"op": "step", "count": true}', "invalid_value", "count"),
    ('{"op": "force"}', "missing_field", "token"),
    ('{"op": "edit", "token": 5}', "missing_field", "position"),
    ('{"op": "switch"}', "missing_field", "run"),
    ('{"op": "resume", "token": "guess"}', "unknown_token", "token"),
    ('{"op": "tree", "id": [1]}', "invalid_value", "id"),
    ('{"op": "tree", "id": "' + "x" * 300 + '"}', "invalid_value", "id"),
    ('{"op": "tree", "id": "\\ud800"}', "invalid_json", None),
    ('{"op": "start", "prompt": "' + "a" * 30_000 + '"}', "frame_too_large", None),
]


def test_bad_frames_are_answered_and_the_connection_stays(served: Served, live: Client) -> None:
    for text, code, param in BAD:
        live.socket.send(text)
        frame = live.next()
        assert frame["event"] == "error", (text[:80], frame)
        assert code in ("*", frame["code"]), (text[:80], frame)
        assert param in ("*", frame["param"]), (text[:80], frame)
        assert "Traceback" not in frame["message"]
    begin(live)
    for text, code, param in [
        ('{"op": "force", "token": "the quick brown"}', "invalid_value", "token"),
        ('{"op": "force", "token": 384}', "invalid_value", "token"),
        ('{"op": "insert", "text": ""}', "invalid_value", "text"),
        ('{"op": "insert", "ids": [1, 999]}', "invalid_value", "ids"),
        ('{"op": "edit", "position": 9999, "token": 5}', "invalid_value", "position"),
        ('{"op": "rewind", "count": 9999}', "invalid_value", "count"),
        ('{"op": "run", "until": {"entropy": "high"}}', "invalid_value", "entropy"),
        ('{"op": "run", "until": {"moon": 1}}', "unknown_field", "moon"),
        ('{"op": "run", "until": {"token": "two words"}}', "invalid_value", "until.token"),
        ('{"op": "fork", "seed": 1e400}', "*", "*"),
        ('{"op": "set", "params": {"allowed_ids": []}}', "*", "*"),
    ]:
        live.socket.send(text)
        frame = live.next()
        if code != "*":
            assert (frame["event"], frame["code"]) == ("error", code), (text, frame)
            assert frame["param"] in (param, "token"), (text, frame)
    live.ask("tree", "tree", id="still here")
    assert served.worker.state == "ready"


def test_too_many_runs_are_refused(live: Client) -> None:
    for i in range(6):
        begin(live, [5 + i])
    live.send("start", prompt=[5])
    assert live.next()["code"] == "limit_exceeded"
    name = live.ask("tree", "tree")["runs"][0]["run"]
    live.send("fork", run=name)
    assert live.next()["code"] == "limit_exceeded"
    live.ask("finished", "stop", run=name)
    begin(live, [5])


def test_an_operation_that_fails_leaves_the_run(served: Served, live: Client) -> None:
    ids = begin(live, params={"stop": []})["ids"]
    live.ask("set", "set", params={"allowed_ids": [7], "banned_ids": [7]})
    live.send("step", id=1)
    error = live.next()
    assert (error["event"], error["id"], error["code"]) == ("error", 1, "invalid_value")
    live.ask("set", "set", params={"banned_ids": []})
    live.ask("paused", "step")
    assert live.seen[-2]["step"]["token"]["id"] == 7
    assert live.ask("changed", "rewind")["ids"] == ids


# Coming and going.


def test_a_lost_connection_frees_its_pages_and_can_be_resumed(served: Served) -> None:
    assert served.soon(lambda: served.pages() == 0)
    with client(served) as first:
        run = begin(first, [5] * 40, params={"temperature": 1.0, "seed": 4, "max_tokens": 60})["run"]
        twin = first.ask("forked", "fork", run=run, seed=9)["run"]
        first.ask("paused", "step", run=run, count=5)
        before = first.steps()
        first.send("run", run=twin)
        first.get("step")
        token = first.hello["resume"]
        assert served.pages() > 0
    assert served.soon(lambda: served.pages() == 0)
    with client(served) as second:
        resumed = second.ask("resumed", "resume", token=token, id="back")
        states = {state["run"]: state for state in resumed["runs"]}
        assert states.keys() == {run, twin}
        assert states[run]["ids"] == [5] * 40 + before
        assert states[twin]["parent"] == run
        second.ask("paused", "step", run=run, count=5)
        whole = expected(served, [5] * 40, 10, temperature=1.0, seed=4)
        assert before + second.steps() == whole
        second.send("resume", token=token)
        assert second.next()["code"] == "unknown_token"
        second.ask("finished", "run", run=twin)
        done = len(states[twin]["ids"]) - 40
        assert second.steps() == expected(served, [5] * 40, 60, temperature=1.0, seed=9)[done:]
    assert served.soon(lambda: served.pages() == 0)


def test_a_client_may_come_back_before_the_server_knows_that_it_was_gone(served: Served) -> None:
    with client(served) as first, client(served) as second:
        ids = begin(first)["ids"]
        resumed = second.ask("resumed", "resume", token=first.hello["resume"])
        assert [state["ids"] for state in resumed["runs"]] == [ids]
        second.ask("paused", "step")


def test_after_the_window_the_runs_are_gone(llm: LLM) -> None:
    with serving(llm, resume_seconds=0.1) as served:
        with client(served) as first:
            begin(first)
            token = first.hello["resume"]
        assert served.soon(lambda: served.worker.stats().idle == 0)
        with client(served) as second:
            second.send("resume", token=token)
            assert second.next()["code"] == "unknown_token"


def test_a_slow_reader_waits_alone_and_loses_nothing(tiny_folder: Path) -> None:
    llm = LLM(tiny_folder)
    with serving(llm, live_queue=16) as served, connect(served.url, max_queue=1, max_size=None) as socket:
        slow = Client(socket)
        begin(slow, [5], params={"max_tokens": 250, "logprobs": 20})
        slow.seen.clear()
        slow.send("run")
        time.sleep(0.3)
        with client(served) as quick:
            begin(quick, [6], params={"max_tokens": 50})
            quick.ask("finished", "run")
            assert quick.steps() == expected(served, [6], 50)
        slow.get("finished")
        assert [f["step"]["index"] for f in slow.seen if f["event"] == "step"] == list(range(250))
        assert slow.steps() == expected(served, [5], 250)


def test_a_full_queue_stops_its_own_runs_until_it_is_read(llm: LLM) -> None:
    limits = Limits(live_queue=16)
    worker = Worker(llm, limits)
    worker.opened.result(30)

    async def talk() -> list[Json]:
        session = Session(Live(worker, limits), worker, limits, OPERATIONS)
        params = {**GREEDY, "max_tokens": 200}
        await session.receive(json.dumps({"op": "start", "prompt": [5], "params": params, "top": 0}))
        frames: list[Json] = []
        while not frames or frames[-1]["event"] != "paused":
            frames.append(await session.outbox.take() or {})
        await session.receive('{"op": "run"}')
        await asyncio.sleep(0.5)
        assert 16 <= len(session.outbox) <= 18
        assert worker.stats().generated_tokens <= 18
        assert worker.call(lambda: 7).result(5) == 7
        while frames[-1]["event"] != "finished":
            frames.append(await session.outbox.take() or {})
        session.end()
        return frames

    frames = asyncio.run(asyncio.wait_for(talk(), 30))
    assert [frame["step"]["index"] for frame in frames if frame["event"] == "step"] == list(range(200))
    worker.close()


def test_connections_are_limited(llm: LLM) -> None:
    with serving(llm, connections=1) as served, client(served) as first:
        begin(first)
        with connect(served.url) as socket:
            assert json.loads(socket.recv())["code"] == "server_full"
        assert served.live.connections == 1


def test_the_server_ends_every_run_with_a_word(llm: LLM) -> None:
    with serving(llm) as served, client(served) as live:
        begin(live, [5])
        live.send("run")
        live.get("step")
        served.worker.close()
        while (frame := live.next())["event"] != "error":
            pass
        assert frame["code"] == "closed"
        future = asyncio.run_coroutine_threadsafe(served.live.close(1001), next(iter(_sessions(served))).loop)
        future.result(5)


def _sessions(served: Served) -> list[Any]:
    return [session for session, _ in served.live._open.values()]


# The documentation.


def test_the_example_in_the_docs_waits_and_runs(embedded: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[1] / "docs" / "live.md"
    [code] = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.strip().splitlines()) <= 42

    def slow() -> LLM:
        time.sleep(0.5)
        return embedded

    running = serve(slow)
    try:
        exec(compile(code.replace(":8000", f":{running.port}"), str(page), "exec"), {"__name__": "__main__"})
    finally:
        running.stop()
    printed = capsys.readouterr().out
    assert "forked" in printed
    assert "paused" in printed


def test_the_docs_name_every_op_and_field() -> None:
    from byhand.server.live.frames import OPS, UNTIL

    page = (Path(__file__).parents[1] / "docs" / "live.md").read_text(encoding="utf-8")
    for op, fields in OPS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{op}` |"))
        for name in fields:
            assert f"`{name}" in row, f"{op}: {name}"
    for name in UNTIL:
        assert f"`{name}`" in page

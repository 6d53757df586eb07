"""/live frame by frame, without a network: each operation, whose events carry which id, and what errors leave."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from byhand import LLM
from byhand.engine.limits import Limits
from byhand.record import Record
from byhand.server.live.operate import OPERATIONS
from byhand.server.live.session import Session
from tests.serving import until
from tests.wires import Json, Station, Wire, station, wire

PROMPT = [5, 6, 7, 8, 9, 10]
MANY = [str(number) for number in range(40)]
LONG = list(range(5, 45))  # two pages are full, the third is not


@pytest.fixture(scope="module")
def at(tiny_folder: Path) -> Iterator[Station]:
    with station(LLM(tiny_folder), live_runs=4) as one:
        yield one


@pytest.fixture
def live(at: Station) -> Iterator[Wire]:
    with wire(at) as one:
        yield one
        for run in one.ask("tree", "tree")["runs"]:
            one.send("stop", run=run["run"])
            one.get("finished")


# Frames and their ids.


def test_every_event_carries_the_id_of_the_frame_that_it_follows(live: Wire) -> None:
    operations: list[tuple[str, Json, list[str]]] = [
        ("step", {"count": 2}, ["step", "paused"]),
        ("force", {"token": 7}, ["step", "paused"]),
        ("insert", {"ids": [8, 9]}, ["step", "changed"]),
        ("edit", {"position": 8, "token": 4}, ["step", "changed"]),
        ("rewind", {}, ["changed"]),
        ("undo", {}, ["changed"]),
        ("set", {"params": {"top_k": 3}}, ["set"]),
        ("pause", {}, ["paused"]),
        ("run", {"until": {"token": 7}}, ["step", "finished"]),
        ("logits", {"index": 240}, ["logits"]),
        ("switch", {}, ["switched"]),
    ]
    live.kinds()
    live.send("start", id="s", prompt=PROMPT, params={"temperature": 0, "ignore_eos": True}, top=1)
    live.get("paused")
    assert live.kinds() == [("started", "s"), ("prefill", "s"), ("reading", "s"), ("paused", "s")]
    for number, (op, fields, events) in enumerate(operations):
        run = live.ask("tree", "tree")["runs"][0]["run"] if op == "switch" else None
        live.kinds()
        live.send(op, id=number, **fields, **({"run": run} if run else {}))
        last = live.get(events[-1], "paused" if op == "run" else events[-1])["event"]
        assert live.kinds() == [(event, number) for event in [*events[:-1], last]], op


def test_a_start_says_what_it_begins_with(at: Station, live: Wire) -> None:
    started = live.ask(
        "started", "start", prompt=PROMPT, params={"max_tokens": 5, "temperature": 0.5, "ignore_eos": True}, id=1
    )
    assert started["ids"] == PROMPT
    assert [token["id"] for token in started["tokens"]] == PROMPT
    assert [token["text"] for token in started["tokens"]] == [at.llm.tokenizer.token(token).text for token in PROMPT]
    assert (started["params"]["max_tokens"], started["params"]["temperature"]) == (5, 0.5)
    seed = started["params"]["seed"]
    assert isinstance(seed, int)
    live.get("paused")
    assert [len(f["top"]) for f in live.seen if f["event"] == "reading"] == [5] * 6  # as many as when none are named
    live.kinds()
    live.ask("finished", "run")
    assert live.steps() == at.tokens(PROMPT, 5, temperature=0.5, seed=seed)


def test_a_prompt_that_nobody_wants_to_read_is_not_told(live: Wire) -> None:
    live.kinds()
    live.begin(PROMPT, top=0)
    assert live.kinds() == [("started", None), ("prefill", None), ("paused", None)]


def test_messages_go_through_the_template(at: Station, live: Wire) -> None:
    messages = [{"role": "user", "content": "the fox"}]
    started = live.ask("started", "start", messages=messages)
    assert started["ids"] == at.llm.chat_ids(messages)
    live.get("paused")


def test_known_pages_are_told_and_counted(live: Wire) -> None:
    prompt = [3, *LONG]
    live.begin(prompt)
    live.kinds()
    live.begin(prompt, max_tokens=2)
    [prefill] = [frame for frame in live.seen if frame["event"] == "prefill"]
    assert (prefill["done"], prefill["total"], prefill["reused"]) == (41, 41, 32)
    run = live.seen[-1]["run"]
    live.send("run", run=run, id="r")
    finished = live.get("finished")
    assert finished["usage"] == {"prompt_tokens": 41, "completion_tokens": 2, "cached_tokens": 32}
    assert (finished["finish_reason"], finished["stop_reason"], finished["run"]) == ("length", None, run)


def test_a_stop_string_is_named(at: Station, live: Wire) -> None:
    tokens = at.tokens(PROMPT, 8)
    word = at.llm.tokenizer.token(tokens[6]).text
    live.begin(PROMPT, stop=[word])
    finished = live.ask("finished", "run")
    assert (finished["finish_reason"], finished["stop_reason"]) == ("stop", word)


def test_a_record_follows_the_end_of_a_run_that_asked_for_it_alone(live: Wire) -> None:
    fields = {"prompt": PROMPT, "params": {"max_tokens": 2}, "top": 0}
    live.ask("paused", "start", **fields)
    plain = live.seen[-1]["run"]
    live.ask("paused", "start", **fields, record=True)
    wanted = live.seen[-1]["run"]
    live.send("run", run=plain, id=1)
    live.send("run", run=wanted, id=2)
    record = live.get("record")
    assert (record["run"], record["id"], len(record["record"]["steps"])) == (wanted, 2, 2)
    live.ask("tree", "tree")
    assert [frame["run"] for frame in live.seen if frame["event"] == "record"] == [wanted]


def test_frames_are_carried_out_in_the_order_in_which_they_came(at: Station, live: Wire) -> None:
    live.begin(PROMPT)
    live.kinds()
    for number in range(5):
        live.send("insert", ids=[20 + number], id=number)
    for number in range(5):
        changed = live.get("changed")
        assert (changed["id"], changed["ids"]) == (number, [*PROMPT, *range(20, 21 + number)])


# Operations.


def test_a_forced_token_is_one_step_and_the_next_is_the_models(at: Station, live: Wire) -> None:
    live.begin(PROMPT)
    live.ask("paused", "force", token=9)
    live.ask("paused", "step", count=2)
    forced = [frame["step"]["forced"] for frame in live.seen if frame["event"] == "step"]
    assert forced == [True, False, False]
    assert live.steps() == [9, *at.tokens([*PROMPT, 9], 2)]


def test_a_change_says_what_it_left(at: Station, live: Wire) -> None:
    live.begin(PROMPT, max_tokens=6)
    live.ask("finished", "run")
    tokens = at.tokens(PROMPT, 6)
    changed = live.ask("changed", "rewind")
    assert (changed["ids"], changed["dropped"], changed["finish_reason"]) == ([*PROMPT, *tokens[:5]], 1, None)
    assert changed["text"] == at.llm.detokenize(tokens[:5])
    same = live.ask("changed", "edit", position=8, token=tokens[2])
    assert (same["ids"], same["dropped"], same["computed"]) == ([*PROMPT, *tokens[:3]], 2, 9)
    other = live.ask("changed", "edit", position=7, token=3)
    assert (other["ids"], other["dropped"]) == ([*PROMPT, tokens[0], 3], 2)
    more = live.ask("changed", "insert", ids=[11, 12, 13])
    assert (more["ids"], more["dropped"], more["prompt_length"]) == ([*other["ids"], 11, 12, 13], 0, 6)
    ended = live.ask("changed", "insert", ids=[14])
    assert ended["finish_reason"] == "length"
    shorter = live.ask("changed", "rewind", count=8)
    assert (shorter["ids"], shorter["dropped"], shorter["prompt_length"]) == (PROMPT[:4], 8, 4)


def test_an_undone_insertion_drops_what_was_inserted(live: Wire) -> None:
    live.begin(PROMPT)
    live.ask("changed", "insert", ids=[11, 12, 13])
    live.ask("changed", "rewind", count=2)
    undone = live.ask("changed", "undo")
    assert (undone["ids"], undone["dropped"]) == ([*PROMPT, 11, 12, 13], 0)
    undone = live.ask("changed", "undo")
    assert (undone["ids"], undone["dropped"]) == (PROMPT, 3)


def test_settings_that_are_not_named_stay(live: Wire) -> None:
    live.begin(PROMPT, top_k=7, stop=["x"])
    params = live.ask("set", "set", params={"temperature": 0.5, "top_k": None})["params"]
    assert (params["temperature"], params["top_k"], params["stop"]) == (0.5, 7, ["x"])


UNDONE: dict[str, list[tuple[str, Json, str]]] = {
    "steps": [("step", {"count": 3}, "paused")],
    "a forced token": [("force", {"token": 9}, "paused")],
    "an insertion": [("insert", {"ids": [9, 9]}, "changed")],
    "an edited token": [("edit", {"position": 7, "token": 9}, "changed")],
    "a rewind": [("rewind", {"count": 2}, "changed")],
    "a rewind into the prompt": [("rewind", {"count": 7}, "changed")],
    "an edited prompt": [("edit", {"position": 2, "token": 9}, "changed")],
    "a prompt edited at its first token": [("edit", {"position": 0, "token": 9}, "changed")],
    "settings": [("set", {"params": {"temperature": 2.0, "seed": 4}}, "set")],
    "several": [
        ("edit", {"position": 7, "token": 9}, "changed"),
        ("step", {"count": 2}, "paused"),
        ("edit", {"position": 1, "token": 9}, "changed"),
        ("step", {"count": 2}, "paused"),
        ("rewind", {"count": 3}, "changed"),
    ],
}


@pytest.mark.parametrize("done", UNDONE)
@pytest.mark.parametrize("top", [0, 2])
def test_undo_gives_the_run_back_as_it_was(at: Station, live: Wire, done: str, top: int) -> None:
    live.begin(PROMPT, top=top)
    live.ask("paused", "step", count=4)
    before = live.state()
    for op, fields, answer in UNDONE[done]:
        live.ask(answer, op, **fields)
    assert live.state() != before
    for _ in UNDONE[done]:
        undone = live.ask("changed", "undo", id="u")
    assert undone["ids"] == before["ids"]
    assert undone["id"] == "u"
    assert live.state() == before
    live.steps()
    live.ask("paused", "step", count=4)
    assert live.steps() == at.tokens(PROMPT, 8)[4:]


def readings(live: Wire) -> list[Json]:
    """The predictions that were told since the last look, without what differs by the id."""
    found = [frame for frame in live.seen if frame["event"] == "reading"]
    live.seen.clear()
    return [{name: value for name, value in frame.items() if name != "id"} for frame in found]


@pytest.mark.parametrize("place", [0, 1, 3, 5])
def test_what_a_changed_prompt_predicts_is_told_again_and_once_more_when_it_is_undone(live: Wire, place: int) -> None:
    live.begin(PROMPT, top=2)
    first = readings(live)
    assert [frame["position"] for frame in first] == list(range(6))
    live.ask("changed", "edit", position=place, token=9 if place != 4 else 3)
    assert [(f["position"], f["token"]["id"]) for f in readings(live)] == [(place, 9)]
    live.ask("changed", "undo")
    again = readings(live)
    # The token that changed and all that stand after it: those before it predict what they did.
    assert [frame["position"] for frame in again] == list(range(place, 6))
    for told, then in zip(again, first[place:], strict=True):
        assert (told["token"], told["actual"] and told["actual"]["id"]) == (
            then["token"],
            then["actual"] and then["actual"]["id"],
        )
        assert [each["id"] for each in told["top"]] == [each["id"] for each in then["top"]]
    live.ask("changed", "edit", position=5, token=4)
    assert [(f["position"], f["token"]["id"]) for f in readings(live)] == [(5, 4)]


def test_a_fork_is_a_run_of_its_own(at: Station, live: Wire) -> None:
    parent = live.begin(PROMPT, temperature=1.0, seed=3)["run"]
    live.ask("paused", "step", count=2, id="parent")
    forked = live.ask("forked", "fork", run=parent, id="f")
    twin, tokens = forked["run"], at.tokens(PROMPT, 6, temperature=1.0, seed=3)
    assert (forked["parent"], forked["at"], forked["id"]) == (parent, 8, "f")
    assert forked["ids"] == [*PROMPT, *tokens[:2]]
    assert (forked["prompt_length"], forked["params"]["seed"], forked["finish_reason"]) == (6, 3, None)
    other = live.ask("forked", "fork", run=twin, seed=9)
    assert (other["parent"], other["params"]["seed"]) == (twin, 9)
    live.seen.clear()
    live.ask("paused", "step", run=twin, count=4, id="twin")
    assert {(frame["run"], frame["id"]) for frame in live.seen} == {(twin, "twin")}
    assert live.steps() == tokens[2:]
    live.ask("paused", "step", run=other["run"], count=4)
    mine = live.steps()
    assert mine != tokens[2:]
    assert mine == at.tokens([*PROMPT], 6, temperature=1.0, seed=9)[2:] or len(mine) == 4
    live.ask("paused", "step", run=parent, count=4)
    assert live.steps() == tokens[2:]
    tree = live.ask("tree", "tree")["runs"]
    assert [(run["run"], run["parent"], run["at"]) for run in tree] == [
        (parent, None, None),
        (twin, parent, 8),
        (other["run"], twin, 8),
    ]


def test_a_tree_says_who_holds_what(at: Station, live: Wire) -> None:
    first = live.begin(LONG, max_tokens=1)["run"]
    second = live.ask("forked", "fork", run=first)["run"]
    live.ask("finished", "run", run=first)
    live.ask("changed", "insert", run=first, ids=[9] * 20)
    tree = live.ask("tree", "tree", id="t")
    assert [
        (r["run"], r["pages"], r["shared"], r["length"], r["computed"], r["finish_reason"]) for r in tree["runs"]
    ] == [
        (first, 4, 2, 61, 61, None),
        (second, 3, 2, 40, 40, None),
    ]
    assert tree["pages"] == {"held": 5, "shared": 2}
    assert tree["bytes"] == 5 * at.llm.engine.cache.page_bytes
    live.ask("finished", "stop", run=first)
    tree = live.ask("tree", "tree")
    assert [(run["run"], run["pages"], run["shared"]) for run in tree["runs"]] == [(second, 3, 0)]
    assert tree["pages"] == {"held": 3, "shared": 0}


def test_logits_are_those_before_a_token_and_before_the_one_to_come(at: Station, live: Wire) -> None:
    live.begin(PROMPT)
    assert live.ask("logits", "logits", index=0)["tokens"][0]["id"] == at.tokens(PROMPT, 1)[0]
    live.ask("paused", "step", count=3)
    assert live.ask("paused", "step", until={"entropy": 0})["why"] == "entropy"  # the fourth is looked at, not taken
    tokens = at.tokens(PROMPT, 4)
    for index in range(4):
        answer = live.ask("logits", "logits", index=index, id=index)
        row = np.frombuffer(b64decode(answer["data"]), "<f4")
        assert (answer["index"], answer["dtype"], answer["shape"]) == (index, "float32", [384])
        assert int(row.argmax()) == answer["tokens"][0]["id"] == tokens[index]
        assert [token["id"] for token in answer["tokens"]] == row.argsort(kind="stable")[::-1][:64].tolist()
        theirs = at.worker.call(lambda index=index: at.llm.logits([*PROMPT, *tokens[:index]])[-1]).result(20)
        assert np.allclose(row, theirs.numpy(), atol=1e-4)
    error = live.refused("logits", index=4)
    assert (error["param"], error["message"].rpartition(": ")[2]) == ("index", "0 to 3")
    live.ask("changed", "rewind", count=2)
    assert live.refused("logits", index=2)["message"].endswith("0 to 1")


# Errors.


WRONG: list[tuple[str, Json, str]] = [
    ("force", {"token": 384}, "token"),
    ("force", {"token": "no one token"}, "token"),
    ("insert", {"ids": []}, "text"),
    ("insert", {"ids": [5] * 300}, "text"),
    ("edit", {"position": 9, "token": 5}, "position"),
    ("rewind", {"count": 9}, "count"),
    ("set", {"params": {"top_k": -3}}, "top_k"),
    ("set", {"params": {"stop": MANY}}, "stop"),
    ("set", {"params": {"banned_ids": [384]}}, "banned_ids"),
    ("fork", {"seed": 2**64}, "seed"),
    ("step", {"until": {"margin": -1}}, "margin"),
    ("logits", {"index": 9}, "index"),
]


def test_what_is_refused_leaves_the_run_as_it_was(live: Wire) -> None:
    run = live.begin(PROMPT, max_tokens=5)["run"]
    live.ask("paused", "step", count=3)
    before = live.state()
    for number, (op, fields, param) in enumerate(WRONG):
        error = live.refused(op, run=run, id=number, **fields)
        assert (error["id"], error["run"], error["param"]) == (number, run, param), op
    assert live.state() == before
    assert len(live.ask("tree", "tree")["runs"]) == 1
    live.ask("finished", "run")
    ended = live.state()
    assert live.refused("step")["code"] == "run_finished"
    assert live.state() == ended
    for _ in range(2):
        live.ask("changed", "undo")
    assert live.refused("undo")["param"] == "op"  # what was refused left nothing to undo


def test_a_start_that_fails_takes_no_place(live: Wire) -> None:
    wrong: list[Json] = [{"prompt": [384]}, {"prompt": []}, {"prompt": PROMPT, "params": {"stop": MANY}}]
    for fields in wrong * 2:
        error = live.refused("start", id="s", **fields)
        assert (error["id"], error["code"]) in {("s", "invalid_value"), ("s", "limit_exceeded")}
        assert error["run"] is not None
        assert live.refused("step", run=error["run"])["code"] == "unknown_run"
    live.begin(PROMPT)
    live.ask("paused", "step")  # the only run is meant


def test_a_connection_has_so_many_runs_and_no_more(live: Wire) -> None:
    runs = [live.begin(PROMPT)["run"] for _ in range(3)]
    record = live.ask("record", "record", run=runs[0])["record"]
    runs.append(live.ask("forked", "fork", run=runs[0])["run"])
    more: list[tuple[str, Json]] = [
        ("start", {"prompt": PROMPT}),
        ("load", {"record": record}),
        ("fork", {"run": runs[0]}),
    ]
    for op, fields in more:
        error = live.refused(op, id=op, **fields)
        assert (error["code"], error["param"], error["id"]) == ("limit_exceeded", "op", op)
    live.ask("finished", "stop", run=runs[1])
    live.ask("started", "load", record=record)
    live.get("paused")
    assert len(live.ask("tree", "tree")["runs"]) == 4


def test_who_names_no_run_means_the_one_switched_to_or_the_only_one(live: Wire) -> None:
    first, second = (live.begin(PROMPT)["run"] for _ in range(2))
    assert live.refused("step")["code"] == "missing_field"
    live.ask("switched", "switch", run=second)
    assert live.ask("paused", "step")["run"] == second
    assert live.ask("paused", "step", run=first)["run"] == first
    assert live.ask("paused", "step")["run"] == second
    assert live.ask("finished", "stop", id="x")["run"] == second
    assert live.seen[-1]["id"] == "x"
    assert live.seen[-1]["finish_reason"] == "abort"
    assert live.ask("paused", "step")["run"] == first
    assert live.refused("step", run=second)["code"] == "unknown_run"
    live.begin(PROMPT)
    assert live.refused("step")["code"] == "missing_field"  # what was switched to is no more


# Records.


def test_a_loaded_run_is_the_recorded_one_and_goes_on_as_it_did(at: Station, live: Wire) -> None:
    run = live.begin(PROMPT, temperature=1.0, seed=5, max_tokens=9)["run"]
    live.ask("paused", "step", count=2)
    live.ask("set", "set", params={"top_k": 20, "seed": 6})
    live.ask("paused", "force", token=9)
    live.ask("paused", "step", count=2)
    before = live.state()
    live.seen.clear()
    live.ask("finished", "run", run=run)
    onward = live.steps()
    started = live.ask("started", "load", record={**before, "created": "then"}, id="l")
    twin = started["run"]
    assert (started["id"], started["ids"], started["text"]) == ("l", before["ids"], before["text"])
    assert started["steps"] == before["steps"]
    assert (started["params"]["seed"], started["params"]["top_k"]) == (6, 20)
    live.get("paused")
    assert live.state(twin) == before
    live.seen.clear()
    live.ask("finished", "run", run=twin)
    assert live.steps() == onward
    ended = live.state(run)
    assert live.ask("started", "load", record={**ended, "created": "then"})["finish_reason"] == "length"
    third = live.get("finished")["run"]
    assert live.refused("step", run=third)["code"] == "run_finished"
    assert live.state(third) == ended
    live.ask("changed", "rewind", run=third, count=4)
    live.seen.clear()
    live.ask("finished", "run", run=third)
    assert live.steps() == onward
    assert Record.from_json({**ended, "created": "then"}).prompt_ids == PROMPT


def test_whoever_takes_a_record_lets_no_page_go(at: Station, live: Wire) -> None:
    live.begin(LONG)
    for _ in range(3):
        live.state()
        assert at.pages == 3
    live.ask("paused", "step")
    [run] = live.ask("tree", "tree")["runs"]
    assert (run["pages"], run["computed"]) == (3, 40)


def test_a_record_that_is_too_long_or_of_another_vocabulary_is_refused(tiny_folder: Path) -> None:
    with station(LLM(tiny_folder), total_tokens=8) as at, wire(at) as live:
        live.begin(PROMPT, max_tokens=2)
        live.ask("finished", "run")
        document = live.ask("record", "record")["record"]
        step = {**document["steps"][-1], "index": 2, "position": 8}
        longer = {**document, "ids": [*document["ids"], document["ids"][-1]], "steps": [*document["steps"], step]}
        assert live.refused("load", record=longer)["code"] == "limit_exceeded"
        document["prompt"][0]["id"] = document["ids"][0] = 400
        assert live.refused("load", record=document)["param"] == "record.ids"
        assert len(live.ask("tree", "tree")["runs"]) == 1


# Coming and going.


def test_runs_of_a_lost_connection_hold_no_page_and_are_handed_over_with_their_names(at: Station) -> None:
    first = Wire(at)
    run = first.begin(LONG, max_tokens=9)["run"]
    twin = first.ask("forked", "fork", run=run)["run"]
    first.ask("paused", "step", run=run, count=3, id="old")
    first.ask("switched", "switch", run=twin)
    first.send("run", run=twin)
    first.get("step")
    first.close()
    assert at.pages == 0
    stats = at.worker.stats()
    assert (stats.running, stats.waiting, stats.idle) == (0, 0, 2)
    tokens = at.tokens(LONG, 9)
    with wire(at) as second:
        mine = second.begin(PROMPT)["run"]
        resumed = second.ask("resumed", "resume", token=first.hello["resume"], id="back")
        assert (resumed["id"], resumed["current"]) == ("back", twin)
        states = {state["run"]: state for state in resumed["runs"]}
        assert list(states) == [run, twin]
        assert (states[run]["parent"], states[run]["at"]) == (None, None)
        assert (states[twin]["parent"], states[twin]["at"]) == (run, 40)
        assert states[run]["ids"] == [*LONG, *tokens[:3]]
        assert states[run]["tokens"][-1]["id"] == tokens[2]
        assert (states[run]["computed"], states[run]["prompt_length"]) == (0, 40)
        assert states[run]["text"] == at.llm.detokenize(tokens[:3])
        assert states[run]["params"]["max_tokens"] == 9
        second.seen.clear()
        second.send("run", run=run, id="new")
        second.get("finished")
        assert {(f["run"], f["id"]) for f in second.seen if f["event"] in ("step", "finished")} == {(run, "new")}
        assert second.steps() == tokens[3:]
        known = states[twin]["ids"][40:]
        if states[twin]["finish_reason"] is None:
            second.ask("finished", "run")  # it is the current one still
            known += second.steps()
        assert known == tokens
        assert second.refused("resume", token=first.hello["resume"])["code"] == "unknown_token"
        assert [each["run"] for each in second.ask("tree", "tree")["runs"]] == [mine, run, twin]
        assert second.refused("resume", token=second.hello["resume"])["code"] == "unknown_token"
        for each in (mine, run, twin):
            second.ask("finished", "stop", run=each)


def test_who_has_no_room_for_lost_runs_may_make_some_and_ask_again(at: Station) -> None:
    first = Wire(at)
    lost = [first.begin(PROMPT)["run"] for _ in range(2)]
    first.close()
    with wire(at) as second:
        mine = [second.begin(PROMPT)["run"] for _ in range(3)]
        error = second.refused("resume", token=first.hello["resume"])
        assert (error["code"], error["param"]) == ("limit_exceeded", "token")
        assert len(second.ask("tree", "tree")["runs"]) == 3
        second.ask("finished", "stop", run=mine[0])
        assert [each["run"] for each in second.ask("resumed", "resume", token=first.hello["resume"])["runs"]] == lost
        for each in (*mine[1:], *lost):
            second.ask("paused", "step", run=each)
            second.ask("finished", "stop", run=each)


def test_runs_that_nobody_comes_back_for_are_ended(tiny_folder: Path) -> None:
    for seconds in (0.0, 0.05):
        with station(LLM(tiny_folder), resume_seconds=seconds) as at:
            first = Wire(at)
            first.begin(PROMPT)
            first.close()
            assert until(lambda at=at: at.worker.stats().idle == 0, 20)  # type: ignore[misc]
            with wire(at) as second:
                assert second.refused("resume", token=first.hello["resume"])["code"] == "unknown_token"


def test_a_reader_that_stops_now_and_then_loses_nothing_and_is_waited_for_each_time(tiny_folder: Path) -> None:
    with station(LLM(tiny_folder), live_queue=16) as at, wire(at, room=1) as live:
        live.begin([5], max_tokens=200)
        live.seen.clear()
        live.send("run")
        for _ in range(4):
            before = len([live.get("step") for _ in range(30)])
            assert before == 30
            done = sum(frame["event"] == "step" for frame in live.seen)

            def made() -> int:
                at.worker.call(lambda: None).result(20)
                return at.worker.stats().generated_tokens

            # It stands still not far ahead of what was read: the queue, what lies on the way, what was under way.
            assert until(lambda done=done: made() >= done + 8, 20)  # type: ignore[misc]
            assert until(lambda: made() == made() == made(), 20)
            assert made() <= done + 16 + 4
        live.get("finished")
        assert [f["step"]["index"] for f in live.seen if f["event"] == "step"] == list(range(200))
        assert live.steps() == at.tokens([5], 200)


def test_a_full_queue_holds_every_run_of_its_connection(tiny_folder: Path) -> None:
    with station(LLM(tiny_folder), live_queue=16) as at, wire(at, room=1) as live:
        runs = [live.begin([5 + number], max_tokens=100)["run"] for number in range(3)]
        live.seen.clear()
        for run in runs:
            live.send("run", run=run)

        def made() -> int:
            at.worker.call(lambda: None).result(20)
            return at.worker.stats().generated_tokens

        assert until(lambda: made() >= 12, 20)
        assert until(lambda: made() == made() == made(), 20)
        assert made() <= 16 + 2 + 6
        for _ in runs:
            live.get("finished")
        for number, run in enumerate(runs):
            mine = [f["step"]["token"]["id"] for f in live.seen if f["event"] == "step" and f["run"] == run]
            assert mine == at.tokens([5 + number], 100)


@pytest.mark.parametrize("way", ["start", "fork", "load"])
def test_a_run_that_comes_while_the_queue_is_full_is_held_like_the_others(tiny_folder: Path, way: str) -> None:
    with station(LLM(tiny_folder), live_queue=16) as at:

        def made() -> int:
            return at.worker.stats().generated_tokens

        async def talk() -> None:
            session = Session(at.live, at.worker, at.worker.limits, OPERATIONS)
            taken: list[Json] = []

            async def say(op: str, **fields: Any) -> None:
                await session.receive(json.dumps({"op": op, **fields}))

            async def hear(event: str, times: int = 1) -> Json:
                while sum(frame["event"] == event for frame in taken) < times:
                    taken.append(await session.outbox.take() or {})
                return taken[-1]

            params = {"temperature": 0, "ignore_eos": True, "max_tokens": 100}
            await say("start", prompt=[5], params=params, top=0)
            first = (await hear("paused"))["run"]
            await say("record")
            record = (await hear("record"))["record"]
            await say("run")
            assert await asyncio.to_thread(until, lambda: made() >= 15, 20)
            fields = {"start": {"prompt": [6], "params": params}, "fork": {"run": first}, "load": {"record": record}}
            await say(way, **fields[way])
            assert await asyncio.to_thread(until, lambda: len(session.runs) == 2, 20)
            second = next(name for name in session.runs if name != first)
            await say("run", run=second)
            assert not await asyncio.to_thread(until, lambda: made() > 16 + 4, 1.0)
            await hear("finished", 2)
            session.end()

        at.do(talk())


def test_found_runs_outlive_the_time_in_which_they_could_be_found(tiny_folder: Path) -> None:
    with station(LLM(tiny_folder), resume_seconds=0.2) as at:
        first = Wire(at)
        first.begin(PROMPT)
        first.close()
        with wire(at) as second:
            second.ask("resumed", "resume", token=first.hello["resume"])
            over = at.loop.time() + 0.3
            assert until(lambda: at.loop.time() > over, 20)
            second.ask("paused", "step", count=3)
            assert second.steps() == at.tokens(PROMPT, 3)


def test_runs_are_lost_and_found_twice(at: Station) -> None:
    first = Wire(at)
    run = first.begin(PROMPT)["run"]
    first.close()
    second = Wire(at)
    second.ask("resumed", "resume", token=first.hello["resume"])
    second.ask("paused", "step", count=2)
    second.close()
    with wire(at) as third:
        assert third.refused("resume", token=first.hello["resume"])["code"] == "unknown_token"
        [found] = third.ask("resumed", "resume", token=second.hello["resume"])["runs"]
        assert (found["run"], found["ids"]) == (run, [*PROMPT, *at.tokens(PROMPT, 2)])
        third.ask("paused", "step", count=2)
        assert third.steps() == at.tokens(PROMPT, 4)[2:]
        third.ask("finished", "stop")


def test_a_full_house_says_so_and_hangs_up(tiny_folder: Path) -> None:
    with station(LLM(tiny_folder), connections=1) as at:
        with wire(at) as first:
            first.begin(PROMPT)
            second = Wire(at)
            assert (second.hello["event"], second.hello["code"]) == ("error", "server_full")
            second.close()
            first.ask("paused", "step")
        with wire(at) as third:
            assert third.hello["event"] == "hello"


def test_a_closing_server_ends_the_runs_with_a_word(tiny_folder: Path) -> None:
    with station(LLM(tiny_folder)) as at:
        first, second = Wire(at), Wire(at)
        first.begin(PROMPT)
        second.begin(PROMPT)
        second.close()
        at.do(at.live.close())
        at.worker.call(lambda: None).result(20)
        assert at.worker.stats().idle == 0
        assert first.code() == 1001
        first.close()


def test_the_limits_of_the_house_are_in_the_first_frame(at: Station, live: Wire) -> None:
    assert live.hello["limits"].keys() == set(Limits.__slots__)
    assert live.hello["limits"]["live_runs"] == 4
    assert live.hello["model"]["eos_ids"] == sorted(at.llm.eos_ids)


def test_the_machine_is_measured_once(live: Wire, at: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def wall(llm: LLM) -> Json:
        asked.append(llm)
        return {"tokens_per_second": 7}

    monkeypatch.setattr("byhand.bench.wall.wall", wall)
    for number in range(2):
        answer = live.ask("machine", "machine", id=number)
        assert (answer["id"], answer["tokens_per_second"]) == (number, 7)
    assert asked == [at.llm]

"""A record is the run: it survives the file, tells lies apart from truth, and replays with and without a model."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from byhand import LLM, Record, RecordError, Run, SamplingParams
from byhand.record import write_whole
from byhand.replay import replay
from tests.conftest import tiny_llama

PARAMS = SamplingParams(temperature=0.9, top_k=40, seed=5, max_tokens=12)


@pytest.fixture
def steered(llm: LLM) -> Run:
    """A run that was sampled, forced, inserted into, re-set and rewound."""
    run = llm.start("the quick brown fox", PARAMS)
    for _ in range(4):
        run.step()
    run.step(force=" dog")
    run.insert(" and then the")
    run.set(temperature=0.2)
    run.step()
    run.step()
    run.rewind(1)
    run.set(top_p=0.9)
    run.step()
    return run


def test_a_record_survives_its_file(steered: Run, tmp_path: Path) -> None:
    record = steered.record()
    record.save(tmp_path / "run.json")
    assert Record.load(tmp_path / "run.json") == record
    assert record.ids == steered.ids
    assert record.text == steered.text
    assert record.steps == tuple(steered.steps)
    assert [first for first, _ in record.settings] == [0, record.steps[-2].index, record.steps[-1].index]
    assert record.params_at(0).temperature == 0.9
    assert record.params_at(len(record.steps) - 1).top_p == 0.9
    assert not list(tmp_path.glob("*.part"))


def test_a_record_is_plain_json(steered: Run, tmp_path: Path) -> None:
    steered.record().save(tmp_path / "run.json")
    document = json.loads((tmp_path / "run.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (document["format"], document["version"]) == ("byhand.record", 1)
    assert document["model"]["model_type"] == "llama"
    assert document["seed"] == 5
    assert document["ids"] == steered.ids
    assert document["steps"][4]["forced"] is True
    assert document["steps"][0]["chain"][0]["name"] == "raw"
    assert None in document["steps"][0]["chain"][-1]["logits"] or document["steps"][0]["chain"][-1]["kept"] == 40


def test_a_replay_agrees_with_itself(steered: Run, llm: LLM) -> None:
    assert replay(steered.record(), llm) == []


def test_a_replay_names_what_differs(steered: Run, llm: LLM) -> None:
    document = steered.record().to_json()
    document["steps"][2]["entropy"] += 0.5
    document["steps"][3]["top"][1]["logprob"] -= 0.25
    found = replay(Record.from_json(document), llm)
    assert [(one.index, one.field) for one in found] == [(2, "entropy"), (3, "top[1].logprob")]
    assert found[0].recorded - found[0].now == pytest.approx(0.5)


def test_a_replay_goes_on_after_another_token(steered: Run, llm: LLM) -> None:
    document = steered.record().to_json()
    other = document["steps"][1]["top"][-1]
    document["steps"][1]["token"] = {name: other[name] for name in ("id", "text", "bytes", "special")}
    document["ids"][steered.prompt_length + 1] = other["id"]
    found = replay(Record.from_json(document), llm)
    assert (found[0].index, found[0].field, found[0].recorded) == (1, "token", other["id"])
    assert {one.index for one in found} > {1}  # what came after saw another past


def test_a_replay_on_another_model_differs(steered: Run, embedded: LLM) -> None:
    assert len(replay(steered.record(), embedded)) > 10


def test_a_run_without_a_seed_can_be_replayed(llm: LLM) -> None:
    run = llm.start("the fox", SamplingParams(temperature=1.5, max_tokens=8))
    list(run)
    assert run.params.seed == run.seed
    assert replay(run.record(), llm) == []


def test_dice_that_were_changed_on_the_way_can_be_replayed(llm: LLM, tmp_path: Path) -> None:
    run = llm.start("the fox", SamplingParams(temperature=1.5, seed=4, max_tokens=12))
    for _ in range(3):
        run.step()
    other = run.fork(seed=5)
    for _ in range(3):
        other.step()
    other.set(seed=6)
    list(other)
    other.record().save(tmp_path / "run.json")
    record = Record.load(tmp_path / "run.json")
    assert [(first, params.seed) for first, params in record.settings] == [(0, 4), (3, 5), (6, 6)]
    assert record.seed == 4
    assert replay(record, llm) == []


def test_choices_record_their_number(llm: LLM) -> None:
    run = llm.open_run(llm.encode("the fox"), PARAMS, seed=5, choice=3)
    list(run)
    record = run.record()
    assert record.choice == 3
    assert replay(record, llm) == []


def test_a_stage_of_the_users_stands_in_the_record_by_name(llm: LLM, tmp_path: Path) -> None:
    def no_dog(ids: Any, logits: Any) -> Any:
        logits[llm.tokenizer.one_token(" dog")] = -float("inf")
        return logits

    run = llm.start("the quick brown fox", SamplingParams(max_tokens=3, stages=(no_dog,)))
    list(run)
    run.record().save(tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["settings"][0]["params"]["stages"] == ["no_dog"]
    record = Record.load(tmp_path / "run.json")
    assert record.ids == run.ids
    assert record.steps[0].chain[-1].name == "no_dog"


def test_a_stage_that_a_file_cannot_hold_leaves_the_raw_numbers_to_compare(llm: LLM, tmp_path: Path) -> None:
    def other(ids: Any, logits: Any) -> Any:
        logits[logits.argmax()] = -float("inf")
        return logits

    run = llm.start("the quick brown fox", SamplingParams(max_tokens=6, seed=3, temperature=0.8, stages=(other,)))
    list(run)
    run.record().save(tmp_path / "run.json")
    record = Record.load(tmp_path / "run.json")
    assert record.missing == (("other",),)
    assert record.to_json() == json.loads((tmp_path / "run.json").read_text())
    assert replay(run.record(), llm) == []  # the function itself is here, and all is compared
    assert replay(record, llm) == []
    wrong = dataclasses.replace(record, steps=(dataclasses.replace(record.steps[0], entropy=9.0), *record.steps[1:]))
    assert [(found.index, found.field) for found in replay(wrong, llm)] == [(0, "entropy")]


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"stop": ["c"]}, "stop"), ({"max_tokens": 3}, "length"), ({"stop_ids": [*range(384)]}, "stop"), ({}, None)],
)
def test_a_record_says_how_the_run_ended(llm: LLM, tmp_path: Path, options: dict[str, Any], reason: str | None) -> None:
    run = llm.start("the quick brown fox", temperature=1.5, seed=6, ignore_eos=True, **options)
    while len(run.steps) < 30 and not run.finish_reason:
        run.step()
    run.record().save(tmp_path / "run.json")
    record = Record.load(tmp_path / "run.json")
    assert record.finish_reason == run.finish_reason == reason
    assert record.stop_reason == run.stop_reason
    assert (record.stop_reason is not None) == (reason == "stop")
    assert record.text == run.text
    assert record.usage == run.usage
    assert record.created == json.loads((tmp_path / "run.json").read_text())["created"]
    assert replay(record, llm) == []


def test_a_run_of_no_step_has_its_dice_in_the_record(llm: LLM) -> None:
    record = llm.start("the fox", temperature=1.0, seed=12).record()
    assert (record.seed, record.params.seed, record.steps) == (12, 12, ())
    assert record.ids == record.prompt_ids == llm.encode("the fox")


def test_settings_that_no_step_was_made_with_are_in_the_record(llm: LLM, tmp_path: Path) -> None:
    run = llm.start("the fox", PARAMS)
    for temperature in (0.5, 0.9, 0.25):  # it comes back in between
        run.step()
        run.set(temperature=temperature)
    run.record().save(tmp_path / "run.json")
    record = Record.load(tmp_path / "run.json")
    assert [(first, params.temperature) for first, params in record.settings] == [
        (0, 0.9),
        (1, 0.5),
        (2, 0.9),
        (3, 0.25),
    ]
    assert record.params == run.params
    assert [record.params_at(index).temperature for index in range(4)] == [0.9, 0.5, 0.9, 0.25]
    assert record.usage == run.usage
    assert (record.usage.prompt_tokens, record.usage.completion_tokens) == (len(llm.encode("the fox")), 3)


def test_stages_that_a_file_cannot_hold_are_named_for_the_steps_they_made(llm: LLM, tmp_path: Path) -> None:
    def first(ids: Any, logits: Any) -> Any:
        return logits

    def second(ids: Any, logits: Any) -> Any:
        logits[logits.argmax()] = -float("inf")
        return logits

    run = llm.start("the quick brown fox", SamplingParams(max_tokens=9, ignore_eos=True, stages=(first,)))
    run.step()
    run.set(stages=(first, second))
    run.step()
    run.set(stages=())
    run.step()
    run.record().save(tmp_path / "run.json")
    record = Record.load(tmp_path / "run.json")
    assert [record.missing_at(index) for index in range(3)] == [("first",), ("first", "second"), ()]
    settings = json.loads((tmp_path / "run.json").read_text())["settings"]
    assert [entry["params"]["stages"] for entry in settings] == [["first"], ["first", "second"], []]
    assert replay(record, llm) == []
    lies = dataclasses.replace(record.steps[2], top=record.steps[1].top)
    assert replay(dataclasses.replace(record, steps=(*record.steps[:2], lies)), llm)
    assert record.to_json() == json.loads((tmp_path / "run.json").read_text())


LIES: dict[str, Any] = {
    "rank": lambda step: {"rank": step["rank"] + 1},
    "logprob": lambda step: {"logprob": step["logprob"] - 0.05},
    "entropy": lambda step: {"entropy": step["entropy"] - 0.05},
    "margin": lambda step: {"margin": step["margin"] + 0.05},
    "tail_mass": lambda step: {"tail_mass": step["tail_mass"] + 0.05},
    "draw.u": lambda step: {"draw": {**step["draw"], "u": step["draw"]["u"] + 0.05}},
    "draw.low": lambda step: {"draw": {**step["draw"], "low": step["draw"]["low"] - 0.05}},
    "draw.high": lambda step: {"draw": {**step["draw"], "high": step["draw"]["high"] + 0.05}},
    "top[2].id": lambda step: {"top": [*step["top"][:2], {**step["top"][2], "id": 3}, *step["top"][3:]]},
    "top[2].prob": lambda step: {"top": [*step["top"][:2], {**step["top"][2], "prob": 0.9}, *step["top"][3:]]},
    "top[2].removed_by": lambda step: {
        "top": [*step["top"][:2], {**step["top"][2], "removed_by": "min_p"}, *step["top"][3:]]
    },
    "top[9]": lambda step: {
        "top": step["top"][:9],
        "chain": [{**stage, "logits": stage["logits"][:9]} for stage in step["chain"]],
    },
}


@pytest.mark.parametrize("field", LIES)
def test_a_replay_compares_each_number(llm: LLM, field: str) -> None:
    run = llm.start("the quick brown fox", PARAMS)
    list(run)
    document = run.record().to_json()
    step = document["steps"][2]
    step.update(LIES[field](step))
    [found] = replay(Record.from_json(document), llm)
    assert (found.index, found.field) == (2, field)
    [again] = replay(dataclasses.replace(run.record(), steps=Record.from_json(document).steps), llm)
    assert again == found
    assert found.recorded != found.now


def test_a_replay_puts_the_recorded_token_in_the_place_of_another(llm: LLM) -> None:
    run = llm.start("the quick brown fox", PARAMS)
    run.step()
    other = run.fork().step().top[3].token.id
    run.step(force=other)
    list(run)
    document = run.record().to_json()
    document["steps"][1]["forced"] = False
    assert {(found.index, found.field) for found in replay(Record.from_json(document), llm)} >= {(1, "token")}
    assert {found.index for found in replay(Record.from_json(document), llm)} == {1}  # what comes after saw its past


def test_settings_that_name_no_seed_have_the_records(llm: LLM) -> None:
    run = llm.start("the quick brown fox", PARAMS)
    list(run)
    record = run.record()
    assert replay(dataclasses.replace(record, settings=((0, PARAMS.replace(seed=None)),)), llm) == []


def test_a_replay_goes_on_where_another_model_ends(llm: LLM, tmp_path: Path) -> None:
    run = llm.start("the quick brown fox", max_tokens=8)
    list(run)
    other = LLM(tiny_llama(tmp_path / "other", eos_token_id=[1, run.steps[2].token.id]))
    assert {found.index for found in replay(run.record(), other)} <= {2}


def test_a_replay_overlooks_the_last_bits(llm: LLM) -> None:
    run = llm.start("the quick brown fox", PARAMS)
    list(run)
    document = run.record().to_json()
    for step in document["steps"]:
        step["logprob"] *= 1 + 1e-5
        step["entropy"] += 1e-5
    assert replay(Record.from_json(document), llm) == []


def test_a_file_is_replaced_whole_and_a_link_stays_one(steered: Run, tmp_path: Path, monkeypatch: Any) -> None:
    record = steered.record()
    target, link = tmp_path / "run.json", tmp_path / "link.json"
    record.save(target)
    link.symlink_to(target)
    dataclasses.replace(record, text="other").save(link)
    assert link.is_symlink()
    assert Record.load(target).text == "other"

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="no room"):
        record.save(target)
    assert Record.load(target).text == "other"


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, "some text")
        assert pipe.is_fifo()
        assert os.read(reader, 100) == b"some text"
    finally:
        os.close(reader)


def change(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of the document with the value at `steps.0.rank` replaced (or removed, for ...)."""
    document = copy.deepcopy(document)
    at: Any = document
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in way:
        at = at[part]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "other", "no byhand record: format is 'other'"),
        ("version", 2, "the record is of version 2; this byhand reads 1"),
        ("steps.0.rank", "first", r"record.steps\[0\].rank is 'first', not int"),
        ("steps.0.rank", True, r"record.steps\[0\].rank is 'True', not int"),
        ("steps.1.top.0.logprob", None, r"steps\[1\].top\[0\].logprob is 'None', not float"),
        ("steps.1.logprob", True, r"steps\[1\].logprob is 'True', not float"),
        ("steps.1.draw", [], r"record.steps\[1\].draw is no object"),
        ("steps.1.top", {}, r"record.steps\[1\].top is '\{\}', not list"),
        ("steps.1.text", None, r"record.steps\[1\].text is 'None', not str"),
        ("steps.1.forced", 1, r"record.steps\[1\].forced is '1', not bool"),
        ("steps.1.top.2.removed_by", ..., r"record.steps\[1\].top\[2\] has no `removed_by`"),
        ("steps.1.token.bytes", [1.0], r"steps\[1\].token.bytes\[0\] is '1.0', not int"),
        ("settings.0.params.stages", [5], r"record.settings\[0\].params.stages\[0\] is '5', not str"),
        ("steps.1.token.bytes", [300], r"steps\[1\].token.bytes holds a value outside 0 to 255"),
        ("steps.0.chain.0.logits", [1.0], r"steps\[0\].chain\[0\].logits has 1 entries, top has 10"),
        ("steps.1", 5, r"record.steps\[1\] is no object"),
        ("steps.1.index", 7, r"record.steps\[1\] says index 7"),
        ("ids.0", 99, "record.ids are not the prompt's ids and the steps'"),
        ("prompt", [], "record.prompt is empty"),
        ("choice", -1, "record.choice is -1; it counts from 0"),
        ("text", ..., "record has no `text`"),
        ("settings", [], "record.settings does not begin at step 0"),
        ("settings.0.params.temperature", -1, r"record.settings\[0\].params: `temperature` is -1"),
        ("settings.0.params.hotness", 1, "hotness"),
        ("finish_reason", "bored", "record.finish_reason is 'bored'; known: stop, length, abort, error"),
        ("stop_reason", True, "record.stop_reason is neither an id nor a string"),
        ("steps.1.position", 2, r"record.steps\[1\] says index 1, position 2"),
        ("ids.8", 99, "record.ids are not the prompt's ids and the steps'"),
        ("settings.0.from", 1, "record.settings does not begin at step 0"),
        ("usage.cached_tokens", None, "usage.cached_tokens"),
        ("stop_reason", [1], "record.stop_reason is neither an id nor a string"),
    ],
)
def test_a_bad_record_is_one_sentence(steered: Run, path: str, value: Any, message: str) -> None:
    document = change(steered.record().to_json(), path, value)
    with pytest.raises(RecordError, match=message):
        Record.from_json(document)


def test_what_is_no_record_is_not_asked_for_the_rest() -> None:
    with pytest.raises(RecordError, match="this is no byhand record: format is 'x'"):
        Record.from_json({"format": "x"})
    with pytest.raises(RecordError, match="the record is of version 2"):
        Record.from_json({"format": "byhand.record", "version": 2})


NO_RECORDS = ["", "not json", "[" * 200_000, "[1]", "{}", '{"format": NaN}', '{"format": "byhand.record"}']


@pytest.mark.parametrize("text", NO_RECORDS)
def test_a_file_that_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(RecordError):
        Record.load(tmp_path / "file")
    with pytest.raises(RecordError, match=r"cannot read the record .*: No such file"):
        Record.load(tmp_path / "none")

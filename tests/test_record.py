"""A record is the run: it survives the file, tells lies apart from truth, and replays with and without a model."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from byhand import LLM, Record, RecordError, Run, SamplingParams
from byhand.record import replay

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
        ("stop_reason", [1], "record.stop_reason is neither an id nor a string"),
    ],
)
def test_a_bad_record_is_one_sentence(steered: Run, path: str, value: Any, message: str) -> None:
    document = change(steered.record().to_json(), path, value)
    with pytest.raises(RecordError, match=message):
        Record.from_json(document)


NO_RECORDS = ["", "not json", "[" * 200_000, "[1]", "{}", '{"format": NaN}', '{"format": "byhand.record"}']


@pytest.mark.parametrize("text", NO_RECORDS)
def test_a_file_that_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(RecordError):
        Record.load(tmp_path / "file")
    with pytest.raises(RecordError, match=r"cannot read the record .*: No such file"):
        Record.load(tmp_path / "none")

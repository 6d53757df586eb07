"""Constraints: every text is in the language, and the state is a function of the ids, however a run got there."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from byhand import LLM, SamplingParams
from byhand.errors import BadRequest
from byhand.record import replay
from byhand.sampling.constraints import Grammars

PET = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "colours": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
        "home": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "colours", "home"],
    "additionalProperties": False,
}
PROMPT = "A pet: "


def sampled(llm: LLM, seed: int = 0, max_tokens: int = 200, **constraint: Any) -> Any:
    return llm.generate(PROMPT, SamplingParams(temperature=1, seed=seed, max_tokens=max_tokens, **constraint))


def test_fifty_seeds_are_all_valid_and_compact(embedded: LLM) -> None:
    texts = set()
    for seed in range(50):
        done = sampled(embedded, seed, json_schema=PET)
        assert done.finish_reason == "stop"
        value = json.loads(done.text)
        jsonschema.validate(value, PET)
        assert done.text.startswith('{"name":"')
        assert re.search(r'[:,{}\[\]"]\s+["\d\[{}tfn]', done.text.replace(value["name"], "")) is None
        texts.add(done.text)
    assert len(texts) > 40


@pytest.mark.full
def test_many_seeds_and_schemas_are_valid(embedded: LLM) -> None:
    schemas = [
        PET,
        {"type": "array", "items": {"type": "integer", "maximum": 999, "minimum": -9}, "minItems": 1, "maxItems": 5},
        {
            "type": "object",
            "properties": {"on": {"type": "string", "format": "date"}},
            "required": ["on"],
            "additionalProperties": False,
        },
        {"type": "array", "maxItems": 4, "items": {"$ref": "#/$defs/t"}, "$defs": {"t": {"enum": [1, "two", None]}}},
        {"type": "string", "pattern": "^[A-Z][a-z]{2,9}( [A-Z][a-z]{2,9})?$"},
    ]
    for schema in schemas:
        for seed in range(50):
            done = sampled(embedded, seed, max_tokens=1500, json_schema=schema)
            assert done.finish_reason == "stop", done.text
            jsonschema.validate(json.loads(done.text), schema)


@pytest.mark.parametrize(
    ("constraint", "language"),
    [
        ({"regex": "(red|blue)( (red|blue)){2,4}"}, "(red|blue)( (red|blue)){2,4}"),
        ({"regex": "a/b\\\\[\\n/x]{3}"}, "a/b\\\\[\\n/x]{3}"),
        ({"choices": ["grün ☃", 'a"b\\c', "line\nend"]}, 'grün ☃|a"b\\\\c|line\nend'),
    ],
)
def test_regex_and_choices(embedded: LLM, constraint: dict[str, Any], language: str) -> None:
    seen = set()
    for seed in range(8):
        done = sampled(embedded, seed, **constraint)
        assert re.fullmatch(language, done.text), done.text
        assert done.finish_reason == "stop"
        seen.add(done.text)
    assert len(seen) > 1


def test_json_object_is_an_object(embedded: LLM) -> None:
    done = sampled(embedded, 3, json_object=True, max_tokens=40)
    assert done.text.startswith('{"') or done.text == "{}"
    if done.finish_reason == "stop":
        assert isinstance(json.loads(done.text), dict)


def test_greedy_takes_the_best_token_that_is_allowed(embedded: LLM) -> None:
    run = embedded.start(PROMPT, SamplingParams(regex="[0-9]{3}"))
    for _ in range(3):
        step = run.step()
        row = embedded.logits(run.ids[:-1])[-1]
        digits = [embedded.tokenizer.one_token(str(digit)) for digit in range(10)]
        assert step.token.id == max(digits, key=lambda token: float(row[token]))
        assert step.chain[-1].name == "regex"
    assert run.step().finish_reason == "stop"


def test_the_state_follows_from_the_ids(embedded: LLM) -> None:
    params = SamplingParams(temperature=1, seed=5, json_schema=PET, max_tokens=200)
    run = embedded.start(PROMPT, params)
    whole = [step.token.id for step in run]
    again = embedded.start(PROMPT, params)
    twin = None
    for count, _ in enumerate(whole):
        if count % 7 == 3:
            again.rewind(3)
            for _ in range(3):
                again.step()
        if count == 10:
            twin = again.fork()
        again.step()
    assert again.ids == run.ids
    assert twin is not None
    list(twin)
    assert twin.ids == run.ids
    embedded.engine.grammars._states.clear()  # as after a restart: nothing is remembered
    resumed = embedded.start(run.ids[:-5], SamplingParams())
    resumed._state.prompt_length, resumed._state.params = run.prompt_length, run.params
    assert [step.token.id for step in resumed] == whole[-5:]


def test_runs_under_one_grammar_do_not_mix(embedded: LLM) -> None:
    params = SamplingParams(temperature=1, seed=9, json_schema=PET, max_tokens=120)
    alone = [sampled(embedded, seed, 120, json_schema=PET).ids for seed in range(4)]
    runs = [embedded.start(PROMPT, params.replace(seed=seed)) for seed in range(4)]
    while waiting := [run for run in runs if run.finish_reason is None]:
        for run in waiting:
            run.step()
    assert [run.ids[run.prompt_length :] for run in runs] == alone


def test_a_forced_token_outside_the_language_is_told(embedded: LLM) -> None:
    run = embedded.start(PROMPT, SamplingParams(choices=("red wine", "red roses")))
    run.step()
    run.step(force=" green")
    with pytest.raises(BadRequest, match="token 1, ' green', does not fit `choices`") as caught:
        run.step()
    assert caught.value.param == "choices"
    run.rewind(1)
    list(run)
    assert run.text in ("red wine", "red roses")
    run.rewind(1)
    run.set(choices=(), max_tokens=10)
    assert run.step().chain[-1].name == "raw"


@pytest.mark.parametrize(
    ("constraint", "sentence"),
    [
        ({"regex": "(("}, "`regex` cannot be followed: unclosed group"),
        ({"regex": "a\\"}, "nothing stands after its last backslash"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": "(" * 3000 + ")" * 3000}, "nested"),
        ({"regex": ""}, "`regex` is ''; it must be a string of at least 1 character"),
        ({"json_schema": {"type": "cat"}}, "`json_schema` cannot be followed: Invalid type: cat"),
        ({"json_schema": {"not": {}}}, 'Unimplemented keys: ["not"]'),
        ({"json_schema": {"$ref": "http://example.com/x"}}, "does not fetch"),
        ({"json_schema": {"enum": ["a"], "type": "integer"}}, "Unsatisfiable"),
        ({"json_schema": "[1]"}, "`json_schema` is '[1]'; it must be a JSON schema: an object, or its text"),
        ({"json_schema": {"const": float("nan")}}, "`json_schema` is {'const': nan}; it must be a JSON schema"),
        ({"choices": ["a", ""]}, "`choices` holds ''"),
        ({"choices": ["a"], "regex": "a"}, "`regex` and `choices` are both given; a run follows one constraint"),
        ({"choices": ["a"], "ignore_eos": True}, "`choices` ends a run by the end-of-sequence token, and `ignore_eos`"),
    ],
)
def test_what_cannot_be_followed_is_refused(embedded: LLM, constraint: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadRequest) as caught:
        embedded.start(PROMPT, SamplingParams(**constraint))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_grows_too_large_ends_the_run_alone(embedded: LLM) -> None:
    run, other = (embedded.start(PROMPT, SamplingParams(max_tokens=5)) for _ in range(2))
    run.set(regex="(a{1000}){1000}")
    with pytest.raises(BadRequest, match="`regex` became too large to follow"):
        list(run)
    assert len(list(other)) == 5


def test_a_schema_as_deep_as_a_bomb_is_refused(embedded: LLM) -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(BadRequest, match="`json_schema`"):
        embedded.start(PROMPT, SamplingParams(json_schema=schema))


def test_a_checkpoint_without_an_end_refuses(embedded: LLM) -> None:
    grammars = Grammars(embedded.tokenizer, embedded.vocab_size, frozenset())
    with pytest.raises(BadRequest, match="this checkpoint names none"):
        grammars.check(SamplingParams(choices=("a",)))


def test_little_is_remembered(embedded: LLM) -> None:
    grammars = Grammars(embedded.tokenizer, embedded.vocab_size, embedded.eos_ids)
    for number in range(100):
        grammars.check(SamplingParams(choices=(f"a{number}",)))
    for length in range(400):
        grammars.mask(("regex", "a*"), [embedded.tokenizer.one_token("a")] * (length % 300))
    assert len(grammars._compiled) <= 64
    assert len(grammars._states) <= 256


def test_a_model_with_more_ids_than_its_tokenizer(embedded: LLM) -> None:
    grammars = Grammars(embedded.tokenizer, embedded.vocab_size + 5, embedded.eos_ids)
    mask = grammars.mask(("regex", ".*"), [])
    assert len(mask) == embedded.vocab_size + 5
    assert not mask[-5:].any()
    assert mask[list(embedded.eos_ids)].all()


def test_a_record_under_a_constraint_is_checked(embedded: LLM) -> None:
    run = embedded.start(PROMPT, SamplingParams(temperature=1, seed=2, json_schema=PET, max_tokens=60))
    list(run)
    assert SamplingParams.from_json(json.loads(json.dumps(run.params.to_json()))) == run.params
    assert replay(run.record(), embedded) == []

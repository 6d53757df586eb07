"""Constraints: every text is in the language, and the state is a function of the ids, however a run got there."""

from __future__ import annotations

import json
import random
import re
from contextlib import nullcontext
from typing import Any

import jsonschema
import numpy as np
import pytest

from byhand import LLM, SamplingParams
from byhand.errors import BadRequest
from byhand.replay import replay
from byhand.sampling import chain
from byhand.sampling.constraints import Grammars, constraint_of
from byhand.sampling.schemas import without_dead_ends
from byhand.sampling.stages import History
from byhand.types import Token

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
    resumed._sequence.prompt_length = run.prompt_length
    resumed._sequence.settings = embedded.engine.check(run.params)
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
        ({"json_schema": {"$ref": "#"}}, "`json_schema` cannot be followed: it refers to itself, and no value is ever"),
        ({"regex": "[a&&b]"}, "`regex` cannot be followed: no text fits it"),
        ({"regex": "[^\\s\\S]x"}, "`regex` cannot be followed: no text fits it"),
        ({"choices": ["a", "\ud800"]}, "`choices` cannot be followed: it holds half of a surrogate pair"),
        ({"regex": "\udfff"}, "`regex` cannot be followed: it holds half of a surrogate pair"),
        ({"json_schema": {"const": "\ud800"}}, "`json_schema` cannot be followed: it holds half of a surrogate pair"),
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


@pytest.mark.parametrize("depth", [40, 300, 800, 5000])  # who gives up first differs: llguidance, json or Python
def test_a_schema_as_deep_as_a_bomb_is_refused(embedded: LLM, depth: int) -> None:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    refused = pytest.raises(BadRequest, match=r"`json_schema`.* nested too deeply")
    with refused if depth > 100 else nullcontext():
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


# Schemas that a writer could break off at.


def named(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False, **more}


NUMBER: dict[str, Any] = {"type": "integer", "maximum": 9, "minimum": 0}
TAKEN = {
    "one name": named({"id": NUMBER}, patternProperties={"^id$": NUMBER}),
    "two names": named({"a": NUMBER, "b": NUMBER, "c": NUMBER}, patternProperties={"^(a|b)$": {"maximum": 3}}),
    "a class": named({"a": NUMBER, "b": NUMBER}, patternProperties={"^[ab]$": {"maximum": 3}}),
    "a name twice": named({"id": NUMBER}, patternProperties={"^id$": {"maximum": 5}, "^(?:id)$": {"minimum": 3}}),
    "no name at all": named({"a": NUMBER}, patternProperties={r"^[^\s\S]$": NUMBER}),
    "within": named(
        {"o": {"type": "array", "maxItems": 3, "items": named({"i": NUMBER}, patternProperties={"^i$": {}})}}
    ),
    "of two": {"allOf": [named({"id": NUMBER}), {"type": "object", "patternProperties": {"^id$": {"maximum": 3}}}]},
    "by reference": {
        **named({"id": {"$ref": "#/$defs/~0n"}, "o": {"$ref": "#/$defs/o"}}),
        "$defs": {"~n": NUMBER, "o": named({"id": NUMBER}, patternProperties={"^id$": {"maximum": 3}})},
    },
    "odd names": named({"a/b": NUMBER, "é": NUMBER}, patternProperties={"^(a/b|é)$": {"maximum": 3}}),
}
ENDLESS = {
    "to itself": {**named({"a": NUMBER, "b": {"$ref": "#/$defs/b"}}), "$defs": {"b": {"$ref": "#/$defs/b"}}},
    "in a round": {
        **named({"a": NUMBER, "b": {"$ref": "#/$defs/b"}}),
        "$defs": {"b": {"$ref": "#/$defs/c"}, "c": {"type": "array", "items": {"$ref": "#/$defs/b"}, "minItems": 1}},
    },
    "one of two": {
        **named({"a": NUMBER, "b": {"anyOf": [{"$ref": "#/$defs/b"}, {"type": "null"}]}}),
        "$defs": {"b": named({"b": {"$ref": "#/$defs/b"}}, required=["b"])},
    },
}


def walked(grammars: Grammars, llm: LLM, schema: dict[str, Any], seed: int) -> str:
    """A text that the grammar allows, over tokens at random; commas are liked."""
    dice = random.Random(seed)
    params = SamplingParams(json_schema=schema)
    grammars.check(params)
    key = constraint_of(params)
    assert key is not None
    ids: list[int] = []
    while True:
        allowed = [int(token) for token in np.flatnonzero(grammars.mask(key, ids))]
        assert allowed, llm.detokenize(ids)
        commas = [token for token in allowed if llm.tokenizer.token(token).bytes.endswith(b",")]
        ids.append(dice.choice(commas or allowed))
        if ids[-1] in llm.eos_ids or len(ids) > 200:
            assert ids[-1] in llm.eos_ids
            return llm.detokenize(ids)


@pytest.mark.parametrize("schema", [*TAKEN.values(), *ENDLESS.values()], ids=[*TAKEN, *ENDLESS])
def test_no_schema_leads_into_a_dead_end(embedded: LLM, schema: dict[str, Any]) -> None:
    grammars = embedded.engine.grammars
    texts = {walked(grammars, embedded, schema, seed) for seed in range(6)}
    for text in texts:
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "array", "prefixItems": [{"$ref": "#"}], "items": True, "minItems": 1},
        {"anyOf": [{"$ref": "#"}, {"allOf": [{"type": "string"}, {"$ref": "#"}]}]},
    ],
)
def test_a_schema_that_never_ends_is_refused(embedded: LLM, schema: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="`json_schema` cannot be followed"):
        embedded.start(PROMPT, SamplingParams(json_schema=schema))


def test_a_schema_without_dead_ends_is_left_as_it_is() -> None:
    def never(_: dict[str, Any]) -> Any:
        raise AssertionError

    for schema in (
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}}]}}},
        {"$ref": "#/nowhere"},
        {"$ref": "http://example.com/#"},
        {"items": {"$ref": "#/prefixItems/0"}, "prefixItems": [{"type": "null"}]},
        {"type": "array", "minItems": 1e999, "items": {"$ref": "#/const"}, "const": {}},
    ):
        text = json.dumps(schema)
        assert json.loads(without_dead_ends(text, never) or "") == json.loads(text)


# What is left when nothing may follow.


def red_blue(llm: LLM) -> tuple[int, int]:
    return llm.tokenizer.one_token(" red"), llm.tokenizer.one_token(" blue")


def test_bans_that_leave_no_beginning_no_end_or_no_spelling_are_refused(embedded: LLM) -> None:
    red, blue = red_blue(embedded)
    digits = [embedded.tokenizer.one_token(str(digit)) for digit in range(10)]
    [end] = embedded.eos_ids
    everything = [token for token in range(embedded.vocab_size) if token != end]
    for given, sentence in (
        ({"regex": "a*", "banned_ids": [end]}, "`regex` ends a run by the end-of-sequence token, which `banned_ids` t"),
        ({"json_object": True, "allowed_ids": [red]}, "end-of-sequence token, which `allowed_ids` takes away"),
        ({"regex": "a+", "banned_ids": everything}, "`regex` and `banned_ids` leave no token to begin with"),
        ({"regex": "[a-z]+", "allowed_ids": [end, *digits]}, "`regex` and `allowed_ids` leave no token to begin with"),
        ({"choices": ["17", "2x"], "allowed_ids": [end, *digits]}, "cannot spell '2x' without the tokens that `allow"),
    ):
        with pytest.raises(BadRequest) as caught:
            embedded.start(PROMPT, SamplingParams(**given))
        assert sentence in str(caught.value)
    whole = embedded.generate(PROMPT, SamplingParams(choices=[" red"], allowed_ids=[end, red, blue]))
    assert not isinstance(whole, list)
    assert whole.text == " red"


def test_a_dead_end_is_told_with_its_place_and_its_fields(embedded: LLM) -> None:
    [end] = embedded.eos_ids
    one = embedded.tokenizer.one_token("1")
    two, three = embedded.tokenizer.one_token("2"), embedded.tokenizer.one_token("3")
    for given, sentence in (
        (
            {"regex": "1+(2|3)", "banned_ids": [one, two, three, end]},
            "`regex` ends a run",
        ),
        (
            {"regex": "1(2|3)", "banned_ids": [two, three]},
            "`regex` and `banned_ids` leave no token that may follow '1' (1 token)",
        ),
        (
            {"regex": "1[12]{3}4", "allowed_ids": [one, end]},
            "`regex` and `allowed_ids` leave no token that may follow '1111' (4 tokens)",
        ),
        (
            {"regex": "11", "min_tokens": 5},
            "`regex` and `min_tokens` leave no token that may follow '11' (2 tokens)",
        ),
        (
            {"regex": "1{5}", "no_repeat_ngram_size": 2},
            "`regex` and `no_repeat_ngram_size` leave no token that may follow '11' (2 tokens)",
        ),
    ):
        with pytest.raises(BadRequest) as caught:
            list(embedded.start(PROMPT, SamplingParams(**given)))
        assert str(caught.value).startswith(sentence)
        assert caught.value.param == "regex"


class Letters:
    """A vocabulary of a few letters: most of what a grammar allows cannot be spelled with it."""

    def token(self, token_id: int) -> Token:
        return Token(token_id, "ab<"[token_id], b"ab<"[token_id : token_id + 1], special=token_id == 2)

    def encode_continuation(self, text: str, *, parse_special: bool = True) -> list[int]:
        return ["ab<".index(letter) for letter in text if letter in "ab<"]


def test_a_vocabulary_that_cannot_spell_is_told() -> None:
    grammars = Grammars(Letters(), 3, frozenset([2]))
    for given, sentence in (
        ({"choices": ["ab", "abc"]}, "`choices` cannot be followed: this vocabulary cannot spell 'abc'"),
        ({"choices": ["a<"]}, "this vocabulary cannot spell 'a<'"),
        ({"regex": "[c-z]b"}, "`regex` cannot be followed: this vocabulary has no token to begin it with"),
    ):
        with pytest.raises(BadRequest) as caught:
            grammars.check(SamplingParams(**given))
        assert sentence in str(caught.value)
    grammars.check(SamplingParams(choices=["ab"]))
    settings = chain.settled(SamplingParams(regex="abc"), 3)
    with pytest.raises(BadRequest, match=r"`regex` leaves no token that may follow 'ab' \(2 tokens\)"):
        chain.run_chain(np.zeros(3, np.float32), History([0, 1], 0, frozenset([2]), grammars), settings)


def test_what_grows_too_large_says_where(embedded: LLM) -> None:
    objects = [{"properties": {f"{one}_{two}": {"type": "null"} for two in range(20)}} for one in range(80)]
    wide = {"type": "array", "items": {"anyOf": [{"type": "object", **each} for each in objects]}, "minItems": 1}
    with pytest.raises(BadRequest, match=r"`json_schema` became too large to follow, for a token that may follow '\["):
        list(embedded.start(PROMPT, SamplingParams(json_schema=wide, max_tokens=40)))

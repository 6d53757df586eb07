"""SamplingParams: every wrong value has its sentence, every field its help, and nothing is lost on the way to JSON."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re
from fractions import Fraction
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest

from byhand.errors import BadRequest
from byhand.sampling.params import SamplingParams, fields_as_markdown, fields_table
from tests.test_house import modules_after

DOCS = Path(__file__).parents[1] / "docs" / "sampling.md"

WRONG = [
    ("temperature", -1, "`temperature` is -1; it must be a number at least 0 and at most 100"),
    ("temperature", nan, "`temperature` is nan; it must be a number at least 0 and at most 100"),
    ("temperature", inf, "`temperature` is inf; it must be a number at least 0 and at most 100"),
    ("temperature", 1e9, "`temperature` is 1000000000.0; it must be a number at least 0 and at most 100"),
    ("temperature", True, "`temperature` is True; it must be a number at least 0 and at most 100"),
    ("temperature", "0.7", "`temperature` is '0.7'; it must be a number at least 0 and at most 100"),
    ("temperature", None, "`temperature` is None; it must be a number at least 0 and at most 100"),
    (
        "temperature",
        10**400,
        "`temperature` is an integer of 1329 bits; it must be a number at least 0 and at most 100",
    ),
    ("top_k", -1, "`top_k` is -1; it must be an integer at least 0 and at most 2147483647"),
    ("top_k", 2**31, "`top_k` is 2147483648; it must be an integer at least 0 and at most 2147483647"),
    ("top_k", 2.5, "`top_k` is 2.5; it must be an integer at least 0 and at most 2147483647"),
    ("top_k", True, "`top_k` is True; it must be an integer at least 0 and at most 2147483647"),
    ("top_p", 0, "`top_p` is 0; it must be a number above 0 and at most 1"),
    ("top_p", 1.01, "`top_p` is 1.01; it must be a number above 0 and at most 1"),
    ("min_p", -0.1, "`min_p` is -0.1; it must be a number at least 0 and at most 1"),
    ("typical_p", 0.0, "`typical_p` is 0.0; it must be a number above 0 and at most 1"),
    ("repetition_penalty", 0, "`repetition_penalty` is 0; it must be a number at least 0.01 and at most 100"),
    ("presence_penalty", 2.1, "`presence_penalty` is 2.1; it must be a number at least -2 and at most 2"),
    ("frequency_penalty", -3, "`frequency_penalty` is -3; it must be a number at least -2 and at most 2"),
    (
        "no_repeat_ngram_size",
        -2,
        "`no_repeat_ngram_size` is -2; it must be an integer at least 0 and at most 2147483647",
    ),
    (
        "logit_bias",
        {"x": 1},
        "`logit_bias` has the key 'x'; a token id is an integer at least 0 and at most 2147483647",
    ),
    ("logit_bias", {-1: 1}, "`logit_bias` has the key -1; a token id is an integer at least 0 and at most 2147483647"),
    (
        "logit_bias",
        {3: 101},
        "`logit_bias` gives token 3 the value 101; it must be a number at least -100 and at most 100",
    ),
    (
        "logit_bias",
        {3: nan},
        "`logit_bias` gives token 3 the value nan; it must be a number at least -100 and at most 100",
    ),
    ("logit_bias", [3], "`logit_bias` is [3]; it must be a mapping from token ids to numbers"),
    ("allowed_ids", [], "`allowed_ids` is empty; at least one token must stay possible"),
    ("allowed_ids", "12", "`allowed_ids` is '12'; it must be a list of token ids"),
    ("banned_ids", [1, -4], "`banned_ids` holds -4; a token id is an integer at least 0 and at most 2147483647"),
    ("banned_ids", [True], "`banned_ids` holds True; a token id is an integer at least 0 and at most 2147483647"),
    ("banned_ids", 5, "`banned_ids` is 5; it must be a list of token ids"),
    ("stop", [""], "`stop` holds ''; each must be a string of at least 1 character"),
    ("stop", "", "`stop` holds ''; each must be a string of at least 1 character"),
    ("stop", ["a", 3], "`stop` holds 3; each must be a string of at least 1 character"),
    ("stop", {"a": 1}, "`stop` is {'a': 1}; it must be a list of strings"),
    ("stop_ids", [1.0], "`stop_ids` holds 1.0; a token id is an integer at least 0 and at most 2147483647"),
    ("ignore_eos", 1, "`ignore_eos` is 1; it must be true or false"),
    ("max_tokens", -1, "`max_tokens` is -1; it must be an integer at least 0 and at most 2147483647"),
    ("min_tokens", -1, "`min_tokens` is -1; it must be an integer at least 0 and at most 2147483647"),
    ("logprobs", 1001, "`logprobs` is 1001; it must be an integer at least 0 and at most 1000"),
    ("n", 0, "`n` is 0; it must be an integer at least 1 and at most 128"),
    ("stages", [3], "`stages` holds 3; each must be a function of (ids, logits)"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), WRONG, ids=lambda value: str(value)[:20])
def test_a_wrong_value_gets_its_sentence(name: str, value: object, sentence: str) -> None:
    with pytest.raises(BadRequest) as caught:
        SamplingParams(**{name: value})
    assert str(caught.value) == sentence
    assert caught.value.param == name


def test_every_bound_is_reached_and_not_passed() -> None:
    for info in fields_table():
        if info.kind not in ("number", "integer"):
            continue
        step = 1 if info.kind == "integer" else 1e-9
        assert info.minimum is not None
        assert info.maximum is not None
        within = [info.minimum + step * info.exclusive_minimum, info.maximum]
        outside = [info.minimum - step * (not info.exclusive_minimum), info.maximum + step]
        for value in within:
            SamplingParams(**{info.name: value})
        for value in outside:
            with pytest.raises(BadRequest, match=f"`{info.name}`"):
                SamplingParams(**{info.name: value})


def test_the_defaults_are_greedy_and_off() -> None:
    params = SamplingParams()
    assert params.is_greedy
    assert not SamplingParams(temperature=0.1).is_greedy
    for info in fields_table():
        assert getattr(params, info.name) == info.default
        if info.name not in ("temperature", "seed", "max_tokens", "logprobs", "n"):
            assert info.default == info.off, info.name


def test_values_are_stored_in_one_shape() -> None:
    params = SamplingParams(
        temperature=np.float32(0.5),
        top_k=np.int64(3),
        min_p=Fraction(1, 4),
        logit_bias={"7": 1, np.int64(2): -1.5},
        allowed_ids=range(3, 5),
        banned_ids=np.array([9, 9, 8]),
        stop="end",
        stop_ids=None,
        stages=None,
    )
    assert (params.temperature, params.top_k, params.min_p) == (0.5, 3, 0.25)
    assert [type(value) for value in (params.temperature, params.top_k, params.min_p)] == [float, int, float]
    assert params.logit_bias == {2: -1.5, 7: 1.0}
    assert [params.allowed_ids, params.banned_ids, params.stop] == [(3, 4), (9, 8), ("end",)]
    assert [params.stop_ids, params.stages] == [(), ()]
    assert str(SamplingParams(temperature=-0.0).temperature) == "0.0"


def test_a_callers_mapping_is_copied() -> None:
    bias = {1: 2.0}
    params = SamplingParams(logit_bias=bias)
    bias[1] = 99.0
    assert params.logit_bias == {1: 2.0}


def test_params_are_values() -> None:
    params = SamplingParams(temperature=0.5, logit_bias={1: 2}, stop=["a"])
    assert params == SamplingParams(temperature=0.5, logit_bias={1: 2}, stop="a")
    assert hash(params) == hash(params.replace())
    assert pickle.loads(pickle.dumps(params)) == copy.deepcopy(params) == params
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.temperature = 1.0  # type: ignore[misc]


def test_replace_checks_like_the_constructor() -> None:
    params = SamplingParams(temperature=0.5, max_tokens=4)
    changed = params.replace(top_p=0.9)
    assert (changed.temperature, changed.top_p, params.top_p) == (0.5, 0.9, 1.0)
    with pytest.raises(BadRequest, match="`top_p` is 0;"):
        params.replace(top_p=0)
    with pytest.raises(BadRequest, match="unknown sampling parameter `topp`") as caught:
        params.replace(topp=0.5)
    assert caught.value.param == "topp"
    with pytest.raises(BadRequest, match="`min_tokens` is 5; it must be at most max_tokens, which is 4"):
        params.replace(min_tokens=5)


def test_it_shows_what_differs_from_the_defaults() -> None:
    assert repr(SamplingParams()) == "SamplingParams()"
    params = SamplingParams(temperature=0.5, stop="\n", max_tokens=4, logit_bias={5: 1})
    assert repr(params) == "SamplingParams(temperature=0.5, logit_bias={5: 1.0}, max_tokens=4, stop=('\\n',))"
    assert eval(repr(params)) == params


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    SamplingParams(banned_ids=[9], allowed_ids=[9, 1], logit_bias={9: 1}).check_vocabulary(10)
    for changes in ({"banned_ids": [3, 10]}, {"allowed_ids": [10]}, {"logit_bias": {10: 1}}):
        with pytest.raises(BadRequest, match="names token 10; this model's ids end at 9"):
            SamplingParams(**changes).check_vocabulary(10)


def test_from_checkpoint_reads_what_is_written() -> None:
    config = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "min_p": None,
        "repetition_penalty": 1.05,
        "no_repeat_ngram_size": 3,
        "typical_p": 0.8,
        "max_new_tokens": 77,
        "eos_token_id": [1, 2],
        "transformers_version": "4.51.0",
    }
    assert SamplingParams.from_checkpoint(config, seed=4, top_p=0.5) == SamplingParams(
        temperature=0.6,
        top_k=20,
        top_p=0.5,
        repetition_penalty=1.05,
        no_repeat_ngram_size=3,
        typical_p=0.8,
        max_tokens=77,
        seed=4,
    )


def test_from_checkpoint_assumes_nothing() -> None:
    assert SamplingParams.from_checkpoint({}) == SamplingParams()
    assert SamplingParams.from_checkpoint({"do_sample": True}) == SamplingParams(temperature=1.0)
    assert SamplingParams.from_checkpoint({"do_sample": False, "temperature": 0.7, "top_p": 0.9}).is_greedy
    assert SamplingParams.from_checkpoint({"temperature": 0.7}, temperature=0.2).temperature == 0.2
    with pytest.raises(BadRequest, match="unknown sampling parameter `tempature`"):
        SamplingParams.from_checkpoint({}, tempature=1)


def prefer_short(ids: object, logits: object) -> object:
    return logits


def test_json_and_back() -> None:
    params = SamplingParams(
        temperature=0.5,
        logit_bias={5: -2},
        allowed_ids=[1, 5],
        stop=["x", "y"],
        seed=2**64 - 1,
        max_tokens=3,
        ignore_eos=True,
        stages=(prefer_short,),
    )
    written = json.loads(json.dumps(params.to_json()))
    assert written["stages"] == ["prefer_short"]
    assert written["logit_bias"] == {"5": -2.0}
    assert set(written) == {info.name for info in fields_table()}
    assert SamplingParams.from_json(written, stages=(prefer_short,)) == params
    with pytest.raises(BadRequest, match=re.escape("`stages` is ['prefer_short']; functions cannot be read")):
        SamplingParams.from_json(written)


def test_json_of_a_request() -> None:
    assert SamplingParams.from_json({"temperature": None, "stop": None, "seed": None}) == SamplingParams()
    with pytest.raises(BadRequest, match="unknown sampling parameter `best_of`") as caught:
        SamplingParams.from_json({"best_of": 2})
    assert caught.value.param == "best_of"


def test_every_field_says_what_it_does() -> None:
    table = fields_table()
    assert [info.name for info in table] == [each.name for each in dataclasses.fields(SamplingParams)]
    for info in table:
        assert 15 < len(info.help) < 100, info.name
        if info.slider:
            low, high, step = info.slider
            assert info.holds(low)
            assert info.holds(high)
            assert low < high
            assert step > 0


def test_the_docs_show_the_fields_as_they_are() -> None:
    assert fields_as_markdown() in DOCS.read_text(encoding="utf-8")


def test_params_load_neither_torch_nor_numpy() -> None:
    assert not {"torch", "numpy"} & modules_after("import byhand.sampling.params")

"""The API's details: log-probabilities, offsets, ids, constraints, own routes; the same tokens as in Python."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from byhand import LLM, SamplingParams
from byhand.engine.limits import Limits
from byhand.server.logprobs import by_name, name_of
from byhand.types import Candidate, Token
from tests.checkpoints import judge, judge_logits
from tests.conftest import tiny_llama
from tests.serving import Running, served
from tests.tokenizers_for_tests import byte_fallback

STORY = "Once upon a time"
TINY = Path(__file__).parents[1] / "byhand" / "assets" / "tiny"
CAT = [{"role": "user", "content": "A story about a cat, please."}]
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CALLING = {"role": "assistant", "tool_calls": [CALL]}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    yield from served(LLM())


def sampled(seed: int, **fields: Any) -> dict[str, Any]:
    return {"temperature": 0.9, "seed": seed, "max_tokens": 24, **fields}


# The same tokens as in Python.


@pytest.mark.parametrize("stream", [False, True])
def test_the_tokens_are_generates(server: Running, embedded: LLM, stream: bool) -> None:
    prompts = [STORY, "A list of colors: red", [1, 38, 52]]
    params = embedded.checkpoint_params(temperature=0.9, seed=7, max_tokens=24, n=2, stop=("the",))
    alone = embedded.generate(prompts, params)
    assert isinstance(alone, list)
    answer = server.post(
        "/v1/completions",
        **sampled(7, prompt=[STORY, prompts[1]], n=2, stop="the", return_token_ids=True, stream=stream),
    )
    ids: dict[int, list[int]] = {}
    texts: dict[int, str] = {}
    for chunk in answer.events if stream else [answer.json]:
        for choice in chunk["choices"]:
            ids.setdefault(choice["index"], []).extend(choice["token_ids"])
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert [ids[index] for index in range(4)] == [done.ids for done in alone[:4]]
    assert [texts[index] for index in range(4)] == [done.text for done in alone[:4]]


def test_many_streams_at_once_are_as_alone(server: Running, embedded: LLM) -> None:
    words = ["Once", "A dog", "The red fox", "Tom and Sue", "In the wood", "One two three", "Why", "She said"]
    asked = [(f"{word} {'and then ' * (seed * 3)}", seed) for seed, word in enumerate(words * 2)]
    alone = [
        embedded.generate(prompt, embedded.checkpoint_params(temperature=0.9, seed=seed, max_tokens=24))
        for prompt, seed in asked
    ]

    def ask(item: tuple[str, int]) -> str:
        events = server.post("/v1/completions", prompt=item[0], stream=True, **sampled(item[1])).events
        assert events[-1]["choices"][0]["finish_reason"] in ("stop", "length")
        return "".join(event["choices"][0]["text"] for event in events)

    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(ask, asked))
    assert texts == [done.text for done in alone]  # type: ignore[union-attr]


# Log-probabilities.


def test_echoed_logprobs_are_transformers(server: Running, embedded: LLM) -> None:
    model = judge(TINY)
    text = (TINY / "README.md").read_text(encoding="utf-8")
    generator = random.Random(0)
    items = [embedded.encode(text[start : start + 120]) for start in generator.choices(range(2000), k=8)]
    answer = server.post("/v1/completions", prompt=items, max_tokens=1, logprobs=1, echo=True, seed=1, temperature=0)
    for ids, choice in zip(items, answer.json["choices"], strict=True):
        theirs = torch.log_softmax(judge_logits(model, ids), dim=-1)
        ours = choice["logprobs"]
        assert ours["token_logprobs"][0] is None
        assert len(ours["tokens"]) == len(ids) + 1
        for place, token in enumerate(ids[1:], 1):
            best = max(ours["top_logprobs"][place].values())
            assert ours["token_logprobs"][place] == pytest.approx(float(theirs[place - 1, token]), abs=1e-3)
            assert best == pytest.approx(float(theirs[place - 1].max()), abs=1e-3)
            assert (ours["token_logprobs"][place] == best) == (int(theirs[place - 1].argmax()) == token)


def test_echo_alone_costs_no_token(server: Running, embedded: LLM) -> None:
    for prompt in (STORY, embedded.encode(STORY)):
        choice = server.post("/v1/completions", prompt=prompt, max_tokens=0, logprobs=3, echo=True).json["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (STORY, "length")
        found = choice["logprobs"]
        assert found["tokens"] == ["<s>", "Once", " upon", " a", " time"]
        assert found["text_offset"] == [0, 0, 4, 9, 11]
        assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
        score = embedded.score(STORY)
        assert found["token_logprobs"][1:] == pytest.approx(score.logprobs[1:], abs=1e-4)
        assert all(3 <= len(top) <= 4 for top in found["top_logprobs"][1:])


def test_text_offsets_point_at_the_tokens(server: Running) -> None:
    # Characters of several tokens: the grammar lets nothing else come.
    answer = server.post(
        "/v1/completions",
        prompt="A",
        echo=True,
        logprobs=1,
        max_tokens=60,
        response_format={"type": "choice", "choices": ["é☃x😀 end"]},
    ).json["choices"][0]
    text, found = answer["text"], answer["logprobs"]
    assert text == "Aé☃x😀 end"
    assert found["tokens"][-1] == "</s>"
    assert found["text_offset"][-1] == len(text)
    for token, offset in zip(found["tokens"][1:-1], found["text_offset"][1:], strict=False):
        if token.startswith("bytes:"):
            assert text[offset] in "é☃😀"
        else:
            assert text.startswith(token, offset)
    assert any(token.startswith("bytes:\\x") for token in found["tokens"])


def test_text_offsets_count_the_space_that_follows_the_prompt(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "pieces", bos_token_id=1, eos_token_id=2)
    byte_fallback().save(str(folder / "tokenizer.json"))  # it strips the space before a whole text
    for server in served(LLM(folder)):
        asked = {"prompt": "the", "logprobs": 1, "max_tokens": 20}
        only = {"type": "choice", "choices": [" the red"]}
        for echo, start in ((False, 0), (True, 3)):
            choice = server.post("/v1/completions", **asked, echo=echo, response_format=only).json["choices"][0]
            assert choice["text"][start:] == " the red"
            found = list(zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True))
            assert found[-1] == ("</s>", start + len(" the red"))
            assert all(choice["text"].startswith(*each) for each in found[:-1] if each[1] >= start and each[0] != "<s>")


def test_every_token_has_its_chunk(server: Running) -> None:
    asked = {"prompt": "A", "logprobs": 2, "response_format": {"type": "choice", "choices": ["😀"]}, "stream": True}
    chunks = [event["choices"][0] for event in server.post("/v1/completions", **asked).events]
    tokens = [chunk["logprobs"]["tokens"] for chunk in chunks[:-1]]
    assert all(len(names) == 1 for names in tokens)
    assert len(tokens) > 2
    assert [chunk["text"] for chunk in chunks].count("") == len(chunks) - 1
    assert chunks[-1] == {
        "text": "",
        "index": 0,
        "logprobs": {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []},
        "finish_reason": "stop",
    }


def test_chat_logprobs_have_bytes(server: Running) -> None:
    asked = {"logprobs": True, "top_logprobs": 4, "max_tokens": 30, "temperature": 0}
    content = server.post("/v1/chat/completions", messages=CAT, **asked).json["choices"][0]["logprobs"]["content"]
    assert len(content) == 30
    for entry in content:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert [top["logprob"] for top in entry["top_logprobs"]] == sorted(
            (top["logprob"] for top in entry["top_logprobs"]), reverse=True
        )
        assert entry["top_logprobs"][0]["token"] == entry["token"]


def test_names_of_tokens_are_never_shared() -> None:
    tokens = [Token(1, "\ufffd", b"\xe2\x98"), Token(2, "\ufffd", b"\xe2"), Token(3, "", b""), Token(4, "", b"")]
    same = [Token(5, "a", b"a"), Token(6, "a", b"a"), Token(7, "<s>", b"<s>", special=True)]
    assert [name_of(token) for token in tokens] == ["bytes:\\xe2\\x98", "bytes:\\xe2", "token_id:3", "token_id:4"]
    candidates = [Candidate(token, -float(place), place, 0.0) for place, token in enumerate([*tokens, *same])]
    assert len(by_name(candidates)) == 7


def test_masked_tokens_put_no_infinity_into_json(server: Running) -> None:
    fields = {"allowed_ids": [60, 61], "logprobs": 5, "max_tokens": 5, "prompt_logprobs": 2}
    answer = server.post("/v1/completions", prompt=STORY, **fields)
    assert b"Infinity" not in answer.body
    assert b"NaN" not in answer.body
    choice = json.loads(answer.body, parse_constant=pytest.fail)["choices"][0]
    assert len(choice["prompt_logprobs"]) == 5
    assert choice["prompt_logprobs"][0] is None
    assert all(len(entry) in (2, 3) for entry in choice["prompt_logprobs"][1:])


# Byhand's extras.


def test_token_ids_come_back_where_they_are_asked_for(server: Running, embedded: LLM) -> None:
    ids = embedded.encode(STORY)
    asked = {"temperature": 0, "max_tokens": 4, "return_token_ids": True}
    choice = server.post("/v1/completions", prompt=STORY, **asked).json["choices"][0]
    assert choice["prompt_token_ids"] == ids
    assert choice["token_ids"] == embedded.generate(STORY, SamplingParams(max_tokens=4)).ids  # type: ignore[union-attr]
    assert choice["stop_reason"] is None
    stop = server.post("/v1/completions", prompt=STORY, stop=[" a"], **asked).json["choices"][0]
    assert stop["stop_reason"] == " a"
    chat = server.post("/v1/chat/completions", messages=CAT, **asked).json["choices"][0]
    assert chat["prompt_token_ids"] == embedded.chat_ids(CAT)
    plain = server.post("/v1/completions", prompt=STORY, max_tokens=1).json["choices"][0]
    assert set(plain) == {"text", "index", "logprobs", "finish_reason"}


def test_ids_that_no_text_has_are_taken_as_they_are(server: Running, embedded: LLM) -> None:
    halves = [1, *embedded.encode("☃")[1:2], 60, 2, 5]
    answer = server.post("/v1/completions", prompt=halves, max_tokens=0, echo=True, return_token_ids=True)
    assert answer.json["choices"][0]["prompt_token_ids"] == halves


def test_usage_counts_every_prompt_once(server: Running, embedded: LLM) -> None:
    prompts = ["The little dog " * 12, "A cat"]
    asked = {"prompt": prompts, "n": 3, "max_tokens": 5, "ignore_eos": True}
    usage = [server.post("/v1/completions", **asked).json["usage"] for _ in range(2)]
    tokens = sum(len(embedded.encode(prompt)) for prompt in prompts)
    assert [(each["prompt_tokens"], each["completion_tokens"]) for each in usage] == [(tokens, 30)] * 2
    whole_pages = sum((len(embedded.encode(prompt)) - 1) // 16 * 16 for prompt in prompts)
    assert usage[1]["prompt_tokens_details"]["cached_tokens"] == whole_pages >= 16


def test_constraints_hold(server: Running) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    named = {"name": "a", "schema": {**schema, "additionalProperties": False}}
    for seed in range(10):
        asked = sampled(seed, messages=CAT, response_format={"type": "json_schema", "json_schema": named})
        text = server.post("/v1/chat/completions", **asked).json["choices"][0]["message"]["content"]
        assert text in ('{"a":"x"}', '{"a":"y"}')


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_end_is_told_with_its_field(server: Running, embedded: LLM, stream: bool) -> None:
    banned = [embedded.tokenizer.one_token(digit) for digit in "23"]
    asked = {"response_format": {"type": "regex", "regex": "1(2|3)"}, "banned_ids": banned, "stream": stream}
    answer = server.post("/v1/chat/completions", messages=CAT, **asked)
    error = answer.events[-1]["error"] if stream else answer.error
    assert (error["code"], error["param"]) == ("run_refused", "response_format")
    assert error["message"] == "`regex` and `banned_ids` leave no token that may follow '1' (1 token)"
    assert answer.status == (200 if stream else 400)
    asked["banned_ids"] = list(embedded.eos_ids)
    early = server.post("/v1/chat/completions", messages=CAT, **asked)
    assert (early.status, early.error["code"], early.error["param"]) == (400, "invalid_grammar", "response_format")
    assert "`regex` ends a run by the end-of-sequence token, which `banned_ids` takes away" in early.error["message"]


def test_continuing_an_assistant_message(server: Running) -> None:
    messages = [*CAT, {"role": "assistant", "content": "Once upon a"}]
    asked = {"messages": messages, "continue_final_message": True}
    assert server.post("/apply-template", **asked).json["text"].endswith("<|assistant|>Once upon a")
    text = server.post("/v1/chat/completions", **asked, temperature=0, max_tokens=1).json["choices"][0]
    assert text["message"]["content"] == " time"


# Own routes.


def test_tokenize_and_back(server: Running, embedded: LLM) -> None:
    text = "Hello, wörld ☃ </s>"
    tokens = server.post("/tokenize", text=text).json["tokens"]
    assert [token["id"] for token in tokens] == embedded.encode(text)
    assert tokens[0] == {"id": 1, "text": "<s>", "bytes": [60, 115, 62], "special": True}
    ids = [token["id"] for token in tokens]
    assert server.post("/detokenize", ids=ids).json == {"text": embedded.detokenize(ids)}
    chat = server.post("/tokenize", messages=CAT).json["tokens"]
    template = server.post("/apply-template", messages=CAT).json
    assert [token["id"] for token in chat] == template["ids"] == embedded.chat_ids(CAT)
    assert template["text"] == embedded.render_chat(CAT)
    assert server.post("/tokenize", text="").json["tokens"] == tokens[:1]


def test_read_is_pythons_reading(server: Running, embedded: LLM) -> None:
    text = "A list of colors: red, green. " * 30
    answer = server.post("/read", prompt=text, top=2)
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.body.decode().splitlines()]
    reading = embedded.read(text, top=2)
    assert [line["id"] for line in lines] == reading.ids
    assert [line["predicted"]["id"] for line in lines] == [at.predicted.token.id for at in reading]
    assert [len(line["top"]) for line in lines] == [2] * len(lines)
    assert lines[-1]["actual"] is None


def test_health_models_metrics_and_the_page(server: Running) -> None:
    assert server.get("/health").json == {"status": "ready", "model": "byhand-tiny"}
    card = server.get("/v1/models").json["data"][0]
    assert (card["id"], card["context_length"], card["vocab_size"]) == ("byhand-tiny", 2048, 4096)
    server.post("/v1/completions", prompt=STORY, max_tokens=3)
    numbers = server.get("/metrics").body.decode()
    assert "byhand_ready 1.0" in numbers
    assert 'byhand_requests_total{method="POST",path="/v1/completions",status="200"}' in numbers
    assert "byhand_first_token_seconds_bucket" in numbers
    page = server.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert server.get("/web/base.css").status == 200
    assert server.get("/web/__init__.py").status == server.get("/web/nothing.js").status == 404


# Refusals.


@pytest.mark.parametrize(
    ("path", "fields", "param", "code", "sentence"),
    [
        ("/v1/completions", {"prompt": ""}, None, None, ""),
        ("/v1/completions", {"prompt": []}, "prompt", "invalid_value", "at least 1"),
        ("/v1/completions", {"prompt": [[]]}, "prompt", "invalid_value", "at least 1"),
        ("/v1/completions", {}, "prompt", "missing_field", "`prompt` is missing"),
        ("/v1/completions", {"prompt": "a", "n": 0}, "n", "invalid_value", "`n` is 0"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 2.5}, "max_tokens", "invalid_value", "`max_tokens` is 2.5"),
        ("/v1/completions", {"prompt": "a", "stop": ["a", ""]}, "stop", "invalid_value", "`stop[1]`"),
        ("/v1/completions", {"prompt": "a", "stop": "x" * 300}, "stop", "limit_exceeded", "stop_length"),
        ("/v1/completions", {"prompt": "a", "logprobs": 21}, "logprobs", "limit_exceeded", "limit is 20"),
        ("/v1/completions", {"prompt": "a", "prompt_logprobs": 21}, "prompt_logprobs", "limit_exceeded", "limit is 20"),
        ("/v1/completions", {"prompt": "a", "min_tokens": 50}, "min_tokens", "invalid_combination", "at most max_tok"),
        ("/v1/completions", {"prompt": ["a"] * 300}, "prompt", "limit_exceeded", "300 runs"),
        ("/v1/completions", {"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias", "invalid_value", "`logit_bias"),
        ("/v1/completions", {"prompt": "a", "logit_bias": {"9999": 1}}, "logit_bias", "invalid_value", "token 9999"),
        ("/v1/completions", {"prompt": "a", "stream_options": {"x": 1}}, "stream_options", "unknown_field", "`stream"),
        (
            "/v1/completions",
            {"prompt": "a", "response_format": {"type": "regex", "regex": "(("}},
            "response_format",
            "invalid_grammar",
            "unclosed group",
        ),
        (
            "/v1/completions",
            {"prompt": "a", "allowed_ids": [7], "banned_ids": [7]},
            "banned_ids",
            "run_refused",
            "leaves",
        ),
        ("/v1/chat/completions", {"messages": []}, "messages", "invalid_value", "at least 1"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "cat", "content": ""}]},
            "messages",
            "invalid_value",
            "`messages[0].role` is 'cat'",
        ),
        ("/v1/chat/completions", {"messages": CAT, "top_logprobs": 2}, "top_logprobs", "invalid_combination", "needs"),
        ("/v1/chat/completions", {"messages": CAT, "logprobs": 2}, "logprobs", "invalid_value", "`logprobs` is 2"),
        ("/v1/chat/completions", {"messages": CAT, "tool_choice": "required"}, "tool_choice", "invalid_value", "tool"),
        (
            "/v1/chat/completions",
            {"messages": [*CAT, CALLING], "continue_final_message": True},
            "continue_final_message",
            "invalid_combination",
            "no content to continue",
        ),
        ("/tokenize", {"ids": [1]}, "ids", "unknown_field", "`ids` is no field"),
        ("/detokenize", {"ids": [4096]}, "ids", "invalid_value", "4095"),
        ("/read", {"prompt": "a", "top": 100}, "top", "limit_exceeded", "limit is 20"),
        ("/apply-template", {"messages": [{"role": "user"}]}, "messages", "missing_field", "`messages[0].content`"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_refusals_name_the_field(
    server: Running, path: str, fields: dict[str, Any], param: str | None, code: str | None, sentence: str
) -> None:
    answer = server.ask("POST", path, fields)
    if code is None:  # a prompt of <s> alone is a prompt
        assert answer.status == 200
        return
    assert answer.status == 400, answer.body
    assert (answer.error["param"], answer.error["code"]) == (param, code)
    assert sentence in answer.error["message"]
    assert answer.error["type"] == "invalid_request_error"


def test_an_error_in_a_stream_ends_it_in_order(server: Running) -> None:
    answer = server.post("/v1/completions", prompt=STORY, stream=True, allowed_ids=[7], banned_ids=[7])
    assert answer.status == 200
    assert answer.events[-1]["error"]["code"] == "run_refused"


def test_paths_and_methods(server: Running) -> None:
    assert (server.get("/v2").status, server.get("/v2").error["code"]) == (404, "not_found")
    assert server.get("/v1/completions/").status == 405
    wrong = server.get("/v1/completions")
    assert (wrong.status, wrong.headers["allow"], wrong.error["code"]) == (405, "POST", "method_not_allowed")
    for type_ in ("text/plain", "", "application/json; charset=latin-1", "multipart/form-data"):
        answer = server.ask("POST", "/tokenize", b'{"text": "a"}', {"Content-Type": type_})
        assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")
    assert server.ask("POST", "/tokenize", b'{"text": "a"}', {"Content-Type": "application/json; charset=UTF-8"}).json


def test_limits_of_tokens_are_named(server: Running) -> None:
    del server
    for running in served(LLM(), limits=Limits(prompt_tokens=20, total_tokens=30)):
        answer = running.post("/v1/completions", prompt="the dog and " * 10)
        assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
        long = running.post("/v1/completions", prompt="A", max_tokens=100)
        assert (long.status, long.error["param"], long.error["code"]) == (400, "max_tokens", "limit_exceeded")
        done = running.post("/v1/chat/completions", messages=CAT[:1], ignore_eos=True, max_tokens=10)
        assert done.status == 200, done.body

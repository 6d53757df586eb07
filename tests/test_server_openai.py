"""The official OpenAI client, sync and async, strictly validated: what it is promised is what it gets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from byhand import LLM
from byhand.engine.limits import Limits
from byhand.server.guard import Rules
from tests.serving import Running, served

KEY = "test-key-0123456789"
MODEL = "byhand-tiny"
ASK: list[Any] = [{"role": "user", "content": "Count from one to five."}]
STORY = "Once upon a time"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}
NAMED = {"name": "n", "schema": {**SCHEMA, "additionalProperties": False}, "strict": True}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    yield from served(LLM(), rules=Rules(api_key=KEY, body_bytes=200_000), limits=Limits(running=4, waiting=4, n=4))


@pytest.fixture(scope="module")
def requests() -> list[str]:
    """Every request that the client makes, its retries too."""
    return []


@pytest.fixture(scope="module")
def client(server: Running, requests: list[str]) -> Iterator[OpenAI]:
    hooks = {"request": [lambda request: requests.append(request.url.path)]}
    with OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1",
        api_key=KEY,
        _strict_response_validation=True,
        http_client=httpx.Client(event_hooks=hooks),
    ) as made:
        yield made


def whole(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 12, "seed": 1, **fields}


COMPLETIONS = [
    {"prompt": STORY},
    {"prompt": STORY, "temperature": 0},
    {"prompt": [1, 38, 52], "temperature": 0},
    {"prompt": [STORY, "A list of colors: red"], "n": 2},
    {"prompt": [[1, 38], [1, 52, 60]], "temperature": 0},
    {"prompt": STORY, "n": 3},
    {"prompt": STORY, "stop": ","},
    {"prompt": STORY, "stop": [" the", ".", "!"], "max_tokens": 60},
    {"prompt": STORY, "logprobs": 0},
    {"prompt": STORY, "logprobs": 5, "n": 2},
    {"prompt": STORY, "echo": True},
    {"prompt": STORY, "echo": True, "max_tokens": 0},
    {"prompt": STORY, "logit_bias": {"2": -100, "100": 5.5}},
    {"prompt": STORY, "presence_penalty": 1.5, "frequency_penalty": -0.5, "top_p": 0.5},
    {"prompt": STORY, "user": "someone", "best_of": 1},
    {"prompt": STORY, "extra_body": {"top_k": 5, "min_p": 0.05, "return_token_ids": True}},
    {"prompt": STORY, "extra_body": {"response_format": {"type": "regex", "regex": "[0-9]{3}"}}},
    {"prompt": STORY, "extra_body": {"response_format": {"type": "choice", "choices": ["yes", "no"]}}},
]
CHATS = [
    {},
    {"temperature": 0},
    {"n": 2},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 5, "n": 2},
    {"stop": ["three"], "temperature": 0},
    {"max_tokens": None, "max_completion_tokens": 7},
    {"response_format": {"type": "text"}},
    {"response_format": {"type": "json_object"}, "max_tokens": 30},
    {"response_format": {"type": "json_schema", "json_schema": NAMED}, "max_tokens": 60},
    {"tools": [TOOL], "tool_choice": "auto"},
    {"tools": [TOOL], "tool_choice": "none", "parallel_tool_calls": True},
    {"messages": [{"role": "system", "content": "Be kind."}, *ASK]},
    {"messages": [{"role": "developer", "content": [{"type": "text", "text": "Be kind."}]}, *ASK]},
    {"messages": [*ASK, {"role": "assistant", "content": "One, two"}], "extra_body": {"continue_final_message": True}},
    {"presence_penalty": 0.5, "logit_bias": {"5": 1}, "top_p": 0.9, "store": False},
]
STREAMED = [CHATS[0], CHATS[2], CHATS[4], CHATS[5], CHATS[8], CHATS[14]]


@pytest.mark.parametrize("fields", COMPLETIONS, ids=str)
def test_completions(client: OpenAI, fields: dict[str, Any]) -> None:
    answer = client.completions.create(**whole(**fields))
    prompts = fields["prompt"] if isinstance(fields["prompt"], list) else [fields["prompt"]]
    many = 1 if isinstance(prompts[0], int) else len(prompts)
    assert [choice.index for choice in answer.choices] == list(range(many * fields.get("n", 1)))
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    for choice in answer.choices:
        assert choice.finish_reason in ("stop", "length")
        if "stop" in fields:
            assert not any(stop in choice.text for stop in fields["stop"])
        if "logprobs" in fields:
            assert choice.logprobs is not None
            assert len(choice.logprobs.tokens or []) == len(choice.logprobs.text_offset or [])
        if fields.get("echo"):
            assert choice.text.startswith(STORY)


@pytest.mark.parametrize("fields", CHATS, ids=str)
def test_chat(client: OpenAI, fields: dict[str, Any]) -> None:
    answer = client.chat.completions.create(**whole(**{"messages": ASK, **fields}))
    assert len(answer.choices) == fields.get("n", 1)
    for choice in answer.choices:
        assert choice.message.role == "assistant"
        assert (choice.logprobs is not None) == ("logprobs" in fields)
    if fields.get("response_format", {}).get("type") == "json_schema":
        assert json.loads(answer.choices[0].message.content or "")["n"] <= 99


@pytest.mark.parametrize("fields", STREAMED, ids=str)
def test_chat_streams_add_up(client: OpenAI, fields: dict[str, Any]) -> None:
    asked = whole(**{"messages": ASK, **fields})
    answer = client.chat.completions.create(**asked)
    texts = ["" for _ in answer.choices]
    entries: list[list[Any]] = [[] for _ in answer.choices]
    reasons: list[Any] = [None for _ in answer.choices]
    usage = None
    with client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}) as stream:
        for chunk in stream:
            usage = chunk.usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                entries[choice.index] += (choice.logprobs and choice.logprobs.content) or []
                reasons[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in answer.choices]
    assert reasons == [choice.finish_reason for choice in answer.choices]
    assert entries == [(choice.logprobs and choice.logprobs.content) or [] for choice in answer.choices]
    assert usage is not None
    assert answer.usage is not None
    assert usage.completion_tokens == answer.usage.completion_tokens


def test_completion_streams_add_up(client: OpenAI) -> None:
    # OpenAI's own chunks have a null finish_reason, which its strict shape of a completion does not know.
    loose = client.with_options()
    loose._strict_response_validation = False
    asked = whole(prompt=[STORY, "A list of colors: red"], n=2, logprobs=2, echo=False)
    answer = loose.completions.create(**asked)
    texts = [""] * 4
    offsets: list[list[int]] = [[] for _ in texts]
    for chunk in loose.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            offsets[choice.index] += (choice.logprobs and choice.logprobs.text_offset) or []
    assert texts == [choice.text for choice in answer.choices]
    assert offsets == [choice.logprobs.text_offset for choice in answer.choices if choice.logprobs]


def test_an_echo_with_logprobs(client: OpenAI) -> None:
    # The first token has none: OpenAI says null, which its strict shape does not know either.
    loose = client.with_options()
    loose._strict_response_validation = False
    answer = loose.completions.create(**whole(prompt=STORY, echo=True, logprobs=3, temperature=0))
    [choice] = answer.choices
    assert answer.usage is not None
    assert choice.logprobs is not None
    tokens, logprobs = choice.logprobs.tokens or [], choice.logprobs.token_logprobs or []
    offsets, best = choice.logprobs.text_offset or [], choice.logprobs.top_logprobs or []
    assert len(tokens) == len(logprobs) == len(offsets) == len(best) == answer.usage.total_tokens
    assert (offsets[0], logprobs[0], best[0]) == (0, None, None)
    for token, logprob, offset, top in list(zip(tokens, logprobs, offsets, best, strict=True))[1:]:
        assert choice.text.startswith(token, offset) or token not in choice.text
        assert top[token] == logprob <= 0
        assert 3 <= len(top) <= 4


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5/large")


@pytest.mark.parametrize(
    ("fields", "kind", "param", "code"),
    [
        ({"prompt": STORY, "temperature": -1}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"prompt": STORY, "suffix": "end"}, openai.BadRequestError, "suffix", "invalid_value"),
        ({"prompt": STORY, "best_of": 3}, openai.BadRequestError, "best_of", "invalid_value"),
        ({"prompt": STORY, "extra_body": {"wings": 2}}, openai.BadRequestError, "wings", "unknown_field"),
        ({"prompt": [5] * 3000}, openai.BadRequestError, "prompt", "context_length_exceeded"),
        ({"prompt": [5000]}, openai.BadRequestError, "prompt", "invalid_value"),
        ({"prompt": STORY, "n": 100}, openai.BadRequestError, "n", "limit_exceeded"),
        ({"prompt": STORY, "model": "gpt-5"}, openai.NotFoundError, "model", "model_not_found"),
        ({"prompt": "x" * 300_000}, openai.APIStatusError, None, "body_too_large"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_errors_are_not_tried_again(
    client: OpenAI,
    requests: list[str],
    fields: dict[str, Any],
    kind: type[openai.APIStatusError],
    param: str,
    code: str,
) -> None:
    before = len(requests)
    with pytest.raises(kind) as caught:
        client.completions.create(**whole(**fields))
    assert (caught.value.code, caught.value.param) == (code, param)
    assert len(requests) == before + 1
    if code == "body_too_large":
        assert caught.value.status_code == 413


def test_a_wrong_key(client: OpenAI, requests: list[str]) -> None:
    before = len(requests)
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="wrong").chat.completions.create(**whole(messages=ASK))
    assert caught.value.code == "invalid_api_key"
    assert len(requests) == before + 1


def test_a_full_server_says_when_to_come_back(client: OpenAI, server: Running, requests: list[str]) -> None:
    long: Any = whole(prompt=STORY, max_tokens=1500, extra_body={"ignore_eos": True}, stream=True)
    loose = client.with_options(max_retries=0)
    loose._strict_response_validation = False
    streams = [loose.completions.create(**{**long, "n": 4}) for _ in range(2)]
    before = len(requests)
    with pytest.raises(openai.RateLimitError) as caught:
        loose.completions.create(**whole(prompt=STORY))
    assert len(requests) == before + 1
    assert caught.value.code == "server_full"
    assert int(caught.value.response.headers["retry-after"]) >= 1
    began = time.monotonic()
    with pytest.raises(openai.RateLimitError):
        client.with_options(max_retries=1).completions.create(**whole(prompt=STORY))
    assert len(requests) == before + 3
    assert time.monotonic() - began >= 0.9  # it waited as it was told
    for stream in streams:
        stream.close()


def test_the_async_client(server: Running) -> None:
    tell: Any = [{"role": "user", "content": "Tell me a story."}]

    async def one(client: AsyncOpenAI, seed: int) -> tuple[str, str]:
        asked: Any = {"model": MODEL, "messages": tell, "max_tokens": 10, "seed": seed}
        answer = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        return answer.choices[0].message.content or "", text

    async def all_of_them() -> list[tuple[str, str]]:
        url = f"http://127.0.0.1:{server.port}/v1"
        async with AsyncOpenAI(base_url=url, api_key=KEY, _strict_response_validation=True) as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(4)))

    pairs = asyncio.run(all_of_them())
    assert all(whole == streamed for whole, streamed in pairs)
    llm = LLM()
    alone = [llm.chat(tell, llm.checkpoint_params(max_tokens=10, seed=seed)) for seed in range(4)]
    assert len({text for text, _ in pairs}) > 1  # the checkpoint's temperature where none is given
    assert [text for text, _ in pairs] == [completion.text for completion in alone]  # type: ignore[union-attr]

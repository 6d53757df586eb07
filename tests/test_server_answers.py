"""What answers hold, told from Python's own runs; a stream's parts add up to the answer in one piece."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from byhand import LLM, Completion, SamplingParams
from byhand.engine.limits import Limits
from byhand.engine.worker import Worker
from byhand.server.flow import Flow
from byhand.server.sse import EventStream, Pieces
from byhand.types import Candidate, Step, Token
from tests.conftest import tiny_llama
from tests.serving import Running, served, until
from tests.tokenizers_for_tests import byte_fallback

Json = dict[str, Any]
PROMPTS = ["the red fox", "a dog"]
ASK = [{"role": "user", "content": "the fox"}]
SETTINGS = {"temperature": 0.9, "seed": 7, "max_tokens": 9, "ignore_eos": True}
TINY = Path(__file__).parents[1] / "byhand" / "assets" / "tiny"


@pytest.fixture(scope="module", params=["byte level", "byte fallback"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """A random model, whose text is wild, with a tokenizer of each sort."""
    folder = tmp_path_factory.mktemp("answers") / "model"
    if request.param == "byte level":
        return LLM(tiny_llama(folder))
    tiny_llama(folder, bos_token_id=1, eos_token_id=2)
    byte_fallback().save(str(folder / "tokenizer.json"))
    return LLM(folder)


@pytest.fixture(scope="module")
def server(opened: LLM) -> Iterator[Running]:
    yield from served(opened)


@pytest.fixture(scope="module")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The model that ships, with a template that asks for calls of tools."""
    folder = tmp_path_factory.mktemp("calling") / "tiny"
    shutil.copytree(TINY, folder)
    template = (
        "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    yield from served(LLM(folder))


def in_python(server: Running, prompts: list[Any], **fields: Any) -> list[Completion]:
    """The same in Python, on the engine's own thread."""
    params = SamplingParams(**{**SETTINGS, **fields})
    llm: LLM = server.worker.llm
    return server.worker.call(lambda: llm.generate(prompts, params)).result(60)  # type: ignore[no-any-return]


# Parts and sums.


def added(events: list[Json]) -> dict[int, Json]:
    """What the chunks of a stream say of each choice, put together with no help from the server."""
    choices: dict[int, Json] = {}
    for event in events:
        for part in event["choices"]:
            whole = choices.setdefault(part["index"], {"text": "", "logprobs": None, "calls": [], "parts": 0})
            assert whole.get("finish_reason") is None, "nothing comes after the end of a choice"
            whole["parts"] += 1
            whole["finish_reason"] = part["finish_reason"]
            delta = part.get("delta", {})
            whole["text"] += part["text"] if "text" in part else delta.get("content", "")
            whole["calls"] += delta.get("tool_calls", [])
            for name, value in (part["logprobs"] or {}).items():
                logprobs = whole["logprobs"] = whole["logprobs"] or {}
                known = logprobs.get(name)
                logprobs[name] = value if known is None else known + value
            for name in ("token_ids", "prompt_token_ids", "prompt_logprobs"):
                if name in part:
                    whole[name] = whole.get(name, []) + part[name]
            if "stop_reason" in part:
                whole["stop_reason"] = part["stop_reason"]
    return choices


def in_one_piece(answer: Json) -> dict[int, Json]:
    """The choices of a whole answer under the same names."""
    found: dict[int, Json] = {}
    for choice in answer["choices"]:
        message = choice.pop("message", None)
        if message is not None:
            assert (message["role"], message.get("refusal")) == ("assistant", None)
            choice["text"], choice["calls"] = message["content"] or "", message.get("tool_calls", [])
        found[choice["index"]] = choice
    return found


def is_close(one: Any, other: Any) -> bool:
    """Equal but for the last bits of numbers, which differ with the company a run was computed in."""
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, abs=1e-3)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_close, one, other))
    return bool(one == other)


FIELDS: list[tuple[str, Json]] = [
    ("/v1/completions", {"prompt": PROMPTS, "n": 3}),
    ("/v1/completions", {"prompt": PROMPTS, "n": 2, "logprobs": 2}),
    ("/v1/completions", {"prompt": PROMPTS, "n": 2, "echo": True}),
    ("/v1/completions", {"prompt": PROMPTS, "n": 2, "logprobs": 2, "echo": True}),
    ("/v1/completions", {"prompt": PROMPTS, "logprobs": 0}),
    ("/v1/completions", {"prompt": PROMPTS, "echo": True, "logprobs": 0, "max_tokens": 0}),
    ("/v1/completions", {"prompt": PROMPTS, "n": 2, "return_token_ids": True, "prompt_logprobs": 1}),
    ("/v1/completions", {"prompt": [[5, 6, 7], [9, 8]], "n": 2, "return_token_ids": True, "echo": True}),
    ("/v1/completions", {"prompt": PROMPTS[0], "stop": ["e", "a"], "n": 4, "logprobs": 1, "return_token_ids": True}),
    ("/v1/chat/completions", {"messages": ASK, "n": 3}),
    ("/v1/chat/completions", {"messages": ASK, "n": 2, "logprobs": True}),
    ("/v1/chat/completions", {"messages": ASK, "n": 2, "logprobs": True, "top_logprobs": 3}),
    ("/v1/chat/completions", {"messages": ASK, "n": 2, "return_token_ids": True, "prompt_logprobs": 2}),
    ("/v1/chat/completions", {"messages": ASK, "max_tokens": 0}),
]


@pytest.mark.parametrize(("path", "fields"), FIELDS, ids=str)
def test_a_streams_parts_add_up_to_the_answer(server: Running, path: str, fields: Json) -> None:
    whole = server.post(path, **SETTINGS | fields).json
    events = server.post(path, **SETTINGS | fields, stream=True, stream_options={"include_usage": True}).events
    expected = in_one_piece(whole)
    for index, choice in added(events).items():
        for name, value in expected.pop(index).items():
            assert is_close(choice.get(name, index), value), name
        # An opening where it has something to say, each token, an ending.
        tokens = fields.get("max_tokens", 9) if choice["finish_reason"] == "length" else len(choice["token_ids"])
        speaks = "messages" in fields or {"echo", "return_token_ids"} & fields.keys()
        assert choice["parts"] == tokens + 1 + bool(speaks)
    assert expected == {}
    heads = {(event["id"], event["created"], event["model"], event["object"]) for event in events}
    assert len(heads) == 1
    assert [event["usage"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1]["choices"] == []
    usage, counted = events[-1]["usage"], whole["usage"]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert usage[name] == counted[name]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_says_no_usage_where_none_was_asked_for(server: Running, path: str) -> None:
    asked = {"prompt": "a"} if path == "/v1/completions" else {"messages": ASK}
    for options in ({}, {"stream_options": {"include_usage": False}}):
        events = server.post(path, **SETTINGS, **asked, **options, stream=True).events
        assert all(event["choices"] and "usage" not in event for event in events)


def test_every_answer_has_a_name_of_its_own(server: Running) -> None:
    texts = [server.post("/v1/completions", prompt="a", max_tokens=1).json for _ in range(2)]
    chats = [server.post("/v1/chat/completions", messages=ASK, max_tokens=1).json for _ in range(2)]
    assert [answer["object"] for answer in texts + chats] == ["text_completion"] * 2 + ["chat.completion"] * 2
    assert all(re.fullmatch(r"cmpl-[0-9a-f]{32}", answer["id"]) for answer in texts)
    assert all(re.fullmatch(r"chatcmpl-[0-9a-f]{32}", answer["id"]) for answer in chats)
    assert len({answer["id"] for answer in texts + chats}) == 4
    assert {answer["model"] for answer in texts + chats} == {"byhand-tiny"}
    [chunk, *_] = server.post("/v1/chat/completions", messages=ASK, max_tokens=1, stream=True).events
    assert chunk["object"] == "chat.completion.chunk"
    assert chunk["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]


# Log-probabilities and offsets, told from the steps.


def name(token: Token) -> str:
    """What a token is called: its text, its bytes where they are none, its id where it has none."""
    if not token.bytes:
        return f"token_id:{token.id}"
    try:
        return token.bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)


def best(step: Step, k: int) -> dict[int, float]:
    """The best k and the token that came, by id."""
    found = {candidate.token.id: candidate.logprob for candidate in step.top[:k]}
    return {**found, step.token.id: step.logprob}


def by_id(named: dict[str, float], candidates: list[Candidate]) -> dict[int, float]:
    """The same of an answer; of two with one name the lesser goes by its id."""
    ids: dict[str, int] = {}
    for candidate in candidates:
        called = name(candidate.token)
        ids[f"token_id:{candidate.token.id}" if called in ids else called] = candidate.token.id
    return {ids[called]: value for called, value in named.items()}


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_logprobs_of_completions_are_those_of_the_steps(server: Running, echo: bool, k: int) -> None:
    answer = server.post("/v1/completions", prompt=PROMPTS, n=2, logprobs=k, echo=echo, **SETTINGS).json
    for choice, alone in zip(answer["choices"], in_python(server, PROMPTS, n=2), strict=True):
        prompt = PROMPTS[choice["index"] // 2] if echo else ""
        first = len(alone.prompt_ids) if echo else 0
        found = choice["logprobs"]
        assert choice["text"] == prompt + alone.text
        assert {len(value) for value in found.values() if value is not None} == {first + 9}
        assert found["tokens"][first:] == [name(step.token) for step in alone.steps]
        assert found["token_logprobs"][first:] == pytest.approx([step.logprob for step in alone.steps], abs=1e-3)
        texts = [step.text for step in alone.steps]
        starts = [len(prompt) + len("".join(texts[:place])) for place in range(9)]
        assert found["text_offset"][first:] == starts
        if not k:
            assert found["top_logprobs"] is None
            continue
        for named, step in zip(found["top_logprobs"][first:], alone.steps, strict=True):
            candidates = [*step.top[:k]]
            if step.token.id not in {candidate.token.id for candidate in candidates}:
                candidates.append(Candidate(step.token, step.logprob, step.rank, 0.0))
            assert by_id(named, candidates) == pytest.approx(best(step, k), abs=1e-3)


def test_an_echoed_prompt_has_what_was_read_of_it(server: Running) -> None:
    llm: LLM = server.worker.llm
    answer = server.post("/v1/completions", prompt=PROMPTS, n=2, logprobs=2, echo=True, **SETTINGS).json
    for choice in answer["choices"]:
        prompt = PROMPTS[choice["index"] // 2]
        reading = server.worker.call(lambda prompt=prompt: llm.read(prompt, top=2)).result(20)
        found = choice["logprobs"]
        assert found["tokens"][: len(reading)] == [name(at.token) for at in reading]
        assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
        for place, at in enumerate(reading[:-1], 1):
            assert at.actual is not None
            assert found["token_logprobs"][place] == pytest.approx(at.actual.logprob, abs=1e-3)
            wanted = {candidate.token.id: candidate.logprob for candidate in (*at.top, at.actual)}
            candidates = [*at.top, *([] if at.actual.token in [c.token for c in at.top] else [at.actual])]
            assert by_id(found["top_logprobs"][place], candidates) == pytest.approx(wanted, abs=1e-3)
        for called, offset in list(zip(found["tokens"], found["text_offset"], strict=True))[1 : len(reading)]:
            assert choice["text"].startswith(called.lstrip() if offset == 0 else called, offset)


@pytest.mark.parametrize(("echoed", "read"), [(3, 1), (1, 3), (0, 2)])
def test_an_echo_may_be_read_deeper_than_the_prompt(server: Running, echoed: int, read: int) -> None:
    asked = {"prompt": PROMPTS[0], "echo": True, "max_tokens": 1}
    [choice] = server.post("/v1/completions", **asked, logprobs=echoed, prompt_logprobs=read).json["choices"]
    for top in (choice["logprobs"]["top_logprobs"] or [])[1:]:
        assert echoed <= len(top) <= echoed + 1
    for entry in choice["prompt_logprobs"][1:]:
        assert read <= len(entry) <= read + 1


def test_a_long_prompt_that_is_echoed_has_every_position(calling: Running) -> None:
    ids = [1, *(5 + number % 300 for number in range(1200))]  # it is read in several passes
    for stream in (False, True):
        asked = {"prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0, "prompt_logprobs": 1}
        answer = calling.post("/v1/completions", **asked, stream=stream)
        [choice] = added(answer.events).values() if stream else in_one_piece(answer.json).values()
        assert {len(value) for value in choice["logprobs"].values()} == {1202}
        assert len(choice["prompt_logprobs"]) == 1201
        score = calling.worker.call(lambda: calling.worker.llm.score(ids)).result(60)
        assert choice["logprobs"]["token_logprobs"][1:-1] == pytest.approx(score.logprobs[1:], abs=1e-2)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_every_choice_says_what_the_model_thought_of_its_prompt(server: Running, path: str) -> None:
    llm: LLM = server.worker.llm
    chats = path != "/v1/completions"
    asked = {"messages": ASK} if chats else {"prompt": PROMPTS}
    prompts = [llm.chat_ids(ASK)] if chats else [llm.encode(prompt) for prompt in PROMPTS]
    answer = server.post(path, **asked, n=2, prompt_logprobs=2, return_token_ids=True, **SETTINGS).json
    alone = in_python(server, prompts, n=2)
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(prompts)))
    for choice, done in zip(answer["choices"], alone, strict=True):
        ids = prompts[choice["index"] // 2]
        assert (choice["prompt_token_ids"], choice["token_ids"]) == (ids, done.ids)
        reading = server.worker.call(lambda ids=ids: llm.read(ids, top=2)).result(20)
        assert choice["prompt_logprobs"][0] is None
        assert len(choice["prompt_logprobs"]) == len(ids)
        for entry, at in zip(choice["prompt_logprobs"][1:], reading, strict=False):
            assert at.actual is not None
            wanted = {str(each.token.id): each for each in (*at.top, at.actual)}
            assert entry.keys() == wanted.keys()
            for key, each in wanted.items():
                assert (entry[key]["rank"], entry[key]["decoded_token"]) == (each.rank, name(each.token))
                assert entry[key]["logprob"] == pytest.approx(each.logprob, abs=1e-3)


def test_logprobs_of_chats_are_those_of_the_steps(server: Running) -> None:
    llm: LLM = server.worker.llm
    answer = server.post("/v1/chat/completions", messages=ASK, n=2, logprobs=True, top_logprobs=2, **SETTINGS).json
    alone = in_python(server, [llm.chat_ids(ASK)], n=2)
    for choice, done in zip(answer["choices"], alone, strict=True):
        assert choice["message"]["content"] == done.text
        for entry, step in zip(choice["logprobs"]["content"], done.steps, strict=True):
            told = [
                (entry["token"], bytes(entry["bytes"])),
                *((t["token"], bytes(t["bytes"])) for t in entry["top_logprobs"]),
            ]
            tokens = [step.token, *(candidate.token for candidate in step.top[:2])]
            assert told == [(name(token), token.bytes) for token in tokens]
            numbers = [entry["logprob"], *(top["logprob"] for top in entry["top_logprobs"])]
            wanted = [step.logprob, *(candidate.logprob for candidate in step.top[:2])]
            assert numbers == pytest.approx(wanted, abs=1e-3)


# Endings and counts.


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_is_cut_from_its_own_choice_and_named_there(server: Running, stream: bool) -> None:
    plain = in_python(server, PROMPTS, n=3, max_tokens=40)
    words = sorted({text for done in plain for text in re.findall("[ -~]", done.text[2:])})
    stops = [words[0], words[len(words) // 2]]
    asked = {**SETTINGS, "prompt": PROMPTS, "n": 3, "max_tokens": 40, "stop": stops}
    answer = server.post("/v1/completions", **asked, return_token_ids=True, logprobs=0, stream=stream)
    choices = added(answer.events) if stream else in_one_piece(answer.json)
    reasons = []
    for index, done in enumerate(in_python(server, PROMPTS, n=3, max_tokens=40, stop=tuple(stops))):
        choice = choices[index]
        assert (choice["text"], choice["token_ids"]) == (done.text, done.ids)
        assert (choice["finish_reason"], choice["stop_reason"]) == (str(done.finish_reason), done.stop_reason)
        assert len(choice["logprobs"]["tokens"]) == len(done.ids)  # those of the stop string are listed
        reasons.append(done.stop_reason)
    assert {*reasons} & {*stops}


def test_a_stop_id_is_named(server: Running) -> None:
    [plain] = in_python(server, ["a dog"], temperature=0)
    asked = {**SETTINGS, "temperature": 0, "prompt": "a dog", "return_token_ids": True}
    [choice] = server.post("/v1/completions", **asked, stop_ids=[plain.ids[4]]).json["choices"]
    first = plain.ids.index(plain.ids[4])
    assert (choice["stop_reason"], choice["token_ids"]) == (plain.ids[4], plain.ids[: first + 1])


@pytest.mark.parametrize("stream", [False, True])
def test_known_tokens_are_counted_once_for_each_prompt(server: Running, stream: bool) -> None:
    llm: LLM = server.worker.llm
    prompts = [[3, 4] * 20 + [9], [6, 7] * 30, [8]]
    asked = {**SETTINGS, "prompt": prompts, "n": 3, "max_tokens": 2}
    server.post("/v1/completions", **asked)
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = server.post("/v1/completions", **asked, **options)
    usage = (answer.events[-1] if stream else answer.json)["usage"]
    assert usage == {
        "prompt_tokens": 102,
        "completion_tokens": 18,
        "total_tokens": 120,
        "prompt_tokens_details": {"cached_tokens": 32 + 48},
    }
    assert llm.vocab_size == 384


def test_metrics_time_the_first_token_of_each_choice_and_those_between(opened: LLM) -> None:
    for running in served(opened):
        running.post("/v1/completions", prompt=PROMPTS, n=2, **SETTINGS)
        running.post("/v1/chat/completions", messages=ASK, n=3, stream=True, **SETTINGS)
        numbers = running.get("/metrics").body.decode()

        def count(of: str, numbers: str = numbers) -> int:
            return int(float(re.findall(rf"^byhand_{of}_seconds_count (\S+)", numbers, re.MULTILINE)[0]))

        assert (count("first_token"), count("between_tokens")) == (7, 7 * 8)


@pytest.mark.parametrize("stream", [False, True])
def test_a_choice_that_fails_ends_the_answer_with_its_error_and_nothing_goes_on(server: Running, stream: bool) -> None:
    asked = {**SETTINGS, "prompt": PROMPTS, "n": 2, "max_tokens": 200, "allowed_ids": [7], "banned_ids": [7]}
    answer = server.post("/v1/completions", **asked, stream=stream)
    error = answer.events[-1]["error"] if stream else answer.error
    assert (error["code"], error["param"]) == ("run_refused", "banned_ids")
    assert until(lambda: server.is_empty)


def test_settings_reach_the_runs(server: Running) -> None:
    fields: Json = {
        "top_p": 0.8,
        "top_k": 50,
        "min_p": 0.01,
        "typical_p": 0.95,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "repetition_penalty": 1.1,
        "no_repeat_ngram_size": 2,
        "logit_bias": {"9": 3.0},
        "banned_ids": [11, 12],
        "min_tokens": 3,
    }
    [choice] = server.post("/v1/completions", prompt="a dog", return_token_ids=True, **SETTINGS | fields).json[
        "choices"
    ]
    [done] = in_python(server, ["a dog"], **fields | {"logit_bias": {9: 3.0}, "banned_ids": (11, 12)})
    assert choice["token_ids"] == done.ids
    fields["no_repeat_ngram_size"] = 1
    for field, value in fields.items():  # each is the run's alone
        asked = {**SETTINGS, "max_tokens": 30, field: value}
        other = server.post("/v1/completions", prompt="a dog", return_token_ids=True, **asked)
        [alone] = in_python(server, ["a dog"], max_tokens=30, **{field: {9: 3.0} if field == "logit_bias" else value})
        assert other.json["choices"][0]["token_ids"] == alone.ids, field


def test_without_a_seed_each_request_throws_its_own_dice(server: Running) -> None:
    asked = {"prompt": "a dog", "temperature": 1.5, "max_tokens": 12, "ignore_eos": True, "return_token_ids": True}
    found = {tuple(server.post("/v1/completions", **asked).json["choices"][0]["token_ids"]) for _ in range(3)}
    assert len(found) == 3
    assert len(server.post("/v1/completions", prompt="a dog", temperature=0, ignore_eos=True).json["choices"][0]) >= 4
    usage = server.post("/v1/completions", prompt="a dog", temperature=0, ignore_eos=True).json["usage"]
    assert usage["completion_tokens"] == 16  # OpenAI's default for completions


# Calls of tools, in many tokens and several choices.

CALL = 'I look. <tool_call>{"name": "weather", "arguments": {"city": "Röm"}}</tool_call>'
TWO = f'{CALL}\n<tool_call>{{"name": "time", "arguments": {{}}}}</tool_call> done'
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("text", [CALL, TWO])
def test_calls_stand_in_every_choice_whole_and_in_parts(calling: Running, text: str) -> None:
    only = {"type": "regex", "regex": re.escape(text)}
    asked = {
        "messages": ASK,
        "tools": [TOOL],
        "response_format": only,
        "n": 3,
        "logprobs": True,
        "return_token_ids": True,
    }
    whole = in_one_piece(calling.post("/v1/chat/completions", **asked).json)
    parts = added(calling.post("/v1/chat/completions", **asked, stream=True).events)
    calls = [("weather", '{"city": "Röm"}'), ("time", "{}")][: text.count("<tool_call>")]
    assert whole.keys() == parts.keys() == {0, 1, 2}
    ids = set()
    for index in range(3):
        for choice in (whole[index], parts[index]):
            assert choice["text"] == ("I look. " if text == CALL else "I look. done")
            assert choice["finish_reason"] == "tool_calls"
            assert [(c["function"]["name"], c["function"]["arguments"]) for c in choice["calls"]] == calls
            assert {c["type"] for c in choice["calls"]} == {"function"}
            ids |= {call["id"] for call in choice["calls"]}
            assert len(choice["logprobs"]["content"]) == len(choice["token_ids"]) > 10
        assert [call["index"] for call in parts[index]["calls"]] == list(range(len(calls)))
        assert not any("index" in call for call in whole[index]["calls"])
    assert len(ids) == 6 * len(calls)


@pytest.mark.parametrize("stream", [False, True])
def test_a_choice_calls_for_itself_alone(calling: Running, stream: bool) -> None:
    longer = "A dog " * 30 + "<tool"  # so that it ends when the others have called
    only = {"type": "choice", "choices": [CALL, longer]}
    asked = {"messages": ASK, "tools": [TOOL], "response_format": only, "n": 12, "seed": 1, "temperature": 2.0}
    answer = calling.post("/v1/chat/completions", **asked, stream=stream)
    choices = added(answer.events) if stream else in_one_piece(answer.json)
    told = [(choices[n]["text"], len(choices[n].get("calls", [])), choices[n]["finish_reason"]) for n in range(12)]
    assert set(told) == {("I look. ", 1, "tool_calls"), (longer, 0, "stop")}


def test_the_role_is_said_once(server: Running) -> None:
    events = server.post("/v1/chat/completions", messages=ASK, **SETTINGS, stream=True).events
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [set(delta) for delta in deltas[1:-1]] == [{"content"}] * 9
    assert deltas[-1] == {}


def test_a_call_that_is_cut_by_the_length_ends_with_length(calling: Running) -> None:
    only = {"type": "regex", "regex": re.escape(TWO)}
    asked = {"messages": ASK, "tools": [TOOL], "response_format": only, "return_token_ids": True}
    [whole] = calling.post("/v1/chat/completions", **asked).json["choices"]
    llm: LLM = calling.worker.llm
    ids = whole["token_ids"]
    until_call = next(n for n in range(len(ids)) if llm.detokenize(ids[:n]).endswith("</tool_call>"))
    [cut] = calling.post("/v1/chat/completions", **asked, max_tokens=until_call).json["choices"]
    assert cut["finish_reason"] == "length"
    assert [call["function"]["name"] for call in cut["message"]["tool_calls"]] == ["weather"]


# Own routes.


def test_many_tokens_are_listed_as_few_are(server: Running) -> None:
    llm: LLM = server.worker.llm
    text = "red " * 700
    tokens = server.post("/tokenize", text=text).json["tokens"]
    ids = llm.tokenizer.encode(text)
    assert len(ids) > 600
    assert [token["id"] for token in tokens] == ids
    assert [token["text"] for token in tokens] == [llm.tokenizer.token(one).text for one in ids]


def test_what_is_listed_is_bounded(opened: LLM) -> None:
    for running in served(opened, limits=Limits(listed_tokens=8)):
        assert len(running.post("/detokenize", ids=[5] * 8).json["text"]) > 0
        assert running.post("/detokenize", ids=[5] * 9).error["param"] == "ids"
        assert running.post("/tokenize", text="qxz " * 8).error["param"] == "text"


def test_a_reading_has_five_candidates_where_none_are_named(server: Running) -> None:
    llm: LLM = server.worker.llm
    lines = [json.loads(line) for line in server.post("/read", prompt=PROMPTS[0]).body.decode().splitlines()]
    reading = server.worker.call(lambda: llm.read(PROMPTS[0])).result(20)
    assert [[top["id"] for top in line["top"]] for line in lines] == [[c.token.id for c in at.top] for at in reading]
    assert [line["actual"] and line["actual"]["id"] for line in lines] == [
        at.actual and at.actual.token.id for at in reading
    ]


# Streams as bytes.


class Sent:
    """Who is sent an answer, and may hang up."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.is_over = False
        self.gone = asyncio.Event()
        self.started: Json = {}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.started = message
        else:
            self.bodies.append(message["body"])
            self.is_over = not message.get("more_body", False)

    async def receive(self) -> Json:
        await self.gone.wait()
        return {"type": "http.disconnect"}


@pytest.fixture
def idle(opened: LLM) -> Iterator[Worker]:
    worker = Worker(opened)
    worker.opened.result(20)
    yield worker
    worker.close()


def answer_of(kind: type[Pieces], pieces: AsyncIterator[Any], worker: Worker) -> Sent:
    async def talk() -> Sent:
        sent = Sent()
        await asyncio.wait_for(kind(pieces, Flow(worker))({"type": "http"}, sent.receive, sent.send), 20)
        return sent

    return asyncio.run(talk())


def test_a_quiet_stream_says_that_it_is_still_there(idle: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byhand.server.sse.QUIET_SECONDS", 0.01)

    async def slowly() -> AsyncIterator[Any]:
        yield {"a": "é"}
        await asyncio.sleep(0.05)
        yield {"b": None}

    sent = answer_of(EventStream, slowly(), idle)
    assert sent.bodies[0] == 'data: {"a":"é"}\n\n'.encode()
    assert sent.bodies[-2:] == [b'data: {"b":null}\n\n', b"data: [DONE]\n\n"]
    assert set(sent.bodies[1:-2]) == {b": still here\n\n"}
    assert sent.is_over
    assert (sent.started["status"], dict(sent.started["headers"])[b"x-accel-buffering"]) == (200, b"no")
    assert answer_of(Pieces, slowly(), idle).bodies == ['{"a":"é"}\n'.encode(), b'{"b":null}\n', b""]


@pytest.mark.parametrize("kind", [EventStream, Pieces])
def test_an_error_is_the_last_of_the_pieces(idle: Worker, kind: type[Pieces]) -> None:
    closed = []

    async def failing() -> AsyncIterator[Any]:
        try:
            yield 1
            raise ZeroDivisionError
        finally:
            closed.append(True)

    sent = answer_of(kind, failing(), idle)
    text = b"".join(sent.bodies).decode()
    assert text.startswith("data: 1\n\n" if kind is EventStream else "1\n")
    assert text.count('"error"') == 1
    assert text.endswith("data: [DONE]\n\n") == (kind is EventStream)
    assert sent.is_over
    assert closed == [True]


def test_pieces_for_nobody_are_made_no_more(idle: Worker) -> None:
    made: list[int] = []
    closed: list[bool] = []

    async def talk() -> Sent:
        sent = Sent()

        async def endless() -> AsyncIterator[Any]:
            try:
                while True:
                    made.append(len(made))
                    yield made[-1]
                    if len(made) == 3:
                        sent.gone.set()
                        await asyncio.Event().wait()
            finally:
                closed.append(True)

        await asyncio.wait_for(EventStream(endless(), Flow(idle))({"type": "http"}, sent.receive, sent.send), 20)
        return sent

    sent = asyncio.run(talk())
    assert (made, closed, sent.is_over) == ([0, 1, 2], [True], False)


def test_pieces_are_closed_when_the_client_goes_while_one_is_sent(idle: Worker) -> None:
    closed: list[bool] = []

    class Stuck(Sent):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message["type"] == "http.response.body":
                self.gone.set()
                await asyncio.Event().wait()

    async def endless() -> AsyncIterator[Any]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    async def talk() -> None:
        sent = Stuck()
        pieces = endless()
        await asyncio.wait_for(EventStream(pieces, Flow(idle))({"type": "http"}, sent.receive, sent.send), 20)
        assert closed == [True]  # at once, not when somebody collects what is left of it
        assert len(sent.bodies) == 1

    asyncio.run(talk())

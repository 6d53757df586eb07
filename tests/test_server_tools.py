"""Calls of tools: parted from the text, in answers and in streams; and what a template is told of them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from byhand import LLM
from byhand.server.answers import CalledTool
from byhand.server.tools import ToolText, begins_in_thought
from tests.serving import Running, served

TINY = Path(__file__).parents[1] / "byhand" / "assets" / "tiny"
TEMPLATE = (
    "{% if tools %}Answer <tool_call>JSON</tool_call> for {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for call in m.tool_calls %}"
    "<tool_call>{{ call.function.arguments | tojson }}</tool_call>{% endfor %}\n{% endfor %}"
)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ASK = [{"role": "user", "content": "How is the weather?"}]
PARIS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": [1, 2]}}\n</tool_call>'
ROME = '<tool_call>{"name": "weather", "arguments": {"city": "Röm"}}</tool_call>'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("calling") / "tiny"
    shutil.copytree(TINY, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    yield from served(LLM(folder))


@pytest.fixture(scope="module")
def plain() -> Iterator[Running]:
    yield from served(LLM())  # the embedded model's template knows of no tools


def forced(text: str) -> dict[str, Any]:
    """A request whose answer is this text, whatever the model."""
    return {"messages": ASK, "tools": [WEATHER], "response_format": {"type": "regex", "regex": re.escape(text)}}


def parted(pieces: list[str]) -> tuple[str, list[tuple[int, str, str]]]:
    text = ToolText()
    told: list[tuple[str, list[CalledTool]]] = [*map(text.push, pieces), text.flush()]
    calls = [call for _, calls in told for call in calls]
    assert text.count == len(calls) == len({call.id for call in calls})
    listed = [(call.index, call.function.name, call.function.arguments) for call in calls]
    return "".join(said for said, _ in told), listed


LIST = '<tool_call>[{"name": "a", "arguments": "{}"}, {"name": "b"}]</tool_call>'
TOLD = {
    f"Let me look.\n{PARIS}\n{LIST}\n And <tool_cal": (
        "Let me look.\nAnd <tool_cal",
        [(0, "weather", '{"city": "Paris", "days": [1, 2]}'), (1, "a", "{}"), (2, "b", "{}")],
    ),
    '<tool_call>{"name": "a", "arguments": {}}': ("", [(0, "a", "{}")]),
    ROME: ("", [(0, "weather", '{"city": "Röm"}')]),
    # A call ends where its JSON ends, whatever its strings hold.
    '<tool_call>{"name": "a", "arguments": {"x": "</tool_call> } \\" {"}}</tool_call> b': (
        " b"[1:],
        [(0, "a", '{"x": "</tool_call> } \\" {"}')],
    ),
    # An escape may be escaped itself, and then ends no string's end.
    '<tool_call>{"name": "a", "arguments": {"x": "y\\\\"}}</tool_call> b': ("b", [(0, "a", '{"x": "y\\\\"}')]),
    '<tool_call>{"name": "a", "arguments": {"x": "<tool_call><think>"}} c': (
        "c",
        [(0, "a", '{"x": "<tool_call><think>"}')],
    ),
    '<tool_call> {"name": "a"}\n</tool_x': ("</tool_x", [(0, "a", "{}")]),
    '<tool_call>{"name": "a"}</tool_': ("", [(0, "a", "{}")]),
    '<tool_call>{"name": "a"}<tool_call>{"name": "b"}': ("", [(0, "a", "{}"), (1, "b", "{}")]),
    # `parameters` is another word for `arguments`, null means none, and a line may break within a string.
    '<tool_call>{"name": "a", "parameters": {"x": 1}}</tool_call>': ("", [(0, "a", '{"x": 1}')]),
    '<tool_call>{"name": "a", "arguments": null, "parameters": null}</tool_call>': ("", [(0, "a", "{}")]),
    '<tool_call>{"name": "a", "arguments": {"x": "one\ntwo\tthree"}}</tool_call>': (
        "",
        [(0, "a", '{"x": "one\\ntwo\\tthree"}')],
    ),
    # Half a surrogate pair, which JSON can spell and no answer can, stays spelled so.
    '<tool_call>{"name": "a", "arguments": {"x": "\\ud800é"}}</tool_call>': ("", [(0, "a", '{"x": "\\ud800\\u00e9"}')]),
    # Arguments may be JSON in a string.
    '<tool_call>{"name": "a", "arguments": "{\\"x\\": 1}"}</tool_call>': ("", [(0, "a", '{"x": 1}')]),
    '<tool_call>{"name": "a", "arguments": "null"}</tool_call>': ("", [(0, "a", "{}")]),
    # What is thought is no call; what comes after it may be one.
    f"<think>Perhaps {PARIS} or\n</think>\n{ROME}": (
        f"<think>Perhaps {PARIS} or\n</think>\n",
        [(0, "weather", '{"city": "Röm"}')],
    ),
    f"<think>{ROME}": (f"<think>{ROME}", []),
    # What breaks off is text from there on, and the next may be a call.
    f'<tool_call>{{"name": <tool_call>weather {ROME}': (
        '<tool_call>{"name": <tool_call>weather ',
        [(0, "weather", '{"city": "Röm"}')],
    ),
}
NO_CALLS = [
    "",
    "a < b </tool_call>",
    "<tool_call>weather(Paris)</tool_call> is it",
    '<tool_call>{"name": 3}</tool_call>',
    '<tool_call>{"name": "a", "arguments": {"x": NaN}}</tool_call>',
    '<tool_call>{"name": "a", "argum',
    '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "a", "arguments": "hello"}</tool_call>',
    "<tool_call>" + "[" * 100_000 + "</tool_call>",
]


@pytest.mark.parametrize("text", TOLD)
def test_calls_are_found_wherever_the_text_is_cut(text: str) -> None:
    assert parted([text]) == TOLD[text]
    assert parted(list(text)) == TOLD[text]
    for cut in range(len(text)):
        assert parted([text[:cut], text[cut:]]) == TOLD[text]


@pytest.mark.parametrize("text", NO_CALLS, ids=lambda text: text[:40])
def test_what_is_no_call_stays_text(text: str) -> None:
    assert parted([text]) == (text, [])


@pytest.mark.parametrize("text", [*TOLD, *NO_CALLS], ids=lambda text: text[:40])
def test_all_that_is_told_can_be_sent(text: str) -> None:
    json.dumps(parted([text]), ensure_ascii=False).encode()


@pytest.mark.parametrize("text", [PARIS, f"I will look.\n{PARIS}\n{ROME}"])
def test_an_answer_with_calls(server: Running, text: str) -> None:
    client = OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", _strict_response_validation=True)
    asked = forced(text)
    [choice] = client.chat.completions.create(model="byhand-tiny", **asked).choices
    said, calls = parted([text])
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == (said if said.strip() else None)
    functions = [call.function for call in choice.message.tool_calls or [] if call.type == "function"]
    assert [(place, f.name, f.arguments) for place, f in enumerate(functions)] == calls
    chunks = server.post("/v1/chat/completions", **asked, stream=True).events
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == said
    streamed = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert [(c["index"], c["function"]["name"], c["function"]["arguments"]) for c in streamed] == calls
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_prompt_may_have_begun_the_thought() -> None:
    for pieces in ([f"{PARIS}</think>{ROME}"], list(f"{PARIS}</think>{ROME}")):
        text = ToolText(thinks=begins_in_thought("<|assistant|><think>\n"))
        told = [text.push(piece) for piece in pieces]
        assert "".join(said for said, _ in told) == f"{PARIS}</think>"
        assert [call.function.name for _, calls in told for call in calls] == ["weather"]
    assert not begins_in_thought("What does <think> mean?<|assistant|>")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", [f"I look.\n{PARIS}\n{ROME}", f"{LIST}{ROME}"])
def test_an_answer_may_end_with_its_first_call(server: Running, text: str, stream: bool) -> None:
    asked = {**forced(text), "n": 2, "return_token_ids": True, "stream_options": {"include_usage": True}}
    asked = asked if stream else {key: value for key, value in asked.items() if key != "stream_options"}
    whole = server.post("/v1/chat/completions", **forced(text), return_token_ids=True).json["choices"][0]
    answer = server.post("/v1/chat/completions", **asked, parallel_tool_calls=False, stream=stream)
    parts = answer.events if stream else [answer.json]
    chosen = [choice for part in parts for choice in part["choices"] if choice["index"] == 1]
    messages = [choice["delta" if stream else "message"] for choice in chosen]
    calls = [call for message in messages for call in message.get("tool_calls", [])]
    assert len(calls) == 1
    assert calls[0]["function"]["name"] == parted([text])[1][0][1]
    said = "".join(message.get("content") or "" for message in messages)
    assert said == text[: text.index("<tool_call>")]
    assert chosen[-1]["finish_reason"] == "tool_calls"
    ids = [token for choice in chosen for token in choice["token_ids"]]
    assert ids == whole["token_ids"][: len(ids)]
    assert len(ids) < len(whole["token_ids"]) - 5
    assert parts[-1]["usage"]["completion_tokens"] == 2 * len(ids)


def test_a_call_that_is_cut_off_is_text(server: Running) -> None:
    [choice] = server.post("/v1/chat/completions", **forced(PARIS), max_tokens=12).json["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"]
    assert PARIS.startswith(choice["message"]["content"])
    assert "tool_calls" not in choice["message"]


@pytest.mark.parametrize("more", [{"tools": None}, {"tool_choice": "none"}])
def test_without_tools_nothing_is_looked_for(server: Running, more: dict[str, Any]) -> None:
    [choice] = server.post("/v1/chat/completions", **{**forced(ROME), **more}).json["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (ROME, "stop")


def test_where_the_template_asks_for_no_calls_text_stays_text(plain: Running) -> None:
    [choice] = plain.post("/v1/chat/completions", **forced(ROME)).json["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (ROME, "stop")


def test_a_template_gets_arguments_as_objects(server: Running) -> None:
    def rendered(arguments: str) -> str:
        call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
        messages = [*ASK, {"role": "assistant", "tool_calls": [call]}]
        return str(server.post("/apply-template", messages=messages).json["text"])

    assert '<tool_call>{"city": "Paris"}</tool_call>' in rendered(json.dumps({"city": "Paris"}))
    assert '<tool_call>"no JSON"</tool_call>' in rendered("no JSON")

"""Fields that clients send though they mean nothing here, what reaches the chat template, and paths with a slash."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from byhand import LLM
from byhand.server.shapes import Ignored
from tests.conftest import tiny_llama
from tests.serving import Running, served

PAGE = (Path(__file__).parents[1] / "docs" / "server.md").read_text(encoding="utf-8")
HELLO = [{"role": "user", "content": "Hello"}]
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
MEANINGLESS: dict[str, Any] = {
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "verbosity": "low",
    "user": "u",
}
# It writes down what it was told.
TEMPLATE = "{{ messages | tojson }}|{{ reasoning_effort | default('none told') }}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tiny_llama(tmp_path_factory.mktemp("told") / "model", max_position_embeddings=2048)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    yield from served(LLM(folder))


def told(server: Running, *messages: dict[str, Any], **fields: Any) -> tuple[list[dict[str, Any]], str]:
    """The messages and the effort that reach the template."""
    answer = server.post("/apply-template", messages=[*HELLO, *messages], **fields)
    assert answer.status == 200, answer.body
    text, _, effort = answer.json["text"].rpartition("|")
    return json.loads(text)[1:], effort


# Fields that change nothing.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", MEANINGLESS)
def test_what_changes_nothing_is_taken_and_named(server: Running, name: str, stream: bool) -> None:
    asked = {name: MEANINGLESS[name], "stream": stream, "max_tokens": 2, "seed": 1}
    for path, prompt in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": HELLO})):
        answer = server.post(path, **prompt, **asked)
        assert (answer.status, answer.headers["x-byhand-ignored"]) == (200, name), answer.body
        silent = server.post(path, **prompt, **{**asked, name: None})
        assert "x-byhand-ignored" not in silent.headers
        assert _said(silent.body) == _said(answer.body)


def _said(body: bytes) -> list[str]:
    return re.findall(r'"(?:text|content)":"(.*?)"', body.decode())


def test_all_at_once_and_marks_of_a_cache(server: Running) -> None:
    part = {"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}
    messages = [{"role": "user", "content": [part]}]
    answer = server.post("/v1/chat/completions", messages=messages, max_tokens=1, **MEANINGLESS)
    assert answer.headers["x-byhand-ignored"] == ", ".join([*MEANINGLESS, "cache_control"])
    for path in ("/apply-template", "/tokenize"):
        marked, plain = server.post(path, messages=messages), server.post(path, messages=HELLO)
        assert marked.headers["x-byhand-ignored"] == "cache_control"
        assert "x-byhand-ignored" not in plain.headers
        assert marked.json == plain.json


def test_the_list_of_the_docs_is_the_list() -> None:
    [sentence] = re.findall(r"Fields that change nothing are taken.*?\n\n", PAGE, re.DOTALL)
    named = re.findall(r"`(\w+)`", sentence.partition(":")[2].partition(".")[0])
    assert named == [*MEANINGLESS, "cache_control"] == [*Ignored.model_fields, "cache_control"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"store": True}, "store", "invalid_value"),
        ({"prediction": {"type": "content", "content": "a"}}, "prediction", "unknown_field"),
        ({"web_search_options": {}}, "web_search_options", "unknown_field"),
        ({"prompt_cache_kay": "k"}, "prompt_cache_kay", "unknown_field"),
        ({"metadata": "a"}, "metadata", "invalid_value"),
        ({"messages": [{**HELLO[0], "cache_control": {}}]}, "messages", "unknown_field"),
    ],
    ids=str,
)
def test_what_would_change_something_is_refused_by_name(
    server: Running, fields: dict[str, Any], param: str, code: str
) -> None:
    answer = server.post("/v1/chat/completions", **{"messages": HELLO, **fields})
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, param, code)
    assert server.post("/read", prompt="a", user="u").error["code"] == "unknown_field"


# What reaches the template.


def test_an_effort_reaches_the_template(server: Running) -> None:
    assert told(server)[1] == "none told"
    assert told(server, reasoning_effort="high")[1] == "high"
    assert told(server, reasoning_effort="high", chat_template_kwargs={"reasoning_effort": "low"})[1] == "low"


def test_thoughts_reach_the_template_under_both_names(server: Running) -> None:
    both = {"reasoning_content": "hm", "reasoning": "hm"}
    for given in ({"reasoning_content": "hm"}, {"reasoning": "hm"}, both):
        assert told(server, {"role": "assistant", "content": "a", **given})[0] == [
            {"role": "assistant", "content": "a", **both}
        ]
    calling = {"role": "assistant", "reasoning": "hm", "tool_calls": [CALL]}
    assert told(server, calling)[0][0]["reasoning_content"] == "hm"
    differ = {"role": "assistant", "content": "a", "reasoning": "a", "reasoning_content": "b"}
    answer = server.post("/apply-template", messages=[*HELLO, differ])
    assert (answer.status, answer.error["code"]) == (400, "invalid_combination")
    assert server.post("/tokenize", messages=[{**HELLO[0], "reasoning": "a"}]).error["code"] == "unknown_field"


@pytest.mark.parametrize(
    "message", [{"content": None}, {"content": None, "tool_calls": []}, {"content": "", "tool_calls": []}], ids=str
)
def test_no_text_is_an_empty_text_and_no_calls_are_none(server: Running, message: dict[str, Any]) -> None:
    assert told(server, {"role": "assistant", **message})[0] == [{"role": "assistant", "content": ""}]
    assert told(server, {"role": "assistant", "content": None, "tool_calls": [CALL]})[0][0]["content"] == ""
    assert server.post("/apply-template", messages=[{"role": "user", "content": None}]).status == 400
    assert server.post("/apply-template", messages=[{"role": "assistant"}]).error["code"] == "missing_field"


def test_in_python_no_text_of_an_assistant_is_an_empty_text(server: Running) -> None:
    llm = server.worker.llm
    text = llm.render_chat([*HELLO, {"role": "assistant", "content": None}])
    assert json.loads(text.rpartition("|")[0])[1] == {"role": "assistant", "content": ""}


# Paths.


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/byhand-tiny", "/health", "/metrics"])
def test_a_slash_at_the_end_is_the_same_path(server: Running, path: str) -> None:
    assert server.get(f"{path}/").status == 200
    if path == "/v1/models":
        assert server.get(f"{path}/").body == server.get(path).body
    assert server.get(f"{path}//").status == 404


def test_a_body_survives_a_slash_at_the_end(server: Running) -> None:
    assert server.post("/tokenize/", text="a").json == server.post("/tokenize", text="a").json
    assert server.post("/v1/completions/", prompt="a", max_tokens=1).json["usage"]["completion_tokens"] == 1
    assert server.get("/tokenize/").status == 405


def test_the_official_client_sees_what_was_ignored(server: Running) -> None:
    client = OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1/", api_key="any")
    raw = client.chat.completions.with_raw_response.create(
        model="byhand-tiny",
        messages=[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": None}],  # type: ignore[list-item]
        max_tokens=1,
        store=False,
        metadata={"a": "b"},
        reasoning_effort="low",
        verbosity="low",
    )
    assert raw.headers["x-byhand-ignored"] == "metadata, store, verbosity"
    assert raw.parse().choices[0].message.role == "assistant"

"""What the server says over HTTP: requests with fixed seeds to the embedded model, each with its answer."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import byhand
from byhand import LLM
from tests.frozen.checkpoints import open_embedded
from tests.frozen.plain import plain
from tests.serving import Answer, Client, serve, until

STORY = "Once upon a time"
CAT = [{"role": "user", "content": "A story about a cat, please."}]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = 'Well. <tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
LONG = [1, *range(300, 340)]
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "big": {"type": "boolean"}},
    "required": ["color", "big"],
    "additionalProperties": False,
}
GREEDY = {"temperature": 0, "max_tokens": 6}
DICE = {"temperature": 0.9, "max_tokens": 6}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
# The embedded model's template knows of no tools; one that does is put in its place.
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)
# A call of a tool is said by a model that cannot call: the expression lets nothing else be said.
CALLING = {
    "messages": [{"role": "user", "content": "How is the weather?"}],
    "tools": [WEATHER],
    "response_format": {"type": "regex", "regex": re.escape(CALL)},
    "seed": 1,
}

COMPLETIONS: dict[str, dict[str, Any]] = {
    "greedy with logprobs": {"prompt": STORY, "logprobs": 2, **GREEDY},
    "sampled": {"prompt": "One day", "seed": 3, "top_k": 50, "top_p": 0.9, **DICE},
    "streamed with usage": {"prompt": STORY, "seed": 4, **DICE, **STREAM},
    "two choices": {"prompt": "The owl", "seed": 5, "n": 2, **DICE},
    "two choices streamed with logprobs": {"prompt": "The owl", "seed": 5, "n": 2, "logprobs": 1, **DICE, **STREAM},
    "ended by a stop string": {"prompt": STORY, "stop": [" little", "girl"], **GREEDY, "max_tokens": 12},
    "two prompts echoed with logprobs": {"prompt": [STORY, "One day"], "echo": True, "logprobs": 1, **GREEDY},
    "an echo alone": {"prompt": STORY, "echo": True, "logprobs": 2, "max_tokens": 0},
    "ids given and returned": {"prompt": [1, 464, 472], "return_token_ids": True, "prompt_logprobs": 1, **GREEDY},
    "a long prompt": {"prompt": LONG, **GREEDY},
    "the same beginning": {"prompt": [*LONG, 272], **GREEDY},
    "penalties and biases": {
        "prompt": "The cat and the cat",
        "seed": 6,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.2,
        "logit_bias": {"290": 3.0},
        "banned_ids": [264],
        **DICE,
    },
    "a field that is unknown": {"prompt": STORY, "colour": 1},
    "a value out of range": {"prompt": STORY, "temperature": -1},
    "a prompt that is too long": {"prompt": [5] * 3000},
    "a model that is not here": {"prompt": STORY, "model": "another"},
}
CHATS: dict[str, dict[str, Any]] = {
    "greedy": {"messages": CAT, **GREEDY},
    "streamed with usage": {"messages": CAT, "seed": 7, **DICE, **STREAM},
    "with logprobs": {"messages": CAT, "seed": 8, "logprobs": True, "top_logprobs": 2, **DICE, "max_tokens": 3},
    "streamed with logprobs": {"messages": CAT, "logprobs": True, "top_logprobs": 1, "stream": True, **GREEDY},
    "two choices streamed": {"messages": CAT, "seed": 9, "n": 2, "stream": True, **DICE},
    "a schema": {
        "messages": CAT,
        "seed": 10,
        "temperature": 0.9,
        "response_format": {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}},
    },
    "tools that the template does not know": CALLING,
    "the last message goes on": {
        "messages": [*CAT, {"role": "assistant", "content": "A cat named"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
        **GREEDY,
    },
    "stopped, under newer names": {"messages": CAT, "seed": 11, "stop": ".", "max_completion_tokens": 20},
    "no messages": {"messages": []},
    "a role that is unknown": {"messages": [{"role": "poet", "content": "x"}]},
}
TOOLS: dict[str, dict[str, Any]] = {
    "a call": CALLING,
    "a call streamed": {**CALLING, **STREAM},
    "no tools, please": {**CALLING, "tool_choice": "none"},
}
OTHERS: list[tuple[str, str, Any]] = [
    ("GET", "/health", None),
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/another", None),
    ("POST", "/tokenize", {"text": STORY}),
    ("POST", "/tokenize", {"messages": CAT}),
    ("POST", "/detokenize", {"ids": [1, 464, 472]}),
    ("POST", "/apply-template", {"messages": CAT}),
    ("POST", "/read", {"prompt": STORY, "top": 2}),
    ("GET", "/nowhere", None),
    ("GET", "/v1/completions", None),
    ("POST", "/v1/completions", b"{"),
]


def requests() -> Iterator[tuple[str, str, str, Any]]:
    """(name, method, path, body) of all that the embedded model is asked, in order."""
    for name, body in COMPLETIONS.items():
        yield f"completions: {name}", "POST", "/v1/completions", body
    for name, body in CHATS.items():
        yield f"chat: {name}", "POST", "/v1/chat/completions", body
    for method, path, body in OTHERS:
        yield f"{method} {path}", method, path, body


def tool_requests() -> Iterator[tuple[str, str, str, Any]]:
    """The same for the model with the other template."""
    for name, body in TOOLS.items():
        yield f"tools: {name}", "POST", "/v1/chat/completions", body


def by_choice(events: list[Any]) -> list[Any]:
    """The events of a stream, one choice after the other.

    Which choice's piece is said first depends on when a turn begins; within a choice the order is the stream's own.
    """
    return sorted(events, key=lambda event: event["choices"][0]["index"] if event.get("choices") else 1 << 30)


def said(answer: Answer) -> Any:
    """The body as values."""
    kind = answer.headers.get("content-type", "")
    if kind.startswith("text/event-stream"):
        return by_choice(answer.events)
    if "ndjson" in kind or "jsonl" in kind:
        return [json.loads(line) for line in answer.body.decode().splitlines()]
    return answer.json


def talk(client: Client, asked: Iterator[tuple[str, str, str, Any]]) -> Iterator[dict[str, Any]]:
    """All requests, one after the other."""
    for name, method, path, body in asked:
        answer = client.ask(method, path, body)
        sent = body.decode() if isinstance(body, bytes) else body
        kind = answer.headers.get("content-type", "")
        told = plain(said(answer))
        yield {"name": name, "path": path, "body": sent, "status": answer.status, "type": kind, "said": told}


def served(llm: LLM, asked: Iterator[tuple[str, str, str, Any]]) -> list[dict[str, Any]]:
    """What a server of its own says: what one request leaves in the cache, a later one may find."""
    running = serve(llm)
    try:
        assert until(lambda: running.get("/health").status == 200, 60)
        return list(talk(running, asked))
    finally:
        running.stop()


def made() -> list[dict[str, Any]]:
    """All of it, now."""
    lines = served(open_embedded(), requests())
    with tempfile.TemporaryDirectory(prefix="byhand-frozen-") as place:
        folder = Path(place) / "tiny"
        shutil.copytree(Path(byhand.__file__).parent / "assets" / "tiny", folder)
        (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
        return lines + served(open_embedded(folder), tool_requests())

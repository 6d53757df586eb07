"""What a server said: answers to requests, and the frames of live sessions, on the embedded model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import isclose
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.serving import Running

FOLDER = Path(__file__).parent / "transcripts"
PROMPT = "A list of colors: red"
CHAT = [{"role": "user", "content": "Tell me a story about a dog."}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
STORY = {"prompt": "Once upon a time", "max_tokens": 30, "temperature": 0, "seed": 1}
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {**STORY}),
    ("/v1/completions", {**STORY, "stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/completions", {**STORY, "stop": [" named", "zzz"], "logprobs": 2, "echo": True}),
    (
        "/v1/completions",
        {**STORY, "prompt": [PROMPT, "The sun"], "n": 2, "seed": 3, "temperature": 0.9, "max_tokens": 6},
    ),
    ("/v1/completions", {**STORY, "min_tokens": 9, "stop": " a", "return_token_ids": True, "prompt_logprobs": 1}),
    ("/v1/completions", {**STORY, "frequency_penalty": 1.0, "logit_bias": {"20": 3}, "seed": 1, "top_k": 40}),
    ("/v1/completions", {**STORY, "max_tokens": 0, "echo": True, "logprobs": 1}),
    ("/v1/completions", {**STORY, "temperature": 3.5}),
    ("/v1/completions", {"prompt": 5, "what": 1}),
    (
        "/v1/chat/completions",
        {"messages": CHAT, "max_tokens": 20, "temperature": 0, "seed": 1, "logprobs": True, "top_logprobs": 2},
    ),
    ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 12, "seed": 5, "n": 2, "stream": True}),
    (
        "/v1/chat/completions",
        {"messages": CHAT, "max_tokens": 30, "seed": 5, "response_format": {"type": "json_object"}},
    ),
    ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 12, "temperature": 0, "tools": TOOLS, "stop": "dog"}),
    ("/tokenize", {"prompt": PROMPT}),
    ("/read", {"prompt": PROMPT, "top": 2}),
]
GREEDY = {"temperature": 0, "max_tokens": 60, "seed": 1}
# Each op with its fields, and the event that is waited for after it.
SESSIONS: dict[str, list[tuple[str, dict[str, Any], str]]] = {
    "steps": [
        ("start", {"prompt": PROMPT, "params": GREEDY, "top": 2}, "paused"),
        ("step", {"count": 3}, "paused"),
        ("force", {"token": " purple"}, "paused"),
        ("insert", {"text": ", and then"}, "changed"),
        ("edit", {"position": 9, "token": " green"}, "changed"),
        ("undo", {}, "changed"),
        ("step", {}, "paused"),
        ("rewind", {"count": 3}, "changed"),
        ("undo", {}, "changed"),
        ("edit", {"position": 2, "token": " green"}, "changed"),
        ("step", {"count": 4}, "paused"),
        ("run", {"until": {"token": ","}}, "paused"),
        ("logits", {"index": 3}, "logits"),
        ("record", {}, "record"),
    ],
    "forks": [
        ("start", {"prompt": PROMPT, "params": {**GREEDY, "temperature": 0.9, "seed": 3}, "top": 0}, "paused"),
        ("step", {"count": 4}, "paused"),
        ("fork", {"seed": 9}, "forked"),
        ("set", {"run": "run 1", "params": {"temperature": 0.5, "logprobs": 3}}, "set"),
        ("step", {"run": "run 1", "count": 2}, "paused"),
        ("step", {"run": "run 2", "count": 2}, "paused"),
        ("switch", {"run": "run 2"}, "switched"),
        ("run", {"until": {"entropy": 2.5}}, "paused"),
        ("tree", {}, "tree"),
        ("stop", {"run": "run 1"}, "finished"),
    ],
    "endings": [
        ("start", {"messages": CHAT, "params": {"temperature": 0, "max_tokens": 5, "seed": 1}, "top": 1}, "paused"),
        ("run", {}, "finished"),
        ("step", {}, "error"),
        ("rewind", {"count": 2}, "changed"),
        ("run", {"until": {"text": "there"}}, "finished"),
        ("set", {"params": {"max_tokens": 9, "stop": ["little"]}}, "set"),
        ("run", {}, "finished"),
    ],
    "errors": [
        ("step", {}, "error"),
        ("start", {"prompt": 5}, "error"),
        ("start", {"prompt": PROMPT, "params": {"temperature": -1}}, "error"),
        ("start", {"prompt": PROMPT, "params": GREEDY, "top": 0}, "paused"),
        ("undo", {}, "error"),
        ("rewind", {"count": 99}, "error"),
        ("edit", {"position": 77, "token": " red"}, "error"),
        ("force", {"token": "two tokens"}, "error"),
        ("logits", {"index": 7}, "error"),
        ("what", {}, "error"),
    ],
}
# What differs from run to run, or from processor to processor, stands here as its kind alone.
VOLATILE = {"id", "created", "seconds", "resume", "data", "byhand", "digest", "system_fingerprint"}


def plain(value: Any, names: dict[str, str]) -> Any:
    """Without what differs each time; runs bear numbers."""
    if isinstance(value, dict):
        return {
            key: type(part).__name__ if key in VOLATILE and not _is_token(value, key) else plain(part, names)
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [plain(part, names) for part in value]
    return names.get(value, value) if isinstance(value, str) else value


def _is_token(value: dict[str, Any], key: str) -> bool:
    """A token's id is no name."""
    return key == "id" and isinstance(value[key], int) and "text" in value


def answers(server: Running) -> Iterator[Any]:
    """One after another; each stands with what was asked."""
    for path, body in ASKED:
        answer = server.post(path, **body)
        lines = answer.body.decode().splitlines()
        is_stream = answer.headers["content-type"].startswith("text/event-stream")
        said = answer.events if is_stream else [json.loads(line) for line in lines]
        if body.get("stream") and body.get("n", 1) > 1:
            said = sorted(
                said, key=lambda event: [choice["index"] for choice in event["choices"]]
            )  # they come as they come
        yield {"path": path, "asked": body, "status": answer.status, "said": plain(said, {})}


def frames(server: Running, name: str) -> Iterator[Any]:
    """All that a session hears after each op, until the event that is awaited, an end or an error."""
    names: dict[str, str] = {}
    with connect(f"ws://127.0.0.1:{server.port}/live", max_size=None) as socket:
        _next(socket, names)  # hello tells of versions and limits
        for op, fields, awaited in SESSIONS[name]:
            given = {key: value for key, value in fields.items() if key != "run"}
            if "run" in fields:
                given["run"] = next(own for own, number in names.items() if number == fields["run"])
            socket.send(json.dumps({"op": op, "id": 1, **given}))
            said = []
            while not said or said[-1]["event"] not in (awaited, "finished", "error"):
                said.append(_next(socket, names))
            yield {"op": op, **fields, "said": said}


def _next(socket: ClientConnection, names: dict[str, str]) -> Any:
    frame = json.loads(socket.recv(timeout=30))
    if "run" in frame:
        names.setdefault(frame["run"], f"run {len(names) + 1}")
    return plain(frame, names)


def write(server: Running) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in ("answers", *SESSIONS):
        said = answers(server) if name == "answers" else frames(server, name)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in said)
        (FOLDER / f"{name}.jsonl").write_text(text, encoding="utf-8")


def differences(server: Running, name: str) -> list[str]:
    """Where what is said is another, up to rounding."""
    then = [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    now = list(answers(server) if name == "answers" else frames(server, name))
    return [
        line for place, pair in enumerate(zip(then, now, strict=True)) for line in _differ(f"{name}[{place}]", *pair)
    ]


def _differ(where: str, then: Any, now: Any) -> list[str]:
    if isinstance(then, dict) and isinstance(now, dict) and then.keys() == now.keys():
        return [line for key in then for line in _differ(f"{where}.{key}", then[key], now[key])]
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [
            line
            for place, pair in enumerate(zip(then, now, strict=True))
            for line in _differ(f"{where}[{place}]", *pair)
        ]
    is_close = isinstance(then, float) and isinstance(now, float) and isclose(then, now, rel_tol=2e-3, abs_tol=2e-4)
    return [] if is_close or then == now else [f"{where}: {str(then)[:200]!r}, now {str(now)[:200]!r}"]

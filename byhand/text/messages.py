"""Chat messages as a user gives them, checked and made plain; every refusal names the place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from byhand.errors import BadRequest

_PLAIN = (str, int, float, bool)
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
DEEPEST = 100  # levels of lists and objects; real messages and tools have about ten


def check_messages(messages: object) -> list[dict[str, Any]]:
    """The messages as plain dicts: each with a `role`, and with text as `content` unless it calls tools."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise BadRequest(f"messages is {_kind(messages)}; it must be a list of messages", param="messages")
    if not messages:
        raise BadRequest("messages is empty; a chat begins with one message", param="messages")
    return [_check_message(message, f"messages[{place}]") for place, message in enumerate(messages)]


def check_roles(messages: Sequence[Mapping[str, Any]], source: str) -> None:
    """Refuse a role that is neither one of the usual ones nor named in the template's source: most often a slip."""
    for place, message in enumerate(messages):
        if message["role"] not in ROLES and message["role"] not in source:
            must = f"one of {', '.join(ROLES)}, or a role that the chat template names"
            field = f"messages[{place}].role"
            raise BadRequest(f"{field} is {_shown(message['role'])}; it must be {must}", param=field)


def check_tools(tools: object) -> list[Any] | None:
    """Tools as plain JSON schemas, or None."""
    if tools is None:
        return None
    if isinstance(tools, str) or not isinstance(tools, Sequence):
        raise BadRequest(f"tools is {_kind(tools)}; it must be a list of JSON schemas", param="tools")
    for place, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise BadRequest(f"tools[{place}] is {_kind(tool)}; it must be an object", param=f"tools[{place}]")
    return [plain(tool, f"tools[{place}]") for place, tool in enumerate(tools)]


def plain(value: Any, place: str) -> Any:
    """The value rebuilt of JSON's own types, so that a template meets no object with methods."""
    return _plain(value, place, DEEPEST)


def _check_message(message: object, place: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise BadRequest(f"{place} is {_kind(message)}; it must be an object with role and content", param=place)
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise BadRequest(f"{place}.role is {_shown(role)}; it must be a word such as 'user'", param=f"{place}.role")
    # A null is dropped: many templates would write it as the word None.
    fields = {key: value for key, value in plain(message, place).items() if value is not None}
    if role == "assistant" and "content" in message and not fields.get("tool_calls"):
        fields.setdefault("content", "")  # it said nothing
    if "content" in fields or not fields.get("tool_calls"):
        fields["content"] = _text(fields.get("content"), f"{place}.content")
    return fields


def _text(content: Any, place: str) -> str:
    """Text as it is; OpenAI's list of text parts joined by line ends."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest(f"{place} is {_kind(content)}; it must be text", param=place)
    return "\n".join(_part(part, f"{place}[{number}]") for number, part in enumerate(content))


def _part(part: Any, place: str) -> str:
    if not isinstance(part, dict):
        raise BadRequest(f"{place} is {_kind(part)}; it must be an object with type and text", param=place)
    if part.get("type") != "text":
        raise BadRequest(f"{place}.type is {_shown(part.get('type'))}; only 'text' can be read", param=f"{place}.type")
    if not isinstance(part.get("text"), str):
        raise BadRequest(f"{place}.text is {_kind(part.get('text'))}; it must be text", param=f"{place}.text")
    return str(part["text"])


def _plain(value: Any, place: str, depth: int) -> Any:
    if depth == 0:
        raise BadRequest(f"{place.partition('.')[0]} is nested more than {DEEPEST} deep", param=place.partition(".")[0])
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise BadRequest(f"{place} has the key {_shown(key)}; a key is text", param=place)
        return {key: _plain(item, f"{place}.{key}", depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{number}]", depth - 1) for number, item in enumerate(value)]
    raise BadRequest(f"{place} is {_kind(value)}; it must be text, a number, a list or an object", param=place)


def _kind(value: object) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"


def _shown(value: object) -> str:
    return "missing" if value is None else repr(value)[:60]

"""JSON schemas in which every beginning can come to an end: what a grammar would break off at is taken out before.

Two things that a schema may say without harm lead a writer into a dead end: a pattern of names that are all taken by
`properties` (after a comma there is no name left to write), and a reference that leads only to itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from llguidance import LLMatcher

Compile = Callable[[dict[str, Any]], "LLMatcher"]

NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # schemas by name
# What is larger than this is left as it is.
MOST_PATTERNS = 100
MOST_REFERENCES = 500

LISTED = ("allOf", "anyOf", "oneOf", "prefixItems")
SINGLE = ("items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames")


def without_dead_ends(text: str, compile_: Compile) -> str | None:
    """The same schema, so that every beginning has an end; None where it has no finite value at all.

    `compile_` makes a matcher over single bytes: token i is byte i.
    """
    if '"patternProperties"' not in text and '"$ref"' not in text:
        return text
    schema = json.loads(text)
    nodes = list(_nodes(schema))
    names = {name: None for node in nodes for name in (*_part(node, "properties"), *_strings(node.get("required")))}
    ending = _ending_references(schema)

    @cache
    def taken(pattern: str) -> list[str] | None:
        return _names_of(pattern, names, compile_) if taken.cache_info().misses <= MOST_PATTERNS else None

    schema = _changed(schema, lambda node: _without_taken_patterns(_without_endless(node, ending), taken))
    return None if schema is False else json.dumps(schema, ensure_ascii=False)


# Walking through a schema.


def _part(node: dict[str, Any], name: str) -> dict[str, Any]:
    part = node.get(name)
    return part if isinstance(part, dict) else {}


def _strings(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _changed(node: Any, change: Callable[[dict[str, Any]], Any]) -> Any:
    """The schema with every schema in it changed, the inner ones first."""
    if not isinstance(node, dict):
        return node
    copy = dict(node)
    for name, value in node.items():
        if name in NAMED and isinstance(value, dict):
            copy[name] = {key: _changed(each, change) for key, each in value.items()}
        elif name in LISTED and isinstance(value, list):
            copy[name] = [_changed(each, change) for each in value]
        elif name in SINGLE:
            copy[name] = _changed(value, change)
    return change(copy)


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema in a schema."""
    nodes: list[dict[str, Any]] = []

    def note(node: dict[str, Any]) -> dict[str, Any]:
        nodes.append(node)
        return node

    _changed(schema, note)
    yield from nodes


# Patterns whose names are all taken.


def _matcher(pattern: str, taken: Iterable[str], compile_: Compile) -> LLMatcher | None:
    """An object whose names match the pattern and are none of these; its brace is open already."""
    properties = dict.fromkeys(taken, False)
    schema = {"type": "object", "properties": properties, "patternProperties": {pattern: {}}}
    matcher = compile_({**schema, "additionalProperties": False})
    return matcher if not matcher.is_error() and matcher.consume_token(ord("{")) else None


def _names_of(pattern: str, names: Iterable[str], compile_: Compile) -> list[str] | None:
    """The names that a pattern matches, where it matches none but some of these; else None."""
    any_name = _matcher(pattern, (), compile_)
    if any_name is None:
        return None
    written = {name: f"{json.dumps(name, ensure_ascii=False)}:".encode(errors="replace") for name in names}
    matched = [name for name, data in written.items() if any_name.validate_tokens([*data]) == len(data)]
    others = _matcher(pattern, matched, compile_)
    if others is None or others.validate_tokens([ord('"')]) or others.is_error():
        return None
    return matched


def _without_taken_patterns(node: Any, taken: Callable[[str], list[str] | None]) -> Any:
    """A pattern that matches certain names only says what properties of these names would say."""
    if not isinstance(node, dict) or not _part(node, "patternProperties"):
        return node
    patterns, properties = dict(node["patternProperties"]), dict(_part(node, "properties"))
    for pattern, schema in node["patternProperties"].items():
        for name in taken(pattern) or ():
            properties[name] = {"allOf": [properties[name], schema]} if name in properties else schema
        if taken(pattern) is not None:
            del patterns[pattern]
    return {**node, "properties": properties, "patternProperties": patterns}


# References that never come to an end.


def _ending_references(schema: Any) -> set[str]:
    """The references that have a finite value, or that cannot be told."""
    waiting = {node["$ref"] for node in _nodes(schema) if isinstance(node.get("$ref"), str)}
    ending: set[str] = waiting if len(waiting) > MOST_REFERENCES else set()
    while found := {reference for reference in waiting if _ends(_target(schema, reference), ending)}:
        ending |= found
        waiting -= found
    return ending


def _target(schema: Any, reference: str) -> Any:
    """What a reference within the document means; True, which is any value, where it is another kind of reference."""
    if not reference.startswith("#/") and reference != "#":
        return True
    node = schema
    for part in unquote(reference).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and key in node:
            node = node[key]
        elif isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        else:
            return True
    return node


def _ends(node: Any, ending: set[str]) -> bool:
    """Whether a schema has a finite value, when of all references only these are known to have one."""
    if not isinstance(node, dict):
        return node is not False
    needed = list(node["allOf"]) if isinstance(node.get("allOf"), list) else []
    if node.get("type") == "object":
        needed += [value for name, value in _part(node, "properties").items() if name in _strings(node.get("required"))]
    if node.get("type") == "array" and isinstance(least := node.get("minItems"), int | float):
        first = node["prefixItems"] if isinstance(node.get("prefixItems"), list) else []
        needed += first[: max(0, int(min(least, len(first))))] + (
            [node.get("items", True)] if least > len(first) else []
        )
    choices = [node[name] for name in ("anyOf", "oneOf") if isinstance(node.get(name), list)]
    return (
        ("$ref" not in node or node["$ref"] in ending)
        and all(_ends(each, ending) for each in needed)
        and all(any(_ends(each, ending) for each in options) for options in choices)
    )


def _without_endless(node: dict[str, Any], ending: set[str]) -> Any:
    return False if isinstance(node.get("$ref"), str) and node["$ref"] not in ending else node

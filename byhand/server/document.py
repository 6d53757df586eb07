"""The OpenAPI document: FastAPI's, with the limits of the served model in it and every answer that there can be."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from byhand import __version__
from byhand.errors import NotServing
from byhand.server.answers import ErrorAnswer
from byhand.server.service import Service
from byhand.server.shapes import MARK

RETRY = {"Retry-After": {"description": "seconds to wait", "schema": {"type": "string", "pattern": "^[0-9]+$"}}}


def _error(description: str, **more: Any) -> dict[str, Any]:
    return {"model": ErrorAnswer, "description": description, **more}


# Of every route; those that take a body add the rest.
COMMON: dict[int | str, dict[str, Any]] = {
    401: _error("the API key is missing or wrong"),
    403: _error("a foreign Host or Origin"),
    500: _error("something went wrong inside"),
}
SERVING: dict[int | str, dict[str, Any]] = {503: _error("starting or draining", headers=RETRY)}
NAMED: dict[int | str, dict[str, Any]] = {404: _error("no such model")}
BODY: dict[int | str, dict[str, Any]] = {
    400: _error("a bad value, too long, or a grammar or template that does not work"),
    408: _error("the body did not come in time"),
    413: _error("the body is too large"),
    415: _error("the body is not JSON"),
}
RUNS: dict[int | str, dict[str, Any]] = {429: _error("the server is full", headers=RETRY)}


def _below(limit: int) -> str:
    """A pattern of the numbers 0 to limit - 1, without leading zeros."""
    highest = str(limit - 1)
    parts = [f"[0-9]{{1,{len(highest) - 1}}}"] if len(highest) > 1 else []
    for place, digit in enumerate(highest):
        low, high = (1 if place == 0 and len(highest) > 1 else 0), int(digit) - 1
        if high >= low:
            parts.append(f"{highest[:place]}[{low}-{high}]" + "[0-9]" * (len(highest) - place - 1))
    return f"^({'|'.join([*parts, highest])})$"


def limits_of(service: Service) -> dict[str, dict[str, Any]]:
    """What stands in the place of each mark; nothing where no model is there yet."""
    try:
        llm = service.worker.llm
    except NotServing:
        return {}
    limits = service.limits
    prompt_tokens = min(limits.prompt_tokens or llm.context_length, llm.context_length)
    return {
        "model": {"enum": [service.name, None]},
        "token_id": {"maximum": llm.vocab_size - 1},
        "prompt_tokens": {"maxItems": prompt_tokens},
        "listed_tokens": {"maxItems": limits.listed_tokens},
        "prompts": {"maxItems": limits.running + limits.waiting},
        "n": {"maximum": limits.n},
        "stops": {"maxItems": limits.stops},
        "stop_length": {"maxLength": limits.stop_length},
        "logprobs": {"maximum": limits.logprobs},
        "bias": {"propertyNames": {"pattern": _below(llm.vocab_size)}},
    }


# pydantic leaves bounds that stand behind a validator under its own names.
BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}


def _put_limits(node: Any, limits: dict[str, dict[str, Any]]) -> Any:
    if isinstance(node, list):
        return [_put_limits(item, limits) for item in node]
    if not isinstance(node, dict):
        return node
    mark = node.get(MARK)
    found = {BOUNDS.get(key, key): _put_limits(value, limits) for key, value in node.items() if key != MARK}
    return found | (limits.get(mark, {}) if isinstance(mark, str) else {})


def document(app: FastAPI, service: Service) -> dict[str, Any]:
    """The document as things stand."""
    made = get_openapi(
        title="byhand",
        version=__version__,
        summary="One engine: OpenAI's API, and every step in the open",
        description="The WebSocket at /live is described in docs/live.md.",
        routes=app.routes,
    )
    for path, methods in made["paths"].items():
        for operation in methods.values():
            # FastAPI's own 422 is never answered here.
            operation["responses"].pop("422", None)
            if path not in ("/", "/health"):
                operation["security"] = [{"key": []}]
    components = made.setdefault("components", {})
    for name in ("HTTPValidationError", "ValidationError"):
        components.get("schemas", {}).pop(name, None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    whole: dict[str, Any] = _put_limits(made, limits_of(service))
    return whole

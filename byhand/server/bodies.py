"""A request's JSON, read strictly: what JSON does not have (NaN, half a surrogate pair, endless depth) is refused."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Coroutine, Sequence
from email.message import Message
from typing import Any, NoReturn, get_type_hints

from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from byhand.collector import without_collector
from byhand.server.problems import ApiError
from byhand.server.service import beside
from byhand.server.shapes import ignored

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_DEEPEST = 200
_CONTAINERS = {dict, list}
_MOST_FINDINGS = 1000  # that are weighed where a body is wrong all over
LONGEST_PATH = 100
IGNORED = "x-byhand-ignored"  # the header that names fields which change nothing


def _refuse(reason: str) -> NoReturn:
    raise ApiError(400, f"the body is not JSON: {reason}", code="invalid_json")


def _no_constant(name: str) -> NoReturn:
    _refuse(f"{name} is no JSON number")


def _check_depth(value: dict[Any, Any] | list[Any], depth: int = 0) -> None:
    if depth > _DEEPEST:
        _refuse(f"it is nested more than {_DEEPEST} deep")
    items = value.values() if isinstance(value, dict) else value
    if _CONTAINERS.isdisjoint(map(type, items)):
        return  # a long list of numbers, most often
    for item in items:
        if isinstance(item, dict | list):
            _check_depth(item, depth + 1)


@without_collector()
def parse(body: bytes) -> Any:
    """The value of a JSON text, or a 400 that says what is wrong with it."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        _check_depth([value], -1)
    except UnicodeDecodeError as error:
        _refuse(f"byte {error.start} is no UTF-8")
    except UnicodeEncodeError:
        _refuse("it holds half of a surrogate pair, which no text has")
    except json.JSONDecodeError as error:
        _refuse(f"{error.msg.lower()} at character {error.pos}")
    except RecursionError:
        _refuse(f"it is nested more than {_DEEPEST} deep")
    except ValueError:
        _refuse("it holds a number of too many digits")
    return value


def _check_type(header: str | None) -> None:
    message = Message()
    message["content-type"] = header or ""
    if not header or message.get_content_type() != "application/json":
        raise ApiError(415, "the body must be JSON: send Content-Type: application/json", code="unsupported_media_type")
    if (message.get_content_charset() or "utf-8") not in ("utf-8", "utf8"):
        raise ApiError(415, "the body must be in UTF-8, as JSON is", code="unsupported_media_type")


class StrictRoute(APIRoute):
    """A route that takes JSON and nothing else. What is long is read beside the event loop, and checked there too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, or where there is a body our own: FastAPI would check it on the loop."""
        if self.body_field is None:
            return super().get_route_handler()
        shape: TypeAdapter[Any] = TypeAdapter(get_type_hints(self.endpoint, include_extras=True)["body"])

        async def strict(request: Request) -> Response:
            _check_type(request.headers.get("content-type"))
            data = await request.body()
            body = await beside(len(data), lambda: _checked(shape, data))
            response: Response = await self.endpoint(body, request)
            if names := ignored(body):
                response.headers[IGNORED] = ", ".join(names)
            return response

        return strict


@without_collector()
def _checked(shape: TypeAdapter[Any], data: bytes) -> Any:
    """A body in its shape, or the 400 that says what is wrong with it."""
    if not data:
        raise ApiError(400, "`body` is missing", code="missing_field")
    body = parse(data)
    try:
        return shape.validate_python(body)
    except ValidationError as error:
        raise refusal(error, body) from None


# What pydantic found wrong, in our words.


def _place(location: Sequence[int | str], body: Any) -> list[int | str]:
    """The steps of a location that lead somewhere in the body; pydantic adds the names of its types between them."""
    steps: list[int | str] = []
    for step in location:
        if isinstance(body, dict) and step not in body and step == body.get("type"):
            continue
        if isinstance(body, dict) and isinstance(step, str) and step in body:
            steps.append(step)
            body = body.get(step)
        elif isinstance(body, list) and isinstance(step, int) and 0 <= step < len(body):
            steps.append(step)
            body = body[step]
        elif isinstance(body, dict) and isinstance(step, str) and step.isidentifier() and step.islower():
            steps.append(step)
            body = None
    return steps


def _path(steps: Sequence[int | str]) -> str:
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return path.removeprefix(".")[:LONGEST_PATH]


_shorten = reprlib.Repr()
_shorten.maxlevel, _shorten.maxlist, _shorten.maxdict = 2, 3, 3
_shorten.maxstring = _shorten.maxother = 60


def shown(value: object) -> str:
    """A value in a sentence: short, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    return _shorten.repr(value)


def _weight(item: Any, body: Any) -> tuple[int, bool, bool]:
    """How much one finding says: of a union every branch complains, and the one that got furthest was meant."""
    depth = len(_place(item["loc"], body))
    return depth, item["type"] == "extra_forbidden", not item["type"].endswith("_type")


def refusal(error: ValidationError, body: Any) -> ApiError:
    """The 400 of a body that does not fit its shape: one sentence about the deepest thing that is wrong."""
    found = error.errors(include_url=False, include_context=False)[:_MOST_FINDINGS]
    worst = max(found, key=lambda item: _weight(item, body))
    steps = _place(worst["loc"], body)
    path = _path(steps) or None
    top = None if not steps else str(steps[0])[:LONGEST_PATH]
    if worst["type"] == "extra_forbidden":
        return ApiError(400, f"`{path}` is no field of this request", code="unknown_field", param=top)
    if worst["type"] == "missing":
        return ApiError(400, f"`{path or 'body'}` is missing", code="missing_field", param=top)
    reason = worst["msg"][:1].lower() + worst["msg"][1:]
    what = f"`{path}`" if path else "the body"
    return ApiError(400, f"{what} is {shown(worst['input'])}: {reason}"[:500], code="invalid_value", param=top)

"""The frames of /live: what a client may send, checked field by field, and the server's errors. No transport here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

from byhand.errors import BadRequest, RunFinished
from byhand.server.bodies import parse, shown
from byhand.server.problems import ApiError, problem_of

Json = dict[str, Any]
Check = Callable[[Any], bool]

COUNT_LIMIT = 2**31 - 1
ID_LENGTH = 200


class FrameError(BadRequest):
    """A frame that cannot be carried out: `code` is for programs."""

    def __init__(self, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.code = code


@dataclass(frozen=True, slots=True)
class Frame:
    """One client frame: its op, its fields, and the client's own id for it."""

    op: str
    fields: Json
    id: str | int | None = None
    run: str | None = None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**64


def _are_ints(*values: Any) -> bool:
    return all(map(_is_int, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _is_ids(value: Any) -> bool:
    # A list may be long: it is looked at as a whole.
    return isinstance(value, list) and {*map(type, value)} <= {int} and (not value or _are_ints(min(value), max(value)))


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


# Each kind of value: whether it is one, and what to say when it is not.
KINDS: dict[str, tuple[Check, str]] = {
    "text": (lambda value: isinstance(value, str), "text"),
    "flag": (lambda value: isinstance(value, bool), "true or false"),
    "place": (lambda value: _is_int(value) and 0 <= value <= COUNT_LIMIT, "a whole number from 0"),
    "count": (lambda value: _is_int(value) and 1 <= value <= COUNT_LIMIT, "a whole number from 1"),
    "integer": (_is_int, "a whole number"),
    "bound": (lambda value: _is_number(value) and value >= 0, "a number from 0"),
    "ids": (_is_ids, "a list of token ids"),
    "prompt": (lambda value: isinstance(value, str) or _is_ids(value), "text or a list of token ids"),
    "token": (lambda value: isinstance(value, str) or _is_int(value), "a token id, or text that is one token"),
    "messages": (_is_messages, "a list of messages"),
    "object": (lambda value: isinstance(value, dict), "an object"),
}

# op → its fields and their kinds. Every frame may also have `id` and, where a run is meant, `run`.
OPS: dict[str, dict[str, str]] = {
    "start": {"prompt": "prompt", "messages": "messages", "params": "object", "top": "place", "record": "flag"},
    "step": {"count": "count", "until": "object"},
    "run": {"until": "object"},
    "pause": {},
    "stop": {},
    "force": {"token": "token"},
    "insert": {"text": "text", "ids": "ids"},
    "edit": {"position": "place", "token": "token"},
    "rewind": {"count": "count"},
    "fork": {"seed": "integer"},
    "switch": {},
    "set": {"params": "object"},
    "logits": {"index": "place"},
    "tree": {},
    "machine": {},
    "undo": {},
    "record": {},
    "load": {"record": "object"},
    "resume": {"token": "text"},
}
REQUIRED: dict[str, tuple[str, ...]] = {
    "force": ("token",),
    "edit": ("position", "token"),
    "set": ("params",),
    "logits": ("index",),
    "load": ("record",),
    "resume": ("token",),
    "switch": ("run",),
}
EITHER: dict[str, tuple[str, str]] = {"start": ("prompt", "messages"), "insert": ("text", "ids")}
WITHOUT_RUN = ("start", "load", "tree", "machine", "resume")
UNTIL = {"token": "token", "text": "text", "entropy": "bound", "end_probability": "bound", "margin": "bound"}


def check_fields(values: Json, known: dict[str, str], where: str) -> Json:
    """The fields that were said; null is not said, an unknown name is refused."""
    for name, value in values.items():
        if name not in known:
            listed = ", ".join(known) or "none"
            raise FrameError(
                "unknown_field", f"unknown field `{name[:60]}` in {where}; known: {listed}", param=name[:60]
            )
        check, what = KINDS[known[name]]
        if value is not None and not check(value):
            raise FrameError("invalid_value", f"`{name}` is {shown(value)}; it must be {what}", param=name)
    return {name: value for name, value in values.items() if value is not None}


def client_id(document: object) -> str | int | None:
    """The client's own id of a frame, if it has a proper one: for errors too."""
    value = document.get("id") if isinstance(document, dict) else None
    if isinstance(value, str) and len(value) <= ID_LENGTH:
        return value
    return value if _is_int(value) else None


def read_frame(document: object) -> Frame:
    """Check one client frame."""
    if not isinstance(document, dict):
        raise FrameError("invalid_frame", "a frame is one JSON object")
    values = dict(document)
    own, run, op = values.pop("id", None), values.pop("run", None), values.pop("op", None)
    if own is not None and client_id(document) is None:
        raise FrameError(
            "invalid_value", f"`id` must be a whole number or text of {ID_LENGTH} characters at most", param="id"
        )
    if not isinstance(op, str) or op not in OPS:
        raise FrameError("unknown_op", f"unknown op {str(op)[:60]!r}; known: {', '.join(OPS)}", param="op")
    if run is not None and (not isinstance(run, str) or op in WITHOUT_RUN):
        raise FrameError(
            "invalid_value",
            f"`run` must be a run's name, and `{op}` " + ("takes none" if op in WITHOUT_RUN else "takes one"),
            param="run",
        )
    said = check_fields(values, OPS[op], f"`{op}`")
    for name in REQUIRED.get(op, ()):
        if (run if name == "run" else said.get(name)) is None:
            raise FrameError("missing_field", f"`{op}` needs `{name}`", param=name)
    if op in EITHER and sum(name in said for name in EITHER[op]) != 1:
        first, second = EITHER[op]
        raise FrameError("missing_field", f"`{op}` needs either `{first}` or `{second}`", param=first)
    return Frame(op, said, own, run)


def parse_frame(text: str | bytes, limit: int) -> object:
    """The JSON of a frame, or a FrameError."""
    body = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(body) > limit:
        raise FrameError("frame_too_large", f"the frame has {len(body)} bytes; the limit is {limit} (body_bytes)")
    try:
        return parse(body)
    except ApiError as error:
        raise FrameError("invalid_json", error.detail.replace("the body", "the frame")) from None


def error_frame(error: BaseException, own: str | int | None, run: str | None) -> Json:
    """What the client is told of an error."""
    if isinstance(error, FrameError):
        code, message, param = error.code, str(error), error.param
    elif isinstance(error, RunFinished):
        code, message, param = "run_finished", str(error), None
    else:
        problem = problem_of(error)
        code, message, param = problem.code or "invalid_value", problem.detail, problem.param
    return {"event": "error", "id": own, "run": run, "code": code, "message": message, "param": param}


def client_frame(text: str | bytes, limit: int) -> Frame | Json:
    """A client's frame, or the error frame that answers it."""
    document: object = None
    try:
        document = parse_frame(text, limit)
        return read_frame(document)
    except FrameError as error:
        return error_frame(error, client_id(document), None)

"""What a record's JSON must be, as shapes of pydantic's, strict in type; what is wrong is told in one sentence.

pydantic takes a while to load, so this is imported when a record is read.
"""

from __future__ import annotations

from dataclasses import fields
from math import inf
from typing import Annotated, Any, NotRequired, cast, get_type_hints

from pydantic import AfterValidator, BeforeValidator, FailFast, Strict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from byhand.errors import RecordError
from byhand.types import Candidate, ChainStage, Draw, FinishReason, ModelIdentity, Step, Token, Usage

Json = dict[str, Any]
# The kinds that pydantic's errors name, where we say another word.
KINDS = {"string": "str", "tuple": "list"}


def _object(name: str, hints: Json, **config: Any) -> Any:
    """A JSON object that has all these fields; others are passed over."""
    shape = cast(Any, TypedDict)(name, hints)
    shape.__pydantic_config__ = {"strict": True, **config}
    return shape


def _list(shape: Any) -> Any:
    """A JSON list as a tuple; its first wrong entry is told."""
    return Annotated[tuple[shape, ...], Strict(False), FailFast()]


def _dataclass(kind: type, **changed: Any) -> Any:
    """A JSON object as a dataclass with its fields; `changed` are those that lie otherwise in JSON."""
    return Annotated[_object(kind.__name__, _hints(kind) | changed), AfterValidator(lambda values: kind(**values))]


def _hints(kind: type) -> Json:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _bytes(values: list[int]) -> bytes:
    if not all(0 <= value <= 255 for value in values):
        raise ValueError(" holds a value outside 0 to 255")
    return bytes(values)


def _ending(value: object) -> FinishReason | None:
    if value is not None and value not in list(FinishReason):
        raise ValueError(f" is {str(value)[:40]!r}; known: {', '.join(FinishReason)}")
    return None if value is None else FinishReason(str(value))


def _stop_reason(value: object) -> object:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | str)):
        raise ValueError(" is neither an id nor a string")
    return value


def _as_long_as_top(step: Step) -> Step:
    """Every stage of a chain speaks of every candidate."""
    for place, stage in enumerate(step.chain):
        if len(stage.logits) != len(step.top):
            raise ValueError(f".chain[{place}].logits has {len(stage.logits)} entries, top has {len(step.top)}")
    return step


def _or_null(infinity: float) -> Any:
    """A number; null stands for this infinity, which JSON has not."""
    return Annotated[float | None, AfterValidator(lambda value: infinity if value is None else value)]


TOKEN_FIELDS = _hints(Token) | {"bytes": Annotated[list[int], AfterValidator(_bytes)]}
TOKEN = _dataclass(Token, **TOKEN_FIELDS)
# The token's fields and the candidate's own, flat.
CANDIDATE_FIELDS = TOKEN_FIELDS | {name: hint for name, hint in _hints(Candidate).items() if name != "token"}
CANDIDATE: Any = Annotated[
    _object("Candidate", CANDIDATE_FIELDS),
    AfterValidator(lambda values: Candidate(Token(*map(values.pop, TOKEN_FIELDS)), **values)),
]
ENDING = Annotated[FinishReason | None, BeforeValidator(_ending)]
STAGE = _dataclass(ChainStage, logits=_list(_or_null(-inf)))
STEP = _dataclass(
    Step,
    token=TOKEN,
    margin=_or_null(inf),
    top=_list(CANDIDATE),
    chain=_list(STAGE),
    draw=_dataclass(Draw) | None,
    finish_reason=ENDING,
)
# A function of the user's stands in the file by name only.
PARAMS = _object("params", {"stages": NotRequired[list[str]]}, extra="allow")
# Read one after the other: what is no record of this version is not asked for the rest.
KIND: TypeAdapter[Json] = TypeAdapter(_object("kind", {"format": object}))
VERSIONED: TypeAdapter[Json] = TypeAdapter(_object("versioned", {"version": int}))
RECORD: TypeAdapter[Json] = TypeAdapter(
    _object(
        "record",
        {
            "byhand": str,
            "created": str,
            "model": _dataclass(ModelIdentity),
            "seed": int,
            "choice": int,
            "settings": _list(_object("settings", {"from": int, "params": PARAMS})),
            "prompt": _list(TOKEN),
            "ids": list[int],
            "text": str,
            "finish_reason": ENDING,
            "stop_reason": Annotated[Any, AfterValidator(_stop_reason)],
            "usage": _dataclass(Usage),
            "steps": _list(Annotated[STEP, AfterValidator(_as_long_as_top)]),
        },
    )
)


def read(shape: TypeAdapter[Json], document: object) -> Json:
    """The document's values by the shape's names; RecordError says what is wrong, and where."""
    try:
        return shape.validate_python(document)
    except ValidationError as error:
        raise RecordError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    found = error.errors(include_url=False)[0]
    *outer, last = ("record", *(f"[{part}]" if isinstance(part, int) else f".{part}" for part in found["loc"]))
    if found["type"] == "missing":
        return f"{''.join(outer)} has no `{last[1:]}`"
    where = "".join([*outer, last])
    if found["type"] == "value_error":
        return f"{where}{found['ctx']['error']}"
    if found["type"] == "dict_type":
        return f"{where} is no object"
    kind = found["type"].removesuffix("_type")
    return f"{where} is {str(found['input'])[:40]!r}, not {KINDS.get(kind, kind)}"

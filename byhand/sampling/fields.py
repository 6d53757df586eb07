"""What is known about a field of SamplingParams, and the check of each kind of value. Knows no field by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real
from typing import Literal

from byhand.errors import BadRequest

Kind = Literal["number", "integer", "flag", "ids", "text", "texts", "schema", "biases", "functions"]

INTEGER_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """What a flag, an HTTP check, a row of the docs and a slider need to know about one field.

    `off` is the value at which the field does nothing. `minimum` and `maximum` bound a number, or each number inside
    a list; `exclusive_minimum` leaves the minimum itself out. `slider` is (low, high, step), narrower than the limits.
    """

    name: str
    kind: Kind
    help: str
    default: object
    off: object = None
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: bool = False
    optional: bool = False
    slider: tuple[float, float, float] | None = None

    @property
    def limits(self) -> str:
        """The range in words: "above 0 and at most 1"."""
        low = f"{'above' if self.exclusive_minimum else 'at least'} {plain(self.minimum)}"
        high = f"at most {plain(self.maximum)}"
        return " and ".join([low] * (self.minimum is not None) + [high] * (self.maximum is not None))

    def holds(self, value: float) -> bool:
        """Whether a number lies within the limits."""
        if self.minimum is not None and (value < self.minimum or (self.exclusive_minimum and value == self.minimum)):
            return False
        return self.maximum is None or value <= self.maximum


def plain(value: object) -> str:
    """A value as a sentence shows it: 1.0 is 1."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def shown(value: object) -> str:
    """A value as a message shows it, cut where it is long."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _wrong(info: FieldInfo, value: object, must: str) -> BadRequest:
    return BadRequest(f"`{info.name}` is {shown(value)}; it must be {must}", param=info.name)


def _check_number(info: FieldInfo, value: object) -> float:
    must = f"a number {info.limits}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _wrong(info, value, must)
    try:
        number = float(value)
    except OverflowError:
        raise _wrong(info, value, must) from None
    if not isfinite(number) or not info.holds(number):
        raise _wrong(info, value, must)
    return number + 0.0  # -0.0 becomes 0.0


def _check_integer(info: FieldInfo, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not info.holds(int(value)):
        raise _wrong(info, value, f"an integer {info.limits}")
    return int(value)


def _check_flag(info: FieldInfo, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(info, value, "true or false")
    return value


def _items(info: FieldInfo, value: object, what: str) -> list[object]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _wrong(info, value, f"a list of {what}")
    return list(value)


def _check_id(info: FieldInfo, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not info.holds(int(value)):
        message = f"`{info.name}` holds {shown(value)}; a token id is an integer {info.limits}"
        raise BadRequest(message, param=info.name)
    return int(value)


def _check_ids(info: FieldInfo, value: object) -> tuple[int, ...]:
    ids = tuple(dict.fromkeys(_check_id(info, item) for item in _items(info, value, "token ids")))
    if info.optional and not ids:
        raise BadRequest(f"`{info.name}` is empty; at least one token must stay possible", param=info.name)
    return ids


def _check_text(info: FieldInfo, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(info, value, "a string of at least 1 character")
    return value


def _check_schema(info: FieldInfo, value: object) -> str:
    """A JSON schema, as an object or as its text, in one shape: its text."""
    try:
        schema = json.loads(value) if isinstance(value, str) else value
        if isinstance(schema, Mapping):
            return json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise BadRequest(f"`{info.name}` is nested too deeply", param=info.name) from None
    except (ValueError, TypeError):
        pass
    raise _wrong(info, value, "a JSON schema: an object, or its text")


def _check_texts(info: FieldInfo, value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else _items(info, value, "strings")
    for text in texts:
        if not isinstance(text, str) or not text:
            message = f"`{info.name}` holds {shown(text)}; each must be a string of at least 1 character"
            raise BadRequest(message, param=info.name)
    return tuple(dict.fromkeys(str(text) for text in texts))


def _check_bias(info: FieldInfo, key: object, value: object) -> tuple[int, float]:
    # JSON has only strings as keys: OpenAI's own requests carry {"50256": -100}.
    if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 20:
        key = int(key)
    if isinstance(key, bool) or not isinstance(key, Integral) or not 0 <= int(key) <= INTEGER_LIMIT:
        message = (
            f"`{info.name}` has the key {shown(key)}; a token id is an integer at least 0 and at most {INTEGER_LIMIT}"
        )
        raise BadRequest(message, param=info.name)
    try:
        return int(key), _check_number(info, value)
    except BadRequest:
        message = f"`{info.name}` gives token {key} the value {shown(value)}; it must be a number {info.limits}"
        raise BadRequest(message, param=info.name) from None


def _check_biases(info: FieldInfo, value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise _wrong(info, value, "a mapping from token ids to numbers")
    return dict(sorted(_check_bias(info, key, bias) for key, bias in value.items()))


def _check_functions(info: FieldInfo, value: object) -> tuple[object, ...]:
    functions = _items(info, value, "functions")
    for function in functions:
        if not callable(function):
            message = f"`{info.name}` holds {shown(function)}; each must be a function of (ids, logits)"
            raise BadRequest(message, param=info.name)
    return tuple(functions)


CHECKS: dict[Kind, Callable[[FieldInfo, object], object]] = {
    "number": _check_number,
    "integer": _check_integer,
    "flag": _check_flag,
    "ids": _check_ids,
    "text": _check_text,
    "texts": _check_texts,
    "schema": _check_schema,
    "biases": _check_biases,
    "functions": _check_functions,
}

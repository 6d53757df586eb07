"""What people give as prompts, ids and messages, made plain: numpy's and torch's arrays and generators among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Protocol, cast

from byhand.errors import PromptError

if TYPE_CHECKING:
    from byhand.text import Tokenizer


class Array(Protocol):
    """numpy's or torch's array; as a prompt it holds the ids of one."""

    def tolist(self) -> Any:
        """The same as Python's own list."""


Prompt = str | Sequence[int] | Array
TEXT_OR_IDS = "text or a list of ids"
_LARGER = (
    "its tokenizer has {} ids: it is another model's, or the embedding was not enlarged for tokens that were added"
)
Messages = str | Sequence[Mapping[str, Any]]


def as_prompts(prompts: object) -> tuple[list[Prompt], bool]:
    """A list of prompts, and whether many were given: a text, a list of ids, an array or an empty list is one."""
    given = list(prompts) if isinstance(prompts, Iterator) else prompts
    if isinstance(given, str | bytes | bytearray) or not isinstance(given, Sequence):
        return [cast(Prompt, given)], False
    many = any(isinstance(item, str | Sequence) or getattr(item, "ndim", 0) for item in given)
    return (list(given), True) if many else ([given], False)


def as_messages(messages: Messages) -> Sequence[Mapping[str, Any]]:
    """A text is one message of the user's; those of a generator become a list."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    return list(messages) if isinstance(messages, Iterator) else messages


def check_token_ids(ids: object, vocab_size: int, param: str, must: str, tokenizer: Tokenizer) -> list[int]:
    """Ids as Python's own integers; anything that is not an id of the model is refused. The tokenizer may know more."""
    given = _plain(ids)
    if isinstance(given, str | bytes | bytearray) or not isinstance(given, Sequence):
        named = "the prompt" if param == "prompt" else f"`{param}`"
        raise PromptError(f"{named} is a {type(ids).__name__}; it must be {must}", param=param)
    # Many at once, which a loop would take long over: only what is wrong is looked for one by one.
    if given and {*map(type, given)} == {int} and min(given) >= 0 and max(given) < vocab_size:
        return list(given)
    checked = [_check_id(token, place, param) for place, token in enumerate(given)]
    for place, token in enumerate(checked):
        if not 0 <= token < vocab_size:
            piece = tokenizer.piece(token)
            spelled = "" if piece is None else f" ({tokenizer.token(token).text!r})"
            raise PromptError(
                f"`{param}` holds token id {token}{spelled} at place {place}; "
                f"this model's ids are 0 to {vocab_size - 1}",
                param=param,
                hint=None if piece is None else _LARGER.format(tokenizer.vocab_size),
            )
    return checked


def _check_id(given: object, place: int, param: str) -> int:
    plain = given if isinstance(given, Integral) else _plain(given)
    if isinstance(plain, bool) or not isinstance(plain, Integral):
        message = f"`{param}` holds {repr(given)[:60]} at place {place}; a token id is an integer"
        raise PromptError(message, param=param, hint=_meant(plain) if param == "prompt" else None)
    return int(plain)


def _plain(value: object) -> object:
    """An array as a list or a number, a generator as a list; the rest as it is."""
    if isinstance(value, Iterator):
        return list(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _meant(item: object) -> str | None:
    if isinstance(item, Mapping) and "role" in item:
        return "messages are for llm.chat"
    return "for several prompts give generate a list" if isinstance(item, str | Sequence) else None

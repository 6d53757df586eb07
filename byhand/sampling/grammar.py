"""A constraint as llguidance knows it: its grammar, what it may cost, and what its errors mean.

JSON is compact: a schema leaves no place for free white space, in which a small model would wander for ever.
"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from byhand.errors import BadRequest
from byhand.sampling.schemas import without_dead_ends

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

Key = tuple[str, Any]  # a constraint: the field of SamplingParams, and its value

COMPACT: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}

# What one grammar may cost: some tens of milliseconds to compile, a few for a mask. More is refused with a sentence.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 400_000,
    "step_lexer_fuel": 60_000,
    "step_max_items": 20_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


class _Bytes:
    """The smallest vocabulary: the 256 bytes, and an end."""

    is_tokenizer_wrapper = True
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
    special_token_ids = (256,)
    eos_token_id = 256
    bos_token_id = None

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@cache
def _bytes() -> LLTokenizer:
    from llguidance import LLTokenizer

    wrapper: Any = _Bytes()
    return LLTokenizer(wrapper, n_vocab=257)


def _matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits

    return LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))


def _schema(value: str | dict[str, Any]) -> str:
    from llguidance import LLMatcher

    try:
        return LLMatcher.grammar_from_json_schema(value, overrides=COMPACT)
    except ValueError as error:  # its reader of JSON has a bound of its own, lower than Python's
        if "recursion" in str(error):
            raise RecursionError from None
        raise cannot("json_schema", _first_line(str(error))) from None


def _grammar(name: str, value: Any) -> str:
    from llguidance import LLMatcher

    if name == "json_object":
        return _schema({"type": "object"})
    if name == "json_schema":
        followed = without_dead_ends(value, lambda schema: _matcher(_bytes(), _schema(schema)))
        if followed is None:
            raise cannot(name, "it refers to itself, and no value is ever complete")
        return _schema(followed)
    if name == "regex":
        if (len(value) - len(value.rstrip("\\"))) % 2:
            raise cannot(name, "nothing stands after its last backslash")
        return LLMatcher.grammar_from_regex(value)
    words = (json.dumps(choice, ensure_ascii=False) for choice in value)
    return LLMatcher.grammar_from_lark(f"start: {' | '.join(words)}")


def cannot(name: str, why: str) -> BadRequest:
    """The refusal of a constraint."""
    return BadRequest(f"`{name}` cannot be followed: {why}", param=name)


def compiled(key: Key, tokenizer: LLTokenizer) -> LLMatcher:
    """The matcher of a constraint that has read nothing yet, or the reason why there is none."""
    name, value = key
    try:
        "".join(value if isinstance(value, tuple) else str(value)).encode()
        matcher = _matcher(tokenizer, _grammar(name, value))
    except RecursionError:
        raise cannot(name, "it is nested too deeply") from None
    except UnicodeEncodeError:
        raise cannot(name, "it holds half of a surrogate pair, which no text has") from None
    if matcher.is_error():
        raise cannot(name, reason(matcher))
    return matcher


def has_text(key: Key) -> bool:
    """Whether any text fits, whatever the vocabulary."""
    matcher = compiled(key, _bytes())
    matcher.compute_bitmask()
    return not is_dead_end(matcher)


def is_dead_end(matcher: LLMatcher) -> bool:
    """Whether it failed because nothing may follow, and not because something is too large."""
    return matcher.is_error() and matcher.get_error().startswith("NoExtension")


def reason(matcher: LLMatcher) -> str:
    """The line of llguidance's message that says what is wrong."""
    return _first_line(matcher.get_error())


def _first_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["it does not compile"]
    told = next((line for line in lines if line.startswith("error:")), lines[0])
    return told.removeprefix("error:").strip()[:200]

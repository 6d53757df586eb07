"""Constraints: only tokens that keep the continuation inside a JSON schema, a regular expression or a list of choices.

The state of a matcher is a function of the ids after the prompt, and of nothing else: it is remembered to save time,
and made again from the ids where it is not. So a run can be rewound, forked, preempted and resumed under a constraint.
The automata are llguidance's. JSON is compact: a schema leaves no place for free white space, in which a small model
would wander for ever.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from byhand.errors import BadRequest
from byhand.sampling.params import CONSTRAINTS, SamplingParams
from byhand.types import Token

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

Mask = NDArray[np.bool_]  # (vocab,); True = may come next
Key = tuple[str, Any]  # a constraint: the field of SamplingParams, and its value

COMPACT: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
GRAMMARS_KEPT = 64
STATES_KEPT = 256

# What one grammar may cost: some tens of milliseconds to compile, a few for a mask. More is refused with a sentence.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 400_000,
    "step_lexer_fuel": 60_000,
    "step_max_items": 20_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


class Vocabulary(Protocol):
    """What a grammar needs to know of a tokenizer."""

    def token(self, token_id: int) -> Token:
        """One id as a Token."""
        ...

    def encode_continuation(self, text: str, *, parse_special: bool = True) -> list[int]:
        """The ids of text that goes on after other text."""
        ...


class _Tokens:
    """A vocabulary as llguidance asks for it: the bytes of every id, and a way to encode."""

    is_tokenizer_wrapper = True

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, eos_ids: Sequence[int]) -> None:
        tokens = [vocabulary.token(token) for token in range(vocab_size)]
        self.tokens = [token.bytes for token in tokens]
        self.special_token_ids = [token.id for token in tokens if token.special]
        self.eos_token_id = eos_ids[0]
        self.bos_token_id = None
        self._vocabulary = vocabulary

    def __call__(self, text: bytes | str) -> list[int]:
        plain = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._vocabulary.encode_continuation(plain, parse_special=False)


def constraint_of(params: SamplingParams) -> Key | None:
    """The field that constrains these params and its value, None where none does."""
    values = ((name, getattr(params, name)) for name in CONSTRAINTS)
    return next((key for key in values if key[1]), None)


def _grammar(key: Key) -> str:
    """llguidance's own description of a constraint."""
    from llguidance import LLMatcher

    name, value = key
    if name == "json_object":
        return LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=COMPACT)
    if name == "json_schema":
        return LLMatcher.grammar_from_json_schema(value, overrides=COMPACT)
    if name == "regex":
        if (len(value) - len(value.rstrip("\\"))) % 2:
            raise BadRequest("`regex` cannot be followed: nothing stands after its last backslash", param=name)
        return LLMatcher.grammar_from_regex(value)
    words = (json.dumps(choice, ensure_ascii=False) for choice in value)
    return LLMatcher.grammar_from_lark(f"start: {' | '.join(words)}")


def _reason(error: str) -> str:
    """The line of llguidance's message that says what is wrong."""
    lines = [line.strip() for line in error.splitlines() if line.strip()] or ["it does not compile"]
    told = next((line for line in lines if line.startswith("error:")), lines[0])
    return told.removeprefix("error:").strip()[:200]


class Grammars:
    """The constraints that were asked of one model: compiled once, their states remembered while there is room.

    Any thread may call it: the server compiles beside the thread that steps.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, eos_ids: frozenset[int]) -> None:
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._eos_ids = sorted(token for token in eos_ids if token < vocab_size)
        self._lock = Lock()
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[Key, LLMatcher] = OrderedDict()
        self._states: OrderedDict[tuple[Key, tuple[int, ...]], LLMatcher] = OrderedDict()

    def check(self, params: SamplingParams) -> None:
        """Refuse a constraint that cannot be followed; compile one that can."""
        key = constraint_of(params)
        if key is None:
            return
        if not self._eos_ids or params.ignore_eos:
            why = "`ignore_eos` is true" if self._eos_ids else "this checkpoint names none"
            raise BadRequest(f"`{key[0]}` ends a run by the end-of-sequence token, and {why}", param=key[0])
        self._compiled_once(key)

    def mask(self, key: Key, generated: Sequence[int]) -> Mask:
        """Which tokens may follow the ids generated so far."""
        ids = tuple(generated)
        matcher = self._recall(key, ids) or self._derive(key, ids)
        mask = self._mask(matcher, key)
        with self._lock:
            self._states[key, ids] = matcher
            while len(self._states) > STATES_KEPT:
                self._states.popitem(last=False)
        return mask

    def _recall(self, key: Key, ids: tuple[int, ...]) -> LLMatcher | None:
        """The state after these ids: the very one, or the one before it moved on by a token."""
        with self._lock:
            matcher = self._states.pop((key, ids), None)
            if matcher is not None or not ids:
                return matcher
            matcher = self._states.pop((key, ids[:-1]), None)
        return matcher if matcher is not None and matcher.consume_token(ids[-1]) else None

    def _derive(self, key: Key, ids: tuple[int, ...]) -> LLMatcher:
        """The state after these ids, from nothing else."""
        matcher = self._compiled_once(key).deep_copy()
        taken = matcher.validate_tokens(list(ids))
        if taken < len(ids):
            raise BadRequest(
                f"the continuation's token {taken}, {self._vocabulary.token(ids[taken]).text!r}, does not fit "
                f"`{key[0]}`, so nothing can follow it",
                param=key[0],
                hint="rewind to before it, or take the constraint off",
            )
        matcher.consume_tokens(list(ids))
        return matcher

    def _compiled_once(self, key: Key) -> LLMatcher:
        """The matcher that has read nothing yet; nobody moves it."""
        with self._lock:
            matcher = self._compiled.get(key)
            if matcher is not None:
                self._compiled.move_to_end(key)
                return matcher
        matcher = self._compile(key)
        with self._lock:
            self._compiled[key] = matcher
            while len(self._compiled) > GRAMMARS_KEPT:
                self._compiled.popitem(last=False)
        return matcher

    def _compile(self, key: Key) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        name = key[0]
        matcher = LLMatcher(self._tokens(), _grammar(key), log_level=0, limits=LLParserLimits(**LIMITS))
        if matcher.is_error():
            raise BadRequest(f"`{name}` cannot be followed: {_reason(matcher.get_error())}", param=name)
        # The first mask is where a grammar that is too large shows itself: here, and not between two steps of others.
        if not self._mask(matcher.deep_copy(), key).any():
            raise BadRequest(f"`{name}` allows no token of this vocabulary to begin with", param=name)
        return matcher

    def _mask(self, matcher: LLMatcher, key: Key) -> Mask:
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if matcher.is_error():
            message = f"`{key[0]}` became too large to follow: {_reason(matcher.get_error())}"
            raise BadRequest(message, param=key[0])
        return np.unpackbits(bits, count=self._vocab_size, bitorder="little").astype(np.bool_)

    def _tokens(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        with self._lock:
            if self._tokenizer is None:
                wrapper: Any = _Tokens(self._vocabulary, self._vocab_size, self._eos_ids)
                self._tokenizer = LLTokenizer(wrapper, n_vocab=self._vocab_size, eos_token=self._eos_ids)
            return self._tokenizer

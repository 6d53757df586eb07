"""Constraints: only tokens that keep the continuation inside a JSON schema, a regular expression or a list of choices.

The state of a matcher is a function of the ids after the prompt, and of nothing else: it is remembered to save time,
and made again from the ids where it is not. So a run can be rewound, forked, preempted and resumed under a constraint.
The automata are llguidance's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import compress
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from byhand.errors import BadRequest
from byhand.sampling.grammar import Key, cannot, compiled, has_text, is_dead_end, reason
from byhand.sampling.params import CONSTRAINTS, SamplingParams
from byhand.types import Token

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Mask = NDArray[np.bool_]  # (vocab,); True = may come next
GRAMMARS_KEPT = 64
STATES_KEPT = 256
SHOWN = 60  # characters of a text that a sentence quotes


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


def _either(names: Sequence[str]) -> str:
    return " or ".join(f"`{name}`" for name in names)


def _is_spelled(data: bytes, pieces: frozenset[bytes]) -> bool:
    """Whether some pieces in a row are exactly these bytes."""
    if all(data[place : place + 1] in pieces for place in range(len(data))):
        return True
    longest = max(map(len, pieces), default=0)
    reached = [True] + [False] * len(data)
    for end in range(1, len(data) + 1):
        starts = range(max(0, end - longest), end)
        reached[end] = any(reached[start] and data[start:end] in pieces for start in starts)
    return reached[-1]


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
        self._plain: list[bytes] = []  # the bytes of every id, none of a special one
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
        bans = [name for name in ("allowed_ids", "banned_ids") if getattr(params, name)]
        permitted = self._permitted(params) if bans else None
        if permitted is not None:
            self._check_ends(key, permitted, bans)
        if key[0] == "choices":
            self._check_spelling(key[1], permitted, bans)

    def _permitted(self, params: SamplingParams) -> Mask:
        """The tokens that the bans leave."""
        permitted = np.full(self._vocab_size, params.allowed_ids is None)
        permitted[list(params.allowed_ids or ())] = True
        permitted[list(params.banned_ids)] = False
        return permitted

    def _check_ends(self, key: Key, permitted: Mask, bans: Sequence[str]) -> None:
        """Refuse bans with which the language has no end or no beginning."""
        if not permitted[self._eos_ids].any():
            message = f"`{key[0]}` ends a run by the end-of-sequence token, which {_either(bans)} takes away"
            raise BadRequest(message, param=key[0])
        if not (self.mask(key, ()) & permitted).any():
            raise self.dead_end(key, (), bans)

    def _check_spelling(self, choices: Sequence[str], permitted: Mask | None, bans: Sequence[str]) -> None:
        """Refuse a choice that no tokens spell."""
        self._tokens()
        left = self._plain if permitted is None else compress(self._plain, permitted)
        pieces = frozenset(left)
        for choice in choices:
            if not _is_spelled(choice.encode(), pieces):
                without = f" without the tokens that {_either(bans)} takes away" if bans else ""
                raise cannot("choices", f"this vocabulary cannot spell {choice[:SHOWN]!r}{without}")

    def dead_end(self, key: Key, generated: Sequence[int], others: Sequence[str] = ()) -> BadRequest:
        """Nothing may follow these ids: by the constraint alone, or by it and these other fields together."""
        names = " and ".join(f"`{name}`" for name in (key[0], *others))
        leave = "leave" if others else "leaves"
        return BadRequest(f"{names} {leave} no token {self._place(generated)}", param=key[0])

    def _place(self, generated: Sequence[int]) -> str:
        """Where a run stands, for a sentence."""
        if not generated:
            return "to begin with"
        text = b"".join(self._vocabulary.token(token).bytes for token in generated).decode(errors="replace")
        shown = text if len(text) <= SHOWN else f"…{text[-SHOWN:]}"
        return f"that may follow {shown!r} ({len(generated)} token{'s' * (len(generated) > 1)})"

    def mask(self, key: Key, generated: Sequence[int]) -> Mask:
        """Which tokens may follow the ids generated so far."""
        ids = tuple(generated)
        matcher = self._recall(key, ids) or self._derive(key, ids)
        mask = self._mask(matcher, key, ids)
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
        if matcher.is_error() and not is_dead_end(matcher):
            raise self._too_large(matcher, key, ids)
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
        matcher = compiled(key, self._tokens())
        # The first mask is where a grammar that is too large shows itself: here, and not between two steps of others.
        if not self._mask(matcher.deep_copy(), key, ()).any():
            why = "this vocabulary has no token to begin it with" if has_text(key) else "no text fits it"
            raise cannot(key[0], why)
        return matcher

    def _mask(self, matcher: LLMatcher, key: Key, ids: Sequence[int]) -> Mask:
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if is_dead_end(matcher):
            return np.zeros(self._vocab_size, np.bool_)
        if matcher.is_error():
            raise self._too_large(matcher, key, ids)
        return np.unpackbits(bits, count=self._vocab_size, bitorder="little").astype(np.bool_)

    def _too_large(self, matcher: LLMatcher, key: Key, ids: Sequence[int]) -> BadRequest:
        place = f", for a token {self._place(ids)}" if ids else ""
        return BadRequest(f"`{key[0]}` became too large to follow{place}: {reason(matcher)}", param=key[0])

    def _tokens(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        with self._lock:
            if self._tokenizer is None:
                wrapper: Any = _Tokens(self._vocabulary, self._vocab_size, self._eos_ids)
                specials = frozenset(wrapper.special_token_ids)
                self._plain = [b"" if token in specials else data for token, data in enumerate(wrapper.tokens)]
                self._tokenizer = LLTokenizer(wrapper, n_vocab=self._vocab_size, eos_token=self._eos_ids)
            return self._tokenizer

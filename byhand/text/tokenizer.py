"""The checkpoint's tokenizer: text to ids and back, and what every single id is.

A tokenizer.json is taken as it stands, its post-processor (which puts `<s>` first) and its normalizer
included: it is what the model was trained with, whatever class another program would rebuild from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import tokenizers

from byhand.errors import ByhandError, CheckpointError, PromptError
from byhand.text.files import TokenizerFiles
from byhand.text.length import Reach, longest_piece, part_state, parts_of, reach_of
from byhand.text.loading import guarded, load_backend
from byhand.text.spelling import Spelling, spelling_of
from byhand.types import Token

LONG = 1000  # characters that a piece of a vocabulary hardly has, so that the vocabulary need not be asked


class Tokenizer:
    """Text to ids and back. `special_tokens` are the named ones: {"bos_token": "<s>", ...}."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str] | None = None,
        *,
        bos_id: int | None = None,
        eos_ids: Iterable[int] = (),
        extra_special: Iterable[str] = (),
    ) -> None:
        self._backend = backend
        self._lock = Lock()
        self._copies: dict[bool, tokenizers.Tokenizer] = {}
        self._tokens: dict[int, Token] = {}
        self.special_tokens = dict(special_tokens or {})
        self.bos_id = self._id_named("bos_token") if bos_id is None else bos_id
        self.eos_ids = frozenset(eos_ids) | self._ids_of([self.special_tokens.get("eos_token")])
        self.special_ids = self._special_ids(extra_special)
        self.spelling: Spelling = spelling_of(part_state(backend.decoder), backend.decoder)

    @classmethod
    def open(cls, folder: str | Path) -> Tokenizer:
        """Open the tokenizer of a checkpoint's folder."""
        files = TokenizerFiles.read(Path(folder))
        backend, named = load_backend(files)
        # A file that says null means none; only a file that says nothing leaves it to config.json.
        from_config = () if "bos_token" in named else files.token_ids("bos_token_id")
        return cls(
            backend,
            {name: text for name, text in named.items() if text},
            bos_id=min(from_config, default=None),
            eos_ids=files.token_ids("eos_token_id"),
            extra_special=files.extra_tokens(),
        )

    # What the vocabulary is.

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id the tokenizer knows; the model's own may be larger."""
        added = max(self._backend.get_added_tokens_decoder(), default=-1)
        return max(self._backend.get_vocab_size(with_added_tokens=False), added + 1)

    def piece(self, token_id: int) -> str | None:
        """The vocabulary's own spelling of an id ("Ġred"), None where it has none."""
        return self._backend.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None

    def name_of(self, token_id: int) -> str:
        """What to call an id: its spelling in the vocabulary, or its number where the tokenizer lacks it."""
        piece = self.piece(token_id)
        return f"<id {token_id}>" if piece is None else piece

    def token(self, token_id: int) -> Token:
        """One id as a Token: its own text and true bytes, both empty where the tokenizer lacks it."""
        token = self._tokens.get(token_id)
        if token is None:
            token = self._tokens[token_id] = self._make_token(token_id)
        return token

    def tokens(self, ids: Iterable[int]) -> list[Token]:
        """Several of them: those of a step are looked up together."""
        known = self._tokens
        return [known.get(token_id) or self.token(token_id) for token_id in ids]

    # Text to ids.

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of a text, with the start-of-sequence token where the checkpoint's tokenizer puts one.

        parse_special=False reads "</s>" in the text as four characters, not as the token.
        """
        return self._encode(self._backend, text, add_special_tokens, parse_special)

    def encode_continuation(self, text: str, *, parse_special: bool = True) -> list[int]:
        """The ids of text that goes on after other text: no token in front, no space invented."""
        return self._encode(self._continuing, text, False, parse_special)

    def fewest_tokens(self, text: str) -> int:
        """How many tokens a text has at least, without encoding it; 0 where this tokenizer lets nothing be said."""
        return self._reach.fewest(text) if self._reach else 0

    def one_token(self, text: str) -> int:
        """The id whose own text is exactly this; a special token goes by its name."""
        _check_text(text)
        if len(text) > LONG and len(text) > (longest := longest_piece(self._backend)):
            message = f"a text of {len(text)} characters is no token; the longest of this vocabulary has {longest}"
            raise PromptError(message, param="token")
        token_id = self._exact(text)
        if token_id is not None:
            return token_id
        ids = self.encode_continuation(text)
        if len(ids) == 1 and self.token(ids[0]).text == text:
            return ids[0]
        raise PromptError(self._not_one_token(text, ids), param="token", hint=self._one_token_hint(text))

    def doubled_bos(self, ids: Sequence[int]) -> str | None:
        """A warning where ids begin with two start-of-sequence tokens, which a model rarely saw; else None."""
        if self.bos_id is None or len(ids) < 2 or ids[0] != self.bos_id or ids[1] != self.bos_id:
            return None
        name = self.name_of(self.bos_id)
        return (
            f"the prompt begins with two start-of-sequence tokens ({name}): the tokenizer puts one before a text, "
            f"so the text should not begin with {name} itself"
        )

    # Ids to text.

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; ids that the tokenizer lacks have none."""
        skipped = self.special_ids if skip_special_tokens else frozenset[int]()
        known = [token_id for token_id in ids if 0 <= token_id < self.vocab_size and token_id not in skipped]
        [text] = self._backend.decode_batch([known], skip_special_tokens=False)  # lets go of the GIL, as encoding does
        return text

    # Inside.

    def _encode(
        self, backend: tokenizers.Tokenizer, text: str, add_special_tokens: bool, parse_special: bool
    ) -> list[int]:
        _check_text(text)
        if not parse_special and self._marked_ids.intersection(_encoded(backend, text, False)):
            backend = self._spelling_out(backend)
        return _encoded(backend, text, add_special_tokens)

    @cached_property
    def _marked_ids(self) -> frozenset[int]:
        """The ids that are found in a text by their names before it is cut into words, and are special."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @cached_property
    def _reach(self) -> Reach | None:
        return reach_of(self._backend)

    def _spelling_out(self, backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
        """The same tokenizer, to which the names of special tokens are text.

        A copy: other threads would see the switch of the one that they use, or wait until it is switched back.
        """
        with self._lock:
            is_plain = backend is self._backend
            if is_plain not in self._copies:
                self._copies[is_plain] = tokenizers.Tokenizer.from_str(backend.to_str())
                self._copies[is_plain].encode_special_tokens = True
            return self._copies[is_plain]

    @cached_property
    def _continuing(self) -> tokenizers.Tokenizer:
        """The same tokenizer without the space that it would put in front of a text."""
        parts = (self._backend.normalizer, self._backend.pre_tokenizer)
        if not any(_puts_space(part_state(part)) for part in parts):
            return self._backend
        whole = json.loads(self._backend.to_str())
        whole["normalizer"] = _without_space(whole["normalizer"])
        whole["pre_tokenizer"] = _without_space(whole["pre_tokenizer"])
        return tokenizers.Tokenizer.from_str(json.dumps(whole))

    def _make_token(self, token_id: int) -> Token:
        piece = self.piece(token_id)
        if piece is None:
            return Token(token_id, "", b"")
        if token_id in self.special_ids:
            return Token(token_id, piece, piece.encode(), special=True)
        data = self.spelling.bytes_of(piece)
        return Token(token_id, data.decode(errors="replace"), data)

    def _exact(self, text: str) -> int | None:
        """The id of the piece that spells this text, or of the special token of this name."""
        for piece in [*self.spelling.pieces_of(text), text]:
            token_id = self._backend.token_to_id(piece)
            if token_id is not None and self.token(token_id).text == text:
                return token_id
        return None

    def _not_one_token(self, text: str, ids: list[int]) -> str:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        pieces = [repr(self.token(token_id).text) for token_id in ids[:20]] + ["..."] * (len(ids) > 20)
        if len(ids) == 1:
            return f"{shown!r} is no token of this vocabulary, which reads it as {pieces[0]}"
        return f"{shown!r} is {len(ids)} tokens, not one" + (f": {', '.join(pieces)}" if pieces else "")

    def _one_token_hint(self, text: str) -> str | None:
        other = text[1:] if text.startswith(" ") else f" {text}"
        if not text or not other or self._exact(other) is None:
            return None
        return f"{other!r}, {'without' if text.startswith(' ') else 'with'} a space before it, is one"

    def _id_named(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self._backend.token_to_id(text)

    def _ids_of(self, texts: Iterable[str | None]) -> frozenset[int]:
        ids = (self._backend.token_to_id(text) for text in texts if text)
        return frozenset(token_id for token_id in ids if token_id is not None)

    def _special_ids(self, extra: Iterable[str]) -> frozenset[int]:
        return self._marked_ids | self._ids_of(self.special_tokens.values()) | self._ids_of(extra)


def _encoded(backend: tokenizers.Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    """The ids of a text. A batch lets go of the GIL while it is encoded, a text alone does not."""
    [encoding] = guarded(
        # The fast way has no offsets, which nobody here asks for.
        lambda: backend.encode_batch_fast([text], add_special_tokens=add_special_tokens),
        _refuse_to_encode,
    )
    return encoding.ids


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise PromptError(f"text is expected, not {type(text).__name__}", param="prompt")
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise PromptError(
            f"character {problem.start} of the text is {text[problem.start]!a}, half of a pair: no Unicode text has it",
            param="prompt",
        ) from None


def _refuse_to_encode(reason: str) -> ByhandError:
    return CheckpointError(f"the checkpoint's tokenizer fails on this text: {reason}")


def _puts_space(state: Mapping[str, Any] | None) -> bool:
    """True where this normalizer or pre-tokenizer puts a space before a text."""
    if state is None:
        return False
    if state["type"] == "Prepend" or state.get("add_prefix_space") is True:
        return True
    return state.get("prepend_scheme", "never") != "never" or any(_puts_space(part) for part in parts_of(state))


def _without_space(state: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same part without the space it puts first; None where nothing is left."""
    if state is None or state["type"] == "Prepend":
        return None
    kept = [part for part in map(_without_space, parts_of(state)) if part is not None]
    changes: dict[str, Any] = {key: kept for key in ("normalizers", "pretokenizers") if key in state}
    if "prepend_scheme" in state:
        changes["prepend_scheme"] = "never"
    if "add_prefix_space" in state:
        changes["add_prefix_space"] = False
    return state | changes

"""`Texts`: an opened model's texts and ids: encoded, checked against what it has and how much it reads."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from byhand.errors import PromptError, PromptTooLong
from byhand.opened import Opened
from byhand.prompts import TEXT_OR_IDS, Messages, Prompt, as_messages, check_token_ids
from byhand.text import ChatTemplate
from byhand.types import Token


class Texts(Opened):
    """What an opened model makes of texts and ids, before anything is run. `LLM` is one."""

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt: text gets the start-of-sequence token as the checkpoint's tokenizer adds it; ids stay."""
        return self._encode(prompt, "prompt")

    def _encode(self, prompt: Prompt, param: str) -> list[int]:
        if isinstance(prompt, str):
            self.check_fits(prompt, param)
            ids = self.check_ids(self.tokenizer.encode(prompt), param)
            self._warn_doubled_start(ids)
        else:
            if isinstance(prompt, Sequence):
                self.check_length(len(prompt), param)
            ids = self.check_ids(prompt, param, TEXT_OR_IDS)
        if not ids:
            raise PromptError(f"{_named(param)} is empty: it has no token at all", param=param)
        self.check_length(len(ids), param)
        return ids

    def encode_rendered(self, text: str) -> list[int]:
        """Ids of what a chat template has made: it wrote its own start-of-sequence token, so none is added."""
        self.check_fits(text)
        return self.encode(self.tokenizer.encode(text, add_special_tokens=False))

    def check_fits(self, text: str, param: str = "prompt") -> None:
        """Refuse a text that is too long however it is cut into tokens: its length tells, and it is not encoded."""
        if len(text) > self.context_length:
            fewest = self.tokenizer.fewest_tokens(text)
            self.check_length(fewest, param, f"{len(text)} characters, which are {fewest} tokens or more")

    def check_length(self, tokens: int, param: str = "prompt", told: str = "") -> None:
        """Refuse more tokens than the context has room for."""
        if tokens > self.context_length:
            told = told or f"{tokens} tokens"
            raise PromptTooLong(f"{_named(param)} has {told}; {self.context.told}", param=param, hint=self.context.hint)

    def check_ids(self, ids: object, param: str, must: str = "a list of token ids") -> list[int]:
        """Ids as a plain list; refused where the model does not have them."""
        return check_token_ids(ids, self.vocab_size, param, must, self.tokenizer)

    def continuation_ids(self, text: Prompt, param: str = "text") -> list[int]:
        """Ids of text (or ids) that goes on after other text."""
        if not isinstance(text, str):
            return self.check_ids(text, param, TEXT_OR_IDS)
        self.check_fits(text, param)
        return self.check_ids(self.tokenizer.encode_continuation(text), param)

    def token_id(self, token: int | str, param: str) -> int:
        """An id, or that of a text which is exactly one token."""
        return self.check_ids([self.tokenizer.one_token(token) if isinstance(token, str) else token], param)[0]

    def _warn_doubled_start(self, ids: list[int]) -> None:
        warning = self.tokenizer.doubled_bos(ids)
        if warning:
            warnings.warn(warning, stacklevel=5)

    def tokenize(self, text: str) -> list[Token]:
        """The tokens of a text, the start-of-sequence token included."""
        ids = self.tokenizer.encode(text)
        self._warn_doubled_start(ids)
        return [self.tokenizer.token(token) for token in ids]

    def detokenize(self, ids: Prompt) -> str:
        """The text of ids, special tokens left out."""
        return self.tokenizer.decode(self.check_ids(ids, "ids"))

    @cached_property
    def template(self) -> ChatTemplate:
        """The checkpoint's chat template, opened when it is first asked for."""
        return ChatTemplate.open(self.checkpoint.folder, self.tokenizer)

    def render_chat(self, messages: Messages, **values: Any) -> str:
        """The prompt text that the checkpoint's chat template makes of messages; a text is one of the user's."""
        return self.template.render(as_messages(messages), **values)

    def chat_ids(self, messages: Messages, **values: Any) -> list[int]:
        """The same as ids."""
        return self.encode_rendered(self.render_chat(messages, **values))


def _named(param: str) -> str:
    return f"`{param}`" if "[" in param else f"the {param}"

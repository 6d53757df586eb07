"""Long texts: what cannot fit is refused before it is encoded, and nobody else waits while one is handled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from byhand import LLM
from byhand.errors import PromptTooLong

LONG = "the cat and the dog " * 195_000  # nearly 4 MB


class Deaf:
    """A tokenizer's backend that can be asked anything, but must not be given a text."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        assert not name.startswith("encode"), "a text that cannot fit was encoded"
        return getattr(self._backend, name)


def insert(llm: LLM, text: str) -> None:
    llm.start([1, 2, 3]).insert(text)


WAYS: list[Callable[[LLM, str], Any]] = [
    LLM.encode,
    LLM.generate,
    LLM.start,
    LLM.read,
    LLM.score,
    lambda llm, text: llm.generate(["a", text]),
    lambda llm, text: next(llm.stream(text)),
    lambda llm, text: llm.chat([{"role": "user", "content": text}]),
    insert,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded(
    embedded: LLM, monkeypatch: pytest.MonkeyPatch, way: Callable[[LLM, str], Any]
) -> None:
    embedded.encode("a")
    if way is not WAYS[5]:
        monkeypatch.setattr(embedded.tokenizer, "_backend", Deaf(embedded.tokenizer._backend))
    with pytest.raises(PromptTooLong, match=r"has 3900\d\d\d characters, which are \d+ tokens or more; this model"):
        way(embedded, LONG)
    assert embedded.engine.pages_in_use == 0


def test_ids_that_cannot_fit_are_counted_before_they_are_looked_at(embedded: LLM) -> None:
    with pytest.raises(PromptTooLong, match="has 3000 tokens"):
        embedded.encode(["no id"] * 3000)  # type: ignore[list-item]

"""Breakpoints: what an interactive request looks out for, before a token is taken and after. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from byhand.sampling.chain import Choice
    from byhand.types import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakpoint:
    """Pause when any of these comes true; None does not look.

    Before a token is taken, and it is not taken then: the next token is `token`; the entropy (nats) or the probability
    of all end-of-sequence ids together (raw) is at least the bound; the best token leads by at most `margin` (nats).
    After a token: the run's text since the start of the prompt's continuation holds `text`, as it did not before.
    """

    token: int | None = None
    text: str | None = None
    entropy: float | None = None
    end_probability: float | None = None
    margin: float | None = None

    def before(self, choice: Choice, end_probability: float) -> str | None:
        """The name of the bound that the next token meets."""
        if self.token is not None and choice.id == self.token:
            return "token"
        if self.entropy is not None and choice.entropy >= self.entropy:
            return "entropy"
        if self.end_probability is not None and end_probability >= self.end_probability:
            return "end_probability"
        if self.margin is not None and choice.margin <= self.margin:
            return "margin"
        return None

    def after(self, text: str, step: Step) -> str | None:
        """Whether the newest text completes the words that are looked for."""
        if not self.text or not step.text:
            return None
        tail = text[-(len(step.text) + len(self.text) - 1) :]
        return "text" if self.text in tail else None


def end_probability(logits: Sequence[float] | Tensor, ids: Iterable[int], choice: Choice) -> float:
    """The raw probability of some ids together; the choice's own numbers give the normalizer.

    An id that the model lacks has none.
    """
    log_normalizer = float(logits[choice.id]) - choice.logprob
    return sum(exp(float(logits[token]) - log_normalizer) for token in ids if token < len(logits))

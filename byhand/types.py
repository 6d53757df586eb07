"""The values that every room hands over: what was read, what was chosen, why it ended. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import exp, nan
from typing import Any, overload

from byhand.shown import as_dict, as_frame, as_html, as_repr, as_text


class FinishReason(StrEnum):
    """Why a run ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Token:
    """One entry of the vocabulary: `text` is its own piece (bytes of unfinished characters as U+FFFD)."""

    id: int
    text: str
    bytes: bytes
    special: bool = False

    def __repr__(self) -> str:
        return as_repr(self)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One possible next token.

    `logprob` (natural log) and `rank` (1 = best) are the model's own, before the sampling chain; `prob` is the
    chance after it, and `removed_by` names the stage of the chain that took the candidate out.
    """

    token: Token
    logprob: float
    rank: int
    prob: float
    removed_by: str | None = None

    def __repr__(self) -> str:
        return as_repr(self)


@dataclass(frozen=True, slots=True)
class Draw:
    """The dice of one step: `u` in [0, 1) fell into [low, high), the chosen token's share of the cumulative bar."""

    u: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ChainStage:
    """What one stage of the sampling chain did: tokens of the vocabulary still `kept`, and each top candidate's logit.

    `logits` runs parallel to `Step.top`; a removed candidate's is -inf. `setting` is the value it worked with.
    """

    name: str
    setting: str
    kept: int
    logits: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One token and everything known about it, all from the pass that made it.

    `logprob`, `rank`, `entropy` (nats), `margin` (best minus second, nats), `tail_mass` (probability outside `top`)
    are raw, before the chain. `text` is the text newly safe to show; `token.text` is the token's own piece.
    """

    index: int
    position: int
    token: Token
    text: str
    logprob: float
    rank: int
    entropy: float
    margin: float
    tail_mass: float
    top: tuple[Candidate, ...]
    chain: tuple[ChainStage, ...]
    draw: Draw | None
    forced: bool
    phase: str
    positions_computed: int
    positions_reused: int
    cache_pages: int
    seconds: float
    finish_reason: FinishReason | None = None

    def to_dict(self) -> dict[str, Any]:
        """Every field as JSON's own types, as records and `run --json` hold it."""
        return as_dict(self)

    def __repr__(self) -> str:
        return as_repr(self)

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)


@dataclass(frozen=True, slots=True)
class Position:
    """What the model predicts after the prompt's token number `position`, having read everything up to there."""

    position: int
    token: Token
    predicted: Candidate
    top: tuple[Candidate, ...]
    actual: Candidate | None
    entropy: float
    pieces: tuple[str, ...] = field(repr=False)

    @property
    def context(self) -> tuple[str, ...]:
        """The pieces read so far, this position's own included."""
        return self.pieces[: self.position + 1]

    def __repr__(self) -> str:
        return as_repr(self)

    def __str__(self) -> str:
        return f"{''.join(self.context)!r} → {self.predicted.token.text!r} ({self.predicted.prob:.1%})"


class Reading(Sequence[Position]):
    """Prompt processing made visible: the prediction after EVERY position of a prompt."""

    def __init__(self, positions: Sequence[Position], seconds: float = 0.0) -> None:
        self.positions = tuple(positions)
        self.seconds = seconds

    @property
    def ids(self) -> list[int]:
        """The prompt's token ids."""
        return [at.token.id for at in self.positions]

    @property
    def text(self) -> str:
        """The lesson's line of gibberish: all the argmaxes, joined."""
        return "".join(at.predicted.token.text for at in self.positions)

    @overload
    def __getitem__(self, index: int) -> Position: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Position]: ...
    def __getitem__(self, index: int | slice) -> Position | Sequence[Position]:
        return self.positions[index]

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Position]:
        return iter(self.positions)

    def to_dict(self) -> dict[str, Any]:
        """What `read --json` prints, less the model's name."""
        return as_dict(self)

    def to_pandas(self) -> Any:
        """A DataFrame of a row for each position, where pandas is installed."""
        return as_frame(self)

    def __repr__(self) -> str:
        return as_repr(self)

    def __str__(self) -> str:
        return "\n".join(str(at) for at in self.positions)

    def _repr_html_(self) -> str:
        return as_html(self)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted as OpenAI counts them; `cached_tokens` are the prompt's positions found in the prefix index."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished run. `ids` and `text` are what came after the prompt."""

    prompt_ids: list[int]
    ids: list[int]
    text: str
    finish_reason: FinishReason
    stop_reason: int | str | None
    steps: list[Step]
    usage: Usage

    def to_dict(self) -> dict[str, Any]:
        """What `run --json` prints, less the model's name."""
        return as_dict(self)

    def to_pandas(self) -> Any:
        """A DataFrame of a row for each token, where pandas is installed."""
        return as_frame(self)

    def __repr__(self) -> str:
        return as_repr(self)


@dataclass(frozen=True, slots=True)
class Score:
    """Log-probability (natural log) of every token given those before it; the first of all has none."""

    tokens: list[Token]
    logprobs: list[float | None]
    ranks: list[int | None]

    @property
    def total(self) -> float:
        """The sum of the log-probabilities, in nats."""
        return sum(logprob for logprob in self.logprobs if logprob is not None)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability; NaN when only one token was given."""
        counted = sum(logprob is not None for logprob in self.logprobs)
        return exp(-self.total / counted) if counted else nan

    def to_dict(self) -> dict[str, Any]:
        """Every token with its log-probability and rank; the sum and the perplexity."""
        return as_dict(self)

    def to_pandas(self) -> Any:
        """A DataFrame of a row for each token, where pandas is installed."""
        return as_frame(self)

    def __repr__(self) -> str:
        return as_repr(self)


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model made a record: the name it was opened by, its type, and a digest of what it is."""

    name: str
    model_type: str
    digest: str
    dtype: str

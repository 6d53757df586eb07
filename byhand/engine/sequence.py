"""What the engine keeps of a run: a list of ids, how many of them are computed, and the pages that hold them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

from byhand.engine.text_state import TextState
from byhand.sampling.params import SamplingParams
from byhand.types import FinishReason, Step, Token

if TYPE_CHECKING:
    import torch

    from byhand.sampling.chain import Settings
    from byhand.sampling.look import TopkLse, TopkLseKernel


@dataclass(frozen=True, slots=True)
class Work:
    """What passes cost one run: positions computed, positions that were in the cache before, wall seconds."""

    computed: int = 0
    reused: int = 0
    seconds: float = 0.0

    def plus(self, computed: int, reused: int, seconds: float) -> Work:
        """This work and one more pass; the cache before the first pass is what counts as reused."""
        return Work(self.computed + computed, self.reused if self.computed else reused, self.seconds + seconds)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run as it was, for `restore`: the lists are copies, and pages are no part of it."""

    ids: list[int]
    prompt_length: int
    settings: Settings
    choice: int
    text_state: TextState
    text: str
    cached: int
    steps: list[Step]
    step_params: list[SamplingParams]
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    error: Exception | None
    read_prompt: int | None


class RecentRows:
    """The logits of the last few tokens by their position, for whoever wants to look at them later."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._rows: dict[int, LogitsRow] = {}

    def keep(self, position: int, row: LogitsRow) -> None:
        """Keep the row that stood before `position`; the oldest goes when there are too many."""
        self._rows.pop(position, None)
        own_rows([row])
        self._rows[position] = row
        while len(self._rows) > self._count:
            del self._rows[next(iter(self._rows))]

    def find(self, position: int) -> LogitsRow | None:
        """The row, if it is still kept."""
        return self._rows.get(position)

    @property
    def positions(self) -> list[int]:
        """Where rows are kept, oldest first."""
        return list(self._rows)

    def forget(self, positions: Iterable[int]) -> None:
        """Drop the rows of tokens that are no more."""
        for position in positions:
            self._rows.pop(position, None)

    def copy(self) -> RecentRows:
        """An independent twin; the rows are shared, they never change."""
        twin = RecentRows(self._count)
        twin._rows = dict(self._rows)
        return twin


@dataclass(slots=True, eq=False)
class LogitsRow:
    """A row of logits (vocab,) float32, and what the kernel `topk_lse` found in it. The numbers never change."""

    logits: torch.Tensor
    found: TopkLse | None = None

    def topk_lse(self, k: int, kernel: TopkLseKernel) -> TopkLse | None:
        """What it says of its best k; made again where that was another number."""
        if self.found is None or len(self.found[0]) != k:
            [self.found] = kernel(self.logits[None], [k])
        return self.found


def own_rows(rows: Iterable[LogitsRow | None]) -> None:
    """Give what outlives its turn memory of its own: a row among others keeps all of them alive."""
    for row in rows:
        if row is not None and row.logits.untyped_storage().nbytes() > row.logits.nbytes:
            row.logits = row.logits.clone()


@dataclass(slots=True, eq=False)
class Sequence:
    """One run. `computed` counts the ids whose keys and values are in the cache; all else follows from it.

    Ids after the prompt that have no Step yet are the user's own: the pass that computes them makes their Steps.
    """

    ids: list[int]
    prompt_length: int
    settings: Settings  # with the seed that the dice use, drawn when the request named none
    choice: int
    text_state: TextState
    max_length: int  # ids at most: the context's, or less where a server gives less
    text: str = ""
    computed: int = 0
    cached: int = 0  # the prompt's positions that were found in the prefix index
    page_tables: list[list[int]] = field(default_factory=lambda: [[]])  # of each group of layers
    page_names: list[bytes] = field(default_factory=list)  # hashes of the full pages, in order
    last_logits: LogitsRow | None = None  # the last row's logits, not sampled yet
    work: Work = Work()  # what the passes since the last token have cost
    steps: list[Step] = field(default_factory=list)
    step_params: list[SamplingParams] = field(default_factory=list)  # the settings each step was made with
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: Exception | None = None  # what ended it with FinishReason.ERROR
    read_prompt: int | None = None  # the best so many predictions are told after every prompt position
    positions_read: int = 0  # prompt positions whose predictions have been told
    prompt_tokens: tuple[Token, ...] | None = None  # for the Positions of a watched prompt, made once
    pieces: tuple[str, ...] = ()
    recent: RecentRows | None = None

    @property
    def params(self) -> SamplingParams:
        """The settings as they were asked for."""
        return self.settings.params

    @property
    def seed(self) -> int:
        """The seed of the dice."""
        assert self.params.seed is not None
        return self.params.seed

    @property
    def generated(self) -> int:
        """Tokens after the prompt, forced and inserted ones included."""
        return len(self.ids) - self.prompt_length

    @property
    def uncomputed(self) -> int:
        """Tokens whose keys and values are not in the cache yet."""
        return len(self.ids) - self.computed

    @property
    def is_finished(self) -> bool:
        """True once a reason to end was found."""
        return self.finish_reason is not None

    def keep(self, step: Step) -> None:
        """Add a step, with the settings it was made under."""
        self.steps.append(step)
        self.step_params.append(self.settings.params)
        self.text += step.text

    @property
    def next_needed(self) -> int | None:
        """The first position whose logits are still wanted: to show, to judge an id of the user's, to choose from."""
        if self.read_prompt is not None and self.positions_read < self.prompt_length:
            return self.positions_read
        told = self.prompt_length + len(self.steps)
        if told < len(self.ids):
            return told - 1
        return None if self.last_logits is not None or self.finish_reason is not None else len(self.ids) - 1

    def snapshot(self) -> Snapshot:
        """The run as it is now."""
        return Snapshot(
            list(self.ids),
            self.prompt_length,
            self.settings,
            self.choice,
            self.text_state.copy(),
            self.text,
            self.cached,
            list(self.steps),
            list(self.step_params),
            self.finish_reason,
            self.stop_reason,
            self.error,
            self.read_prompt,
        )


def common_length(first: Iterable[int], second: Iterable[int]) -> int:
    """How many ids two lists have in common, from the first on."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))

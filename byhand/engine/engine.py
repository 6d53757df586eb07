"""The engine: one model with its cache, its sampler and its output, and what one pass over some sequences does.

Which sequences a pass computes is the scheduler's, and when it happens the loop's (`loop.py`). Prompt processing,
decoding, chunked prefill and batching are this one pass on different lists of ids.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import accumulate
from threading import RLock

import torch

from byhand.cache.kv_cache import PAGE_SIZE, KVCache
from byhand.cache.manager import KVCacheManager
from byhand.context import Context
from byhand.engine.output import OutputProcessor
from byhand.engine.runner import ModelRunner
from byhand.engine.sampler import Sampler
from byhand.engine.scheduler import Chunk, schedule
from byhand.engine.sequence import LogitsRow, Sequence, Work
from byhand.engine.text_state import TextState
from byhand.errors import without_frames
from byhand.models import Model
from byhand.sampling.chain import Choice, Settings, settled
from byhand.sampling.constraints import Grammars
from byhand.sampling.dice import fresh_seed
from byhand.sampling.params import SamplingParams
from byhand.text import Tokenizer
from byhand.types import FinishReason, Position, Step

# What a pass gives beside its last rows: a prediction in a prompt, or the Step of an id of the user's.
Output = Position | Step

# Tokens of one pass. More make better use of the processor; fewer let other runs' tokens out sooner.
MAX_BATCHED_TOKENS = 512


class Engine:
    """The one owner of a model and its cache. Every call holds the lock: kernels are not run from two threads."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        cache: KVCache,
        *,
        root: bytes,
        eos_ids: frozenset[int],
        context: Context,
        max_batched_tokens: int = MAX_BATCHED_TOKENS,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.cache = cache
        self.eos_ids = eos_ids
        self.context = context
        self.max_batched_tokens = max_batched_tokens
        self.grammars = Grammars(tokenizer, model.vocab_size, eos_ids)
        self.manager = KVCacheManager(cache, root)
        self.runner = ModelRunner(model, cache)
        self.sampler = Sampler(model, eos_ids, self.grammars)
        self.output = OutputProcessor(tokenizer, eos_ids, context)
        self.lock = RLock()
        self._retired: deque[Callable[[], None]] = deque()

    # Sequences come and go.

    def check(self, params: SamplingParams) -> Settings:
        """The settings of a request, once at its border: ids that the model has, a constraint that can be followed."""
        settings = settled(params, self.model.vocab_size)
        self.grammars.check(params)
        return settings

    def open(self, ids: list[int], settings: Settings, choice: int = 0) -> Sequence:
        """A sequence of checked ids, of which nothing is computed. A seed that nobody gave is drawn."""
        if settings.params.seed is None:
            settings = settings.seeded(fresh_seed())
        text_state = TextState(self.tokenizer, ids, settings.params.stop)
        sequence = Sequence(list(ids), len(ids), settings, choice, text_state, self.context.length)
        sequence.page_tables = [[] for _ in self.cache.groups]
        self.output.check_length(sequence)
        return sequence

    def release(self, sequence: Sequence) -> None:
        """Let go of its pages; it can still go on, recomputed from its ids."""
        with self.lock:
            self.manager.release(sequence)
            sequence.last_logits = None

    def retire(self, ending: Callable[[], None]) -> None:
        """End something later, from any thread and at any moment: the garbage collector calls this."""
        self._retired.append(ending)

    def collect(self) -> None:
        """End what lost its handle."""
        with self.lock:
            while self._retired:
                self._retired.popleft()()

    @property
    def pages_in_use(self) -> int:
        """Pages that living runs hold."""
        with self.lock:
            self.collect()
            return self.cache.in_use

    # Before a pass: pages.

    def align(self, sequences: list[Sequence]) -> list[Sequence]:
        """Those that need a pass, with all pages that are known by now; logits that are gone are computed again."""
        waiting = []
        for sequence in sequences:
            if (needed := sequence.next_needed) is not None:
                if needed < sequence.computed:
                    self.manager.truncate(sequence, needed)
                self.adopt_prefix(sequence)
                waiting.append(sequence)
        return waiting

    def adopt_prefix(self, sequence: Sequence) -> None:
        """Take the pages that are known already; those of a prompt that no pass has begun count as cached."""
        adopted = self.manager.adopt_prefix(sequence)
        if adopted and not sequence.generated and not sequence.work.computed:
            sequence.cached = min(sequence.computed, sequence.cached + adopted)

    def reserve(self, chunks: list[Chunk], victim: Callable[[Sequence], Sequence | None]) -> list[Chunk]:
        """Give each chunk its pages, oldest first; those that find none wait for another pass.

        `victim` names a sequence that must give its pages up for this one; it is computed again later from its ids.
        """
        # A chunk that no longer begins where its sequence ends is of one that gave its pages up on the way.
        return [
            chunk
            for chunk in chunks
            if chunk.start == chunk.sequence.computed and self._make_room(chunk.sequence, chunk.end, victim)
        ]

    def _make_room(self, sequence: Sequence, end: int, victim: Callable[[Sequence], Sequence | None]) -> bool:
        while not self.manager.reserve(sequence, end):
            other = victim(sequence)
            if other is None:
                return False
            self.release(other)
        return True

    # The pass.

    def forward(self, chunks: list[Chunk], *, publish: bool = True) -> torch.Tensor:
        """Compute reserved chunks: (N, hidden) float32; their full pages can be found from now on."""
        hidden = self.runner.forward(chunks)
        if publish:
            for chunk in chunks:
                self.manager.publish(chunk.sequence)
        return hidden

    def compute(self, chunks: list[Chunk], outputs: list[tuple[Sequence, Output]]) -> None:
        """One pass over reserved chunks. A prompt position that is read becomes a Position, an id of the user's a Step.

        Both are added to `outputs`; the last row is kept (`own_rows`). A sequence whose own chain fails ends alone.
        """
        hidden = self.forward(chunks)
        wanted, rows = _wanted(chunks)
        blocks = list(self.runner.blocks(len(wanted)))
        if len(blocks) > 1:  # a user's stage may ask the model itself before the last of them, where the result lies
            hidden = hidden.clone()
        for block in blocks:
            given, of = wanted[block], rows[block]
            logits = self.runner.logits(hidden if len(of) == hidden.shape[0] else hidden[of])
            for (sequence, position), row in zip(given, self.sampler.rows_of(given, logits), strict=True):
                try:
                    outputs += [(sequence, item) for item in self._use_row(sequence, position, row)]
                except Exception as error:  # noqa: BLE001 (a user's stage may raise anything; it is the run's alone)
                    self.fail(sequence, error)

    def _use_row(self, sequence: Sequence, position: int, row: LogitsRow) -> Iterator[Output]:
        """What the logits after `position` are good for."""
        if sequence.error is not None:
            return
        top, prompt_length = sequence.read_prompt, sequence.prompt_length
        if top is not None and position == sequence.positions_read < prompt_length:
            follows = sequence.ids[position + 1] if position + 1 < prompt_length else None
            yield self.output.position(sequence, position, self.sampler.look(row, top, follows))
            sequence.positions_read += 1
        if position + 1 == prompt_length + len(sequence.steps) < len(sequence.ids):
            yield self.score_given(sequence, row)
        if position + 1 == len(sequence.ids) and sequence.finish_reason is None:
            sequence.last_logits = row

    def logit_blocks(self, sequence: Sequence) -> Iterator[tuple[int, torch.Tensor]]:
        """Compute a sequence that stays unknown to others, and give all logits: (first position, (rows, vocab)).

        At most LOGITS_BLOCK numbers live at once, whatever the prompt and the vocabulary.
        """
        while sequence.uncomputed:
            with self.lock:
                planned = schedule([sequence], self.max_batched_tokens, PAGE_SIZE)
                chunks = self.reserve(planned, lambda _: None)
                if not chunks:
                    raise self.manager.out_of_pages()
                [chunk] = chunks
                # A copy: another pass may write where the result lies before the last of its rows is asked for.
                hidden = self.forward([chunk], publish=False).clone()
            for block in self.runner.blocks(chunk.rows):
                with self.lock:
                    logits = self.runner.logits(hidden[block])
                yield chunk.start + block.start, logits

    # From logits to a Step.

    def decide(self, sequence: Sequence, forced: int | None = None) -> Choice:
        """The next token of a sequence whose last logits are there; nothing changes, but a failing chain ends it."""
        assert sequence.last_logits is not None
        try:
            return self.sampler.choose(sequence, sequence.last_logits, len(sequence.ids), forced)
        except Exception as error:
            self.fail(sequence, error)
            raise

    def commit(self, sequence: Sequence, choice: Choice, started: float) -> Step:
        """Append the chosen token; a failure on the way ends the sequence, and is raised."""
        row, sequence.last_logits = sequence.last_logits, None
        assert row is not None
        try:
            step = self.output.append(sequence, choice, started)
            if sequence.recent is not None:
                sequence.recent.keep(step.position, row)
            return step
        except Exception as error:
            self.fail(sequence, error)
            raise

    def score_given(self, sequence: Sequence, row: LogitsRow) -> Step:
        """Make the Step of the first id of the user's that has none yet, from the logits that stand before it."""
        position = sequence.prompt_length + len(sequence.steps)
        step = self.output.score_given(sequence, self.sampler.choose(sequence, row, position, sequence.ids[position]))
        if sequence.recent is not None:
            sequence.recent.keep(position, row)
        return step

    def fail(self, sequence: Sequence, error: Exception) -> None:
        """End one sequence with an error and free its pages; rewind, edit, insert or set can bring it back."""
        del sequence.ids[sequence.prompt_length + len(sequence.steps) :]
        sequence.finish_reason, sequence.error = FinishReason.ERROR, without_frames(error)
        sequence.read_prompt, sequence.work = None, Work()
        self.release(sequence)


def _wanted(chunks: list[Chunk]) -> tuple[list[tuple[Sequence, int]], list[int]]:
    """The (sequence, position) of which logits are needed, and their rows in the pass."""
    wanted: list[tuple[Sequence, int]] = []
    rows: list[int] = []
    firsts = accumulate([chunk.rows for chunk in chunks], initial=0)
    for chunk, first in zip(chunks, firsts, strict=False):
        sequence, needed = chunk.sequence, chunk.sequence.next_needed
        if needed is not None:
            positions = range(max(chunk.start, needed), chunk.end)
            wanted += [(sequence, position) for position in positions]
            rows += [first + position - chunk.start for position in positions]
    return wanted, rows

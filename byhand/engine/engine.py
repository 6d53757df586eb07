"""The step: one pass over the uncomputed tokens of any number of runs, and a token chosen where a pass has ended.

Prompt processing, decoding, chunked prefill and batching are this one function on different lists; everything a user
does to a run (`operations.py`) is a change to its list of ids, after which the same step goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import accumulate
from os import getpid
from threading import RLock
from time import perf_counter

import torch

from byhand.cache.kv_cache import PAGE_SIZE, KVCache
from byhand.cache.manager import KVCacheManager
from byhand.context import Context
from byhand.engine.batch import batch_of
from byhand.engine.scheduler import Chunk, phase, schedule
from byhand.engine.sequence import LogitsRow, Sequence, Work, own_rows
from byhand.engine.text_state import TextState, Way
from byhand.errors import ByhandError, RunFinished, without_frames
from byhand.models import Model
from byhand.sampling.chain import Choice, best_wanted, choose
from byhand.sampling.constraints import Grammars
from byhand.sampling.look import look
from byhand.sampling.params import SamplingParams
from byhand.text import Tokenizer
from byhand.types import Candidate, FinishReason, Position, Step

Told = Position | Step

# Rows of one pass. More rows make better use of the processor; fewer let other runs' tokens out sooner.
MAX_ROWS = 512
# Logits of at most this many numbers are held at once (32 MiB in float32), however long the prompt.
LOGITS_BLOCK = 1 << 23


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
        max_rows: int = MAX_ROWS,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.cache = cache
        self.manager = KVCacheManager(cache, root)
        self.eos_ids = eos_ids
        self.grammars = Grammars(tokenizer, model.vocab_size, eos_ids)
        self.max_rows = max_rows
        self.context = context
        self.lock = RLock()
        self._retired: deque[Sequence] = deque()
        self._process = getpid()

    # Runs come and go.

    def open(
        self, ids: list[int], params: SamplingParams, *, seed: int, choice: int = 0, reuse: bool = True
    ) -> Sequence:
        """Make a run of checked ids. Nothing is computed yet, but pages that are known already are its own."""
        self.grammars.check(params)
        with self.lock:
            self.collect()
            text_state = TextState(self.tokenizer, ids, params.stop)
            sequence = Sequence(list(ids), len(ids), params.replace(seed=seed), choice, text_state)
            if reuse:
                self.adopt_prefix(sequence)
            self.check_length(sequence)
            return sequence

    def release(self, sequence: Sequence) -> None:
        """Let go of a run's pages; it can still go on, recomputed from its ids."""
        with self.lock:
            self.manager.release(sequence)
            sequence.last_logits = None

    def retire(self, sequence: Sequence) -> None:
        """Release a run later, from any thread and at any moment: the garbage collector calls this."""
        self._retired.append(sequence)

    def collect(self) -> None:
        """Release the runs whose handles are gone."""
        while self._retired:
            self.release(self._retired.popleft())

    @property
    def pages_in_use(self) -> int:
        """Pages that living runs hold."""
        with self.lock:
            self.collect()
            return self.cache.pool.in_use

    # The step.

    def step(self, sequences: list[Sequence]) -> list[list[Step]]:
        """One engine turn: a pass over what is uncomputed, then a token for each run whose list is computed.

        `runs` are in order of age: when pages run out, the youngest gives its own up and is computed again later.
        """
        with self.lock:
            self.collect()
            self._pass_over(sequences, sequences)
            try:
                return [[self.commit(sequence)] if self.is_ready(sequence) else [] for sequence in sequences]
            finally:
                own_rows(sequence.last_logits for sequence in sequences)

    def step_one(self, sequence: Sequence, forced: int | None = None) -> Step:
        """One token for one run, the sampler's or `forced`, however many passes it needs."""
        with self.lock:
            if sequence.is_finished:
                raise RunFinished(
                    f"the run has ended ({sequence.finish_reason}); no step can be taken",
                    hint="rewind, edit or insert to go on",
                )
            self.prefill([sequence])
            return self.commit(sequence, forced)

    def prefill(self, sequences: list[Sequence], others: Iterable[Sequence] = ()) -> None:
        """Compute the runs' lists to the end, in as many passes as it takes; no token is chosen.

        `others` give their pages up when these runs need them.
        """
        with self.lock:
            while waiting := [sequence for sequence in sequences if sequence.next_needed is not None]:
                self._pass_over(waiting, [*waiting, *others])
                own_rows(sequence.last_logits for sequence in waiting)

    def is_ready(self, sequence: Sequence) -> bool:
        """Whether a token can be chosen for it now."""
        return sequence.last_logits is not None and not sequence.is_finished

    def _pass_over(self, waiting: list[Sequence], sequences: list[Sequence]) -> None:
        """One pass; when pages run out, the youngest of `runs` gives its own up."""

        def youngest(sequence: Sequence) -> Sequence | None:
            younger = sequences[sequences.index(sequence) + 1 :]
            return next((other for other in reversed(younger) if other.pages), None)

        planned = schedule(self.align(waiting), self.max_rows, PAGE_SIZE)
        chunks = self.reserve(planned, youngest)
        if planned and not chunks:
            raise self.manager.out_of_pages()
        if chunks:
            self.compute(chunks, [])

    def align(self, sequences: list[Sequence]) -> list[Sequence]:
        """The runs that need a pass, with all pages that are known by now; logits that are gone are computed again."""
        waiting = []
        for sequence in sequences:
            if (needed := sequence.next_needed) is not None:
                self.manager.truncate(sequence, needed)
                self.adopt_prefix(sequence)
                waiting.append(sequence)
        return waiting

    def adopt_prefix(self, sequence: Sequence) -> None:
        """Take the pages that are known already; those of a prompt that no pass has begun count as cached."""
        adopted = self.manager.adopt_prefix(sequence)
        if not sequence.generated and not sequence.work.computed:
            sequence.cached = min(sequence.computed, sequence.cached + adopted)

    def reserve(self, chunks: list[Chunk], victim: Callable[[Sequence], Sequence | None]) -> list[Chunk]:
        """Give each chunk its pages, oldest run first; those that find none wait for another pass.

        `victim` names a run that must give its pages up for this one; it is computed again later from its ids.
        """
        # A chunk that no longer begins where its run ends is of one that gave its pages up on the way.
        return [chunk for chunk in chunks if chunk.start == chunk.sequence.computed and self._make_room(chunk, victim)]

    def _make_room(self, chunk: Chunk, victim: Callable[[Sequence], Sequence | None]) -> bool:
        while not self.manager.try_reserve(chunk.sequence, chunk.end):
            other = victim(chunk.sequence)
            if other is None:
                return False
            self.release(other)
        return True

    def compute(self, chunks: list[Chunk], told: list[tuple[Sequence, Told]]) -> None:
        """One pass over reserved chunks. A watched prompt position becomes a Position, an id of the user's a Step.

        Both are added to `told`; the last row is kept (`own_rows`). A run whose own chain fails on the way ends alone.
        """
        hidden = self.forward(chunks)
        firsts = accumulate((chunk.rows for chunk in chunks), initial=0)
        wanted = [
            (chunk.sequence, position, first + position - chunk.start)
            for chunk, first, needed in zip(
                chunks, firsts, [chunk.sequence.next_needed for chunk in chunks], strict=False
            )
            if needed is not None
            for position in range(max(chunk.start, needed), chunk.end)
        ]
        rows_at_once = max(1, LOGITS_BLOCK // self.model.vocab_size)
        for first in range(0, len(wanted), rows_at_once):
            block = wanted[first : first + rows_at_once]
            logits = self._logits(hidden if len(block) == hidden.shape[0] else hidden[[row for _, _, row in block]])
            for (sequence, position, _), row in zip(block, self._rows_of(block, logits), strict=True):
                try:
                    told += [(sequence, item) for item in self._use_row(sequence, position, row)]
                except Exception as error:  # noqa: BLE001 (a user's stage may raise anything; it is the run's alone)
                    self.fail(sequence, error)

    def _rows_of(self, block: list[tuple[Sequence, int, int]], logits: torch.Tensor) -> list[LogitsRow]:
        """The rows of logits, surveyed together, each for what it is used for first."""
        counts = [
            (position < sequence.prompt_length and sequence.read_prompt) or best_wanted(sequence.params)
            for sequence, position, _ in block
        ]
        return list(map(LogitsRow, logits.unbind(), self.model.kernels.surveys(logits, counts)))

    def _use_row(self, sequence: Sequence, position: int, row: LogitsRow) -> Iterator[Told]:
        """What the logits after `position` are good for."""
        if sequence.error is not None:
            return
        if sequence.read_prompt is not None and position == sequence.positions_read < sequence.prompt_length:
            yield self._position(sequence, position, row)
            sequence.positions_read += 1
        if position + 1 == sequence.prompt_length + len(sequence.steps) < len(sequence.ids):
            yield self.tell(sequence, row)
        if position + 1 == len(sequence.ids) and not sequence.is_finished:
            sequence.last_logits = row

    def fail(self, sequence: Sequence, error: Exception) -> None:
        """End one run with an error and free its pages; rewind, edit, insert or set can bring it back."""
        del sequence.ids[sequence.prompt_length + len(sequence.steps) :]
        sequence.finish_reason, sequence.error = FinishReason.ERROR, without_frames(error)
        sequence.read_prompt = None
        self.release(sequence)

    def forward(self, chunks: list[Chunk], *, publish: bool = True) -> torch.Tensor:
        """Run the model over reserved chunks: (N, hidden) float32, row by row in the chunks' order."""
        if getpid() != self._process:  # the kernels' threads did not come along: it would wait for them for ever
            raise ByhandError(
                "another process has opened this model", hint='open one in each: multiprocessing\'s "spawn" does'
            )
        started = perf_counter()
        with torch.inference_mode():
            hidden = self.model.forward(batch_of(chunks, self.model.device), self.cache)
        seconds = perf_counter() - started
        for chunk in chunks:
            chunk.sequence.work = chunk.sequence.work.plus(chunk.rows, chunk.start, seconds)
            chunk.sequence.computed = chunk.end
            if publish:
                self.manager.publish(chunk.sequence)
        return hidden

    def logit_blocks(self, sequence: Sequence, *, publish: bool) -> Iterator[tuple[int, torch.Tensor]]:
        """Compute a run to its end and give all logits on the way: (position of the first row, (rows, vocab)).

        At most LOGITS_BLOCK numbers live at once, whatever the prompt and the vocabulary.
        """
        rows_at_once = max(1, LOGITS_BLOCK // self.model.vocab_size)
        while sequence.uncomputed:
            with self.lock:
                chunks = self.reserve(schedule([sequence], self.max_rows, PAGE_SIZE), lambda _: None)
                if not chunks:
                    raise self.manager.out_of_pages()
                [chunk] = chunks
                # A copy: another pass may write where the result lies before the last of its rows is asked for.
                hidden = self.forward([chunk], publish=publish).clone()
            for first in range(0, chunk.rows, rows_at_once):
                yield chunk.start + first, self._logits(hidden[first : first + rows_at_once])

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        with self.lock, torch.inference_mode():
            return self.model.logits(hidden).cpu()

    # From logits to a Step.

    def choose(self, sequence: Sequence, row: LogitsRow, position: int, forced: int | None) -> Choice:
        """Apply the run's chain and dice to the logits that stand before `position`."""
        return choose(
            row.logits,
            sequence.ids if position == len(sequence.ids) else sequence.ids[:position],
            sequence.prompt_length,
            sequence.params,
            eos_ids=self.eos_ids,
            position=position,
            choice=sequence.choice,
            seed=sequence.seed,
            forced=forced,
            grammars=self.grammars,
            found=row.survey(best_wanted(sequence.params), self.model.kernels.surveys),
        )

    def decide(self, sequence: Sequence, forced: int | None = None) -> Choice:
        """The next token of a run that is ready; nothing changes, except that a chain that fails ends the run."""
        assert sequence.last_logits is not None
        try:
            return self.choose(sequence, sequence.last_logits, len(sequence.ids), forced)
        except Exception as error:
            self.fail(sequence, error)
            raise

    def commit(self, sequence: Sequence, forced: int | None = None, choice: Choice | None = None) -> Step:
        """Append the next token; a failure on the way ends the run, and is raised."""
        assert sequence.last_logits is not None
        started = perf_counter()
        choice = choice or self.decide(sequence, forced)
        try:
            sequence.ids.append(choice.id)
            text = self._read_ending(sequence, choice.id)
            step = self.make_step(
                sequence, choice, len(sequence.ids) - 1, text, sequence.work, perf_counter() - started
            )
            if sequence.recent is not None:
                sequence.recent.keep(step.position, sequence.last_logits)
        except Exception as error:
            self.fail(sequence, error)
            raise
        sequence.last_logits, sequence.work = None, Work()
        self.keep_step(sequence, step)
        return step

    def tell(self, sequence: Sequence, row: LogitsRow) -> Step:
        """Make the Step of the first id of the user's that has none yet, from the logits that stand before it."""
        position = sequence.prompt_length + len(sequence.steps)
        choice = self.choose(sequence, row, position, sequence.ids[position])
        text, _ = sequence.text_state.push(choice.id, Way.FREE)
        if sequence.recent is not None:
            sequence.recent.keep(position, row)
        step = replace(self.make_step(sequence, choice, position, text, sequence.work, 0.0), finish_reason=None)
        self.keep_step(sequence, step)
        return step

    def _position(self, sequence: Sequence, position: int, row: LogitsRow) -> Position:
        assert sequence.read_prompt is not None
        if sequence.prompt_tokens is None:
            sequence.prompt_tokens = tuple(
                self.tokenizer.token(token) for token in sequence.ids[: sequence.prompt_length]
            )
            sequence.pieces = tuple(token.text for token in sequence.prompt_tokens)
        follows = sequence.ids[position + 1] if position + 1 < sequence.prompt_length else None
        found = row.survey(sequence.read_prompt, self.model.kernels.surveys)
        [at] = look(row.logits[None], sequence.read_prompt, [follows], [found])
        best = tuple(self.candidate(*entry) for entry in at.top)
        actual = None if at.actual is None else self.candidate(*at.actual)
        return Position(position, sequence.prompt_tokens[position], best[0], best, actual, at.entropy, sequence.pieces)

    def keep_step(self, sequence: Sequence, step: Step) -> None:
        """Add a step to the run's history, with the settings it was made under."""
        sequence.steps.append(step)
        sequence.step_params.append(sequence.params)
        sequence.text += step.text

    def _read_ending(self, sequence: Sequence, token: int) -> str:
        """Turn the newest id into text, and find out whether it ends the run."""
        way = Way.PASSES if sequence.generated < sequence.params.min_tokens else Way.ENDS
        if token in sequence.params.stop_ids or (token in self.eos_ids and not sequence.params.ignore_eos):
            text, matched = sequence.text_state.end(token, way)
            sequence.finish_reason, sequence.stop_reason = FinishReason.STOP, token if matched is None else matched
            return text
        text, sequence.stop_reason = sequence.text_state.push(token, way)
        if sequence.stop_reason is not None:
            sequence.finish_reason = FinishReason.STOP
            return text
        self.check_length(sequence)
        return text + (sequence.text_state.flush() if sequence.is_finished else "")

    def longest(self, sequence: Sequence) -> int:
        """Ids that a run may have."""
        return min(self.context.length, sequence.max_length or self.context.length)

    def check_length(self, sequence: Sequence, *, only_context: bool = False) -> None:
        """End a run that has all the tokens it may have: the context's, and max_tokens unless `only_context`."""
        limit = None if only_context else sequence.params.max_tokens
        if len(sequence.ids) >= self.longest(sequence) or (limit is not None and sequence.generated >= limit):
            sequence.finish_reason = FinishReason.LENGTH

    def make_step(
        self, sequence: Sequence, choice: Choice, position: int, text: str, work: Work, seconds: float
    ) -> Step:
        """Put a choice into words: its ids become Tokens, the pass that made it stands beside it."""
        return Step(
            index=position - sequence.prompt_length,
            position=position,
            token=self.tokenizer.token(choice.id),
            text=text,
            logprob=choice.logprob,
            rank=choice.rank,
            entropy=choice.entropy,
            margin=choice.margin,
            tail_mass=choice.tail_mass,
            top=tuple([self.candidate(*entry) for entry in choice.top]),
            chain=choice.chain,
            draw=choice.draw,
            forced=choice.forced,
            phase=phase(work.computed),
            positions_computed=work.computed,
            positions_reused=work.reused,
            cache_pages=len(sequence.pages),
            seconds=work.seconds + seconds,
            finish_reason=sequence.finish_reason,
        )

    def candidate(self, token: int, logprob: float, rank: int, prob: float, removed_by: str | None = None) -> Candidate:
        """A candidate with its token looked up."""
        return Candidate(self.tokenizer.token(token), logprob, rank, prob, removed_by)

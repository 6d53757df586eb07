"""The step: one pass over the uncomputed tokens of any number of runs, and a token chosen where a pass has ended.

Prompt processing, decoding, chunked prefill and batching are this one function on different lists; everything a user
does to a run (`operations.py`) is a change to its list of ids, after which the same step goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from os import getpid
from threading import RLock
from time import perf_counter

import torch

from byhand.context import Context
from byhand.engine.batch import batch_of
from byhand.engine.output import TextState, Way
from byhand.engine.pager import Pager
from byhand.engine.scheduler import Chunk, phase, schedule
from byhand.engine.state import Line, RunState, Work, own_rows
from byhand.errors import ByhandError, RunFinished, without_frames
from byhand.kv_cache import PAGE_SIZE, KVCache
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
        self.pager = Pager(cache, root)
        self.eos_ids = eos_ids
        self.grammars = Grammars(tokenizer, model.vocab_size, eos_ids)
        self.max_rows = max_rows
        self.context = context
        self.lock = RLock()
        self._retired: deque[RunState] = deque()
        self._process = getpid()

    # Runs come and go.

    def open(
        self, ids: list[int], params: SamplingParams, *, seed: int, choice: int = 0, reuse: bool = True
    ) -> RunState:
        """Make a run of checked ids. Nothing is computed yet, but pages that are known already are its own."""
        self.grammars.check(params)
        with self.lock:
            self.collect()
            text_state = TextState(self.tokenizer, ids, params.stop)
            run = RunState(list(ids), len(ids), params.replace(seed=seed), choice, text_state)
            if reuse:
                self.pager.adopt_prefix(run)
            self.check_length(run)
            return run

    def release(self, run: RunState) -> None:
        """Let go of a run's pages; it can still go on, recomputed from its ids."""
        with self.lock:
            self.pager.release(run)
            run.kept = None

    def retire(self, run: RunState) -> None:
        """Release a run later, from any thread and at any moment: the garbage collector calls this."""
        self._retired.append(run)

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

    def step(self, runs: Sequence[RunState]) -> list[list[Step]]:
        """One engine turn: a pass over what is uncomputed, then a token for each run whose list is computed.

        `runs` are in order of age: when pages run out, the youngest gives its own up and is computed again later.
        """
        with self.lock:
            self.collect()
            self._pass_over(runs, runs)
            try:
                return [[self.commit(run)] if self.is_ready(run) else [] for run in runs]
            finally:
                own_rows(run.kept for run in runs)

    def step_one(self, run: RunState, forced: int | None = None) -> Step:
        """One token for one run, the sampler's or `forced`, however many passes it needs."""
        with self.lock:
            if run.is_finished:
                raise RunFinished(
                    f"the run has ended ({run.finish_reason}); no step can be taken",
                    hint="rewind, edit or insert to go on",
                )
            self.prefill([run])
            return self.commit(run, forced)

    def prefill(self, runs: Sequence[RunState], others: Sequence[RunState] = ()) -> None:
        """Compute the runs' lists to the end, in as many passes as it takes; no token is chosen.

        `others` give their pages up when these runs need them.
        """
        with self.lock:
            while waiting := [run for run in runs if run.next_needed is not None]:
                self._pass_over(waiting, [*waiting, *others])
                own_rows(run.kept for run in waiting)

    def is_ready(self, run: RunState) -> bool:
        """Whether a token can be chosen for it now."""
        return run.kept is not None and not run.is_finished

    def _pass_over(self, waiting: Sequence[RunState], runs: Sequence[RunState]) -> None:
        """One pass; when pages run out, the youngest of `runs` gives its own up."""

        def youngest(run: RunState) -> RunState | None:
            younger = runs[runs.index(run) + 1 :]
            return next((other for other in reversed(younger) if other.pages), None)

        planned = schedule(self.align(waiting), self.max_rows, PAGE_SIZE)
        chunks = self.reserve(planned, youngest)
        if planned and not chunks:
            raise self.pager.out_of_pages()
        if chunks:
            self.compute(chunks, [])

    def align(self, runs: Sequence[RunState]) -> list[RunState]:
        """The runs that need a pass, with all pages that are known by now; logits that are gone are computed again."""
        waiting = []
        for run in runs:
            if (needed := run.next_needed) is not None:
                self.pager.truncate(run, needed)
                self.pager.adopt_prefix(run)
                waiting.append(run)
        return waiting

    def reserve(self, chunks: Sequence[Chunk], victim: Callable[[RunState], RunState | None]) -> list[Chunk]:
        """Give each chunk its pages, oldest run first; those that find none wait for another pass.

        `victim` names a run that must give its pages up for this one; it is computed again later from its ids.
        """
        # A chunk that no longer begins where its run ends is of one that gave its pages up on the way.
        return [chunk for chunk in chunks if chunk.start == chunk.run.computed and self._make_room(chunk, victim)]

    def _make_room(self, chunk: Chunk, victim: Callable[[RunState], RunState | None]) -> bool:
        while not self.pager.try_reserve(chunk.run, chunk.end):
            other = victim(chunk.run)
            if other is None:
                return False
            self.release(other)
        return True

    def compute(self, chunks: Sequence[Chunk], told: list[tuple[RunState, Told]]) -> None:
        """One pass over reserved chunks. A watched prompt position becomes a Position, an id of the user's a Step.

        Both are added to `told`; the last row is kept (`own_rows`). A run whose own chain fails on the way ends alone.
        """
        hidden = self.forward(chunks)
        firsts = accumulate((chunk.rows for chunk in chunks), initial=0)
        wanted = [
            (chunk.run, position, first + position - chunk.start)
            for chunk, first, needed in zip(chunks, firsts, [chunk.run.next_needed for chunk in chunks], strict=False)
            if needed is not None
            for position in range(max(chunk.start, needed), chunk.end)
        ]
        rows_at_once = max(1, LOGITS_BLOCK // self.model.vocab_size)
        for first in range(0, len(wanted), rows_at_once):
            block = wanted[first : first + rows_at_once]
            logits = self._logits(hidden if len(block) == hidden.shape[0] else hidden[[row for _, _, row in block]])
            for (run, position, _), line in zip(block, self._lines(block, logits), strict=True):
                try:
                    told += [(run, item) for item in self._use_row(run, position, line)]
                except Exception as error:  # noqa: BLE001 (a user's stage may raise anything; it is the run's alone)
                    self.fail(run, error)

    def _lines(self, block: Sequence[tuple[RunState, int, int]], logits: torch.Tensor) -> list[Line]:
        """The rows of logits, surveyed together, each for what it is used for first."""
        counts = [(position < run.prompt_length and run.watch) or best_wanted(run.params) for run, position, _ in block]
        return list(map(Line, logits.unbind(), self.model.kernels.surveys(logits, counts)))

    def _use_row(self, run: RunState, position: int, line: Line) -> Iterator[Told]:
        """What the logits after `position` are good for."""
        if run.error is not None:
            return
        if run.watch is not None and position == run.watched < run.prompt_length:
            yield self._position(run, position, line)
            run.watched += 1
        if position + 1 == run.prompt_length + len(run.steps) < len(run.ids):
            yield self.tell(run, line)
        if position + 1 == len(run.ids) and not run.is_finished:
            run.kept = line

    def fail(self, run: RunState, error: Exception) -> None:
        """End one run with an error and free its pages; rewind, edit, insert or set can bring it back."""
        del run.ids[run.prompt_length + len(run.steps) :]
        run.finish_reason, run.error = FinishReason.ERROR, without_frames(error)
        run.watch = None
        self.release(run)

    def forward(self, chunks: Sequence[Chunk], *, publish: bool = True) -> torch.Tensor:
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
            chunk.run.work = chunk.run.work.plus(chunk.rows, chunk.start, seconds)
            chunk.run.computed = chunk.end
            if publish:
                self.pager.publish(chunk.run)
        return hidden

    def logit_blocks(self, run: RunState, *, publish: bool) -> Iterator[tuple[int, torch.Tensor]]:
        """Compute a run to its end and give all logits on the way: (position of the first row, (rows, vocab)).

        At most LOGITS_BLOCK numbers live at once, whatever the prompt and the vocabulary.
        """
        rows_at_once = max(1, LOGITS_BLOCK // self.model.vocab_size)
        while run.uncomputed:
            with self.lock:
                chunks = self.reserve(schedule([run], self.max_rows, PAGE_SIZE), lambda _: None)
                if not chunks:
                    raise self.pager.out_of_pages()
                [chunk] = chunks
                # A copy: another pass may write where the result lies before the last of its rows is asked for.
                hidden = self.forward([chunk], publish=publish).clone()
            for first in range(0, chunk.rows, rows_at_once):
                yield chunk.start + first, self._logits(hidden[first : first + rows_at_once])

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        with self.lock, torch.inference_mode():
            return self.model.logits(hidden).cpu()

    # From logits to a Step.

    def choose(self, run: RunState, line: Line, position: int, forced: int | None) -> Choice:
        """Apply the run's chain and dice to the logits that stand before `position`."""
        return choose(
            line.logits,
            run.ids if position == len(run.ids) else run.ids[:position],
            run.prompt_length,
            run.params,
            eos_ids=self.eos_ids,
            position=position,
            choice=run.choice,
            seed=run.seed,
            forced=forced,
            grammars=self.grammars,
            found=line.survey(best_wanted(run.params), self.model.kernels.surveys),
        )

    def decide(self, run: RunState, forced: int | None = None) -> Choice:
        """The next token of a run that is ready; nothing changes, except that a chain that fails ends the run."""
        assert run.kept is not None
        try:
            return self.choose(run, run.kept, len(run.ids), forced)
        except Exception as error:
            self.fail(run, error)
            raise

    def commit(self, run: RunState, forced: int | None = None, choice: Choice | None = None) -> Step:
        """Append the next token; a failure on the way ends the run, and is raised."""
        assert run.kept is not None
        started = perf_counter()
        choice = choice or self.decide(run, forced)
        try:
            run.ids.append(choice.id)
            text = self._read_ending(run, choice.id)
            step = self.make_step(run, choice, len(run.ids) - 1, text, run.work, perf_counter() - started)
            if run.recent is not None:
                run.recent.keep(step.position, run.kept)
        except Exception as error:
            self.fail(run, error)
            raise
        run.kept, run.work = None, Work()
        self.keep_step(run, step)
        return step

    def tell(self, run: RunState, line: Line) -> Step:
        """Make the Step of the first id of the user's that has none yet, from the logits that stand before it."""
        position = run.prompt_length + len(run.steps)
        choice = self.choose(run, line, position, run.ids[position])
        text, _ = run.text_state.push(choice.id, Way.FREE)
        if run.recent is not None:
            run.recent.keep(position, line)
        step = replace(self.make_step(run, choice, position, text, run.work, 0.0), finish_reason=None)
        self.keep_step(run, step)
        return step

    def _position(self, run: RunState, position: int, line: Line) -> Position:
        assert run.watch is not None
        if run.prompt_tokens is None:
            run.prompt_tokens = tuple(self.tokenizer.token(token) for token in run.ids[: run.prompt_length])
            run.pieces = tuple(token.text for token in run.prompt_tokens)
        follows = run.ids[position + 1] if position + 1 < run.prompt_length else None
        [row] = look(line.logits[None], run.watch, [follows], [line.survey(run.watch, self.model.kernels.surveys)])
        best = tuple(self.candidate(*entry) for entry in row.top)
        actual = None if row.actual is None else self.candidate(*row.actual)
        return Position(position, run.prompt_tokens[position], best[0], best, actual, row.entropy, run.pieces)

    def keep_step(self, run: RunState, step: Step) -> None:
        """Add a step to the run's history, with the settings it was made under."""
        run.steps.append(step)
        run.step_params.append(run.params)
        run.text += step.text

    def _read_ending(self, run: RunState, token: int) -> str:
        """Turn the newest id into text, and find out whether it ends the run."""
        way = Way.PASSES if run.generated < run.params.min_tokens else Way.ENDS
        if token in run.params.stop_ids or (token in self.eos_ids and not run.params.ignore_eos):
            text, matched = run.text_state.end(token, way)
            run.finish_reason, run.stop_reason = FinishReason.STOP, token if matched is None else matched
            return text
        text, run.stop_reason = run.text_state.push(token, way)
        if run.stop_reason is not None:
            run.finish_reason = FinishReason.STOP
            return text
        self.check_length(run)
        return text + (run.text_state.flush() if run.is_finished else "")

    def longest(self, run: RunState) -> int:
        """Ids that a run may have."""
        return min(self.context.length, run.max_length or self.context.length)

    def check_length(self, run: RunState, *, only_context: bool = False) -> None:
        """End a run that has all the tokens it may have: the context's, and max_tokens unless `only_context`."""
        limit = None if only_context else run.params.max_tokens
        if len(run.ids) >= self.longest(run) or (limit is not None and run.generated >= limit):
            run.finish_reason = FinishReason.LENGTH

    def make_step(self, run: RunState, choice: Choice, position: int, text: str, work: Work, seconds: float) -> Step:
        """Put a choice into words: its ids become Tokens, the pass that made it stands beside it."""
        return Step(
            index=position - run.prompt_length,
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
            cache_pages=len(run.pages),
            seconds=work.seconds + seconds,
            finish_reason=run.finish_reason,
        )

    def candidate(self, token: int, logprob: float, rank: int, prob: float, removed_by: str | None = None) -> Candidate:
        """A candidate with its token looked up."""
        return Candidate(self.tokenizer.token(token), logprob, rank, prob, removed_by)

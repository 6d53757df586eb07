"""The step: one pass over the uncomputed tokens of any number of runs, and a token chosen where a pass has ended.

Prompt processing, decoding, chunked prefill and batching are this one function on different lists; everything a user
does to a run (`operations.py`) is a change to its list of ids, after which the same step goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate
from threading import RLock
from time import perf_counter

import torch

from byhand.engine.pager import Pager
from byhand.engine.scheduler import Chunk, phase, schedule
from byhand.engine.state import RunState, TextState, Work
from byhand.errors import OutOfPages, RunFinished
from byhand.kv_cache import PAGE_SIZE, Batch, KVCache
from byhand.models import Model
from byhand.sampling.chain import Choice, choose
from byhand.sampling.params import SamplingParams
from byhand.text import Tokenizer
from byhand.types import Candidate, FinishReason, Step

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
        max_rows: int = MAX_ROWS,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.cache = cache
        self.pager = Pager(cache, root)
        self.eos_ids = eos_ids
        self.max_rows = max_rows
        self.context_length = model.context_length
        self.lock = RLock()
        self._retired: deque[RunState] = deque()

    # Runs come and go.

    def open(
        self, ids: list[int], params: SamplingParams, *, seed: int, choice: int = 0, reuse: bool = True
    ) -> RunState:
        """Make a run of checked ids. Nothing is computed yet, but pages that are known already are its own."""
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
            self._pass_over([run for run in runs if run.kept is None and not run.is_finished], runs)
            return [[self._commit(run)] if self._is_ready(run) else [] for run in runs]

    def step_one(self, run: RunState, forced: int | None = None) -> Step:
        """One token for one run, the sampler's or `forced`, however many passes it needs."""
        with self.lock:
            if run.is_finished:
                raise RunFinished(
                    f"the run has ended ({run.finish_reason}); no step can be taken",
                    hint="rewind, edit or insert to go on",
                )
            self.prefill([run])
            return self._commit(run, forced)

    def prefill(self, runs: Sequence[RunState], others: Sequence[RunState] = ()) -> None:
        """Compute the runs' lists to the end, in as many passes as it takes; no token is chosen.

        `others` give their pages up when these runs need them.
        """
        with self.lock:
            self.collect()
            while waiting := [run for run in runs if run.kept is None and not run.is_finished]:
                self._pass_over(waiting, [*waiting, *others])

    def _is_ready(self, run: RunState) -> bool:
        return run.kept is not None and not run.is_finished

    def _pass_over(self, waiting: Sequence[RunState], runs: Sequence[RunState]) -> None:
        """One pass over the waiting runs; those whose lists it completes keep the logits of their last row."""
        for run in waiting:
            if not run.uncomputed:
                # After a rewind all is computed but the logits are gone: the last token is computed again.
                self.pager.truncate(run, len(run.ids) - 1)
        chunks = self._reserve(schedule(waiting, self.max_rows), runs)
        if not chunks:
            return
        hidden = self.forward(chunks)
        ends = accumulate(chunk.rows for chunk in chunks)
        last = [(chunk.run, end - 1) for chunk, end in zip(chunks, ends, strict=True) if chunk.is_last]
        if last:
            logits = self._logits(hidden[[row for _, row in last]])
            for (run, _), row in zip(last, logits, strict=True):
                run.kept = row.clone()

    def _reserve(self, chunks: list[Chunk], runs: Sequence[RunState]) -> list[Chunk]:
        """Give each chunk its pages; when they run out, younger runs give theirs up and wait."""
        fitted: list[Chunk] = []
        for chunk in chunks:
            gave_up_its_pages = chunk.start != chunk.run.computed
            if not gave_up_its_pages and self._make_room(chunk, runs, spared=[other.run for other in fitted]):
                fitted.append(chunk)
        if chunks and not fitted:
            raise OutOfPages(
                f"the KV cache of {self.cache.pool.num_pages * PAGE_SIZE} tokens has no room for the next one",
                hint="open the model with a larger cache_tokens, or let go of some runs",
            )
        return fitted

    def _make_room(self, chunk: Chunk, runs: Sequence[RunState], spared: list[RunState]) -> bool:
        younger = runs[runs.index(chunk.run) + 1 :]
        while not self._try_reserve(chunk):
            victims = [run for run in younger if run.pages and run not in spared]
            if not victims:
                return False
            self.release(victims[-1])
        return True

    def _try_reserve(self, chunk: Chunk) -> bool:
        try:
            self.pager.reserve(chunk.run, chunk.end)
        except OutOfPages:
            self.pager.truncate(chunk.run, chunk.run.computed)
            return False
        return True

    def forward(self, chunks: Sequence[Chunk], *, publish: bool = True) -> torch.Tensor:
        """Run the model over reserved chunks: (N, hidden) float32, row by row in the chunks' order."""
        started = perf_counter()
        with torch.inference_mode():
            hidden = self.model.forward(self._batch(chunks), self.cache)
        seconds = perf_counter() - started
        for chunk in chunks:
            chunk.run.work = chunk.run.work.plus(chunk.rows, chunk.start, seconds)
            chunk.run.computed = chunk.end
            if publish:
                self.pager.publish(chunk.run)
        return hidden

    def _batch(self, chunks: Sequence[Chunk]) -> Batch:
        input_ids = [token for chunk in chunks for token in chunk.run.ids[chunk.start : chunk.end]]
        places = [(chunk.run.pages, position) for chunk in chunks for position in range(chunk.start, chunk.end)]
        slots = [pages[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE for pages, position in places]
        device = self.model.device
        return Batch(
            input_ids=torch.tensor(input_ids, device=device),
            position_ids=torch.tensor([position for _, position in places], device=device),
            slots=torch.tensor(slots, device=device),
            query_starts=(0, *accumulate(chunk.rows for chunk in chunks)),
            context_lens=tuple(chunk.end for chunk in chunks),
            page_tables=tuple(tuple(chunk.run.pages) for chunk in chunks),
        )

    def logit_blocks(self, run: RunState, *, publish: bool) -> Iterator[tuple[int, torch.Tensor]]:
        """Compute a run to its end and give all logits on the way: (position of the first row, (rows, vocab)).

        At most LOGITS_BLOCK numbers live at once, whatever the prompt and the vocabulary.
        """
        rows_at_once = max(1, LOGITS_BLOCK // self.model.vocab_size)
        while run.uncomputed:
            [chunk] = self._reserve(schedule([run], self.max_rows), [run])
            hidden = self.forward([chunk], publish=publish)
            for first in range(0, chunk.rows, rows_at_once):
                yield chunk.start + first, self._logits(hidden[first : first + rows_at_once])

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.model.logits(hidden).cpu()

    # From logits to a Step.

    def choose(self, run: RunState, logits: torch.Tensor, position: int, forced: int | None) -> Choice:
        """Apply the run's chain and dice to the logits that stand before `position`."""
        return choose(
            logits,
            run.ids[:position],
            run.prompt_length,
            run.params,
            eos_ids=self.stop_ids(run.params),
            position=position,
            choice=run.choice,
            seed=run.seed,
            forced=forced,
        )

    def stop_ids(self, params: SamplingParams) -> frozenset[int]:
        """The ids that end a run: the checkpoint's, unless ignored, and the request's."""
        return frozenset(params.stop_ids) | (frozenset() if params.ignore_eos else self.eos_ids)

    def _commit(self, run: RunState, forced: int | None = None) -> Step:
        assert run.kept is not None
        started = perf_counter()
        choice = self.choose(run, run.kept, len(run.ids), forced)
        run.ids.append(choice.id)
        text = self._read_ending(run, choice.id)
        step = self.make_step(run, choice, len(run.ids) - 1, text, run.work, perf_counter() - started)
        run.kept, run.work = None, Work()
        self.keep_step(run, step)
        return step

    def keep_step(self, run: RunState, step: Step) -> None:
        """Add a step to the run's history, with the settings it was made under."""
        run.steps.append(step)
        run.step_params.append(run.params)
        run.text += step.text

    def _read_ending(self, run: RunState, token: int) -> str:
        """Turn the newest id into text, and find out whether it ends the run."""
        if token in self.stop_ids(run.params):
            run.finish_reason, run.stop_reason = FinishReason.STOP, token
            return run.text_state.flush()
        if run.generated < (run.params.min_tokens or 0):
            text = run.text_state.insert(token)
        else:
            text, run.stop_reason = run.text_state.push(token)
        if run.stop_reason is not None:
            run.finish_reason = FinishReason.STOP
            return text
        self.check_length(run)
        return text + (run.text_state.flush() if run.is_finished else "")

    def check_length(self, run: RunState, *, only_context: bool = False) -> None:
        """End a run that has all the tokens it may have: the context's, and max_tokens unless `only_context`."""
        limit = None if only_context else run.params.max_tokens
        if len(run.ids) >= self.context_length or (limit is not None and run.generated >= limit):
            run.finish_reason = FinishReason.LENGTH

    def make_step(
        self, run: RunState, choice: Choice, position: int, text: str, work: Work, extra_seconds: float
    ) -> Step:
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
            top=tuple(self.candidate(*entry) for entry in choice.top),
            chain=choice.chain,
            draw=choice.draw,
            forced=choice.forced,
            phase=phase(work.computed),
            positions_computed=work.computed,
            positions_reused=work.reused,
            cache_pages=len(run.pages),
            seconds=work.seconds + extra_seconds,
            finish_reason=run.finish_reason,
        )

    def candidate(self, token: int, logprob: float, rank: int, prob: float, removed_by: str | None = None) -> Candidate:
        """A candidate with its token looked up."""
        return Candidate(self.tokenizer.token(token), logprob, rank, prob, removed_by)

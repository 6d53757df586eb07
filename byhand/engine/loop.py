"""The loop: what happens between two passes and in one. Requests come, are computed, told of, and end. No torch here.

`EngineLoop.step` is the engine's whole life, for a script, a server and a live connection alike: let requests in,
compute the chunks that the scheduler picks, take a token for each sequence whose list is computed, emit what happened.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from byhand.engine.breakpoint import end_probability
from byhand.engine.events import Event, Failed, Finished, Paused, Progress, Read, Stepped
from byhand.engine.limits import Limits
from byhand.engine.meter import Meter
from byhand.engine.request import InteractiveRequest, Request, RequestHandle
from byhand.engine.scheduler import MIXED_ROWS, Chunk, Scheduler
from byhand.engine.sequence import Sequence, own_rows
from byhand.errors import OutOfPages, TimeLimit, without_frames
from byhand.types import FinishReason, Position, Step, Usage

if TYPE_CHECKING:
    from byhand.engine.engine import Engine, Output
    from byhand.sampling.chain import Settings


class EngineLoop:
    """The requests of one engine."""

    def __init__(self, engine: Engine, limits: Limits, *, mixed_rows: int = MIXED_ROWS) -> None:
        self.engine = engine
        self.limits = limits
        self.meter = Meter()
        self._has_forked = False
        self.requests: dict[Sequence, Request] = {}
        self.pools = engine.manager.pools
        self.scheduler = Scheduler(
            self.pools, max_running=limits.running, max_rows=engine.max_batched_tokens, mixed_rows=mixed_rows
        )

    # Requests come and go.

    def open(self, ids: list[int], settings: Settings, read_prompt: int | None) -> Sequence:
        """A sequence of checked ids, as long as the limits allow; its pages come when it is let in."""
        sequence = self.engine.open(ids, settings)
        sequence.read_prompt, sequence.max_length = read_prompt, self.longest()
        self.engine.output.check_length(sequence)
        return sequence

    def longest(self) -> int:
        """Tokens that one sequence may have: the context's, the limit's, and what fits into its pages."""
        limits, pool = self.limits, self.pools[0]
        pages = min(pool.num_pages, limits.pages or pool.num_pages)
        context = self.engine.context.length
        return min(context, limits.total_tokens or context, pages * pool.page_size)

    def add(self, request: Request) -> Request:
        """Take a request in; it waits for its place, or rests where nothing is to be done for it."""
        self.requests[request.sequence] = request
        if request.is_active or not request.is_interactive:
            self.scheduler.arrive(request.sequence)
        else:
            self.scheduler.set_idle(request.sequence)
        return request

    def requests_of(self, handle: RequestHandle) -> list[Request]:
        """The choices of a handle that have not ended."""
        return [request for request in self.requests.values() if request.handle is handle]

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    def cancel(self, handle: RequestHandle, error: Exception | None = None) -> None:
        """End whatever is open of a request: with "abort", or with an error."""
        for request in self.requests_of(handle):
            if error is not None:
                self.end(request, Failed(request.choice, error))
            else:
                request.sequence.finish_reason = request.sequence.finish_reason or FinishReason.ABORT
                self.end(request, self.finished(request))
        for choice in sorted(handle.open):  # those that were never forked
            usage = Usage(0, 0)
            event = Failed(choice, error) if error else Finished(choice, FinishReason.ABORT, None, usage)
            self._close(handle, choice, event)

    def stop(self, handle: RequestHandle, choice: int) -> None:
        """End one choice before its next token, as if a stop had been found."""
        for request in [request for request in self.requests_of(handle) if request.choice == choice]:
            request.sequence.finish_reason = request.sequence.finish_reason or FinishReason.STOP
            self.end(request, self.finished(request))

    def end(self, request: Request, event: Finished | Failed) -> None:
        """The request's last event; its pages are free."""
        if self.requests.pop(request.sequence, None) is None:
            return
        self.scheduler.leave(request.sequence)
        self.engine.release(request.sequence)
        if isinstance(request, InteractiveRequest) and request.done is not None and not request.done.done():
            request.done.set_exception(event.error if isinstance(event, Failed) else RuntimeError("the run was closed"))
        self._close(request.handle, request.choice, event)

    def _close(self, handle: RequestHandle, choice: int, event: Finished | Failed) -> None:
        handle.open.discard(choice)
        self._count(event)
        if not handle.is_interactive:
            self.meter.leave()
        self.emit(handle, event)

    def _count(self, event: Finished | Failed) -> None:
        reason = event.finish_reason if isinstance(event, Finished) else FinishReason.ERROR
        self.meter.finished[reason] += 1

    def emit(self, handle: RequestHandle, event: Event) -> None:
        """Tell the listener; one that raises is told no more, and its request ends."""
        try:
            handle.listener(event)
        except Exception:  # noqa: BLE001 (the listener's fault is its own alone)
            handle.listener = _deaf
            if handle.open:
                self.cancel(handle)

    def finished(self, request: Request) -> Finished:
        """How a sequence that has ended did."""
        sequence = request.sequence
        assert sequence.finish_reason is not None
        usage = Usage(sequence.prompt_length, sequence.generated, sequence.cached)
        return Finished(request.choice, sequence.finish_reason, sequence.stop_reason, usage)

    # The step.

    def step(self) -> None:
        """One pass, at most one token for each sequence, and all that follows from it."""
        started = perf_counter()
        self._expire(started)
        self._hold_back()
        self._admit()
        computed = self._compute()
        before = self.meter.generated_tokens
        self._advance(list(self.scheduler.running))
        if self._has_forked:  # so that all choices of a prompt take their first token in the step that has computed it
            self._has_forked = False
            self._advance(self._admit())
        own_rows([chunk.sequence.last_logits for chunk in computed])
        if computed:
            prefilled = sum([chunk.rows for chunk in computed if chunk.rows > 1])
            self.meter.passed(prefilled, self.meter.generated_tokens - before, perf_counter() - started)

    def _expire(self, now: float) -> None:
        for request in list(self.requests.values()):
            if request.deadline is not None and now > request.deadline:
                request.deadline = None
                seconds = self.limits.seconds
                self.fail(request, TimeLimit(f"the run had all the {seconds:g} seconds it may have (seconds)"))

    def _hold_back(self) -> None:
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            request = self.requests[sequence]
            if request.handle.held:
                request.is_held, request.deadline = True, None if request.is_interactive else request.deadline
                self.scheduler.set_idle(sequence)

    def unhold(self, handle: RequestHandle) -> None:
        """Put what was held back into the queue again."""
        for request in self.requests_of(handle):
            if request.is_held and not handle.held:
                request.is_held = False
                if request.is_interactive:
                    request.deadline = self.deadline()
                self.scheduler.arrive(request.sequence)

    def deadline(self) -> float:
        """Until when what begins now may be computed."""
        return perf_counter() + self.limits.seconds

    def _admit(self) -> list[Sequence]:
        admitted = self.scheduler.admit(self.engine.adopt_prefix) if self.scheduler.waiting else []
        for sequence in admitted:
            request = self.requests[sequence]
            if not request.was_admitted:
                request.was_admitted = True
                sequence.cached = min(sequence.computed, sequence.prompt_length)
                self.meter.prompt_tokens += sequence.prompt_length
        return admitted

    def _compute(self) -> list[Chunk]:
        """Reserve and run one pass, and emit what its rows said."""
        planned = self.scheduler.plan(self.engine.align(self.scheduler.running))
        chunks = self.engine.reserve(planned, self.scheduler.victim)
        if planned and not chunks:
            self.fail(self.requests[planned[0].sequence], self.engine.manager.out_of_pages())
        if chunks:
            outputs: list[tuple[Sequence, Output]] = []
            self._compute_or_single_out(chunks, outputs)
            for chunk in chunks:
                if chunk.start < chunk.sequence.prompt_length:
                    self._emit_progress(chunk)
            if outputs:
                self._emit_outputs(outputs)
        return chunks

    def _compute_or_single_out(self, chunks: list[Chunk], outputs: list[tuple[Sequence, Output]]) -> None:
        """When a pass fails as a whole, run its chunks one by one: only those that fail alone end."""
        try:
            self.engine.compute(chunks, outputs)
        except Exception as error:  # noqa: BLE001 (whatever it was, the engine lives on)
            for chunk in chunks:
                self.engine.manager.truncate(chunk.sequence, chunk.start)
            if len(chunks) == 1:
                self.engine.fail(chunks[0].sequence, error)
                return
            for chunk in chunks:
                for again in self.engine.reserve([chunk], lambda _: None):
                    self._compute_or_single_out([again], outputs)

    def _emit_progress(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        if sequence.generated or sequence not in self.requests or sequence.computed < chunk.end:  # it failed
            return
        request = self.requests[sequence]
        done = min(chunk.end, sequence.prompt_length)
        if done > request.prompt_told:
            self.meter.cached_tokens += sequence.cached if request.prompt_told < 0 else 0
            request.prompt_told = done
            self.emit(request.handle, Progress(request.choice, done, sequence.prompt_length))

    def _emit_outputs(self, outputs: list[tuple[Sequence, Output]]) -> None:
        """Positions in one event for each sequence, and the Steps of what the user wrote."""
        read: dict[Sequence, list[Position]] = {}
        for sequence, item in outputs:
            if isinstance(item, Position):
                read.setdefault(sequence, []).append(item)
        for sequence, positions in read.items():
            if sequence in self.requests:
                request = self.requests[sequence]
                self.emit(request.handle, Read(request.choice, tuple(positions)))
        for sequence, item in outputs:
            if isinstance(item, Step) and sequence in self.requests:
                self.emit_given(self.requests[sequence], item)

    def emit_given(self, request: Request, step: Step) -> None:
        """Tell of the Step of an id of the user's, which an operation wrote."""
        if isinstance(request, InteractiveRequest):
            request.outputs.append(step)
        self.emit(request.handle, Stepped(request.choice, step))

    # What becomes of a request once its list is computed.

    def _advance(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            if sequence in self.requests:
                self._advance_one(self.requests[sequence])

    def _advance_one(self, request: Request) -> None:
        sequence = request.sequence
        try:
            if sequence.error is not None:
                self.fail(request, without_frames(sequence.error))
            elif sequence.next_needed is None:
                if request.followers:
                    self._fork_followers(request)
                if request.wants_token:
                    self._take(request)
                else:
                    self._leave_it(request)
        except Exception as error:  # noqa: BLE001 (a chain, a grammar, a decoder: the fault of this run alone)
            self.fail(request, error)

    def _fork_followers(self, request: Request) -> None:
        from byhand.engine import operations

        for choice in range(1, request.followers + 1):
            twin = operations.fork(self.engine, request.sequence, choice=choice)
            twin.read_prompt = None
            follower = Request(request.handle, choice, twin, request.deadline, prompt_told=request.prompt_told)
            follower.was_admitted = True
            self.requests[twin] = follower
            self.scheduler.arrive(twin, beside=request.sequence)
        request.followers, self._has_forked = 0, True

    def _take(self, request: Request) -> None:
        """One token more, unless a breakpoint says otherwise."""
        sequence, engine = request.sequence, self.engine
        started = perf_counter()
        forced, breakpoint_ = request.asked()
        choice = engine.decide(sequence, forced)
        if breakpoint_ is not None and isinstance(request, InteractiveRequest):
            assert sequence.last_logits is not None
            ending = end_probability(sequence.last_logits.logits, engine.eos_ids | {*sequence.params.stop_ids}, choice)
            why = breakpoint_.before(choice, ending)
            if why is not None:
                request.passed = len(sequence.ids)
                self.pause(request, why)
                return
        step = engine.commit(sequence, choice, started)
        self.meter.generated_tokens += 1
        why = request.took(step)
        self.emit(request.handle, Stepped(request.choice, step))
        if sequence not in self.requests:  # the listener fell silent
            return
        if sequence.finish_reason is not None:
            self._finish(request)
        elif why is not None and isinstance(request, InteractiveRequest):
            self.pause(request, why)

    def _leave_it(self, request: Request) -> None:
        """It is computed, and no token is wanted."""
        if isinstance(request, InteractiveRequest) and request.settling is not None:
            self._settled(request)
        elif request.sequence.is_finished:
            self._finish(request)
        elif isinstance(request, InteractiveRequest):
            self.set_idle(request)

    def _finish(self, request: Request) -> None:
        event = self.finished(request)
        if isinstance(request, InteractiveRequest):
            self.set_idle(request)
            self._count(event)
            self.emit(request.handle, event)
        else:
            self.end(request, event)

    def fail(self, request: Request, error: Exception) -> None:
        """End a request with an error; an interactive one rests, and an operation under way is taken back."""
        if isinstance(request, InteractiveRequest):
            self._fail_interactive(request, error)
            return
        self.engine.fail(request.sequence, error)
        if request.followers:
            self.cancel(request.handle, error)
        else:
            self.end(request, Failed(request.choice, error))

    # Interactive requests.

    def set_idle(self, request: InteractiveRequest) -> None:
        """Let it rest, with its pages."""
        request.stand_still()
        self.scheduler.set_idle(request.sequence)

    def pause(self, request: InteractiveRequest, why: str) -> None:
        """Let it rest, and say why."""
        self.set_idle(request)
        self.emit(request.handle, Paused(request.choice, why))

    def settle(self, request: InteractiveRequest, why: str) -> None:
        """Compute it to its end, then let it rest."""
        request.settle(why, self.deadline())
        self.scheduler.arrive(request.sequence)

    def _settled(self, request: InteractiveRequest) -> None:
        why, done = request.settling, request.done
        assert why is not None
        request.settling = request.before = request.done = None
        if done is not None:
            request.passed = None  # where it paused before, it came by another way
            self.set_idle(request)
            done.set_result(request.outputs)
        elif request.sequence.is_finished:
            self._finish(request)
        else:
            self.pause(request, why)

    def _fail_interactive(self, request: InteractiveRequest, error: Exception) -> None:
        self.set_idle(request)
        before, done = request.before, request.done
        request.settling = request.before = request.done = None
        if before is None:
            if not isinstance(error, TimeLimit | OutOfPages):
                self.engine.fail(request.sequence, error)
            self.engine.release(request.sequence)
            self._count(Failed(request.choice, error))
            self.emit(request.handle, Failed(request.choice, error))
        else:
            from byhand.engine import operations

            operations.restore(self.engine, request.sequence, before)
            if request.history:
                request.history.pop()
        if done is not None:
            done.set_exception(error)


def _deaf(_: Event) -> None:
    """Hears nothing: the listener raised once."""

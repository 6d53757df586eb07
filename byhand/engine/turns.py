"""What happens between two passes and in one: jobs come, are computed, told of, and end. No thread and no torch here.

`Turns.turn` is the engine's whole life: let runs in, compute the chunks that the scheduler picks, take a token for
each run whose list is computed, and tell everybody what happened.
"""

from __future__ import annotations

from math import inf
from time import perf_counter
from typing import TYPE_CHECKING

from byhand.engine.events import Event, Failed, Finished, Paused, Progress, Read, Stepped
from byhand.engine.jobs import Job, Ticket
from byhand.engine.limits import Limits
from byhand.engine.meter import Meter
from byhand.engine.scheduler import MIXED_ROWS, Chunk, Scheduler
from byhand.engine.state import RunState, own_rows
from byhand.engine.until import end_probability
from byhand.errors import OutOfPages, TimeLimit, without_frames
from byhand.types import FinishReason, Position, Step, Usage

if TYPE_CHECKING:
    from byhand.engine.engine import Engine, Told
    from byhand.sampling.params import SamplingParams


class Turns:
    """The jobs of one engine."""

    def __init__(self, engine: Engine, limits: Limits, *, mixed_rows: int = MIXED_ROWS) -> None:
        self.engine = engine
        self.limits = limits
        self.meter = Meter()
        self.jobs: dict[RunState, Job] = {}
        self.pool = engine.cache.pool
        self.scheduler = Scheduler(
            self.pool, max_running=limits.running, max_rows=engine.max_rows, mixed_rows=mixed_rows
        )

    # Jobs come and go.

    def open(self, ids: list[int], params: SamplingParams, seed: int, watch: int | None) -> RunState:
        """A run of checked ids; its pages come when it is let in."""
        run = self.engine.open(ids, params, seed=seed, reuse=False)
        run.watch, run.max_length = watch, self.longest()
        self.engine.check_length(run)
        return run

    def longest(self) -> int:
        """Tokens that one run may have: the context's, the limit's, and what fits into its pages."""
        limits, page = self.limits, self.pool.page_size
        pages = min(self.pool.num_pages, limits.pages or self.pool.num_pages)
        context = self.engine.context.length
        return min(context, limits.total_tokens or context, pages * page)

    def add(self, job: Job) -> Job:
        """Take a job in; it waits for its place."""
        self.jobs[job.run] = job
        if job.is_active or not job.is_steered:
            self.scheduler.arrive(job.run)
        else:
            self.scheduler.rest(job.run)
        return job

    def jobs_of(self, ticket: Ticket) -> list[Job]:
        """The jobs of a ticket that have not ended."""
        return [job for job in self.jobs.values() if job.ticket is ticket]

    @property
    def has_work(self) -> bool:
        """Whether a turn would do anything."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    def cancel(self, ticket: Ticket, error: Exception | None = None) -> None:
        """End whatever is open of a ticket: with "abort", or with an error."""
        for job in self.jobs_of(ticket):
            if error is not None:
                self.end(job, Failed(job.choice, error))
            else:
                job.run.finish_reason = job.run.finish_reason or FinishReason.ABORT
                self.end(job, self.finished(job))
        for choice in sorted(ticket.open):  # those that were never forked
            usage = Usage(0, 0)
            event = Failed(choice, error) if error else Finished(choice, FinishReason.ABORT, None, usage)
            self._close(ticket, choice, event)

    def stop(self, ticket: Ticket, choice: int) -> None:
        """End one choice before its next token, as if a stop had been found."""
        for job in [job for job in self.jobs_of(ticket) if job.choice == choice]:
            job.run.finish_reason = job.run.finish_reason or FinishReason.STOP
            self.end(job, self.finished(job))

    def end(self, job: Job, event: Finished | Failed) -> None:
        """The job's last event; its pages are free."""
        if self.jobs.pop(job.run, None) is None:
            return
        self.scheduler.leave(job.run)
        self.engine.release(job.run)
        if job.done is not None and not job.done.done():
            job.done.set_exception(event.error if isinstance(event, Failed) else RuntimeError("the run was closed"))
        self._close(job.ticket, job.choice, event)

    def _close(self, ticket: Ticket, choice: int, event: Finished | Failed) -> None:
        ticket.open.discard(choice)
        self._count(event)
        if not ticket.is_steered:
            self.meter.leave()
        self.emit(ticket, event)

    def _count(self, event: Finished | Failed) -> None:
        reason = event.finish_reason if isinstance(event, Finished) else FinishReason.ERROR
        self.meter.finished[reason] += 1

    def emit(self, ticket: Ticket, event: Event) -> None:
        """Tell the listener; one that raises is told no more, and its runs end."""
        try:
            ticket.listener(event)
        except Exception:  # noqa: BLE001 (the listener's fault is its own alone)
            ticket.listener = _deaf
            if ticket.open:
                self.cancel(ticket)

    def finished(self, job: Job) -> Finished:
        """How a run that has ended did."""
        run = job.run
        assert run.finish_reason is not None
        usage = Usage(run.prompt_length, run.generated, run.cached)
        return Finished(job.choice, run.finish_reason, run.stop_reason, usage)

    # The turn.

    def turn(self) -> None:
        """One pass, at most one token for each run, and all that follows from it."""
        started = perf_counter()
        self._expire(started)
        self._hold_back()
        self._let_in()
        computed = self._compute()
        before = self.meter.generated_tokens
        for run in list(self.scheduler.running):
            if run in self.jobs:
                self._advance(self.jobs[run])
        own_rows(chunk.run.kept for chunk in computed)
        prefilled = sum(chunk.rows for chunk in computed if chunk.rows > 1)
        if computed:
            self.meter.passed(prefilled, self.meter.generated_tokens - before, perf_counter() - started)

    def _expire(self, now: float) -> None:
        for job in list(self.jobs.values()):
            if job.deadline is not None and now > job.deadline:
                job.deadline = None
                seconds = self.limits.seconds
                self.fail(job, TimeLimit(f"the run had all the {seconds:g} seconds it may have (seconds)"))

    def _hold_back(self) -> None:
        for run in [*self.scheduler.running, *self.scheduler.waiting]:
            job = self.jobs[run]
            if job.ticket.held:
                job.is_held, job.deadline = True, None if job.is_steered else job.deadline
                self.scheduler.rest(run)

    def unhold(self, ticket: Ticket) -> None:
        """Put what was held back into the queue again."""
        for job in self.jobs_of(ticket):
            if job.is_held and not ticket.held:
                job.is_held = False
                if job.is_steered:
                    job.deadline = perf_counter() + self.limits.seconds
                self.scheduler.arrive(job.run)

    def _let_in(self) -> None:
        for run in self.scheduler.admit(self.engine.pager.adopt_prefix):
            job = self.jobs[run]
            if not job.was_admitted:
                job.was_admitted = True
                run.cached = min(run.computed, run.prompt_length)
                self.meter.prompt_tokens += run.prompt_length

    def _compute(self) -> list[Chunk]:
        """Reserve and run one pass, and tell what its rows said."""
        planned = self.scheduler.plan(self.engine.align(self.scheduler.running))
        chunks = self.engine.reserve(planned, self.scheduler.victim)
        if planned and not chunks:
            self.fail(self.jobs[planned[0].run], self.engine.pager.out_of_pages())
        told: list[tuple[RunState, Told]] = []
        if chunks:
            self._compute_or_single_out(chunks, told)
        for chunk in chunks:
            self._tell_progress(chunk)
        self._tell(told)
        return chunks

    def _compute_or_single_out(self, chunks: list[Chunk], told: list[tuple[RunState, Told]]) -> None:
        """When a pass fails as a whole, run its chunks one by one: only those that fail alone end."""
        try:
            self.engine.compute(chunks, told)
        except Exception as error:  # noqa: BLE001 (whatever it was, the engine lives on)
            for chunk in chunks:
                self.engine.pager.truncate(chunk.run, chunk.start)
            if len(chunks) == 1:
                self.engine.fail(chunks[0].run, error)
                return
            for chunk in chunks:
                for again in self.engine.reserve([chunk], lambda _: None):
                    self._compute_or_single_out([again], told)

    def _tell_progress(self, chunk: Chunk) -> None:
        run = chunk.run
        job = self.jobs.get(run)
        done = min(chunk.end, run.prompt_length)
        if job is not None and done > job.shown and not run.generated:
            self.meter.cached_tokens += run.cached if job.shown < 0 else 0
            job.shown = done
            self.emit(job.ticket, Progress(job.choice, done, run.prompt_length))

    def _tell(self, told: list[tuple[RunState, Told]]) -> None:
        """Positions in one event for each run, and the Steps of what the user wrote."""
        read: dict[RunState, list[Position]] = {}
        for run, item in told:
            if isinstance(item, Position):
                read.setdefault(run, []).append(item)
        for run, positions in read.items():
            if run in self.jobs:
                self.emit(self.jobs[run].ticket, Read(self.jobs[run].choice, tuple(positions)))
        for run, item in told:
            if isinstance(item, Step) and run in self.jobs:
                self.show(self.jobs[run], item)

    def show(self, job: Job, step: Step) -> None:
        """Tell of a Step that an operation made."""
        job.told.append(step)
        self.emit(job.ticket, Stepped(job.choice, step))

    # What a run does once its list is computed.

    def _advance(self, job: Job) -> None:
        run = job.run
        try:
            if run.error is not None:
                self.fail(job, without_frames(run.error))
            elif run.next_needed is None:
                self._fork_followers(job)
                if job.settling is not None:
                    self._settled(job)
                elif not run.is_finished and job.budget > 0:
                    self._take(job)
                elif run.is_finished:
                    self._finish(job)
                else:
                    self._stand_still(job)
        except Exception as error:  # noqa: BLE001 (a chain, a grammar, a decoder: the fault of this run alone)
            self.fail(job, error)

    def _fork_followers(self, job: Job) -> None:
        from byhand.engine import operations

        for choice in range(1, job.followers + 1):
            twin = operations.fork(self.engine, job.run, choice=choice)
            twin.watch = None
            follower = Job(job.ticket, choice, twin, deadline=job.deadline, was_admitted=True)
            self.jobs[twin] = follower
            self.scheduler.arrive(twin, beside=job.run)
        job.followers = 0

    def _take(self, job: Job) -> None:
        """One token more, unless a breakpoint says otherwise."""
        run, engine = job.run, self.engine
        choice = engine.decide(run, job.forced)
        if job.until is not None and job.forced is None and job.passed != len(run.ids):
            assert run.kept is not None
            ending = end_probability(run.kept.logits, engine.eos_ids | {*run.params.stop_ids}, choice)
            why = job.until.before(choice, ending)
            if why is not None:
                job.passed = len(run.ids)
                self.pause(job, why)
                return
        step = engine.commit(run, choice=choice)
        self.meter.generated_tokens += 1
        job.budget -= 1
        job.forced = None
        self.emit(job.ticket, Stepped(job.choice, step))
        if run not in self.jobs:  # the listener fell silent
            return
        why = job.until.after(run.text, step) if job.until is not None else None
        if run.is_finished:
            self._finish(job)
        elif why is not None or job.budget <= 0:
            self.pause(job, why or "count")

    def _finish(self, job: Job) -> None:
        event = self.finished(job)
        if not job.is_steered:
            self.end(job, event)
            return
        self._stand_still(job)
        self._count(event)
        self.emit(job.ticket, event)

    def pause(self, job: Job, why: str) -> None:
        """Let a steered run rest, and say why."""
        self._stand_still(job)
        self.emit(job.ticket, Paused(job.choice, why))

    def _stand_still(self, job: Job) -> None:
        job.budget, job.until, job.forced, job.deadline, job.is_held = 0, None, None, None, False
        self.scheduler.rest(job.run)

    def fail(self, job: Job, error: Exception) -> None:
        """End a job with an error; a steered one rests, and an operation under way is taken back."""
        if not job.is_steered:
            self.engine.fail(job.run, error)
            self.cancel(job.ticket, error) if job.followers else self.end(job, Failed(job.choice, error))
            return
        self._stand_still(job)
        before, done = job.before, job.done
        job.settling = job.before = job.done = None
        if before is None:
            if not isinstance(error, TimeLimit | OutOfPages):
                self.engine.fail(job.run, error)
            self.engine.release(job.run)
            self._count(Failed(job.choice, error))
            self.emit(job.ticket, Failed(job.choice, error))
        else:
            from byhand.engine import operations

            operations.restore(self.engine, job.run, before)
            del job.history[-1:]
        if done is not None:
            done.set_exception(error)

    def _settled(self, job: Job) -> None:
        why, done = job.settling, job.done
        assert why is not None
        job.settling = job.before = job.done = None
        if done is not None:
            job.passed = None  # where it paused before, it came by another way
            self._stand_still(job)
            done.set_result(job.told)
        elif job.run.is_finished:
            self._finish(job)
        else:
            self.pause(job, why)

    def settle(self, job: Job, why: str) -> None:
        """Compute a steered run to its end, then let it rest."""
        job.settling, job.deadline = why, perf_counter() + self.limits.seconds
        self.scheduler.arrive(job.run)

    def set_going(self, job: Job, budget: float = inf) -> None:
        """Let a run take tokens."""
        job.budget, job.deadline = budget, perf_counter() + self.limits.seconds
        self.scheduler.arrive(job.run)


def _deaf(_: Event) -> None:
    """Hears nothing: the listener raised once."""

"""Flow: what several submissions tell, as one stream; a slow reader holds its runs, one that leaves ends them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import pytest

from byhand import LLM, FinishReason, SamplingParams
from byhand.engine.events import Event, Failed, Finished, Progress, Read, Stepped
from byhand.engine.worker import Worker
from byhand.server.answering import Answering
from byhand.server.flow import ClientGone, Flow, while_there
from byhand.server.generation import Job, PromptIn, open_flow
from byhand.server.metrics import Metrics
from byhand.server.service import Service
from byhand.types import Step, Usage

T = TypeVar("T")
FIRST, SECOND = [5, 6, 7], [9] * 4


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 12, "ignore_eos": True, **fields})


def within(work: Coroutine[Any, Any, T]) -> T:
    """Its result, in a loop of its own; what hangs is a failure."""

    async def bounded() -> T:
        return await asyncio.wait_for(work, 20)

    return asyncio.run(bounded())


@pytest.fixture
def worker(tiny_folder: Path) -> Iterator[Worker]:
    worker = Worker(lambda: LLM(tiny_folder))
    worker.opened.result(30)
    yield worker
    worker.call(lambda: None).result(10)
    stats = worker.stats()
    worker.close()
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)


# A worker that says what the test says: exact to the event.


@dataclass(eq=False)
class Handle:
    """A submission as a flow holds it."""

    listener: Callable[[Event], None]
    choices: int = 1
    does: list[str] = field(default_factory=list)
    is_done: bool = False

    def hold(self) -> None:
        self.does.append("hold")

    def release(self) -> None:
        self.does.append("release")

    def cancel(self) -> None:
        self.does.append("cancel")


class Script:
    """Takes submissions, and computes nothing. `refuses`: how many are taken before one is refused."""

    def __init__(self, refuses: int = 99) -> None:
        self.handles: list[Handle] = []
        self.asked: list[tuple[list[int], int | None]] = []
        self._refuses = refuses

    def submit(
        self,
        ids: list[int],
        params: SamplingParams,
        listener: Callable[[Event], None],
        *,
        read_prompt: int | None = None,
    ) -> Handle:
        if len(self.handles) == self._refuses:
            raise RuntimeError("no more")
        self.asked.append((ids, read_prompt))
        self.handles.append(Handle(listener, params.n))
        return self.handles[-1]


def scripted(script: Script, queued: int) -> Flow:
    return Flow(script, queued=queued)  # type: ignore[arg-type]


def noise(number: int) -> Progress:
    return Progress(0, number, 1000)


END = Finished(0, FinishReason.LENGTH, None, Usage(1, 1, 0))


async def told(flow: Flow, count: int) -> list[tuple[int, Event]]:
    """The next so many events."""
    reader = aiter(flow)
    return [await anext(reader) for _ in range(count)]


async def heard() -> None:
    """Let the loop carry out what was called from threads."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_a_full_queue_holds_every_run_and_lets_go_at_half_each_time() -> None:
    async def talk() -> None:
        script = Script()
        flow = scripted(script, queued=8)
        for ids in (FIRST, SECOND):
            flow.submit(ids, params())
        does = [handle.does for handle in script.handles]
        for turn in range(3):
            for number in range(7):
                script.handles[number % 2].listener(noise(number))
            await heard()
            assert does == [["hold", "release"] * turn] * 2
            for number in (7, 8):  # what was under way when it held comes all the same
                script.handles[1].listener(noise(number))
                await heard()
                assert does == [["hold", "release"] * turn + ["hold"]] * 2
            await told(flow, 4)
            assert does == [["hold", "release"] * turn + ["hold"]] * 2
            await told(flow, 1)
            assert does == [["hold", "release"] * (turn + 1)] * 2
            await told(flow, 4)
        assert does == [["hold", "release"] * 3] * 2

    within(talk())


def test_events_come_in_the_order_of_their_telling_with_the_place_of_their_prompt() -> None:
    async def talk() -> None:
        script = Script()
        flow = scripted(script, queued=100)
        for _ in range(3):
            flow.submit(FIRST, params())
        order = [2, 0, 1, 1, 0, 2, 2, 1, 0]
        for number, place in enumerate(order):
            script.handles[place].listener(noise(number))
        await heard()
        assert await told(flow, 9) == [(place, noise(number)) for number, place in enumerate(order)]

    within(talk())


def test_what_is_asked_for_reaches_the_worker() -> None:
    async def talk() -> None:
        script = Script()
        flow = scripted(script, queued=8)
        flow.submit(FIRST, params(), read_prompt=4)
        flow.submit(SECOND, params())
        assert script.asked == [(FIRST, 4), (SECOND, None)]

    within(talk())


@pytest.mark.parametrize("ending", [END, Failed(0, RuntimeError("no"))])
def test_the_stream_ends_with_the_last_ending_of_all_choices(ending: Event) -> None:
    async def talk() -> list[Event]:
        script = Script()
        flow = scripted(script, queued=100)
        flow.submit(FIRST, params(n=2))
        flow.submit(SECOND, params(n=2))
        for handle in (*script.handles, *script.handles):
            handle.listener(ending)
            handle.listener(noise(0))
        return [event async for _, event in flow]

    assert within(talk()) == [ending, noise(0)] * 3 + [ending]


def test_a_reader_that_waits_hears_the_next_event() -> None:
    async def talk() -> None:
        script = Script()
        flow = scripted(script, queued=8)
        flow.submit(FIRST, params())
        reader = aiter(flow)
        for number in range(3):
            waiting = asyncio.ensure_future(anext(reader))
            await heard()
            assert not waiting.done()
            script.handles[0].listener(noise(number))
            assert await waiting == (0, noise(number))

    within(talk())


def test_leaving_cancels_all_that_has_not_ended() -> None:
    async def talk() -> None:
        script = Script()
        with scripted(script, queued=8) as flow:
            for _ in range(3):
                flow.submit(FIRST, params())
            script.handles[1].is_done = True
            assert [handle.does for handle in script.handles] == [[], [], []]
        assert [handle.does for handle in script.handles] == [["cancel"], [], ["cancel"]]

    within(talk())


def test_a_prompt_that_is_refused_takes_the_others_with_it() -> None:
    async def talk() -> None:
        script = Script(refuses=2)
        service = Service(script, "x", Metrics(script))  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="no more"):
            open_flow(service, Job([PromptIn("", FIRST)] * 3, params(), None))
        assert [handle.does for handle in script.handles] == [["cancel"], ["cancel"]]

    within(talk())


# A worker that computes.


class Watched:
    """A worker that counts how its submissions are held; `held` is set and `released` too when they are."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.does: list[str] = []
        self.held = asyncio.Event()
        self.post = worker.post

    def submit(self, *args: Any, **options: Any) -> Any:
        ticket = self._worker.submit(*args, **options)
        hold, release = ticket.hold, ticket.release

        def held() -> None:
            hold()
            self.does.append("hold")
            self.held.set()

        def released() -> None:
            release()
            self.does.append("release")
            self.held.clear()

        ticket.hold, ticket.release = held, released  # type: ignore[method-assign]
        return ticket

    async def settled(self) -> int:
        """Tokens made, once the thread has heard all that was said to it."""
        for _ in range(3):
            await asyncio.wrap_future(self._worker.call(lambda: None))
        return self._worker.stats().generated_tokens


def test_a_slow_reader_holds_its_runs_and_loses_nothing(worker: Worker, llm: LLM) -> None:
    async def talk() -> dict[int, list[int]]:
        watched = Watched(worker)
        ids: dict[int, list[int]] = {0: [], 1: []}
        with Flow(watched, queued=16) as flow:  # type: ignore[arg-type]
            for prompt in (FIRST, SECOND):
                flow.submit(prompt, params(max_tokens=60))
            async for place, event in flow:
                if isinstance(event, Stepped):
                    ids[place].append(event.step.token.id)
                if isinstance(event, Stepped) and len(ids[place]) in (2, 30):
                    await watched.held.wait()
                    made = await watched.settled()
                    assert made < 110
                    assert await watched.settled() == made
        assert watched.does[:4] == ["hold", "hold", "release", "release"]
        assert watched.does.count("hold") >= 4
        assert watched.does.count("hold") == watched.does.count("release")
        return ids

    assert within(talk()) == {
        place: llm.start(prompt, params(max_tokens=60)).ids
        and [step.token.id for step in llm.stream(prompt, params(max_tokens=60))]
        for place, prompt in enumerate((FIRST, SECOND))
    }


def test_a_choice_ends_with_the_step_that_is_named(worker: Worker) -> None:
    asked = params(n=3, temperature=1.0, seed=3, max_tokens=20)

    async def talk() -> list[tuple[int, Event]]:
        with Flow(worker) as flow:
            flow.submit(FIRST, asked)
            flow.submit(SECOND, asked, ends=lambda choice, step: (choice, step.index) in {(1, 3), (2, 0)})
            return [each async for each in flow]

    events = within(talk())
    lengths = {
        (place, choice): sum(isinstance(e, Stepped) and e.choice == choice for at, e in events if at == place)
        for place in range(2)
        for choice in range(3)
    }
    assert lengths == {(0, 0): 20, (0, 1): 20, (0, 2): 20, (1, 0): 20, (1, 1): 4, (1, 2): 1}
    reasons = {(at, e.choice): e.finish_reason for at, e in events if isinstance(e, Finished)}
    assert [key for key, reason in sorted(reasons.items()) if reason is FinishReason.STOP] == [(1, 1), (1, 2)]
    assert len(reasons) == 6


def test_a_step_that_ends_its_choice_may_come_before_the_submission_is_back(worker: Worker) -> None:
    class Late:
        """Comes back from a submission when its third step was told, or after that when a fourth is."""

        post = worker.post

        def submit(
            self, ids: list[int], asked: SamplingParams, listener: Callable[[Event], None], **options: Any
        ) -> Any:
            told = [threading.Event() for _ in range(asked.max_tokens or 0)]

            def listen(event: Event) -> None:
                listener(event)
                if isinstance(event, Stepped):
                    told[event.step.index].set()

            handle = worker.submit(ids, asked, listen, **options)
            assert told[2].wait(20)
            told[3].wait(0.3)
            return handle

    async def talk() -> int:
        with Flow(Late()) as flow:  # type: ignore[arg-type]
            flow.submit(FIRST, params(), ends=lambda _, step: step.index == 2)
            return sum([isinstance(event, Stepped) async for _, event in flow])

    assert within(talk()) == 3


def test_a_flow_that_is_left_leaves_no_run(worker: Worker) -> None:
    async def talk() -> None:
        with Flow(worker) as flow:
            for prompt in (FIRST, SECOND):
                flow.submit(prompt, params(max_tokens=200, n=2))
            await told(flow, 5)
        await asyncio.wrap_future(worker.call(lambda: None))
        stats = worker.stats()
        assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
        assert stats.generated_tokens < 600

    within(talk())


class Noted(NamedTuple):
    """What happened to a choice."""

    index: int
    prompt: PromptIn
    what: object


class Notes(Answering[Any]):
    """An answer whose parts are what it was told."""

    def opening(self, index: int, prompt: PromptIn) -> Noted:
        return Noted(index, prompt, "opening")

    def token(self, index: int, prompt: PromptIn, step: Step) -> Noted:
        return Noted(index, prompt, step.token.id)

    def ending(self, index: int, prompt: PromptIn, event: Finished) -> Noted:
        return Noted(index, prompt, event.finish_reason)

    def chunk(self, parts: list[Any], **usage: Any) -> Any: ...

    def total(self, parts: Any) -> Any: ...


def test_parts_are_openings_tokens_and_endings_with_the_number_of_their_choice(worker: Worker, llm: LLM) -> None:
    asked = params(n=2, temperature=1.0, seed=3, max_tokens=4)
    job = Job([PromptIn("", FIRST), PromptIn("", SECOND)], worker.check(asked), 2)

    async def talk() -> list[Any]:
        service = Service(worker, "x", Metrics(worker))
        with open_flow(service, job) as flow:
            return [part async for part in Notes(service, cast(Any, None), job, "x").parts(flow)]

    found = within(talk())
    for index, alone in enumerate(llm.generate([FIRST, SECOND], asked)):
        mine = [part for part in found if part.index == index]
        assert [part.what for part in mine] == ["opening", *alone.ids, FinishReason.LENGTH]
        assert {id(part.prompt) for part in mine} == {id(job.prompts[index // 2])}
    for prompt in job.prompts:
        assert [at.position for at in prompt.positions] == list(range(len(prompt.ids)))
        assert [at.token.id for at in prompt.positions] == prompt.ids
        assert [len(at.top) for at in prompt.positions] == [2] * len(prompt.ids)
    assert job.usage.plain() == {
        "prompt_tokens": 7,
        "completion_tokens": 16,
        "total_tokens": 23,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_a_reading_comes_before_the_first_token(worker: Worker) -> None:
    async def talk() -> list[Event]:
        with Flow(worker) as flow:
            flow.submit(FIRST, params(), read_prompt=1)
            return [event async for _, event in flow]

    kinds = [type(event) for event in within(talk()) if not isinstance(event, Progress)]
    assert kinds == [Read] + [Stepped] * 12 + [Finished]


# Whoever asks may go.


class Line:
    """What a connection says: a request's rest, and then, when it is `cut`, that it is gone."""

    def __init__(self) -> None:
        self.cut = asyncio.Event()
        self.asked = 0
        self.is_left = False

    async def receive(self) -> dict[str, str]:
        self.asked += 1
        if self.asked == 1:
            return {"type": "http.request"}
        try:
            await self.cut.wait()
        except asyncio.CancelledError:
            self.is_left = True
            raise
        return {"type": "http.disconnect"}


def test_work_is_done_while_somebody_is_there_and_the_line_is_left_alone_afterwards() -> None:
    async def talk() -> None:
        line = Line()

        async def work() -> int:
            await heard()
            assert line.asked == 2
            return 7

        assert await while_there(line.receive, work()) == 7
        assert line.is_left

    within(talk())


def test_work_for_nobody_is_given_up() -> None:
    async def talk() -> None:
        line, ended = Line(), asyncio.Event()

        async def work() -> None:
            try:
                line.cut.set()
                await asyncio.Event().wait()
            finally:
                ended.set()

        with pytest.raises(ClientGone):
            await while_there(line.receive, work())
        assert ended.is_set()

    within(talk())


def test_what_work_raises_is_raised() -> None:
    async def talk() -> None:
        async def work() -> None:
            raise KeyError("mine")

        line = Line()
        with pytest.raises(KeyError, match="mine"):
            await while_there(line.receive, work())

    within(talk())


def test_work_that_is_done_when_the_line_is_cut_counts() -> None:
    async def talk() -> None:
        async def gone() -> dict[str, str]:
            return {"type": "http.disconnect"}

        async def work() -> int:
            return 7

        assert await while_there(gone, work()) == 7

    within(talk())

"""The scheduler: fair, bounded, first come first served; and the turns: whatever the company, the same tokens."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byhand import LLM, SamplingParams
from byhand.cache.kv_cache import PAGE_SIZE
from byhand.cache.manager import KVCacheManager
from byhand.cache.pages import PagePool
from byhand.engine.events import Event, Failed, Finished, Stepped
from byhand.engine.limits import Limits
from byhand.engine.loop import EngineLoop
from byhand.engine.request import Request, RequestHandle
from byhand.engine.scheduler import Chunk, Scheduler, schedule
from byhand.engine.sequence import Sequence
from byhand.sampling.chain import settled
from byhand.types import Step
from tests.conftest import tiny_llama
from tests.test_house import modules_after

TIE = 1e-4


NUMBERS = count()


def bare_run(length: int, ids: list[int] | None = None) -> Sequence:
    """A run with nothing but ids; those that are not given are like no other's."""
    ids = [next(NUMBERS)] * length if ids is None else ids
    return Sequence(ids, len(ids), settled(SamplingParams(seed=0), 400), 0, cast(Any, None), 4096)


# One pass.


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=12),
    max_rows=st.integers(1, 128),
    mixed_rows=st.integers(1, 128),
)
def test_a_pass_is_bounded_and_serves_streams_first(lengths: list[int], max_rows: int, mixed_rows: int) -> None:
    runs = [bare_run(length) for length in lengths]
    chunks = schedule(runs, max_rows, PAGE_SIZE, mixed_rows)
    assert sum(chunk.rows for chunk in chunks) <= max_rows
    assert [chunk.sequence for chunk in chunks] == [run for run in runs if run in {chunk.sequence for chunk in chunks}]
    assert all(chunk.start == 0 and 1 <= chunk.rows <= len(chunk.sequence.ids) for chunk in chunks)
    rows = {chunk.sequence: chunk.rows for chunk in chunks}
    streams = [run for run in runs if len(run.ids) == 1]
    longer = [run for run in runs if len(run.ids) > 1]
    assert all(rows.get(run) == 1 for run in streams[:max_rows])
    room = (min(max_rows, mixed_rows) if streams else max_rows) - min(len(streams), max_rows)
    given_out = sum(rows.get(run, 0) for run in longer)
    assert given_out == max(0, min(room, sum(len(run.ids) for run in longer)))
    if longer and room > 0:
        assert rows[longer[0]] >= min(len(longer[0].ids), room // 2)


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    long, short = bare_run(1000), bare_run(20)
    rows = {chunk.sequence: chunk.rows for chunk in schedule([long, short], 100, PAGE_SIZE)}
    assert rows == {long: 80, short: 20}


def test_the_oldest_gets_the_last_row() -> None:
    long, short = bare_run(1000), bare_run(20)
    assert [(chunk.sequence, chunk.rows) for chunk in schedule([long, short], 1, PAGE_SIZE)] == [(long, 1)]


# Prompts that begin alike, at the same moment.


def rows_of(runs: list[Sequence], *limits: int) -> list[int]:
    rows = {chunk.sequence: chunk.rows for chunk in schedule(runs, limits[0], PAGE_SIZE, *limits[1:])}
    return [rows.get(run, 0) for run in runs]


def test_a_run_sits_out_what_an_older_one_computes() -> None:
    ids = list(range(60))
    assert rows_of([bare_run(0, ids), bare_run(0, ids), bare_run(0, [*ids[:48], 1, 2])], 512) == [60, 0, 0]
    assert rows_of([bare_run(0, ids), bare_run(0, ids), bare_run(40)], 64) == [32, 0, 32]  # the room is others'
    assert rows_of([bare_run(9), bare_run(0, ids), bare_run(0, ids)], 512) == [9, 60, 0]


def test_a_run_that_would_fall_behind_does_not_wait() -> None:
    ids = list(range(60))
    mostly_other = [*ids[:16], *range(100, 150)]
    assert rows_of([bare_run(0, ids), bare_run(0, mostly_other)], 512) == [60, 66]
    assert rows_of([bare_run(0, ids[:12]), bare_run(0, ids[:12])], 512) == [12, 12]  # no page is full
    long, short = bare_run(0, list(range(1000))), bare_run(0, list(range(90)))
    assert rows_of([bare_run(300), long, short], 200) == [100, 10, 90]  # the older one would not get that far
    watched = bare_run(0, ids)
    watched.read_prompt = 1
    assert rows_of([bare_run(0, ids), watched], 512) == [60, 60]  # it needs every row itself


def computed_in_passes(prompts: list[list[int]], max_rows: int) -> list[list[int]]:
    """For each pass the rows of every run; pages are as the engine keeps them, and nothing is computed."""
    manager = KVCacheManager(
        cast(Any, SimpleNamespace(groups=[SimpleNamespace(pool=PagePool(200, PAGE_SIZE))])), b"root"
    )
    runs = [bare_run(0, ids) for ids in prompts]
    passes: list[list[int]] = []
    while waiting := [run for run in runs if run.uncomputed]:
        for run in waiting:
            manager.adopt_prefix(run)
        passes.append([0] * len(runs))
        for chunk in schedule(waiting, max_rows, PAGE_SIZE):
            manager.reserve(chunk.sequence, chunk.end)
            chunk.sequence.computed = chunk.end
            manager.publish(chunk.sequence)
            passes[-1][runs.index(chunk.sequence)] = chunk.rows
    return passes


def test_a_follower_keeps_up_with_the_older_one_chunk_by_chunk() -> None:
    passes = computed_in_passes([list(range(100))] * 3, 40)
    assert passes == [[40, 0, 0], [40, 0, 0], [20, 0, 0], [0, 4, 4]]


@given(
    parts=st.lists(st.tuples(st.sampled_from([0, 10, 40, 150]), st.integers(1, 80)), min_size=1, max_size=8),
    max_rows=st.integers(8, 256),
)
def test_sharing_saves_rows_and_stops_nobody(parts: list[tuple[int, int]], max_rows: int) -> None:
    """`parts`: how much of the common beginning a prompt has, and of its own."""
    alike = [[*range(common), *([next(NUMBERS) + 1000] * own)] for common, own in parts]
    passes = computed_in_passes(alike, max_rows)
    tokens = sum(map(len, alike))
    assert all(0 < sum(rows) <= max_rows for rows in passes)
    assert sum(map(sum, passes)) <= tokens
    assert len(passes) <= -(-tokens // max_rows) + 2
    oldest_ends = max(number for number, rows in enumerate(passes, 1) if rows[0])
    assert oldest_ends <= -(-len(alike[0]) // (max_rows // 2))


# Who is let in, and who gives way.


def small_scheduler(pages: int = 8, running: int = 3) -> Scheduler:
    return Scheduler([PagePool(pages, PAGE_SIZE)], max_running=running, max_rows=64)


def test_first_come_first_served_and_nobody_overtakes() -> None:
    scheduler = small_scheduler(pages=4)
    small, huge, tiny = bare_run(20), bare_run(60), bare_run(2)
    for run in (small, huge, tiny):
        scheduler.arrive(run)
    assert scheduler.admit(lambda _: None) == [small]  # the huge one does not fit beside it; the tiny one would
    assert scheduler.waiting == [huge, tiny]
    scheduler.leave(small)
    assert scheduler.admit(lambda _: None) == [huge]


def test_places_are_bounded() -> None:
    scheduler = small_scheduler(pages=100, running=3)
    runs = [bare_run(2) for _ in range(5)]
    for run in runs:
        scheduler.arrive(run)
    assert scheduler.admit(lambda _: None) == runs[:3]
    scheduler.leave(runs[1])
    assert scheduler.admit(lambda _: None) == [runs[3]]


def test_a_prompt_gets_a_row_beside_very_many_streams() -> None:
    scheduler = Scheduler([PagePool(200, PAGE_SIZE)], max_running=130, max_rows=512, mixed_rows=128)
    runs = [bare_run(1) for _ in range(129)] + [bare_run(50)]
    assert scheduler.plan(runs)[-1].sequence is runs[-1]


def test_those_at_rest_give_way_first_and_the_youngest_last_come() -> None:
    scheduler = small_scheduler(pages=100, running=3)
    runs = [bare_run(2) for _ in range(6)]
    for run in runs:
        run.page_tables = [[0]]
        scheduler.arrive(run)
    scheduler.admit(lambda _: None)
    first, second, third = runs[:3]
    scheduler.set_idle(runs[3])
    scheduler.set_idle(runs[4])
    order = []
    while (victim := scheduler.victim(first)) is not None:
        victim.page_tables = [[]]
        order.append(victim)
    assert order == [runs[3], runs[4], runs[5], third, second]
    assert scheduler.waiting == [second, third, runs[5]]  # each at the place of its arrival
    assert scheduler.preemptions == 2
    assert scheduler.victim(first) is None
    third.page_tables = [[0]]
    assert scheduler.admit(lambda _: None) == [second, third]
    assert scheduler.victim(third) is None  # an older one never gives way to a younger


def test_who_gave_its_pages_up_for_a_pass_is_not_in_it(tiny_folder: Path) -> None:
    engine = LLM(tiny_folder, cache_tokens=5 * PAGE_SIZE).engine
    oldest, second, third = (engine.open([number] * 40, engine.check(SamplingParams())) for number in (5, 6, 7))
    engine.forward(engine.reserve([Chunk(run, 0, 20, 20) for run in (second, third)], lambda _: None))
    victims = [second, third]
    chunks = [Chunk(oldest, 0, 40, 40), Chunk(second, 20, 21, 1)]
    assert engine.reserve(chunks, lambda _: victims.pop(0)) == chunks[:1]
    assert (second.computed, third.computed) == (0, 20)


def test_who_finds_too_little_room_takes_none_of_it(tiny_folder: Path) -> None:
    engine = LLM(tiny_folder, cache_tokens=2 * PAGE_SIZE).engine
    run = engine.open([5] * 40, engine.check(SamplingParams()))
    assert engine.reserve([Chunk(run, 0, 40, 40)], lambda _: None) == []
    assert (run.page_tables, engine.pages_in_use) == ([[]], 0)


# Turns: many runs on a small cache, no threads.


@dataclass
class Fan:
    """A ticket's listener that keeps everything, with the turn it came in."""

    turn: Callable[[], int]
    events: list[Event] = field(default_factory=list)
    steps: dict[int, list[tuple[int, Step]]] = field(default_factory=lambda: defaultdict(list))

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Stepped):
            self.steps[event.choice].append((self.turn(), event.step))

    def endings(self) -> list[Event]:
        return [event for event in self.events if isinstance(event, Finished | Failed)]


class Hall:
    """Turns that are taken by hand."""

    def __init__(self, llm: LLM, mixed_rows: int = 128, **limits: Any) -> None:
        self.llm = llm
        self.loop = EngineLoop(llm.engine, Limits(**limits), mixed_rows=mixed_rows)
        self.taken = 0

    def submit(self, ids: list[int], params: SamplingParams, watch: int | None = None) -> tuple[RequestHandle, Fan]:
        fan = Fan(lambda: self.taken)
        handle = RequestHandle(cast(Any, None), params.n, fan)
        run = self.loop.open(ids, self.loop.engine.check(params), watch)
        self.loop.add(Request(handle, 0, run, followers=params.n - 1))
        return handle, fan

    def turn(self) -> None:
        self.taken += 1
        self.loop.step()
        scheduler = self.loop.scheduler
        held = {page for request in self.loop.requests.values() for page in request.sequence.page_tables[0]}
        assert self.llm.engine.cache.in_use == len(held)
        assert set(self.loop.requests) == {*scheduler.running, *scheduler.waiting, *scheduler.idle}

    def finish(self) -> None:
        for _ in range(20_000):
            if not self.loop.has_work:
                return
            self.turn()
        raise AssertionError("the turns never end")


def same_stream(steps: list[Step], alone: list[Step]) -> bool:
    """The same tokens, up to a tie: two tokens equally likely, or dice that fall on a border, up to rounding."""
    for step, other in zip(steps, alone, strict=False):
        if step.token.id != other.token.id:
            near = min(abs(other.draw.u - other.draw.low), abs(other.draw.u - other.draw.high)) if other.draw else 1.0
            return min(near, abs(step.logprob - other.logprob)) < TIE
    return len(steps) == len(alone)


def random_schedule(llm: LLM, other: LLM, seed: int, count: int) -> tuple[int, int]:
    """Requests come, wait, are held, cancelled, preempted and chunked at random: (streams compared, preemptions)."""
    dice = random.Random(seed)
    llm.engine.max_batched_tokens = dice.choice([7, 16, 64, 512])
    tight = dice.random() < 0.5  # short prompts that grow together until somebody must give way
    hall = Hall(llm, mixed_rows=dice.choice([4, 16, 128]), running=8 if tight else dice.choice([1, 3, 8]))
    base = dice.choices(range(2, 384), k=60)
    tickets: list[tuple[RequestHandle, Fan, list[int], SamplingParams]] = []
    cancelled: set[RequestHandle] = set()
    while len(tickets) < count or hall.loop.has_work:
        if len(tickets) < count and dice.random() < 0.4:
            start = [] if tight else dice.choice([[], base[:40], base[: dice.randint(1, 60)]])
            ids = [*start, *dice.choices(range(2, 384), k=dice.randint(1, 9 if tight else 50))]
            ids = dice.choice(tickets)[2] if tickets and dice.random() < 0.2 else ids  # the same as another's
            params = SamplingParams(
                temperature=dice.choice([0.0, 1.0]),
                seed=dice.randint(0, 99),
                max_tokens=dice.choice([70, 90] if tight else [1, 8, 30]),
                n=dice.choice([1, 1, 1, 3]),
                ignore_eos=True,
            )
            tickets.append((*hall.submit(ids, params, dice.choice([None, None, 2])), ids, params))
        if tickets and dice.random() < 0.02:
            handle = dice.choice(tickets)[0]
            cancelled |= {handle} if handle.open else set()
            hall.loop.cancel(handle)
        if tickets and dice.random() < 0.1:
            handle = dice.choice(tickets)[0]
            handle.held = not handle.held
            hall.loop.unhold(handle)
        if len(tickets) == count and dice.random() < 0.2:
            for handle, *_ in tickets:
                handle.held = False
                hall.loop.unhold(handle)
        hall.turn()
    for handle, *_ in tickets:
        handle.held = False
        hall.loop.unhold(handle)
    hall.finish()
    assert hall.loop.requests == {}
    assert llm.engine.cache.in_use == 0
    compared = 0
    for handle, fan, ids, params in tickets:
        assert sorted(event.choice for event in fan.endings()) == list(range(params.n))
        assert not any(isinstance(event, Failed) for event in fan.endings())
        for choice in range(params.n):
            run = other.start_run(ids, params, seed=params.seed, choice=choice)
            steps = [step for _, step in fan.steps[choice]]
            alone = list(run) if handle not in cancelled else [run.step() for _ in steps]
            assert same_stream(steps, alone), (seed, choice)
            compared += 1
    return compared, hall.loop.scheduler.preemptions


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_streams_do_not_depend_on_company(tiny_folder: Path, kernels: str) -> None:
    compared = preemptions = 0
    for seed in range(6):
        llm = LLM(tiny_folder, cache_tokens=14 * PAGE_SIZE, kernels=kernels)
        more = random_schedule(llm, LLM(tiny_folder, kernels=kernels), seed, 14)
        compared, preemptions = compared + more[0], preemptions + more[1]
    assert compared > 80
    assert preemptions > 5


@pytest.mark.full
@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_very_many_streams_do_not_depend_on_company(tiny_folder: Path, kernels: str) -> None:
    for seed in range(100, 110):
        llm = LLM(tiny_folder, cache_tokens=random.Random(seed).choice([16, 24, 60]) * PAGE_SIZE, kernels=kernels)
        random_schedule(llm, LLM(tiny_folder, kernels=kernels), seed, 60)


# The embedded model: prompts that share beginnings, run alone and in company.


def sharing_prompts(llm: LLM, count: int) -> list[list[int]]:
    """Prompts of 1 to 250 tokens; most begin as others do."""
    dice = random.Random(1)
    stories = [llm.encode(f"Once upon a time, {who} went to the wood. " * 20) for who in ("Tom", "a fox", "the king")]
    return [
        [*dice.choice(stories)[: dice.randint(1, 200)], *dice.choices(range(10, llm.vocab_size), k=dice.randint(0, 50))]
        for _ in range(count)
    ]


def alike_in_company(count: int, tokens: int, company_sizes: list[int]) -> None:
    """The same ids at every number of running, on a cache too small for them, with pages torn away besides."""
    alone, llm = LLM(), LLM(cache_tokens=640)
    asked = [
        (ids, SamplingParams(temperature=float(seed % 2), seed=seed, max_tokens=tokens, ignore_eos=True))
        for seed, ids in enumerate(sharing_prompts(llm, count))
    ]
    expected = [[step.token.id for step in alone.start(ids, params)] for ids, params in asked]
    llm.engine.max_batched_tokens = 64
    for running in company_sizes:
        dice = random.Random(running)
        hall = Hall(llm, mixed_rows=running + 20, running=running)
        fans = [hall.submit(ids, params)[1] for ids, params in asked]
        torn = 0
        while hall.loop.has_work:
            hall.turn()
            if hall.loop.scheduler.running and dice.random() < 0.03:
                llm.engine.release(dice.choice(hall.loop.scheduler.running))
                torn += 1
        ids = [[step.token.id for _, step in fan.steps[0]] for fan in fans]
        differ = [number for number, (one, other) in enumerate(zip(ids, expected, strict=True)) if one != other]
        assert differ == [], (running, differ)
        assert torn > 0
        assert hall.loop.meter.cached_tokens > 0
        assert running < 16 or hall.loop.scheduler.preemptions > 0


def test_the_same_tokens_alone_and_in_company() -> None:
    alike_in_company(24, 24, [1, 16])


@pytest.mark.full
def test_the_same_tokens_alone_and_in_company_of_200() -> None:
    alike_in_company(200, 64, [1, 4, 16, 32])


def counted_rows(llm: LLM) -> list[int]:
    """The rows of every pass from now on."""
    rows: list[int] = []
    forward = llm.engine.forward

    def counting(chunks: Any, **options: Any) -> Any:
        rows.append(sum(chunk.rows for chunk in chunks))
        return forward(chunks, **options)

    llm.engine.forward = counting  # type: ignore[method-assign]
    return rows


def test_a_prompt_of_4000_tokens_never_stalls_a_stream_for_more_than_a_chunk(tmp_path: Path) -> None:
    llm = LLM(tiny_llama(tmp_path / "long", max_position_embeddings=4352))
    hall = Hall(llm, mixed_rows=128)
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    streams = [hall.submit([5 + i] * 10, params)[1] for i in range(3)]
    for _ in range(3):
        hall.turn()
    before = hall.taken
    rows = counted_rows(llm)
    _, late = hall.submit(random.Random(1).choices(range(2, 384), k=4000), params)
    while not late.steps[0]:
        hall.turn()
    took = hall.taken - before
    assert took == -(-4000 // 125)
    assert max(rows) <= 128
    for fan in streams:
        turns = [turn for turn, _ in fan.steps[0]]
        assert turns[: took + 2] == list(range(turns[0], turns[0] + took + 2))  # a token in every turn


def test_pages_are_shared_by_the_same_prompt_and_by_choices(tiny_folder: Path) -> None:
    llm = LLM(tiny_folder)
    hall = Hall(llm)
    ids = [7] * 100
    hall.submit(ids, SamplingParams(n=4, max_tokens=40, temperature=1.0, seed=1))
    hall.turn()
    hall.turn()
    assert len(hall.loop.requests) == 4
    assert llm.engine.cache.in_use <= 7 + 3  # one prompt, and a last page of each its own
    _, fan = hall.submit(ids, SamplingParams(max_tokens=2))
    hall.finish()
    [ended] = fan.endings()
    assert isinstance(ended, Finished)
    assert ended.usage.cached_tokens == 96


def test_equal_prompts_at_the_same_moment_are_computed_once(tiny_folder: Path) -> None:
    ids = random.Random(5).choices(range(2, 384), k=100)
    params = SamplingParams(n=3, max_tokens=5, temperature=1.0, seed=1, ignore_eos=True)
    alone = LLM(tiny_folder)
    expected = [[step.token.id for step in alone.start_run(ids, params, seed=1, choice=number)] for number in range(3)]
    llm = LLM(tiny_folder)
    hall, rows = Hall(llm), counted_rows(llm)
    fans = [hall.submit(ids, params)[1] for _ in range(4)]
    hall.submit([*ids[:80], 7], SamplingParams(max_tokens=1))
    hall.turn()
    assert rows == [100]
    hall.turn()
    assert rows[1] == 3 + 3 * 4 + 1  # the next tokens of the first one's choices; what no full page holds of the others
    hall.finish()
    for fan in fans:
        assert [[step.token.id for _, step in fan.steps[number]] for number in range(3)] == expected
    cached = [event.usage.cached_tokens for fan in fans for event in fan.endings() if isinstance(event, Finished)]
    assert cached == [0] * 3 + [96] * 9
    assert hall.loop.meter.cached_tokens == 3 * 96 + 80


def test_equal_prompts_of_one_call_are_computed_once(tiny_folder: Path) -> None:
    llm = LLM(tiny_folder)
    rows = counted_rows(llm)
    runs = llm.generate([[9] * 90] * 3, SamplingParams(max_tokens=1))
    assert sum(rows) == 90 + 2 * (90 - 80)
    assert isinstance(runs, list)
    assert [run.usage.cached_tokens for run in runs] == [0, 80, 80]


def test_the_scheduler_and_the_worker_load_no_torch() -> None:
    loaded = modules_after("import byhand.engine.scheduler, byhand.engine.worker, byhand.engine.loop")
    assert "torch" not in loaded

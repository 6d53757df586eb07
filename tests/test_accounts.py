"""What is counted: tokens found again, prompts and endings, pages, places, the time of every choice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from byhand import LLM, FinishReason, SamplingParams
from byhand.cache.kv_cache import PAGE_SIZE
from byhand.engine.events import Event, Failed, Finished, Progress, Read, Stepped
from byhand.engine.limits import Limits
from byhand.engine.worker import Worker
from byhand.errors import ByhandError, LimitExceeded, TimeLimit
from tests.steering import Clock, Helm
from tests.test_worker import LONG, SHORT, Ear, submit

ONE = SamplingParams(max_tokens=1, ignore_eos=True)
DICE = SamplingParams(temperature=1.0, seed=1, max_tokens=12, ignore_eos=True)


def small(tiny_folder: Path, pages: int, max_rows: int = 512, **limits: Any) -> Worker:
    """A worker on a cache of so many pages."""
    llm = LLM(tiny_folder, cache_tokens=pages * PAGE_SIZE)
    llm.engine.max_batched_tokens = max_rows
    worker = Worker(llm, Limits(**limits))
    worker.opened.result(30)
    return worker


def at_once(worker: Worker, *asked: tuple[list[int], SamplingParams]) -> list[Ear]:
    """Submissions that come between the same two turns, in this order."""
    return worker.call(lambda: [submit(worker, ids, params)[1] for ids, params in asked]).result(20)


def distinct(length: int, first: int = 2) -> list[int]:
    return list(range(first, first + length))


# Tokens found again.


@pytest.mark.parametrize(("length", "found"), [(15, 0), (16, 0), (17, 16), (32, 16), (33, 32), (48, 32)])
def test_the_last_token_of_a_prompt_is_always_computed(llm: LLM, length: int, found: int) -> None:
    ids = distinct(length)
    first = llm.start(ids, SHORT)
    again = llm.start(ids, SHORT)
    assert again.usage.cached_tokens == found
    before, step = first.step(), again.step()
    assert (step.positions_reused, step.positions_computed) == (found, length - found)
    assert step.token == before.token
    assert step.logprob == pytest.approx(before.logprob, abs=1e-4)


def test_a_prompt_of_many_passes_reuses_only_what_was_there_before(llm: LLM) -> None:
    llm.engine.max_batched_tokens = 16
    llm.start(distinct(20))
    step = llm.start(distinct(70)).step()
    assert (step.positions_reused, step.positions_computed) == (16, 54)


def test_no_more_is_found_again_than_the_prompt_still_has(llm: LLM) -> None:
    ids = distinct(40)
    llm.start(ids)
    run = llm.start(ids)
    assert run.usage.cached_tokens == 32
    run.rewind(20)
    assert run.usage.cached_tokens <= run.usage.prompt_tokens == 20


def test_a_prompt_is_counted_once_whatever_happens_to_its_pages(tiny_folder: Path) -> None:
    worker = small(tiny_folder, 6, max_rows=32)
    params = DICE.replace(max_tokens=40, n=2)
    ears = at_once(worker, (distinct(20), params), (distinct(21, 60), params), (distinct(22, 120), params))
    for ear in ears:
        assert isinstance(ear.wait(), Finished)
        assert [event.usage.cached_tokens for event in ear.endings if isinstance(event, Finished)] == [0, 0]
    stats = worker.stats()
    assert stats.preemptions > 0
    assert (stats.prompt_tokens, stats.cached_tokens) == (63, 0)
    worker.close()


def test_what_was_found_of_a_prompt_is_counted_once_however_many_passes_it_takes(tiny_folder: Path) -> None:
    worker = small(tiny_folder, 30, max_rows=32)
    submit(worker, distinct(40), ONE)[1].wait()
    before = worker.stats()
    _, ear = submit(worker, [*distinct(40), *distinct(150, 100)], DICE.replace(n=3))
    ear.wait()
    assert [event.usage.cached_tokens for event in ear.endings if isinstance(event, Finished)] == [32] * 3
    after = worker.stats()
    assert after.cached_tokens - before.cached_tokens == 32
    assert after.prompt_tokens - before.prompt_tokens == 190
    told = [(event.done, event.total) for event in ear.events if isinstance(event, Progress)]
    assert told == [(done, 190) for done in (64, 96, 128, 160, 190)]
    worker.close()


def test_choices_that_wait_do_not_tell_of_their_prompt_again(tiny_folder: Path) -> None:
    worker = small(tiny_folder, 6, running=1)
    submit(worker, distinct(40), ONE)[1].wait()
    before = worker.stats()
    _, ear = submit(worker, distinct(40), DICE.replace(n=2, max_tokens=50))  # the first takes the other's pages
    ear.wait()
    assert [event for event in ear.events if isinstance(event, Progress)] == [Progress(0, 40, 40)]
    assert worker.stats().cached_tokens - before.cached_tokens == 32
    worker.close()


def test_a_pass_that_fails_makes_no_progress(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("inside")

    monkeypatch.setattr(worker.llm.engine.model, "forward", fail)
    _, ear = submit(worker, [5, 6])
    ear.wait()
    assert [type(event) for event in ear.events] == [Failed]
    assert worker.stats().cached_tokens == 0


def test_a_prompt_whose_first_token_was_edited_has_nothing_that_was_found(llm: LLM) -> None:
    llm.start(distinct(40))
    run = llm.start(distinct(40))
    assert run.usage.cached_tokens == 32
    run.edit(0, 9)
    assert (run.usage.prompt_tokens, run.usage.cached_tokens) == (1, 0)


def test_a_last_position_that_has_a_pass_of_its_own_is_read_too(tiny_folder: Path) -> None:
    worker, ear = small(tiny_folder, 6, max_rows=32), Ear()
    worker.read(distinct(33), 1, ear)
    ear.wait()
    assert [at.position for event in ear.events if isinstance(event, Read) for at in event.positions] == list(range(33))
    worker.close()


# Endings and places.


def test_a_prompt_that_fails_ends_all_of_its_choices(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, marked = worker.llm.engine.model.forward, 333

    def fail(batch: Any, cache: Any) -> Any:
        if (batch.input_ids == marked).any():
            raise RuntimeError("inside")
        return forward(batch, cache)

    monkeypatch.setattr(worker.llm.engine.model, "forward", fail)
    first = Ear()
    worker.submit([4, marked], DICE.replace(n=3), first)
    first.wait()
    submit(worker, [5])[1].wait()
    assert sorted(event.choice for event in first.endings) == [0, 1, 2]
    assert all(isinstance(event, Failed) and str(event.error) == "inside" for event in first.endings)
    assert worker.stats().finished["error"] == 3


def test_choices_that_were_never_begun_end_too(worker: Worker) -> None:
    def begin() -> Ear:
        handle, ear = submit(worker, [5, 6], DICE.replace(n=3))
        handle.cancel()
        return ear

    ear = worker.call(begin).result(20)
    submit(worker, [7])[1].wait()
    assert [(type(event), event.choice) for event in ear.events] == [(Finished, 0), (Finished, 1), (Finished, 2)]
    assert worker.stats().finished["abort"] == 3


def test_a_choice_that_is_stopped_ends_alone(worker: Worker) -> None:
    tickets = []

    def react(event: Event) -> None:
        if isinstance(event, Stepped) and (event.choice, event.step.index) == (1, 2):
            worker.post(lambda loop: loop.stop(tickets[0], 1))

    def begin() -> Ear:
        handle, ear = submit(worker, [5, 6], DICE.replace(n=3), react=react)
        tickets.append(handle)
        return ear

    ear = worker.call(begin).result(20)
    ear.wait()
    reasons = {event.choice: event.finish_reason for event in ear.endings if isinstance(event, Finished)}
    assert reasons == {0: FinishReason.LENGTH, 1: FinishReason.STOP, 2: FinishReason.LENGTH}
    assert [len(ear.ids(choice)) for choice in range(3)] == [12, 3, 12]


def test_choices_go_before_those_that_came_after_their_prompt(tiny_folder: Path) -> None:
    worker, order = small(tiny_folder, 20, running=1), list[tuple[str, int]]()

    def hear(name: str) -> Callable[[Event], None]:
        return lambda event: order.append((name, event.choice)) if isinstance(event, Finished) else None

    def begin() -> Ear:
        worker.submit([5, 6], SHORT.replace(n=3), hear("first"))
        worker.submit([7, 8], SHORT, hear("second"))
        return submit(worker, [9], SHORT)[1]

    worker.call(begin).result(20).wait()
    assert order == [("first", 0), ("first", 1), ("first", 2), ("second", 0)]
    worker.close()


def test_a_run_is_let_in_when_its_first_token_has_room_too(tiny_folder: Path) -> None:
    worker = small(tiny_folder, 3)
    first, second = at_once(worker, (distinct(32), SHORT), (distinct(16, 100), SHORT))
    assert isinstance(first.wait(), Finished)
    assert isinstance(second.wait(), Finished)
    assert worker.stats().preemptions == 0
    worker.close()


def test_a_prompt_that_fills_the_cache_is_read(tiny_folder: Path) -> None:
    worker = small(tiny_folder, 2)
    ear = Ear()
    worker.read(distinct(32), 1, ear)
    assert isinstance(ear.wait(), Finished)
    worker.close()


def test_pages_at_rest_keep_nobody_out(tiny_folder: Path) -> None:
    worker = small(tiny_folder, 6)
    helm = Helm.open(worker, distinct(60))
    order: list[tuple[int, type]] = []

    def hear(first: int, event: Event) -> None:
        order.append((first, type(event)))

    def begin() -> list[Ear]:
        return [submit(worker, distinct(20, first), SHORT, react=partial(hear, first))[1] for first in (100, 200)]

    for ear in worker.call(begin).result(20):
        assert isinstance(ear.wait(), Finished)
    assert order.index((200, Stepped)) < order.index((100, Finished))  # they went side by side
    stats = worker.stats()
    assert stats.preemptions == 0
    assert stats.pages_used + stats.pages_unused + stats.pages_free == stats.pages_total == 6
    helm.go(1)
    assert len(helm.told) == 1
    worker.close()


# Held, and out of time.


def test_what_is_held_before_its_first_turn_is_not_begun(worker: Worker) -> None:
    def begin() -> Any:
        handle, ear = submit(worker, [5, 6], SHORT)
        handle.hold()
        return handle, ear

    handle, ear = worker.call(begin).result(20)
    submit(worker, [7])[1].wait()
    assert ear.events == []
    handle.release()
    assert isinstance(ear.wait(), Finished)


def test_every_choice_has_its_time(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def react(event: Event) -> None:
        if isinstance(event, Stepped) and (event.choice, event.step.index) == (2, 3):
            clock.pass_by(worker.limits.seconds + 1)

    _, ear = submit(worker, [5, 6], LONG.replace(n=3, temperature=1.0, seed=1), react=react)
    ear.wait()
    assert [type(event.error) for event in ear.endings if isinstance(event, Failed)] == [TimeLimit] * 3


def test_waiting_for_a_place_takes_of_the_time(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, worker = Clock(monkeypatch), small(tiny_folder, 20, running=1)
    first = Helm.open(worker, [5])
    first.react = lambda event: clock.pass_by(700) if isinstance(event, Stepped) and event.step.index == 0 else None

    def begin() -> Ear:
        first.handle.go(100)
        return submit(worker, [6], SHORT)[1]

    ending = worker.call(begin).result(20).wait()
    assert isinstance(ending, Failed)
    assert isinstance(ending.error, TimeLimit)
    worker.close()


# Calls and limits.


def test_a_call_that_was_cancelled_in_the_queue_is_not_carried_out(worker: Worker) -> None:
    done: list[int] = []

    def queue() -> None:
        futures = [worker.call(lambda number=number: done.append(number)) for number in range(3)]  # type: ignore[misc]
        assert futures[1].cancel()

    worker.call(queue).result(20)
    worker.call(lambda: None).result(20)
    assert done == [0, 2]


def test_a_run_that_names_no_length_ends_at_the_limit(tiny_folder: Path) -> None:
    worker = Worker(LLM(tiny_folder), Limits(total_tokens=20))
    worker.opened.result(30)
    _, ear = submit(worker, [5] * 4, SamplingParams(ignore_eos=True))
    ending = ear.wait()
    assert isinstance(ending, Finished)
    assert (ending.finish_reason, len(ear.ids())) == (FinishReason.LENGTH, 16)
    worker.close()


def test_a_limit_is_what_may_still_be_asked_for(tiny_folder: Path) -> None:
    limits = Limits(prompt_tokens=4, total_tokens=6, n=2, stops=1, stop_length=3, logprobs=5)
    worker = Worker(LLM(tiny_folder), limits)
    worker.opened.result(30)
    params = SamplingParams(max_tokens=2, n=2, stop=["abc"], logprobs=5, ignore_eos=True)
    assert isinstance(submit(worker, [5] * 4, params)[1].wait(), Finished)
    for changes in ({"max_tokens": 3}, {"n": 3}, {"stop": ["ab", "c"]}, {"stop": ["abcd"]}, {"logprobs": 6}):
        with pytest.raises(LimitExceeded):
            submit(worker, [5] * 4, params.replace(**changes))
    with pytest.raises(ByhandError):
        submit(worker, [5] * 5, params)
    worker.close()

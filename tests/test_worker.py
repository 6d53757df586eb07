"""The worker: one ending for every choice, whatever fails; limits by name; cancels, drains, closes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from byhand import LLM, FinishReason, SamplingParams
from byhand.cache.kv_cache import PAGE_SIZE
from byhand.engine import operations
from byhand.engine.events import Event, Failed, Finished, Paused, Progress, Read, Stepped
from byhand.engine.limits import Limits
from byhand.engine.worker import RequestHandle, Worker
from byhand.errors import BadRequest, Busy, LimitExceeded, NotServing, OutOfPages, PromptError, PromptTooLong, TimeLimit

LONG = SamplingParams(max_tokens=200, ignore_eos=True)
SHORT = SamplingParams(max_tokens=12, ignore_eos=True)


class Ear:
    """Keeps events; `ended` is set when all choices have their ending."""

    def __init__(self, choices: int = 1, react: Callable[[Event], None] | None = None) -> None:
        self.events: list[Event] = []
        self.react = react
        self.ended = threading.Event()
        self.begun = threading.Event()
        self._choices = choices

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.begun.set()
        if self.react is not None:
            self.react(event)
        if len(self.endings) == self._choices:
            self.ended.set()

    @property
    def endings(self) -> list[Finished | Failed]:
        return [event for event in self.events if isinstance(event, Finished | Failed)]

    def ids(self, choice: int = 0) -> list[int]:
        return [e.step.token.id for e in self.events if isinstance(e, Stepped) and e.choice == choice]

    def wait(self) -> Finished | Failed:
        assert self.ended.wait(20)
        return self.endings[0]


@pytest.fixture
def worker(tiny_folder: Path) -> Iterator[Worker]:
    worker = Worker(lambda: LLM(tiny_folder))
    worker.opened.result(30)
    yield worker
    assert worker.state in ("closed", "ready")
    worker.call(lambda: None).exception(10)
    worker.close()
    assert worker.stats().pages_used == 0
    assert worker._loop is not None
    assert worker._loop.requests == {}
    assert worker._loop.meter._open == 0


def submit(
    worker: Worker, prompt: list[int], params: SamplingParams = SHORT, **options: Any
) -> tuple[RequestHandle, Ear]:
    ear = Ear(params.n, options.pop("react", None))
    return worker.submit(prompt, params, ear, **options), ear


def test_a_submission_is_the_librarys_run(worker: Worker, llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=3, n=3, max_tokens=10, ignore_eos=True)
    handle, ear = submit(worker, [5, 6, 7], params)
    ear.wait()
    assert handle.is_done
    expected = llm.generate([5, 6, 7], params)
    assert isinstance(expected, list)
    assert [ear.ids(choice) for choice in range(3)] == [one.ids for one in expected]
    assert sorted(event.choice for event in ear.endings) == [0, 1, 2]
    assert isinstance(ear.events[0], Progress)
    assert (ear.events[0].done, ear.events[0].total) == (3, 3)
    steps = [event.step for event in ear.events if isinstance(event, Stepped) and event.choice == 1]
    assert [step.finish_reason for step in steps] == [None] * 9 + [FinishReason.LENGTH]


def test_reading_gives_every_position_once_in_order(worker: Worker, llm: LLM) -> None:
    ids = [5 + i % 300 for i in range(150)]
    worker.call(lambda: setattr(worker.llm.engine, "max_batched_tokens", 40)).result()
    assert worker._loop is not None
    worker._loop.scheduler._max_rows = 40
    ear = Ear()
    worker.read(ids, 3, ear)
    assert ear.wait() == Finished(0, FinishReason.LENGTH, None, ear.wait().usage)  # type: ignore[union-attr]
    pieces = [event.positions for event in ear.events if isinstance(event, Read)]
    assert len(pieces) == 4
    positions = [at for piece in pieces for at in piece]
    reading = llm.read(ids, 3)
    assert [at.position for at in positions] == list(range(150))
    assert [at.predicted.token.id for at in positions] == [at.predicted.token.id for at in reading]
    for ours, theirs in zip(positions[:-1], reading, strict=False):
        assert ours.actual is not None
        assert theirs.actual is not None
        assert ours.actual.logprob == pytest.approx(theirs.actual.logprob, abs=1e-4)
        assert len(ours.top) == 3
    assert positions[-1].actual is None
    again = Ear()
    worker.submit(ids, SHORT, again, read_prompt=1)  # its pages are known now, and every position is read none the less
    again.wait()
    assert sum(len(event.positions) for event in again.events if isinstance(event, Read)) == 150
    assert again.ids() == [step.token.id for step in llm.start(ids, SHORT)]


# What is refused at once.


def test_every_limit_refuses_by_name(tiny_folder: Path) -> None:
    limits = Limits(prompt_tokens=40, total_tokens=60, pages=3, n=2, stops=1, stop_length=4, logprobs=5)
    worker = Worker(LLM(tiny_folder), limits)
    worker.opened.result()
    ok = [5] * 10
    for ids, changes, error, param, words in [
        ([], {}, PromptError, "prompt", "empty"),
        ([999], {}, PromptError, "prompt", "ids are 0 to 383"),
        ([5] * 300, {}, PromptTooLong, "prompt", "this model reads 256"),
        ([5] * 41, {}, LimitExceeded, "prompt", "limit is 40"),
        (ok, {"max_tokens": 51}, LimitExceeded, "max_tokens", "limit is 60"),
        (ok, {"n": 3}, LimitExceeded, "n", "limit is 2"),
        (ok, {"stop": ["a", "b"]}, LimitExceeded, "stop", "limit is 1"),
        (ok, {"stop": ["abcde"]}, LimitExceeded, "stop", "limit is 4"),
        (ok, {"logprobs": 6}, LimitExceeded, "logprobs", "limit is 5"),
        (ok, {"banned_ids": [400]}, BadRequest, "banned_ids", "ids end at 383"),
    ]:
        with pytest.raises(error, match=words) as raised:
            worker.submit(ids, SamplingParams(**changes), Ear())  # type: ignore[arg-type]
        assert raised.value.param == param
    with pytest.raises(LimitExceeded, match="top"):
        worker.read(ok, 6, Ear())
    _, ear = submit(worker, ok, SamplingParams(ignore_eos=True))
    assert isinstance(ear.wait(), Finished)
    assert len(ear.ids()) == 3 * PAGE_SIZE - 10  # the pages of one run
    worker.close()


def test_a_full_house_is_busy_and_has_room_again(tiny_folder: Path) -> None:
    worker = Worker(LLM(tiny_folder), Limits(running=1, waiting=2))
    worker.opened.result()
    kept = [submit(worker, [5 + i], LONG) for i in range(3)]
    with pytest.raises(Busy, match="3 runs"):
        worker.submit([5], SHORT, Ear())
    assert worker.stats().rejected == 1
    kept[0][0].cancel()
    kept[0][1].wait()
    submit(worker, [5])[1].wait()
    worker.close()


def test_starting_failing_and_closed_workers_say_so(tiny_folder: Path) -> None:
    gate = threading.Event()

    def open_late() -> LLM:
        gate.wait(10)
        return LLM(tiny_folder)

    late = Worker(open_late)
    with pytest.raises(NotServing, match="being opened") as raised:
        late.submit([5], SHORT, Ear())
    assert raised.value.state == late.state == late.stats().state == "starting"
    early = late.call(lambda: 7)
    gate.set()
    assert early.result(20) == 7
    late.close()
    with pytest.raises(NotServing, match="shut down"):
        late.submit([5], SHORT, Ear())
    with pytest.raises(NotServing):
        late.call(lambda: 7).result(1)

    def fail() -> LLM:
        raise OSError("no such model")

    broken = Worker(fail)
    assert isinstance(broken.opened.exception(10), OSError)
    assert broken.state == "failed"
    with pytest.raises(NotServing, match="could not be opened"):
        broken.submit([5], SHORT, Ear())
    broken.close()


# Who fails, fails alone.


def beside_a_failure(worker: Worker, fail: Callable[[], Ear]) -> Failed:
    """A run that fails beside two that do not notice."""
    before, first = submit(worker, [5, 6, 7], LONG)
    failing = fail()
    after, second = submit(worker, [8, 9], LONG)
    ending = failing.wait()
    for ear, prompt in ((first, [5, 6, 7]), (second, [8, 9])):
        assert isinstance(ear.wait(), Finished)
        expected = worker.call(lambda prompt=prompt: [s.token.id for s in worker.llm.start(prompt, LONG)])  # type: ignore[misc]
        assert ear.ids() == expected.result(20)
    assert before.is_done
    assert after.is_done
    assert isinstance(ending, Failed)
    assert worker.stats().finished["error"] == 1
    return ending


def test_a_stage_that_raises_ends_its_run_alone(worker: Worker) -> None:
    def stage(ids: Any, logits: torch.Tensor) -> torch.Tensor:
        if len(ids) > 10:
            raise RuntimeError("no more")
        return logits

    ending = beside_a_failure(worker, lambda: submit(worker, [4, 4], LONG.replace(stages=(stage,)))[1])
    assert "the stage `stage` failed" in str(ending.error)


def test_a_chain_that_leaves_nothing_ends_its_run_alone(worker: Worker) -> None:
    params = LONG.replace(allowed_ids=(7, 8), no_repeat_ngram_size=1)
    ending = beside_a_failure(worker, lambda: submit(worker, [4], params)[1])
    assert isinstance(ending.error, BadRequest)


def test_a_listener_that_raises_loses_its_run_alone(worker: Worker) -> None:
    def react(event: Event) -> None:
        if isinstance(event, Stepped) and event.step.index == 3:
            raise OSError("gone")

    handle, ear = submit(worker, [4] * 40, LONG.replace(n=2, temperature=1.0), react=react)
    _, other = submit(worker, [5, 6], LONG)
    assert isinstance(other.wait(), Finished)
    assert handle.is_done
    assert len(ear.ids()) <= 8
    assert [event.step.index for event in ear.events[-1:] if isinstance(event, Stepped)] == [3]  # it is told no more
    assert worker.stats().pages_used == 0


@pytest.mark.parametrize("place", ["token", "decode", "forward", "head", "logits", "open"])
def test_a_fault_anywhere_ends_one_run_alone(worker: Worker, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, marked = worker.llm.engine, 333
    if place == "token":
        whole = engine.commit

        def commit(run: Any, *args: Any, **options: Any) -> Any:
            if marked in run.ids and run.generated == 2:
                raise RuntimeError("inside")
            return whole(run, *args, **options)

        monkeypatch.setattr(engine, "commit", commit)
    elif place == "decode":
        ending = engine.output._read_ending
        monkeypatch.setattr(
            engine.output, "_read_ending", lambda run, t: 1 / 0 if marked in run.ids else ending(run, t)
        )
    elif place == "forward":
        forward = engine.model.forward

        def fail(batch: Any, cache: Any) -> Any:
            if (batch.input_ids == marked).any():
                raise RuntimeError("inside")
            return forward(batch, cache)

        monkeypatch.setattr(engine.model, "forward", fail)
    elif place == "head":
        over, head, chunks_now = engine.forward, engine.runner.logits, [[]]

        def remember(chunks: Any, **options: Any) -> Any:
            chunks_now[0] = chunks
            return over(chunks, **options)

        def fail_late(hidden: Any) -> Any:
            if any(marked in chunk.sequence.ids for chunk in chunks_now[0]):
                raise RuntimeError("inside")
            return head(hidden)

        monkeypatch.setattr(engine, "forward", remember)
        monkeypatch.setattr(engine.runner, "logits", fail_late)
    elif place == "logits":
        choose = engine.sampler.choose
        monkeypatch.setattr(engine.sampler, "choose", lambda run, *a: 1 / 0 if marked in run.ids else choose(run, *a))
    else:
        begin = engine.open
        monkeypatch.setattr(engine, "open", lambda ids, *a, **o: 1 / 0 if marked in ids else begin(ids, *a, **o))
    ending = beside_a_failure(worker, lambda: submit(worker, [4, marked], LONG)[1])
    assert isinstance(ending.error, RuntimeError | ZeroDivisionError)


def test_a_pass_that_fails_once_costs_nobody(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, calls = worker.llm.engine.model.forward, [0]

    def fail(batch: Any, cache: Any) -> Any:
        calls[0] += 1
        if calls[0] in (1, 5, 9):
            raise MemoryError
        return forward(batch, cache)

    monkeypatch.setattr(worker.llm.engine.model, "forward", fail)
    ears = [worker.call(lambda: None) and submit(worker, [5 + i] * 20, SHORT)[1] for i in range(1, 4)]
    endings = [ear.wait() for ear in ears]
    alone = [one for one in endings if isinstance(one, Failed)]
    assert len(alone) <= 1  # a pass of one run cannot be split any further
    assert calls[0] > 9


# Cancelled, held, out of time.


@pytest.mark.parametrize("params", [LONG, LONG.replace(n=4, temperature=1.0, seed=1)], ids=["one", "four"])
@pytest.mark.parametrize("moment", ["at once", "prefill", "first", "later"])
def test_a_cancelled_run_is_gone_before_the_next_pass(worker: Worker, params: SamplingParams, moment: str) -> None:
    passes: list[int] = []
    tickets: list[RequestHandle] = []

    def react(event: Event) -> None:
        wanted = {"prefill": Progress, "first": Stepped, "later": Stepped}.get(moment)
        index = 7 if moment == "later" else 0
        if (
            wanted
            and not passes
            and isinstance(event, wanted)
            and getattr(getattr(event, "step", None), "index", 0) == index
        ):
            passes.append(worker.stats().passes)
            tickets[0].cancel()

    def begin() -> Ear:
        handle, ear = submit(worker, [5] * 200, params.replace(max_tokens=50), react=react)
        tickets.append(handle)
        return ear

    ear = worker.call(begin).result(5)
    if moment == "at once":
        tickets[0].cancel()
    ear.wait()
    assert ear.ended.wait(5)
    assert {event.finish_reason for event in ear.endings if isinstance(event, Finished)} == {FinishReason.ABORT}
    assert len(ear.endings) == params.n
    assert worker.call(lambda: worker.stats().pages_used).result(5) == 0
    assert worker.stats().passes - (passes or [worker.stats().passes])[0] <= 1
    count = len(ear.events)
    submit(worker, [5])[1].wait()
    assert len(ear.events) == count


def test_a_held_run_stands_still_and_loses_nothing(worker: Worker, llm: LLM) -> None:
    tickets: list[RequestHandle] = []

    def react(event: Event) -> None:
        if isinstance(event, Stepped) and event.step.index == 4:
            tickets[0].hold()

    def begin() -> Ear:
        handle, ear = submit(worker, [5, 6], SHORT, react=react)
        tickets.append(handle)
        return ear

    ear = worker.call(begin).result(5)
    submit(worker, [8, 9])[1].wait()
    assert len(ear.ids()) == 5
    assert worker.stats().idle == 1
    tickets[0].release()
    ear.wait()
    assert ear.ids() == [step.token.id for step in llm.start([5, 6], SHORT)]


def test_seconds_run_out_with_a_named_error(tiny_folder: Path) -> None:
    worker = Worker(LLM(tiny_folder), Limits(seconds=0.05))
    worker.opened.result()
    handle, ear = submit(worker, [5], LONG)
    handle.hold()
    ending = ear.wait()
    assert isinstance(ending, Failed)
    assert isinstance(ending.error, TimeLimit)
    assert "0.05 seconds" in str(ending.error)
    worker.close()


# Life and death.


def test_draining_finishes_what_runs_and_takes_nothing_new(worker: Worker) -> None:
    ears = [submit(worker, [5 + i], SHORT)[1] for i in range(4)]
    ended = worker.drain(20)
    with pytest.raises(NotServing) as raised:
        worker.submit([5], SHORT, Ear())
    assert raised.value.state in ("draining", "closed")
    ended.result(20)
    assert [type(ear.endings[0]) for ear in ears] == [Finished] * 4
    assert worker.state == "closed"


def test_after_the_grace_time_the_rest_is_told(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = worker.llm.engine.model.forward
    monkeypatch.setattr(worker.llm.engine.model, "forward", lambda *a: time.sleep(0.02) or forward(*a))
    ears = [submit(worker, [5 + i], LONG)[1] for i in range(3)]
    assert ears[0].begun.wait(5)
    worker.drain(0.1).result(10)
    for ear in ears:
        assert isinstance(ear.endings[0], Failed)
        assert isinstance(ear.endings[0].error, NotServing)
        assert len(ear.endings) == 1


def test_draining_waits_for_no_steered_run_whose_reader_is_gone(worker: Worker) -> None:
    """A client that hangs up while its prompt is computed: the run is held in the middle of it."""
    block, ear = threading.Event(), Ear()
    worker.call(block.wait)
    handle = worker.open([5] * 40, LONG, ear)
    handle.hold()
    ended = worker.drain(60)
    block.set()
    ended.result(20)
    assert [type(event) for event in ear.events] == [Failed]


def test_closing_ends_everything_with_a_word(worker: Worker) -> None:
    ears = [submit(worker, [5 + i], LONG.replace(n=2, temperature=1.0))[1] for i in range(40)]
    worker.close()
    for ear in ears:
        assert sorted(event.choice for event in ear.endings) == [0, 1]


def test_calls_come_back_with_value_or_error(worker: Worker) -> None:
    assert worker.call(lambda: threading.current_thread().name).result(5) == "byhand-engine"
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 // 0).result(5)


# The same in plain Python.


def test_a_chain_that_fails_ends_a_python_run_with_error(llm: LLM) -> None:
    run = llm.start([5], SamplingParams(allowed_ids=(7, 8), no_repeat_ngram_size=1))
    with pytest.raises(BadRequest):
        list(run)
    assert run.finish_reason is FinishReason.ERROR
    assert len(run.steps) == len(run.ids) - 1 == 2
    assert llm.engine.pages_in_use == 0
    run.set(no_repeat_ngram_size=0)
    assert run.finish_reason is None
    assert run.step().token.id in (7, 8)


@pytest.mark.parametrize("place", [3, 30])
def test_an_edit_that_finds_no_pages_is_taken_back(tiny_folder: Path, place: int) -> None:
    llm = LLM(tiny_folder, cache_tokens=4 * PAGE_SIZE)
    run = llm.start([5] * 20, SamplingParams(max_tokens=20, ignore_eos=True))
    list(run)
    before = (run.ids, run.text, run.prompt_length, [s.token.id for s in run.steps], run.finish_reason)
    llm.engine.release(run._sequence)
    blocker = llm.engine.open([9] * 50, llm.engine.check(SamplingParams()))
    list(llm.engine.logit_blocks(blocker))  # it holds its pages, and no loop can take them
    with pytest.raises(OutOfPages):
        run.edit(place, 7)
    assert before == (run.ids, run.text, run.prompt_length, [s.token.id for s in run.steps], run.finish_reason)
    llm.engine.release(blocker)
    run.edit(place, 7)
    assert run.ids == [*before[0][:place], 7]


def test_a_long_insert_among_streams_is_chunked_and_survives_preemption(tiny_folder: Path) -> None:
    worker = Worker(LLM(tiny_folder, cache_tokens=16 * PAGE_SIZE))
    llm = worker.opened.result()
    ear = Ear()
    steered = worker.open([5, 6], SamplingParams(ignore_eos=True), ear)
    while not any(isinstance(event, Paused) for event in ear.events):
        time.sleep(0.005)
    streams = [submit(worker, [8 + i], SamplingParams(max_tokens=60, ignore_eos=True))[1] for i in range(4)]
    ids = [7 + i % 50 for i in range(150)]
    steps = steered.change(lambda engine, run: operations.insert(engine, run, ids)).result(20)
    assert [step.token.id for step in steps] == ids
    assert all(isinstance(ear.wait(), Finished) for ear in streams)
    score = worker.call(lambda: llm.score([5, 6, *ids])).result(20)
    for step in steps:
        assert step.logprob == pytest.approx(score.logprobs[step.position], abs=1e-3)
    worker.close()

"""Steered runs: time, breakpoints, operations that fail, undo, forks, parking: what is told, and how the run stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from typing import Any

import pytest

from byhand import LLM, FinishReason, SamplingParams
from byhand.engine.breakpoint import Breakpoint
from byhand.engine.events import Event, Finished, Paused, Progress, Stepped
from byhand.engine.limits import Limits
from byhand.engine.request import HISTORY
from byhand.engine.worker import Worker
from byhand.errors import BadRequest, Busy, ByhandError, LimitExceeded, NotServing, TimeLimit
from tests.steering import GREEDY, Clock, Helm, Trap, inserting
from tests.test_worker import LONG, Ear, submit

PROMPT = [5, 6, 7]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def turn(worker: Worker) -> None:
    """Another's run, from its beginning to its end: the engine has turned, and looked at the time."""
    assert isinstance(submit(worker, [9], SamplingParams(max_tokens=1, ignore_eos=True))[1].wait(), Finished)


def alone(worker: Worker, count: int, ids: list[int] = PROMPT, params: SamplingParams = GREEDY) -> list[int]:
    """The tokens of the same run in Python."""

    def steps() -> list[int]:
        run = worker.llm.start(ids, params)
        return [run.step().token.id for _ in range(count)]

    return worker.call(steps).result(20)


def at_once(worker: Worker, *acts: Callable[[], Any]) -> list[Any]:
    """What is asked in here is carried out between the same two turns."""
    return worker.call(lambda: [act() for act in acts]).result(20)


# Time.


@pytest.mark.parametrize("act", [lambda helm: None, lambda helm: helm.go(2), lambda helm: helm.insert([8, 9])])
def test_a_run_at_rest_has_all_the_time_there_is(worker: Worker, clock: Clock, act: Callable[[Helm], Any]) -> None:
    helm = Helm.open(worker, PROMPT)
    act(helm)
    clock.pass_by(10_000)
    turn(worker)
    assert helm.failures == []
    assert helm.go(2) == Paused(0, "count")


def test_a_run_that_ran_out_of_time_lets_its_pages_go_and_goes_on_when_it_is_told(worker: Worker, clock: Clock) -> None:
    helm = Helm.open(worker, PROMPT)
    helm.react = lambda event: clock.pass_by(601) if isinstance(event, Stepped) and event.step.index == 3 else None
    assert isinstance(helm.go().error, TimeLimit)
    assert worker.stats().pages_used == 0
    assert helm.go(2) == Paused(0, "count")
    assert helm.told == alone(worker, 6)


def test_the_time_of_an_operation_is_bounded(tiny_folder: Path, clock: Clock) -> None:
    llm = LLM(tiny_folder)
    llm.engine.max_batched_tokens = 32
    worker = Worker(llm)
    worker.opened.result(30)
    helm = Helm.open(worker, PROMPT)
    helm.go(1)
    before = helm.ids
    helm.react = lambda event: clock.pass_by(601) if isinstance(event, Stepped) else None
    with pytest.raises(TimeLimit):
        helm.insert([8] * 200)
    assert helm.ids == before
    worker.close()


def test_a_held_run_loses_no_time_and_has_its_limit_again_when_it_goes_on(worker: Worker, clock: Clock) -> None:
    helm, held = Helm.open(worker, PROMPT), Flag()

    def react(event: Event) -> None:
        if isinstance(event, Stepped) and event.step.index == 2:
            helm.handle.hold()
            held.set()
        if isinstance(event, Stepped) and event.step.index == 5:
            clock.pass_by(601)

    helm.react = react
    helm.handle.go(100).result(20)
    assert held.wait(20)
    turn(worker)
    clock.pass_by(10_000)
    turn(worker)
    assert (helm.failures, helm.told) == ([], alone(worker, 3))
    helm.handle.release()
    assert isinstance(helm.rest().error, TimeLimit)
    assert len(helm.told) == 6


def test_the_time_of_a_prompt_that_waits_for_a_place_is_bounded(tiny_folder: Path, clock: Clock) -> None:
    worker = Worker(LLM(tiny_folder), Limits(running=1))
    worker.opened.result(30)
    first = Helm.open(worker, [5])
    first.react = lambda event: clock.pass_by(601) if isinstance(event, Stepped) and event.step.index == 2 else None

    def begin() -> Helm:
        first.handle.go(100)
        return Helm(lambda listener: worker.open(PROMPT, GREEDY, listener))

    assert isinstance(worker.call(begin).result(20).rest().error, TimeLimit)  # type: ignore[union-attr]
    worker.close()


# Breakpoints.


def a_new_token(tokens: list[int], first: int = 4) -> int:
    """The place of the first token from there on that did not come before, nor comes again."""
    return next(place for place in range(first, len(tokens)) if tokens.count(tokens[place]) == 1)


CHANGES: dict[str, Callable[[Helm, int], None]] = {
    "rewind": lambda helm, _: helm.rewind(3),
    "edit": lambda helm, last: helm.edit(len(helm.ids) - 4, last),
    "undo": lambda helm, _: helm.undo(),
    "insert": lambda helm, last: (helm.rewind(4), helm.insert([last]), None)[-1],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_breakpoint_is_passed_once_and_met_again_after_a_change(
    worker: Worker, change: Callable[[Helm, int], None]
) -> None:
    tokens = alone(worker, 20)
    place = a_new_token(tokens)
    until, helm = Breakpoint(token=tokens[place]), Helm.open(worker, PROMPT)
    assert helm.go(until=until) == Paused(0, "token")
    at = helm.ids
    assert helm.told == tokens[:place]
    assert helm.go(3, until=until) == Paused(0, "count")  # the second time it is gone past
    assert helm.told == tokens[: place + 3]
    change(helm, at[-1])
    assert helm.ids == at
    assert helm.go(3, until=until) == Paused(0, "token")
    assert helm.ids == at
    assert helm.go(1, until=until) == Paused(0, "count")


def test_a_look_and_other_settings_do_not_close_a_breakpoint_that_was_met(worker: Worker) -> None:
    tokens = alone(worker, 20)
    until, helm = Breakpoint(token=tokens[a_new_token(tokens)]), Helm.open(worker, PROMPT)
    helm.go(until=until)
    helm.handle.set({"logprobs": 3}).result(20)
    assert helm.go(1, until=until) == Paused(0, "count")


def test_a_text_that_lies_in_two_tokens_is_noticed_once(worker: Worker) -> None:
    helm = Helm.open(worker, PROMPT)
    helm.go(20)
    texts = [event.step.text for event in helm.events if isinstance(event, Stepped)]
    place, word = next(
        (place, texts[place - 1][-1:] + text[:1])
        for place, text in enumerate(texts)
        if place > 2 and text and texts[place - 1] and "".join(texts).count(texts[place - 1][-1:] + text[:1]) == 1
    )
    helm.rewind(20)
    helm.events.clear()
    assert helm.go(until=Breakpoint(text=word)) == Paused(0, "text")
    assert len(helm.told) == place + 1
    assert helm.go(2, until=Breakpoint(text=word)) == Paused(0, "count")  # it was there before


def test_why_a_breakpoint_paused_is_told_at_the_last_of_the_counted_tokens_too(worker: Worker) -> None:
    helm = Helm.open(worker, PROMPT)
    helm.go(4)
    text = helm.text
    helm.rewind(4)
    assert helm.go(4, until=Breakpoint(text=text)) == Paused(0, "text")


def test_a_token_of_the_users_is_taken_at_a_breakpoint_and_once(worker: Worker) -> None:
    tokens = alone(worker, 20)
    other = a_new_token(tokens)
    helm = Helm.open(worker, PROMPT)
    assert helm.go(2, until=Breakpoint(token=tokens[other]), force=tokens[other]) == Paused(0, "count")
    assert helm.told[0] == tokens[other]
    assert helm.told[1] == alone(worker, 1, [*PROMPT, tokens[other]])[0]


# Listeners that raise.


RAISES: dict[str, Callable[[Helm], Any]] = {
    "the pause before an operation": lambda helm: [helm.handle.go(), helm.handle.change(inserting([8, 9]))][-1],
    "the Step of an operation that is made at once": lambda helm: helm.handle.change(inserting([8, 9])),
    "a Step of an operation in a pass": lambda helm: helm.handle.change(inserting([8, 9, 10])),
    "the last of the tokens": lambda helm: helm.handle.go(1),
}


@pytest.mark.parametrize("moment", RAISES)
def test_a_listener_that_raises_closes_its_run_alone(worker: Worker, moment: str) -> None:
    helm = Helm.open(worker, PROMPT)
    if "at once" in moment:
        assert helm.go(until=Breakpoint(entropy=0.0)) == Paused(0, "entropy")  # the next token's logits are there
    else:
        assert helm.go(1) == Paused(0, "count")

    def react(event: Event) -> None:
        if isinstance(event, Paused if "pause" in moment else Stepped):
            raise OSError("gone")

    def begin() -> tuple[Any, Ear]:
        return RAISES[moment](helm), submit(worker, [9], SamplingParams(max_tokens=8, ignore_eos=True))[1]

    helm.react = react
    answer, ear = worker.call(begin).result(20)
    ending = ear.wait()
    assert isinstance(ending, Finished)
    assert ending.finish_reason is FinishReason.LENGTH
    if moment != "the last of the tokens":
        assert "closed" in str(answer.exception(20))
    stats = worker.call(worker.stats).result(20)
    assert (stats.running, stats.waiting, stats.idle, stats.pages_used) == (0, 0, 0, 0)
    assert helm.handle.is_done
    assert worker.failure is None
    turn(worker)


# Operations.


@pytest.mark.parametrize("late", [0, 1], ids=["at once", "in a pass"])
def test_an_operation_that_fails_leaves_the_run_as_it_was_and_nothing_to_undo(worker: Worker, late: int) -> None:
    trap = Trap()
    params = GREEDY.replace(stages=(trap,))
    helm = Helm.open(worker, PROMPT, params)
    helm.go(2)
    assert helm.go(until=Breakpoint(entropy=0.0)) == Paused(0, "entropy")  # the logits of the next token are there
    before, text = helm.ids, helm.text
    trap.position = len(before) + late
    with pytest.raises(BadRequest, match="the trap has closed"):
        helm.insert([8, 9, 10])
    trap.position = None
    assert (helm.ids, helm.text) == (before, text)
    assert helm.failures == []
    assert helm.go(2) == Paused(0, "count")
    assert helm.ids == PROMPT + alone(worker, 4)
    for expected in (before, before, PROMPT):  # as often as it was told to go
        helm.undo()
        assert helm.ids == expected


def test_a_token_that_fails_is_not_in_the_list(worker: Worker) -> None:
    trap = Trap()
    helm = Helm.open(worker, PROMPT, GREEDY.replace(stages=(trap,)))
    trap.position = len(PROMPT) + 2
    assert "the trap has closed" in str(helm.go(5).error)
    assert worker.stats().finished["error"] == 1
    assert helm.ids == [*PROMPT, *helm.told] == PROMPT + alone(worker, 2)
    trap.position = None
    with pytest.raises(ByhandError, match="the run has ended"):
        helm.handle.go(1).result(20)
    helm.undo()
    assert helm.ids == PROMPT
    assert helm.go(3) == Paused(0, "count")
    assert helm.ids == PROMPT + alone(worker, 3)


def test_nothing_else_is_done_while_an_operation_is_computed(worker: Worker) -> None:
    helm = Helm.open(worker, PROMPT)
    insert = [8, 9]

    changed, gone = at_once(worker, lambda: helm.handle.change(inserting(insert)), lambda: helm.handle.go(1))
    with pytest.raises(BadRequest, match="still being computed"):
        gone.result(20)
    assert [step.token.id for step in changed.result(20)] == insert
    assert helm.ids == PROMPT + insert


def test_an_operation_in_the_middle_of_a_run_pauses_it_first(worker: Worker) -> None:
    helm, order = Helm.open(worker, PROMPT), list[str]()

    def react(event: Event) -> None:
        if isinstance(event, Paused):
            order.append(event.why)
        elif isinstance(event, Stepped):
            order.append("step")

    def insert(engine: Any, run: Any) -> list[Any]:
        order.append("change")
        return inserting([8])(engine, run)

    helm.react = react
    _, changed = at_once(worker, helm.handle.go, lambda: helm.handle.change(insert, mark=lambda: order.append("mark")))
    changed.result(20)
    turn(worker)
    assert order == ["pause", "mark", "change", "step"]
    assert helm.ids == [*PROMPT, 8]
    assert worker.stats().idle == 1


def test_a_pause_after_the_end_tells_the_end_again(worker: Worker) -> None:
    helm = Helm.open(worker, PROMPT, GREEDY.replace(max_tokens=2))
    ended = helm.go()
    assert (ended.finish_reason, ended.usage.completion_tokens) == (FinishReason.LENGTH, 2)
    helm.handle.pause().result(20)
    assert helm.rest() == ended


def test_a_run_that_has_ended_at_once_says_so(worker: Worker) -> None:
    helm = Helm.open(worker, PROMPT, GREEDY.replace(max_tokens=0))
    assert isinstance(helm.events[-1], Finished)
    assert worker.stats().finished["length"] == 1


def test_undo_takes_settings_back(worker: Worker) -> None:
    helm = Helm.open(worker, PROMPT)
    helm.handle.set({"temperature": 0.5, "max_tokens": 1}).result(20)
    helm.undo()
    params = helm.handle.look(lambda _, run: run.params).result(20)
    assert (params.temperature, params.max_tokens) == (GREEDY.temperature, GREEDY.max_tokens)
    assert helm.go(2) == Paused(0, "count")


def test_settings_are_held_to_the_limits(worker: Worker) -> None:
    helm = Helm.open(worker, PROMPT)
    with pytest.raises(LimitExceeded):
        helm.handle.set({"logprobs": 21}).result(20)
    helm.handle.set({"logprobs": 20}).result(20)


def test_an_edited_prompt_that_is_undone_is_read_again(worker: Worker) -> None:
    helm = Helm(lambda listener: worker.open([5, 6, 7, 8], GREEDY, listener, read_prompt=2))
    helm.rest()
    first = helm.read
    helm.edit(1, 9)
    assert [position.token.id for position in helm.read[4:]] == [9]
    helm.undo()
    assert [replace(position, pieces=()) for position in helm.read[5:]] == [
        replace(position, pieces=()) for position in first[1:]
    ]
    assert helm.ids == [5, 6, 7, 8]


def test_a_prompt_is_read_after_an_operation_that_failed(worker: Worker) -> None:
    trap = Trap()
    params = GREEDY.replace(stages=(trap,))
    helm = Helm(lambda listener: worker.open([5, 6, 7, 8], params, listener, read_prompt=2))
    helm.rest()
    trap.position = 6
    with pytest.raises(BadRequest, match="the trap has closed"):
        helm.insert([8, 9, 10])
    trap.position = None
    helm.edit(1, 9)
    assert [position.token.id for position in helm.read[4:]] == [9]


def test_undo_goes_back_so_far_and_no_further(worker: Worker) -> None:
    helm = Helm.open(worker, PROMPT)
    for number in range(HISTORY + 3):
        helm.handle.set({"max_tokens": 100 + number}).result(20)
    for _ in range(HISTORY):
        helm.undo()
    assert helm.handle.look(lambda _, run: run.params.max_tokens).result(20) == 102
    with pytest.raises(BadRequest, match="nothing to undo"):
        helm.undo()


def test_undo_brings_back_what_was_held_of_a_stop_string(worker: Worker) -> None:
    then, the, fox = (worker.llm.tokenizer.one_token(word) for word in (" then", " the", " fox"))
    helm = Helm.open(worker, PROMPT, GREEDY.replace(stop=("then the",)))
    helm.go(1, force=then)
    helm.undo()
    assert helm.go(1, force=the) == Paused(0, "count")
    helm.go(1, force=fox)
    assert helm.text == " the fox"


# Forks, parking, the end.


def test_a_fork_is_at_rest_and_takes_other_dice_where_it_is_given_a_seed(worker: Worker) -> None:
    sampled = SamplingParams(temperature=1.0, seed=3, ignore_eos=True)
    helm = Helm.open(worker, PROMPT, sampled)
    helm.go(2)
    same, other = helm.fork(), helm.fork(seed=4)
    turn(worker)
    assert same.ids == other.ids == helm.ids
    assert same.events == other.events == []
    for run in (helm, same, other):
        run.go(12)
    assert same.ids == helm.ids != other.ids
    assert other.ids == [*PROMPT, *helm.told[:2], *other.told]
    other.handle.cancel()
    assert helm.go(1) == Paused(0, "count")


def test_a_run_that_goes_is_not_counted_among_those_at_rest(worker: Worker) -> None:
    helm, counts = Helm.open(worker, PROMPT), list[tuple[int, int, int]]()

    def react(event: Event) -> None:
        if isinstance(event, Stepped):
            stats = worker.stats()
            counts.append((stats.running, stats.waiting, stats.idle))

    helm.react = react
    helm.go(2)
    assert counts == [(1, 0, 0)] * 2


@pytest.mark.parametrize("steps", [0, 2])
def test_a_parked_run_holds_no_page_and_goes_on(worker: Worker, steps: int) -> None:
    ids = [11 + i for i in range(40)]
    helm = Helm.open(worker, ids)
    if steps:
        helm.go(steps)
    helm.handle.park()
    assert worker.call(lambda: worker.stats().pages_used).result(20) == 0
    told = sum(isinstance(event, Progress) for event in helm.events)
    helm.go(2)
    assert helm.told == alone(worker, steps + 2, ids)
    assert sum(isinstance(event, Progress) for event in helm.events) == told  # of its prompt all has been told
    assert helm.handle.look(lambda _, run: run.cached).result(20) == 0  # its own pages, found again, are not counted


def test_parking_pauses_a_run_that_goes(worker: Worker) -> None:
    helm = Helm.open(worker, PROMPT)
    at_once(worker, helm.handle.go, helm.handle.park)
    assert helm.rest() == Paused(0, "parked")
    turn(worker)
    assert helm.told == []


def test_after_the_end_a_handle_says_that_the_run_was_closed(worker: Worker) -> None:
    helm = Helm.open(worker, PROMPT)
    going = at_once(worker, lambda: helm.handle.change(lambda engine, run: []), helm.handle.cancel)[0]
    assert isinstance(helm.rest(), Finished)
    assert helm.handle.is_done
    assert isinstance(going.exception(20), RuntimeError)
    for ask in (helm.handle.go, helm.handle.undo, lambda: helm.handle.look(lambda *_: 1)):
        with pytest.raises(ByhandError, match="closed"):
            ask().result(20)  # type: ignore[operator]


def test_steered_runs_take_no_place_among_the_submitted(tiny_folder: Path) -> None:
    worker = Worker(LLM(tiny_folder), Limits(running=1, waiting=1))
    worker.opened.result(30)
    for _ in range(3):
        helm = Helm.open(worker, PROMPT)
        helm.handle.cancel()
        assert isinstance(helm.rest(), Finished)
    first, second = submit(worker, [5], LONG), submit(worker, [6], LONG)
    with pytest.raises(Busy):
        submit(worker, [7])
    first[1].wait(), second[1].wait()
    worker.close()


def test_too_many_that_wait_refuse_a_steered_run(tiny_folder: Path) -> None:
    worker = Worker(LLM(tiny_folder), Limits(running=1, waiting=1))
    worker.opened.result(30)
    reached, gates = [Flag(), Flag()], [Flag(), Flag()]

    def react(event: Event) -> None:
        if isinstance(event, Stepped) and event.step.index < 2:
            reached[event.step.index].set()
            gates[event.step.index].wait(20)

    submit(worker, [5], LONG, react=react)
    assert reached[0].wait(20)  # the one place is taken
    worker.open([6], GREEDY, Ear())
    gates[0].set()
    assert reached[1].wait(20)  # a turn has begun since: that one waits
    with pytest.raises(Busy, match="1 runs are waiting"):
        worker.open([7], GREEDY, Ear())
    assert worker.stats().rejected == 1
    gates[1].set()
    worker.close()


def test_draining_lets_a_run_that_goes_come_to_its_end_and_does_not_wait_for_one_at_rest(worker: Worker) -> None:
    idle, going = Helm.open(worker, PROMPT), Helm.open(worker, [5, 6], GREEDY.replace(max_tokens=30))
    _, ended = at_once(worker, going.handle.go, lambda: worker.drain(1000))
    assert isinstance(going.rest(), Finished)
    ended.result(20)
    assert [type(error) for error in idle.failures] == [NotServing]
    assert len(going.told) == 30

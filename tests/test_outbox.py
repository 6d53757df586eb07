"""The queue of one connection: in order from any thread, bounded by holding whoever fills it, closed once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from byhand.server.live.outbox import Outbox

T = TypeVar("T")


def within(work: Coroutine[Any, Any, T]) -> T:
    """Its result, in a loop of its own; what hangs is a failure."""

    async def bounded() -> T:
        return await asyncio.wait_for(work, 20)

    return asyncio.run(bounded())


class Box:
    """An outbox, and what it did to those that fill it."""

    def __init__(self, limit: int) -> None:
        self.does: list[str] = []
        self.out = Outbox(limit, lambda: self.does.append("hold"), lambda: self.does.append("release"))

    def put(self, *numbers: int) -> None:
        for number in numbers:
            self.out.put({"number": number})

    async def take(self, count: int) -> list[Any]:
        return [frame["number"] if (frame := await self.out.take()) is not None else None for _ in range(count)]


def test_it_holds_when_it_is_full_and_lets_go_at_half_each_time() -> None:
    async def talk() -> None:
        box = Box(8)
        for turn in range(3):
            done = ["hold", "release"] * turn
            box.put(*range(7))
            assert box.does == done
            for number in (7, 8, 9):  # what was under way when it held comes all the same
                box.put(number)
                assert box.does == [*done, "hold"]
            assert await box.take(5) == [0, 1, 2, 3, 4]
            assert box.does == [*done, "hold"]
            assert await box.take(1) == [5]
            assert box.does == [*done, "hold", "release"]
            assert await box.take(4) == [6, 7, 8, 9]
            assert len(box.out) == 0
        assert box.does == ["hold", "release"] * 3

    within(talk())


def test_a_frame_that_is_made_late_is_made_when_its_turn_has_come() -> None:
    async def talk() -> None:
        box = Box(8)
        made: list[int] = []

        def late(number: int, *, is_said: bool = True) -> dict[str, int] | None:
            made.append(number)
            return {"number": number} if is_said else None

        box.put(0)
        box.out.put(lambda: late(1))
        box.out.put(lambda: late(2, is_said=False))  # it has become nothing
        box.put(3)
        assert await box.take(1) == [0]
        assert made == []
        assert await box.take(1) == [1]
        assert made == [1]
        assert await box.take(1) == [3]

    within(talk())


def test_a_reader_that_waits_is_woken_from_another_thread() -> None:
    async def talk() -> None:
        box = Box(8)
        for number in range(3):
            waiting = asyncio.ensure_future(box.take(1))
            await asyncio.sleep(0)
            threading.Thread(target=box.put, args=[number]).start()
            assert await waiting == [number]

    within(talk())


def test_many_threads_lose_nothing_and_each_keeps_its_order() -> None:
    async def talk() -> list[int]:
        box = Box(16)
        threads = [threading.Thread(target=box.put, args=range(100 * each, 100 * each + 100)) for each in range(4)]
        for thread in threads:
            thread.start()
        return await box.take(400)

    numbers = within(talk())
    for each in range(4):
        assert [number for number in numbers if number // 100 == each] == list(range(100 * each, 100 * each + 100))


def test_what_waits_when_it_closes_is_still_handed_out_and_then_it_is_over() -> None:
    async def talk() -> None:
        box = Box(8)
        box.put(0, 1)
        box.out.close()
        box.put(2)  # nobody will hear it
        assert len(box.out) == 2
        assert await box.take(4) == [0, 1, None, None]

    within(talk())


def test_closing_wakes_who_waits() -> None:
    async def talk() -> None:
        box = Box(8)
        waiting = asyncio.ensure_future(box.take(1))
        await asyncio.sleep(0)
        box.out.close()
        assert await waiting == [None]

    within(talk())


def test_who_fills_it_for_a_reader_that_is_gone_is_held_no_more() -> None:
    async def talk() -> None:
        box = Box(2)
        box.out.close()
        box.put(0, 1, 2)
        assert (box.does, len(box.out)) == ([], 0)

    within(talk())


def test_a_loop_that_has_ended_is_no_error() -> None:
    async def made() -> Box:
        return Box(8)

    box = within(made())
    box.put(0)
    assert len(box.out) == 1

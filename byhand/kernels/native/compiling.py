"""Compiles many kernels at once, in some processes beside this one, and tells how far it is.

Run as a program, it is one of those processes: it compiles the kernels that each line of its input names, and names in
turn each that is done.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from subprocess import DEVNULL, PIPE, Popen
from threading import Lock, Thread
from time import monotonic

from byhand import children
from byhand.kernels import native
from byhand.kernels.native.compiled import cache_folder
from byhand.notes import Progress

# Processes that compile, this one among them: each takes half a second to begin.
MOST = 4
# About how long kernels take beside one another, by how their names begin; others are 1.
COSTS = {"linear_many": 3, "linear_columns": 2, "linear": 5, "attend": 7, "topk_lse": 4}


def cost(name: str) -> int:
    """About how long a kernel takes to compile, beside others."""
    return next((cost for start, cost in COSTS.items() if name.startswith(start)), 1)


class Clock:
    """Counts the kernels that are done, and tells of each, with a guess at how long the others will take."""

    def __init__(self, names: Sequence[str], tell: Callable[[str], None], now: Callable[[], float] = monotonic) -> None:
        self._left, self._count, self._tell, self._now = set(names), len(names), tell, now
        self._whole, self._started, self._lock = sum(map(cost, names)), now(), Lock()

    def done(self, name: str) -> None:
        """One more is done."""
        with self._lock:
            self._left.discard(name)
            if self._count > 1:
                self._tell(self._message())

    def _message(self) -> Progress:
        seconds, left = self._now() - self._started, sum(map(cost, self._left))
        if not self._left:
            return Progress.of(f"compiled {self._count} kernels in {in_words(seconds)}", is_last=True)
        guess = seconds * left / (self._whole - left)
        done = self._count - len(self._left)
        return Progress.of(f"compiled {done} of {self._count} kernels, about {in_words(guess)} to go")


def in_words(seconds: float) -> str:
    """A length of time, no more exact than a guess is."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"


def compile_kernels(names: Sequence[str], tell: Callable[[str], None]) -> None:
    """Compile these into the cache, the longest first, in this process and some others."""
    waiting, clock = deque(in_groups(names)), Clock(names, tell)
    helpers = [Thread(target=_help, args=(waiting, clock), daemon=True) for _ in range(_helpers(len(waiting)))]
    for helper in helpers:
        helper.start()
    try:
        _load(_taken(waiting), clock)
    finally:
        waiting.clear()
    for helper in helpers:
        helper.join()
    # What a process has left undone, if it could not be started or came to its end.
    _load(([name] for name in names if not native.kernel(name).is_kept), clock)


def in_groups(names: Iterable[str]) -> list[list[str]]:
    """Kernels that are made of the same functions side by side, for they are compiled faster together."""
    groups: dict[object, list[str]] = {}
    for name in names:
        groups.setdefault(native.maker(name), []).append(name)
    return sorted(groups.values(), key=lambda group: sum(map(cost, group)), reverse=True)


def _taken(waiting: deque[list[str]]) -> Iterable[list[str]]:
    """Groups, as long as there are any: others take them too."""
    with suppress(IndexError):
        while True:
            yield waiting.popleft()


def _load(groups: Iterable[Sequence[str]], clock: Clock) -> None:
    for group in groups:
        for name in group:
            native.kernel(name).load()
            clock.done(name)


def _helpers(groups: int) -> int:
    if cache_folder() is None:  # nothing could be handed over
        return 0
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST, processors, groups) - 1


def _help(waiting: deque[list[str]], clock: Clock) -> None:
    """Have a process of its own compile groups."""
    command = children.module(__name__)
    with suppress(OSError), Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for group in _taken(waiting):
            print(*group, file=child.stdin, flush=True)
            for _ in group:
                if not (name := child.stdout.readline().strip()):
                    return
                clock.done(name)


def main() -> None:
    """Be one of the processes."""
    for line in sys.stdin:
        for name in line.split():
            native.kernel(name).load()
            print(name, flush=True)


if __name__ == "__main__":
    main()

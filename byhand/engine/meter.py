"""What the engine counts of its own work: totals since the start, and the pace of the last seconds. No torch here."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from threading import Lock
from time import perf_counter

WINDOW = 5.0  # seconds over which the pace is taken


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot. Pages: `used` are held by runs, `unused` are known and can be found again, `free` hold nothing.

    Rates are tokens per second over the last seconds; the rest are totals since the start.
    """

    state: str
    running: int = 0
    waiting: int = 0
    idle: int = 0
    pages_total: int = 0
    pages_used: int = 0
    pages_unused: int = 0
    pages_free: int = 0
    prefill_rate: float = 0.0
    decode_rate: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    passes: int = 0
    preemptions: int = 0
    rejected: int = 0
    finished: dict[str, int] = field(default_factory=dict)
    busy_seconds: float = 0.0


class Meter:
    """The counters, written by the worker's thread and read by any."""

    def __init__(self) -> None:
        self.prompt_tokens = self.cached_tokens = self.generated_tokens = self.passes = self.rejected = 0
        self.busy_seconds = 0.0
        self.finished = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self._open = 0
        self._recent: deque[tuple[float, int, int]] = deque()
        self._lock = Lock()

    def enter(self, choices: int, room: int) -> bool:
        """Count choices that came, if there is room for all of them."""
        with self._lock:
            if self._open + choices > room:
                self.rejected += 1
                return False
            self._open += choices
            return True

    def leave(self) -> None:
        """Count a choice that has ended."""
        with self._lock:
            self._open -= 1

    def passed(self, prefilled: int, generated: int, seconds: float) -> None:
        """One pass is over."""
        self.passes += 1
        self.busy_seconds += seconds
        with self._lock:
            now = perf_counter()
            self._recent.append((now, prefilled, generated))
            while self._recent[0][0] < now - WINDOW:
                self._recent.popleft()

    def rates(self) -> tuple[float, float]:
        """Prompt tokens and generated tokens per second over the window."""
        with self._lock:
            since = perf_counter() - WINDOW
            recent = [entry for entry in self._recent if entry[0] >= since]
        return sum(entry[1] for entry in recent) / WINDOW, sum(entry[2] for entry in recent) / WINDOW

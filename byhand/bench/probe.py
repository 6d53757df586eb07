"""The machine's limits: how fast memory is read, by the best of several patterns, and matrices are multiplied."""

from __future__ import annotations

from collections.abc import Callable
from threading import Barrier, Thread
from time import perf_counter
from typing import Any

import numpy as np

# Far beyond any cache; read in a hundredth of a second.
NUMBERS = 2**27
PASSES = 3
SIDE = 2048

Pattern = Callable[[Any], float]


def _compiled() -> dict[str, Pattern]:
    """Sums in loops that Numba compiles: one stream from front to back, or four side by side."""
    from numba import njit

    @njit(fastmath=True, nogil=True)  # type: ignore[misc, untyped-decorator, unused-ignore]
    def one_stream(numbers):  # type: ignore[no-untyped-def]
        total = np.float32(0)
        for place in range(len(numbers)):
            total += numbers[place]
        return total

    @njit(fastmath=True, nogil=True)  # type: ignore[misc, untyped-decorator, unused-ignore]
    def four_streams(numbers):  # type: ignore[no-untyped-def]
        # Streams that begin a power of two apart would fight for the same places in the cache.
        length = len(numbers) // 4 - 1040
        a, b = numbers[:length], numbers[length : 2 * length]
        c, d = numbers[2 * length : 3 * length], numbers[3 * length :]
        first, second, third, fourth = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for place in range(length):
            first += a[place]
            second += b[place]
            third += c[place]
            fourth += d[place]
        return first + second + third + fourth

    return {"one stream": one_stream, "four streams": four_streams}


class Probe:
    """Holds a large array; every measurement reads all of it, one partition a thread."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.numbers = np.ones(NUMBERS, dtype=np.float32)
        self.partitions = np.array_split(self.numbers, threads)
        self.patterns: dict[str, Pattern] = {
            "dot product": lambda part: float(np.dot(part, part)),
            **_compiled(),
        }
        for pattern in self.patterns.values():
            pattern(self.numbers[:8192])

    def bandwidths(self) -> dict[str, Any]:
        """GB/s of each pattern, the best pass of a few; `best` is the best of all."""
        found = {name: max(self._pass(pattern) for _ in range(PASSES)) for name, pattern in self.patterns.items()}
        return {"best": max(found.values()), "patterns": found}

    def _pass(self, pattern: Pattern) -> float:
        """One reading by all threads, from the moment they start together."""
        ready = Barrier(self.threads + 1)

        def work(partition: Any) -> None:
            ready.wait()
            pattern(partition)

        threads = [Thread(target=work, args=(partition,)) for partition in self.partitions]
        for thread in threads:
            thread.start()
        ready.wait()
        started = perf_counter()
        for thread in threads:
            thread.join()
        return self.numbers.nbytes / (perf_counter() - started) / 1e9

    def matrix_rates(self) -> dict[str, Any]:
        """GFLOP/s of torch's product of two square matrices, by dtype."""
        import torch

        torch.set_num_threads(self.threads)
        return {name: _rate(getattr(torch, name)) for name in ("float32", "bfloat16")}


def _rate(dtype: Any) -> float:
    import torch

    matrix = torch.randn(SIDE, SIDE).to(dtype)
    seconds = []
    for _ in range(PASSES + 1):
        started = perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(perf_counter() - started)
    return 2 * SIDE**3 / min(seconds) / 1e9

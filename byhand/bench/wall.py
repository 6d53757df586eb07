"""The wall of one open model: a token reads every weight once, and memory gives them only so fast."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from byhand import LLM

NUMBERS = 2**26  # float32: 256 MiB, beyond any cache that a model's weights could hide in
PASSES = 8


def read_bytes(llm: LLM) -> int:
    """Bytes of every matrix that a step reads whole."""
    from byhand.bench.engines.held import matrices

    return sum(weight.nbytes for weight in matrices(llm.model).values())


def read_rate(device: Any) -> float:
    """Bytes a second at which the model's device reads its memory: the best of a few sums over a large array."""
    import torch

    numbers = torch.ones(NUMBERS, device=device)
    seconds = []
    for _ in range(PASSES):
        started = perf_counter()
        float(numbers.sum())  # as a Python number, so that a GPU has finished
        seconds.append(perf_counter() - started)
    return numbers.nbytes / min(seconds)


def wall(llm: LLM) -> dict[str, Any]:
    """{device, read_bytes, bytes_per_second}; bytes_per_second / read_bytes is the most tokens a second."""
    device = llm.model.device
    return {"device": device.type, "read_bytes": read_bytes(llm), "bytes_per_second": read_rate(device)}

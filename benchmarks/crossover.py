"""Our products for few rows beside those for many: the figures behind `MANY_ROWS` in kernels/cpu.

Run on a quiet machine: python -m benchmarks.crossover [out] [in]. Bursts of the two take turns; a number of the table
is the median of their paired ratios (under 1: the way for many rows is faster). `exact` is the product in float32,
`rounded` the one that prefill="fast" has. There are so many copies of the weights that no cache holds them.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from time import perf_counter

import torch

from byhand.formats import Weight, quantized_formats
from byhand.kernels import cpu
from byhand.quantize import quantize
from byhand.weights import DTYPES

ROWS = (8, 16, 24, 32, 40, 48, 64, 96, 128)
PAIRS = 15
HELD_BYTES = 128 * 2**20


def seconds(kernels: cpu.Cpu, x: torch.Tensor, weights: list[Weight], many_rows: int) -> float:
    """One product with each of the weights, those of at least so many rows made the way for many."""
    cpu.MANY_ROWS = many_rows
    started = perf_counter()
    for weight in weights:
        kernels.linear(x, weight)
    return perf_counter() - started


def ratio(kernels: cpu.Cpu, rows: int, weights: list[Weight]) -> float:
    """Median of (time of the way for many rows / for few); what is compared changes places from pair to pair."""
    x, ratios = torch.randn(rows, weights[0].shape[1]), []
    ways = [0, rows + 1]
    for pair in range(PAIRS + 1):
        times = {way: seconds(kernels, x, weights, way) for way in (ways if pair % 2 else ways[::-1])}
        ratios.append(times[0] / times[rows + 1])
    return statistics.median(ratios[1:])


def copies(form: str, out: int, inner: int) -> list[Weight]:
    """Weights in a format, more than the caches hold."""
    plain = Weight.of(torch.randn(out, inner))
    one = quantize(plain, form) if form in quantized_formats() else Weight.of(plain.tensors[0].to(DTYPES[form]))
    count = max(2, HELD_BYTES // sum(tensor.nbytes for tensor in one.tensors))
    return [replace(one, tensors=tuple(tensor.clone() for tensor in one.tensors)) for _ in range(count)]


def main() -> None:
    """Print the table."""
    out, inner = (int(number) for number in sys.argv[1:3]) if len(sys.argv) > 2 else (2048, 2048)
    print(f"({out}, {inner}), {torch.get_num_threads()} threads; time of the way for many rows / for few")
    print("format    way       " + "".join(f"{rows:>7}" for rows in ROWS))
    for form in (*DTYPES, *quantized_formats()):
        weights = copies(form, out, inner)
        for way in ("exact", "rounded"):
            if way == "exact" or form == "bfloat16":
                kernels = cpu.Cpu(prefill="fast" if way == "rounded" else way)
                with torch.inference_mode():
                    found = [ratio(kernels, rows, weights) for rows in ROWS]
                print(f"{form:10}{way:10}" + "".join(f"{value:7.2f}" for value in found), flush=True)


if __name__ == "__main__":
    main()

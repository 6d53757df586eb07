"""From how many rows on torch's product beats ours: the figures behind `FAST_ROWS` in kernels/cpu.py.

Run on a quiet machine: python -m benchmarks.crossover [out] [in]. Bursts of the two take turns; a row of the table
is the median of their paired ratios (above 1: torch is faster).
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from time import perf_counter

import torch

from byhand.kernels import cpu, reference
from byhand.kernels.cpu import many_rows
from byhand.quantize import QUANTIZED, quantize
from byhand.weights import DTYPES, Weight

ROWS = (4, 8, 16, 32, 64, 128, 256, 512)
BURSTS = 9

Product = Callable[[torch.Tensor, Weight], torch.Tensor]
PRODUCTS: dict[str, Product] = {
    "float32": reference.linear,
    "bfloat16": lambda x, weight: many_rows.in_bfloat16(x, weight, None).float(),
}


def seconds(call: Callable[[], object]) -> float:
    """One call, after one that warms up."""
    call()
    started = perf_counter()
    call()
    return perf_counter() - started


def ratio(kernels: cpu.Cpu, product: Product, rows: int, weight_copies: list[Weight]) -> float:
    """Median of (our kernel's time / torch's) over the bursts; the weights change, so that no cache holds them."""
    x = torch.randn(rows, weight_copies[0].shape[1])
    ratios = []
    for burst in range(BURSTS):
        matrix = weight_copies[burst % len(weight_copies)]
        ours = seconds(lambda: kernels.linear(x, matrix))  # noqa: B023
        torchs = seconds(lambda: product(x, matrix))  # noqa: B023
        ratios.append(ours / torchs)
    return statistics.median(ratios)


def main() -> None:
    """Print the table."""
    out, inner = (int(number) for number in sys.argv[1:3]) if len(sys.argv) > 2 else (2048, 2048)
    kernels = cpu.Cpu()
    print(f"({out}, {inner}), {kernels.threads} threads; our time / torch's")
    print("format    torch     " + "".join(f"{rows:>7}" for rows in ROWS))
    for form in (*DTYPES, *QUANTIZED):
        copies = []
        for _ in range(3):
            plain = torch.randn(out, inner)
            copies.append(quantize(Weight.of(plain), form) if form in QUANTIZED else Weight.of(plain.to(DTYPES[form])))
        for name, product in PRODUCTS.items():
            with torch.inference_mode():
                found = [ratio(kernels, product, rows, copies) for rows in ROWS]
            print(f"{form:10}{name:10}" + "".join(f"{value:7.2f}" for value in found), flush=True)


if __name__ == "__main__":
    main()

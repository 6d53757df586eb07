"""Our products beside torch's, by rows: the figures behind `MANY_ROWS` and `ROUNDED_ROWS` in kernels/cpu.

Run on a quiet machine: python -m benchmarks.crossover [out] [in]. Bursts of the two take turns; a row of the table
is the median of their paired ratios (above 1: torch is faster). `exact` is our product in float32, `rounded` the one
that prefill="fast" has.
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
    cpu.ROUNDED_ROWS = 1
    kernels = {"exact": cpu.Cpu(), "rounded": cpu.Cpu(prefill="fast")}
    print(f"({out}, {inner}), {kernels['exact'].threads} threads; our time / torch's")
    print("format    ours      torch     " + "".join(f"{rows:>7}" for rows in ROWS))
    for form in (*DTYPES, *QUANTIZED):
        copies = []
        for _ in range(3):
            plain = torch.randn(out, inner)
            copies.append(quantize(Weight.of(plain), form) if form in QUANTIZED else Weight.of(plain.to(DTYPES[form])))
        for way, name in (("exact", "float32"), ("exact", "bfloat16"), ("rounded", "bfloat16")):
            if way == "exact" or form == "bfloat16":
                with torch.inference_mode():
                    found = [ratio(kernels[way], PRODUCTS[name], rows, copies) for rows in ROWS]
                print(f"{form:10}{way:10}{name:10}" + "".join(f"{value:7.2f}" for value in found), flush=True)


if __name__ == "__main__":
    main()

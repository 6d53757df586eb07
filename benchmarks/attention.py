"""How fast attention reads a long context's keys and values, beside how fast this machine reads memory.

Run on a quiet machine: python -m benchmarks.attention [context]. One token of one run, all layers of the 1B shape, each
with pages of its own, so that no cache of the processor holds them. A round is a probe, passes, a probe; a row of the
table is the median over the rounds, the share that of the mean of its two probes.
"""

from __future__ import annotations

import statistics
import sys
from time import perf_counter

import torch

from byhand.bench.probe import Probe
from byhand.cache.kv_cache import PAGE_SIZE, Batch, KVCache, LayerSpec
from byhand.kernels.cpu import Cpu
from byhand.weights import DTYPES

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 16, 32, 8, 64
ROUNDS, PASSES = 7, 9


def seconds(kernels: Cpu, cache: KVCache, batch: Batch) -> float:
    """One token's attention in all layers: the median of a few passes after one that warms up."""
    q, k = torch.randn(1, HEADS * HEAD_DIM), torch.randn(1, KV_HEADS * HEAD_DIM)
    times = []
    for _ in range(PASSES + 1):
        started = perf_counter()
        for layer in range(LAYERS):
            kernels.attend(q, k, k, None, cache, layer, batch, scale=HEAD_DIM**-0.5)
        times.append(perf_counter() - started)
    return statistics.median(times[1:])


def main() -> None:
    """Print the table."""
    context = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
    kernels, pages = Cpu(), tuple(range(-(-context // PAGE_SIZE)))
    probe = Probe(kernels.threads)
    nothing = torch.zeros(1, dtype=torch.long)
    batch = Batch(nothing, nothing, (torch.tensor([context - 1]),), (0, 1), (context,), ((pages,),))
    print(f"a context of {context}, {LAYERS} layers, {kernels.threads} threads")
    print("cache       ms a token    GB/s  of the probe")
    for name in ("float32", "bfloat16"):
        cache = KVCache([LayerSpec(KV_HEADS, HEAD_DIM)] * LAYERS, len(pages), dtype=DTYPES[name])
        for tensor in (*cache.keys, *cache.values):
            tensor.normal_()
        size = sum(tensor.nbytes for tensor in (*cache.keys, *cache.values)) * context / (len(pages) * PAGE_SIZE)
        times, shares = [], []
        for _ in range(ROUNDS):
            before = probe.bandwidths()["best"]
            times.append(seconds(kernels, cache, batch))
            shares.append(2 * size / times[-1] / 1e9 / (before + probe.bandwidths()["best"]))
        time = statistics.median(times)
        print(f"{name:12}{time * 1000:8.2f}{size / time / 1e9:10.1f}{statistics.median(shares):11.0%}", flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()

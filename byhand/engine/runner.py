"""Runs the model: the chunks of a pass laid flat, the layers over them, the logits of the rows that are asked for."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import accumulate
from os import getpid
from time import perf_counter

import torch

from byhand.cache.kv_cache import PAGE_SIZE, Batch, KVCache
from byhand.engine.scheduler import Chunk
from byhand.errors import ByhandError
from byhand.models import Model

# Logits of at most this many numbers are held at once (32 MiB in float32), however long the prompt.
LOGITS_BLOCK = 1 << 23


class ModelRunner:
    """A model on its cache: chunks in, hidden rows and logits out."""

    def __init__(self, model: Model, cache: KVCache) -> None:
        self.model = model
        self.cache = cache
        self._process = getpid()

    def forward(self, chunks: list[Chunk]) -> torch.Tensor:
        """Run the model over chunks whose pages are reserved: (N, hidden) float32, row by row in the chunks' order.

        Afterwards each sequence's `computed` and `work` tell of it.
        """
        if getpid() != self._process:  # the kernels' threads did not come along: it would wait for them for ever
            raise ByhandError(
                "another process has opened this model", hint='open one in each: multiprocessing\'s "spawn" does'
            )
        started = perf_counter()
        with torch.inference_mode():
            hidden = self.model.forward(batch_of(chunks, self.model.device), self.cache)
        seconds = perf_counter() - started
        for chunk in chunks:
            chunk.sequence.work = chunk.sequence.work.plus(chunk.rows, chunk.start, seconds)
            chunk.sequence.computed = chunk.end
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, hidden) -> (rows, vocab) float32, in main memory."""
        with torch.inference_mode():
            return self.model.logits(hidden).cpu()

    def blocks(self, count: int) -> Iterator[slice]:
        """`count` rows in slices, none of which has more logits than LOGITS_BLOCK."""
        rows_at_once = max(1, LOGITS_BLOCK // self.model.vocab_size)
        return (slice(first, first + rows_at_once) for first in range(0, count, rows_at_once))


def batch_of(chunks: list[Chunk], device: torch.device) -> Batch:
    """The chunks, of which there must be one, row by row in their order. Their pages are reserved."""
    numbers = array("q", [token for chunk in chunks for token in chunk.sequence.ids[chunk.start : chunk.end]])
    numbers.extend([position for chunk in chunks for position in range(chunk.start, chunk.end)])
    tables = list(zip(*[chunk.sequence.page_tables for chunk in chunks], strict=True))  # of each group: of each chunk
    for of_group in tables:
        for table, chunk in zip(of_group, chunks, strict=True):
            positions = range(chunk.start, chunk.end)
            numbers.extend([table[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE for position in positions])
    # One tensor, and none of lists: while weights push all else out of the caches, every call counts.
    rows = torch.frombuffer(numbers, dtype=torch.int64).to(device).view(2 + len(tables), -1)
    input_ids, position_ids, *slot_mappings = rows.unbind()
    return Batch(
        input_ids=input_ids,
        position_ids=position_ids,
        query_starts=(0, *accumulate([chunk.rows for chunk in chunks])),
        context_lens=tuple([chunk.end for chunk in chunks]),
        slot_mappings=tuple(slot_mappings),
        page_tables=tuple([tuple([tuple(table) for table in of_group]) for of_group in tables]),
    )

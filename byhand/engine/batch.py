"""Lays the chunks of a pass out flat, as the model takes them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate

import torch

from byhand.cache.kv_cache import PAGE_SIZE, Batch
from byhand.engine.scheduler import Chunk


def batch_of(chunks: Sequence[Chunk], device: torch.device) -> Batch:
    """The chunks, of which there must be one, row by row in their order. Their pages are reserved."""
    places = [(chunk.sequence.pages, position) for chunk in chunks for position in range(chunk.start, chunk.end)]
    numbers = array("q", [token for chunk in chunks for token in chunk.sequence.ids[chunk.start : chunk.end]])
    numbers.extend([position for _, position in places])
    numbers.extend([pages[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE for pages, position in places])
    # One tensor in place of three, and none of lists: while weights push all else out of the caches, every call counts.
    input_ids, position_ids, slots = torch.frombuffer(numbers, dtype=torch.int64).to(device).view(3, -1).unbind()
    return Batch(
        input_ids=input_ids,
        position_ids=position_ids,
        slots=slots,
        query_starts=(0, *accumulate(chunk.rows for chunk in chunks)),
        context_lens=tuple(chunk.end for chunk in chunks),
        page_tables=tuple(tuple(chunk.sequence.pages) for chunk in chunks),
    )

"""The KV cache: one pool of pages for all runs, and the flat batch that a pass reads and writes it with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from byhand.cache.pages import PagePool

PAGE_SIZE = 16


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What one layer keeps per token. `window`: a query sees only the last `window` keys, its own included."""

    num_key_value_heads: int
    head_dim: int
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """The uncomputed tokens of one or many runs, laid flat. N rows in all, R runs; row order is run by run.

    Run r owns rows `query_starts[r]` to `query_starts[r + 1]`; after the pass `context_lens[r]` of its tokens are in
    the cache, so its rows sit at positions `context_lens[r] - rows` to `context_lens[r] - 1`.
    """

    input_ids: torch.Tensor  # (N,) int64
    position_ids: torch.Tensor  # (N,) int64
    slots: torch.Tensor  # (N,) int64: page * PAGE_SIZE + offset, where each row's key and value go
    query_starts: tuple[int, ...]  # R + 1
    context_lens: tuple[int, ...]  # R
    page_tables: tuple[tuple[int, ...], ...]  # R lists of pages, in order of position

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that differs from pass to pass."""
        return [self.input_ids, self.position_ids, self.slots]


class KVCache:
    """Keys and values of every layer, in pages: (num_pages, PAGE_SIZE, num_key_value_heads, head_dim) float32 each."""

    def __init__(
        self,
        specs: Sequence[LayerSpec],
        num_pages: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.specs = tuple(specs)
        self.dtype = dtype
        self.pool = PagePool(num_pages, PAGE_SIZE)
        # torch.empty: the system hands out real memory only for pages that are written.
        self.keys = [self._empty(spec, device) for spec in self.specs]
        self.values = [self._empty(spec, device) for spec in self.specs]

    def _empty(self, spec: LayerSpec, device: torch.device | str) -> torch.Tensor:
        shape = (self.pool.num_pages, PAGE_SIZE, spec.num_key_value_heads, spec.head_dim)
        return torch.empty(shape, dtype=self.dtype, device=device)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers, keys and values."""
        per_token = sum(2 * spec.num_key_value_heads * spec.head_dim for spec in self.specs)
        return per_token * PAGE_SIZE * self.dtype.itemsize

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put the rows' keys and values, (N, num_key_value_heads, head_dim), into their slots."""
        self.keys[layer].flatten(0, 1)[slots] = keys.to(self.dtype)
        self.values[layer].flatten(0, 1)[slots] = values.to(self.dtype)

    def copy_page(self, source: int, target: int) -> None:
        """Copy one page in every layer: what a fork does the first time one side writes."""
        for tensor in (*self.keys, *self.values):
            tensor[target] = tensor[source]

"""The KV cache: a pool of pages for each group of layers, and the flat batch that a pass reads and writes it with."""

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
    # For each group of layers, (N,) int64: page * PAGE_SIZE + offset, where each row's key and value go.
    slot_mappings: tuple[torch.Tensor, ...]
    query_starts: tuple[int, ...]  # R + 1
    context_lens: tuple[int, ...]  # R
    page_tables: tuple[tuple[tuple[int, ...], ...], ...]  # for each group R lists of pages, in order of position

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that differs from pass to pass."""
        return [self.input_ids, self.position_ids, *self.slot_mappings]


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that see equally far back: what one of them may forget, all may. They share a pool and page tables."""

    layers: tuple[int, ...]
    pool: PagePool
    page_bytes: int  # of one page over all its layers, keys and values


class KVCache:
    """Keys and values of every layer, in pages: (num_pages, PAGE_SIZE, num_key_value_heads, head_dim) float32 each.

    Layers are in groups by their windows, each with `num_pages` pages; a model with one kind of layer has one group.
    """

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
        self.num_pages = num_pages
        windows = list(dict.fromkeys(spec.window for spec in self.specs))
        self.group_of = [windows.index(spec.window) for spec in self.specs]  # by layer
        self.groups = tuple(self._group(number) for number in range(len(windows)))
        # torch.empty: the system hands out real memory only for pages that are written.
        self.keys = [self._empty(spec, device) for spec in self.specs]
        self.values = [self._empty(spec, device) for spec in self.specs]

    def _empty(self, spec: LayerSpec, device: torch.device | str) -> torch.Tensor:
        shape = (self.num_pages, PAGE_SIZE, spec.num_key_value_heads, spec.head_dim)
        return torch.empty(shape, dtype=self.dtype, device=device)

    def _group(self, number: int) -> LayerGroup:
        layers = tuple(layer for layer, group in enumerate(self.group_of) if group == number)
        per_token = sum(2 * self.specs[layer].num_key_value_heads * self.specs[layer].head_dim for layer in layers)
        return LayerGroup(layers, PagePool(self.num_pages, PAGE_SIZE), per_token * PAGE_SIZE * self.dtype.itemsize)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in every group: of PAGE_SIZE tokens over all layers, keys and values."""
        return sum(group.page_bytes for group in self.groups)

    @property
    def in_use(self) -> int:
        """Pages that at least one run holds, over all groups."""
        return sum(group.pool.in_use for group in self.groups)

    def clear(self) -> None:
        """Forget every page that no run holds."""
        for group in self.groups:
            group.pool.clear()

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put the rows' keys and values, (N, num_key_value_heads, head_dim), into their slots."""
        self.keys[layer].flatten(0, 1)[slots] = keys.to(self.dtype)
        self.values[layer].flatten(0, 1)[slots] = values.to(self.dtype)

    def copy_page(self, group: int, source: int, target: int) -> None:
        """Copy one page in every layer of a group: what a fork does the first time one side writes."""
        for layer in self.groups[group].layers:
            for tensor in (self.keys[layer], self.values[layer]):
                tensor[target] = tensor[source]

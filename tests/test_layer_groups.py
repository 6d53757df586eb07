"""Layers in groups by their windows, each with its own pages."""

from __future__ import annotations

import torch

from byhand.cache.kv_cache import PAGE_SIZE, KVCache, LayerSpec

FULL, NARROW, WIDE = LayerSpec(1, 8), LayerSpec(2, 8, window=4), LayerSpec(1, 16, window=40)


def test_layers_that_see_equally_far_are_a_group() -> None:
    cache = KVCache([FULL, NARROW, WIDE, NARROW, LayerSpec(4, 2)], 3)
    assert [group.layers for group in cache.groups] == [(0, 4), (1, 3), (2,)]
    assert cache.group_of == [0, 1, 2, 1, 0]
    sizes = [PAGE_SIZE * 4 * 2 * numbers for numbers in (8 + 4 * 2, 2 * 2 * 8, 16)]
    assert [group.page_bytes for group in cache.groups] == sizes
    assert cache.page_bytes == sum(sizes) == sum(x.nbytes for x in (*cache.keys, *cache.values)) // 3
    assert len(KVCache([FULL, FULL], 3).groups) == 1


def test_a_page_is_copied_in_its_group_alone() -> None:
    cache = KVCache([FULL, NARROW], 2)
    for tensor in (*cache.keys, *cache.values):
        tensor[0], tensor[1] = 0.0, 1.0
    cache.copy_page(1, 1, 0)
    assert [bool(torch.equal(x[0], x[1])) for x in (*cache.keys, *cache.values)] == [False, True, False, True]

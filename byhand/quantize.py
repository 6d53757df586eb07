"""A float matrix in codes: what a format's own file says of blocks of rows, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from byhand.formats import Weight, check_quantized, formats


def shrinker(weight_format: str) -> Callable[[Weight], Weight]:
    """`quantize` into a format that is checked at once."""
    check_quantized(weight_format, "quantize")
    return partial(quantize, weight_format=weight_format)


def quantize_blocks(weight: Weight, weight_format: str) -> Iterator[tuple[torch.Tensor, ...]]:
    """The parts of a float weight in a format, block of rows by block: no float copy of the whole is ever held.

    Of several matrices, (how many, out, in), the rows of one after those of the other.
    """
    return formats()[weight_format].quantize_blocks(weight.flat())


def quantize(weight: Weight, weight_format: str) -> Weight:
    """A float weight in a quantised format."""
    parts = check_quantized(weight_format, "quantize").parts(weight.shape)
    tensors = [torch.empty(part.shape, dtype=part.torch_dtype, device=weight.device) for part in parts]
    row = 0
    for block in quantize_blocks(weight, weight_format):
        end = row + len(block[0])
        for tensor, some in zip(tensors, block, strict=True):
            tensor.flatten(0, -2)[row:end] = some
        row = end
    return Weight(weight_format, tuple(tensors), weight.shape)

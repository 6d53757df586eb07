"""Products in bfloat16 by torch, for weights that are stored in columns: there is no kernel of ours that rounds."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from byhand.formats import Weight
from byhand.kernels import reference


def in_bfloat16(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """`reference.linear` by bfloat16 products: x, the weight and the result are rounded, the sums are float32's."""
    x = x.bfloat16()
    if weight.format == "bfloat16":
        out = functional.linear(x, weight.tensors[0])
    else:
        out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.bfloat16)
        step = max(1, reference.BLOCK // weight.shape[1])
        for start in range(0, weight.shape[0], step):
            out[:, start : start + step] = x @ reference.rows_of(weight, slice(start, start + step)).bfloat16().T
    return out if bias is None else out.add_(bias)

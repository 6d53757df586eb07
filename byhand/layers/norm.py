"""Norms: over a token's whole row, or over each head's part of it."""

from __future__ import annotations

from torch import Tensor

from byhand.kernels import Kernels
from byhand.weights import Weights


class RMSNorm:
    """Scales to a root mean square of one, then by `weight`. arXiv:1910.07467."""

    def __init__(self, kernels: Kernels, weights: Weights, size: int, eps: float) -> None:
        self.kernels = kernels
        self.size = size
        self.weight = weights.vector("weight", size)
        self.eps = eps
        kernels.expect("rms_norm")

    def __call__(self, x: Tensor, *_: object, residual: Tensor | None = None) -> Tensor:
        """x (..., size) → same shape, added to the residual if there is one: for norms that stand behind a part.

        What blocks are given besides, batch and cache, is nothing to a norm.
        """
        return self.kernels.rms_norm(x, self.weight, self.eps, residual)


class LayerNorm:
    """Centres, scales to a variance of one, then by `weight` and `bias` unless `affine` is false. arXiv:1607.06450."""

    def __init__(self, kernels: Kernels, weights: Weights, size: int, eps: float, *, affine: bool = True) -> None:
        self.kernels = kernels
        self.size = size
        self.weight = weights.vector("weight", size) if affine else None
        self.bias = weights.vector("bias", size) if affine else None
        self.eps = eps
        kernels.expect("layer_norm")

    def __call__(self, x: Tensor, *_: object, residual: Tensor | None = None) -> Tensor:
        """x (..., size) → same shape, added to the residual if there is one: for norms that stand behind a part.

        What blocks are given besides, batch and cache, is nothing to a norm.
        """
        return self.kernels.layer_norm(x, self.weight, self.bias, self.eps, residual)


Norm = RMSNorm | LayerNorm


def per_head(norm: Norm, x: Tensor, head_dim: int) -> Tensor:
    """x (N, heads · head_dim), normed head by head, or whole where the norm is as wide as all heads: same shape."""
    if norm.size == x.shape[1]:
        return norm(x)
    return norm(x.view(len(x), -1, head_dim)).flatten(1)

"""Linear layers, the embedding and the head: a matrix each, in whatever format its weight has."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from byhand.formats import Weight
from byhand.kernels import Kernels
from byhand.weights import Weights


class Linear:
    """y = x · weightᵀ + bias, from the tensors `weight` (out, in), stored as (in, out) if `transposed`, and `bias`."""

    def __init__(
        self,
        kernels: Kernels,
        weights: Weights,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        transposed: bool = False,
    ) -> None:
        self.kernels = kernels
        self.name = weights.label
        self.out_features = out_features
        self.weight = weights.matrix("weight", out_features, in_features, transposed=transposed)
        kernels.expect("linear", self.weight)
        self.bias = weights.vector("bias", out_features) if bias else None

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (N, in) → (N, out), added to the residual (N, out) if there is one."""
        return self.kernels.linear(x, self.weight, self.bias, residual)


class Several(Protocol):
    """Several products of one input: what queries, keys and values are made by."""

    kernels: Kernels
    sizes: tuple[int, ...]

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (N, in) → one (N, size) for each of the sizes."""


class MergedLinear:
    """Several linear layers over one input, read in one go."""

    def __init__(self, *layers: Linear) -> None:
        self.kernels = layers[0].kernels
        self.layers = layers
        self.sizes = tuple(layer.out_features for layer in layers)
        self.weights = tuple(layer.weight for layer in layers)
        self.biases = tuple(layer.bias for layer in layers)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (N, in) → one (N, out) for each layer."""
        return self.kernels.linears(x, self.weights, self.biases)


class SplitLinear:
    """One linear layer whose result is several, stored as one matrix."""

    def __init__(self, layer: Linear, *sizes: int) -> None:
        self.kernels = layer.kernels
        self.layer = layer
        self.sizes = sizes

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (N, in) → one (N, size) for each of the sizes, as parts of rows that lie apart."""
        return tuple(self.layer(x).split_with_sizes(self.sizes, dim=1))


class Embedding:
    """One row per id. The weight is given, for the head may be the same matrix."""

    def __init__(self, kernels: Kernels, weight: Weight) -> None:
        self.kernels = kernels
        self.weight = weight
        kernels.expect("embedding", weight)

    def __call__(self, ids: Tensor) -> Tensor:
        """ids (N,) → (N, hidden)."""
        return self.kernels.embedding(ids, self.weight)


class Head:
    """From hidden states to logits, without a bias. The weight is given, for the embedding may be the same matrix."""

    def __init__(self, kernels: Kernels, weight: Weight) -> None:
        self.kernels = kernels
        self.weight = weight
        kernels.expect("linear", weight)

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden (rows, hidden) → logits (rows, vocab)."""
        return self.kernels.linear(hidden, self.weight)

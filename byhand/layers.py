"""The parts that every architecture is made of: each takes its tensors by name, and computes with the kernels given."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from byhand.formats import Weight
from byhand.kernels import Kernels
from byhand.weights import Weights


class Linear:
    """y = x · weightᵀ + bias, from the tensors `weight` (out, in) and `bias` (out,)."""

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
        self.weight = weights.matrix("weight", out_features, in_features, transposed=transposed)
        kernels.expect("linear", self.weight)
        self.bias = weights.vector("bias", out_features) if bias else None

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (N, in) → (N, out), added to the residual (N, out) if there is one."""
        return self.kernels.linear(x, self.weight, self.bias, residual)


class Together:
    """Several linear layers over one input, read in one go."""

    def __init__(self, *layers: Linear) -> None:
        self.kernels = layers[0].kernels
        self.weights = tuple(layer.weight for layer in layers)
        self.biases = tuple(layer.bias for layer in layers)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (N, in) → one (N, out) for each layer."""
        return self.kernels.linears(x, self.weights, self.biases)


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


class RMSNorm:
    """Scales to a root mean square of one, then by `weight`."""

    def __init__(self, kernels: Kernels, weights: Weights, size: int, eps: float) -> None:
        self.kernels = kernels
        self.weight = weights.vector("weight", size)
        self.eps = eps
        kernels.expect("rms_norm")

    def __call__(self, x: Tensor, *_: object) -> Tensor:
        """x (..., size) → same shape. What blocks are given besides, batch and cache, is nothing to a norm."""
        return self.kernels.rms_norm(x, self.weight, self.eps)


class LayerNorm:
    """Centres, scales to a variance of one, then by `weight` and `bias` unless `affine` is false."""

    def __init__(self, kernels: Kernels, weights: Weights, size: int, eps: float, *, affine: bool = True) -> None:
        self.kernels = kernels
        self.weight = weights.vector("weight", size) if affine else None
        self.bias = weights.vector("bias", size) if affine else None
        self.eps = eps
        kernels.expect("layer_norm")

    def __call__(self, x: Tensor, *_: object) -> Tensor:
        """x (..., size) → same shape. What blocks are given besides, batch and cache, is nothing to a norm."""
        return self.kernels.layer_norm(x, self.weight, self.bias, self.eps)


# config.json's words for the four curves. The gelu variants differ in how they are computed, not in what.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def activation(name: str, kernels: Kernels) -> Callable[[Tensor], Tensor]:
    """The curve that a config names."""
    kernels.expect(ACTIVATIONS[name])
    curve: Callable[[Tensor], Tensor] = getattr(kernels, ACTIVATIONS[name])
    return curve


class Gated:
    """act(gate(x)) · up(x): silu in the kernel that reads both, the other curves in one after it."""

    def __init__(self, name: str, gate: Linear, up: Linear) -> None:
        self.kernels = gate.kernels
        self.gate, self.up = gate, up
        self.both = Together(gate, up)
        self.curve = ACTIVATIONS[name]
        if self.curve == "silu":
            self.kernels.expect("gated", gate.weight, up.weight)
        else:
            self.kernels.expect(f"mul_{self.curve}")

    def __call__(self, x: Tensor) -> Tensor:
        """x (N, in) → (N, out)."""
        if self.curve == "silu":
            return self.kernels.gated(x, self.gate.weight, self.up.weight, self.gate.bias, self.up.bias)
        gate, up = self.both(x)
        return self.kernels.curve_mul(self.curve, gate, up)

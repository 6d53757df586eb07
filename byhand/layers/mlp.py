"""The feed-forward part: plain, or gated by a second product."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from byhand.kernels import Kernels
from byhand.layers.linear import Linear
from byhand.layers.observing import Layer

# config.json's words for the four activation functions. The gelu variants differ in how they are computed, not in what.
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
    """The activation function that a config names."""
    kernels.expect(ACTIVATIONS[name])
    function: Callable[[Tensor], Tensor] = getattr(kernels, ACTIVATIONS[name])
    return function


class MLP(Layer):
    """down(act(up(x)))."""

    activations = ("act", "out")

    def __init__(self, name: str, up: Linear, down: Linear) -> None:
        self.up, self.down = up, down
        self.act = activation(name, up.kernels)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (N, hidden) → (N, hidden), added to the residual if there is one."""
        return self.show_out(self.down, self.show("act", self.act(self.up(x))), residual)


class GatedMLP(Layer):
    """down(act(gate(x)) · up(x)). arXiv:2002.05202."""

    activations = ("act", "out")

    def __init__(self, name: str, gate: Linear, up: Linear, down: Linear) -> None:
        self.kernels = gate.kernels
        self.gate, self.up, self.down = gate, up, down
        self.function = ACTIVATIONS[name]
        self.kernels.expect(f"gated_{self.function}", gate.weight, up.weight)

    def gated(self, x: Tensor) -> Tensor:
        """act(gate(x)) · up(x): (N, hidden) → (N, inner)."""
        return self.kernels.gated(x, self.gate.weight, self.up.weight, self.gate.bias, self.up.bias, self.function)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (N, hidden) → (N, hidden), added to the residual if there is one."""
        return self.show_out(self.down, self.show("act", self.gated(x)), residual)

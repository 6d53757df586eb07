"""What parts of a model show of their work to who looks inside, and to nobody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

# Is told an activation's name and the activation, and may give another of its shape to go on with.
Observer = Callable[[str, Tensor], Tensor | None]


class Layer:
    """A part of a model that names its activations. `observer`: told each of them in a pass; None costs nothing."""

    activations: ClassVar[tuple[str, ...]] = ()
    path = ""  # what stands before the names of its activations: "layers.3.attn."
    observer: Observer | None = None

    def show(self, name: str, x: Tensor) -> Tensor:
        """The activation x (N, ...), or what an observer puts in its place."""
        if self.observer is None:
            return x
        changed = self.observer(self.path + name, x)
        return x if changed is None else changed

    def show_out(self, linear: Callable[..., Tensor], x: Tensor, residual: Tensor | None) -> Tensor:
        """A part's last product, linear(x) added to the residual, shown as "out" without the residual.

        The kernel adds the residual within, so `out` is computed beside it, and only for an observer.
        """
        if self.observer is not None:
            out = linear(x)
            changed = self.show("out", out)
            if changed is not out:
                return changed if residual is None else residual + changed
        return linear(x, residual)

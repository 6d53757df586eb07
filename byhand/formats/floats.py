"""What the float formats share: a matrix is one tensor of (out, in)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from byhand.formats import Part, Weight, WeightFormat

if TYPE_CHECKING:
    import torch


class FloatFormat(WeightFormat):
    """Numbers as torch stores them."""

    is_float: ClassVar[bool] = True

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """One."""
        return (Part("", self.name, shape),)

    def rows(self, weight: Weight, rows: slice | torch.Tensor) -> torch.Tensor:
        """The numbers themselves."""
        return weight.tensors[0][rows].float()

    def tile(self, llvm: Any) -> dict[str, Any]:
        """Sixteen numbers at a time."""
        load = getattr(llvm, f"load_{self.name}")
        return {
            "block": 16,
            "block_bytes": 2 * int(self.bits),
            "load": lambda builder, address: [load(builder, address)],
        }

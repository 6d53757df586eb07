"""int8: a weight is code · scale, the codes -127 to 127."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from byhand.formats import Weight
from byhand.formats.grouped import GROUP, GroupedFormat, steps

if TYPE_CHECKING:
    import torch

HIGHEST = 127


class Int8(GroupedFormat):
    """A byte a code, a scale a group."""

    name: ClassVar[str] = "int8"
    bits: ClassVar[float] = 8.5
    codes: ClassVar[tuple[str, int]] = ("int8", GROUP)
    scales: ClassVar[int] = 1

    def rows(self, weight: Weight, rows: slice | torch.Tensor) -> torch.Tensor:
        """code · scale."""
        codes, scales = (tensor[rows].float() for tensor in weight.tensors)
        groups = codes.view(*scales.shape, -1)  # (rows, groups, 32)
        return (groups * scales[..., None]).flatten(1)[:, : weight.shape[1]]

    def tile(self, llvm: Any) -> dict[str, Any]:
        """A group at a time: two registers of codes, and the scale that both are multiplied by."""

        def load(builder: Any, address: Any) -> list[Any]:
            return [
                llvm.load_int8(builder, address),
                llvm.load_int8(builder, builder.add(address, llvm.I64(GROUP // 2))),
            ]

        return {"block": GROUP, "block_bytes": GROUP, "load": load, "scale_bytes": 2, "load_scale": llvm.load_scale}

    def fit(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest number gets the last code, and the rest fall between."""
        scales = (groups.abs().amax(0, keepdim=True) / HIGHEST).bfloat16().float()
        return steps(groups, scales).clamp_(-HIGHEST, HIGHEST), scales

    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """A byte each."""
        import torch

        return codes.to(torch.int8).T


FORMAT = Int8()

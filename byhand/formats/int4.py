"""int4: a weight is code · scale + offset, the codes 0 to 15.

The offset costs half a bit and takes a seventh off the error (measured on normal numbers: 0.071 of their deviation,
0.081 without). Two codes share a byte: byte i of a group holds code i below and code i + 16 above.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

from byhand.formats import Weight
from byhand.formats.grouped import GROUP, GroupedFormat, steps

if TYPE_CHECKING:
    import torch

HIGHEST = 15
# A group's ends are tried at these fractions: to clip its few largest numbers can serve the many others better.
CLIPPING = (1.0, 0.9)


class Int4(GroupedFormat):
    """Half a byte a code, a scale and an offset a group."""

    name: ClassVar[str] = "int4"
    bits: ClassVar[float] = 5.0
    codes: ClassVar[tuple[str, int]] = ("uint8", GROUP // 2)
    scales: ClassVar[int] = 2

    def rows(self, weight: Weight, rows: slice | torch.Tensor) -> torch.Tensor:
        """code · scale + offset."""
        import torch

        pairs, affines = (tensor[rows] for tensor in weight.tensors)
        scales, offsets = affines.float().view(len(affines), -1, 2, 1).unbind(2)  # (rows, groups, 1) each
        pairs = pairs.view(len(pairs), scales.shape[1], -1)
        groups = torch.cat((pairs & 15, pairs >> 4), dim=-1).float()  # (rows, groups, 32)
        return (groups * scales + offsets).flatten(1)[:, : weight.shape[1]]

    def tile(self, llvm: Any) -> dict[str, Any]:
        """A group at a time: by a book of its sixteen numbers where the processor looks up in registers."""
        return {
            "block": GROUP,
            "block_bytes": GROUP // 2,
            "load": llvm.load_int4,
            "scale_bytes": 4,
            "load_scale": llvm.load_affine,
            "load_scaled": llvm.load_int4_by_book if llvm.HAS_CODE_BOOKS else None,
            "unroll": 4,
            "in_whole_numbers": True,
        }

    def fit(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the least squared error among the ends tried; the scales stand above the offsets."""
        import torch

        low, high = groups.amin(0, keepdim=True), groups.amax(0, keepdim=True)
        best = _fit_affine(groups, low, high)
        for below, above in list(product(CLIPPING, CLIPPING))[1:]:
            tried = _fit_affine(groups, low * below, high * above)
            better = tried[-1] < best[-1]
            best = tuple(torch.where(better, new, old) for new, old in zip(tried, best, strict=True))
        codes, scales, offsets, _ = best
        return codes, torch.cat((scales, offsets))

    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """Two in a byte."""
        import torch

        small = codes.to(torch.uint8)
        return (small[: GROUP // 2] | small[GROUP // 2 :] << 4).T


def _fit_affine(groups: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Codes, scales, offsets and squared errors, when the first code is about `low` and the last about `high`.

    The affine map from code to number is then moved to where it fits those codes best (least squares), and rounded to
    bfloat16; the codes are found again for that map.
    """
    import torch

    codes = steps(groups - low, (high - low) / HIGHEST).clamp_(0, HIGHEST)
    code_mean, mean = codes.mean(0, keepdim=True), groups.mean(0, keepdim=True)
    apart = codes.sub_(code_mean)
    power = apart.square().sum(0, keepdim=True)
    slopes = (apart * (groups - mean)).sum(0, keepdim=True) / torch.where(power == 0, 1.0, power)
    scales = slopes.bfloat16().float()
    offsets = (mean - scales * code_mean).bfloat16().float()
    codes = steps(groups - offsets, scales).clamp_(0, HIGHEST)
    errors = (groups - offsets).addcmul_(codes, scales, value=-1.0).square_().sum(0, keepdim=True)
    return codes, scales, offsets, errors


FORMAT = Int4()

"""What formats of codes share: groups of 32 along a row, each with a scale of its own.

Scales are bfloat16. A row whose length is no whole number of groups is filled up; `shape` tells the true one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from byhand.errors import BadWeights
from byhand.formats import Part, Weight, WeightFormat

if TYPE_CHECKING:
    import torch

GROUP = 32
# Numbers worked on at once: they stay in a core's cache, and torch starts no threads for so few.
BLOCK = 2**15


class GroupedFormat(WeightFormat):
    """Codes and scales."""

    group: ClassVar[int] = GROUP
    codes: ClassVar[tuple[str, int]]  # their dtype, and how many of it a group has
    scales: ClassVar[int]  # numbers beside each group's codes

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The codes and the scales."""
        dtype, count = self.codes
        rows, groups = shape[:-1], -(-shape[-1] // GROUP)
        codes = Part(".codes", dtype, (*rows, groups * count))
        return codes, Part(".scales", "bfloat16", (*rows, groups * self.scales))

    @abstractmethod
    def fit(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (32, groups) and scales (scales, groups) of numbers (32, groups): groups stand in columns, so that
        torch works on many of them at once.
        """

    @abstractmethod
    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (32, groups) as they are stored, (groups, how many)."""

    def quantize_blocks(self, weight: Weight) -> Iterator[tuple[torch.Tensor, ...]]:
        """The codes and scales of a float matrix, block of rows by block: no float copy of the whole is ever held."""
        import torch

        [numbers] = weight.tensors
        out_features, in_features = weight.shape
        missing = -in_features % GROUP
        step = max(1, BLOCK // (in_features + missing))
        for start in range(0, out_features, step):
            block = torch.nn.functional.pad(numbers[start : start + step].float(), (0, missing))
            if not block.isfinite().all():
                raise BadWeights("a weight that is to be quantised holds numbers that are not finite")
            codes, scales = self.fit(block.reshape(-1, GROUP).T.contiguous())
            yield self.pack(codes).reshape(len(block), -1), scales.bfloat16().T.reshape(len(block), -1)


def steps(numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """How many whole scales the numbers are; a scale of 0 is of numbers that are 0."""
    import torch

    return (numbers / torch.where(scales == 0, 1.0, scales)).round_()

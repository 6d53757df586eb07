"""Weights in 8 or 4 bits: codes in groups of 32 along a row, each group with a scale of its own.

int8: a weight is code · scale, the codes -127 to 127: 8.5 bits a weight.
int4: a weight is code · scale + offset, the codes 0 to 15: 5 bits a weight. The offset costs half a bit and takes a
seventh off the error (measured on normal numbers: 0.071 of their deviation, 0.081 without).

Scales and offsets are bfloat16. Two codes of int4 share a byte: byte i of a group holds code i below and code i + 16
above. A row whose length is no whole number of groups is filled up; `shape` tells the true one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch

from byhand.checkpoint import GROUP, QUANTIZED
from byhand.errors import BadRequest, BadWeights
from byhand.weights import Weight, parts_of

HIGHEST = {"int8": 127, "int4": 15}

# A group's ends are tried at these shares: to clip its few largest numbers can serve the many others better.
SHARES = (1.0, 0.9)
# Numbers worked on at once: they stay in a core's cache, and torch starts no threads for so few.
BLOCK = 2**15

# Groups stand in columns here, (32, groups): so torch works on many groups at once.


def _steps(numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (numbers / torch.where(scales == 0, 1.0, scales)).round_()


def _fit_int8(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (32, groups) and scales (1, groups): the largest number gets the last code, and the rest fall between."""
    scales = (groups.abs().amax(0, keepdim=True) / HIGHEST["int8"]).bfloat16().float()
    return _steps(groups, scales).clamp_(-HIGHEST["int8"], HIGHEST["int8"]), scales


def _fit_line(groups: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Codes, scales, offsets and squared errors, when the first code is about `low` and the last about `high`.

    The line from code to number is then moved to where it fits those codes best (least squares), and rounded to
    bfloat16; the codes are found again for that line.
    """
    codes = _steps(groups - low, (high - low) / HIGHEST["int4"]).clamp_(0, HIGHEST["int4"])
    code_mean, mean = codes.mean(0, keepdim=True), groups.mean(0, keepdim=True)
    apart = codes.sub_(code_mean)
    power = apart.square().sum(0, keepdim=True)
    slopes = (apart * (groups - mean)).sum(0, keepdim=True) / torch.where(power == 0, 1.0, power)
    scales = slopes.bfloat16().float()
    offsets = (mean - scales * code_mean).bfloat16().float()
    codes = _steps(groups - offsets, scales).clamp_(0, HIGHEST["int4"])
    errors = (groups - offsets).addcmul_(codes, scales, value=-1.0).square_().sum(0, keepdim=True)
    return codes, scales, offsets, errors


def _fit_int4(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (32, groups), and scales and offsets (2, groups), of the least squared error among the ends tried."""
    low, high = groups.amin(0, keepdim=True), groups.amax(0, keepdim=True)
    best = _fit_line(groups, low, high)
    for below, above in list(product(SHARES, SHARES))[1:]:
        tried = _fit_line(groups, low * below, high * above)
        better = tried[-1] < best[-1]
        best = tuple(torch.where(better, new, old) for new, old in zip(tried, best, strict=True))
    codes, scales, offsets, _ = best
    return codes, torch.cat((scales, offsets))


def _packed(codes: torch.Tensor, form: str) -> torch.Tensor:
    """Codes (32, groups) as bytes (groups, 32) or (groups, 16)."""
    if form == "int8":
        return codes.to(torch.int8).T
    small = codes.to(torch.uint8)
    return (small[: GROUP // 2] | small[GROUP // 2 :] << 4).T


def check_form(form: str, param: str) -> None:
    """Refuse a form that there is not."""
    if form not in QUANTIZED:
        raise BadRequest(f"{param} is {form!r}; it must be one of {', '.join(QUANTIZED)}", param=param)


def shrinker(form: str) -> Callable[[Weight], Weight]:
    """`quantize` into a form that is checked at once."""
    check_form(form, "quantize")
    return partial(quantize, form=form)


def quantize_blocks(weight: Weight, form: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The codes and scales of a float weight, block of rows by block: no float copy of the whole is ever held."""
    [numbers] = weight.tensors
    out_features, in_features = weight.shape
    missing = -in_features % GROUP
    step = max(1, BLOCK // (in_features + missing))
    fit = _fit_int8 if form == "int8" else _fit_int4
    for start in range(0, out_features, step):
        block = torch.nn.functional.pad(numbers[start : start + step].float(), (0, missing))
        if not block.isfinite().all():
            raise BadWeights("a weight that is to be quantised holds numbers that are not finite")
        codes, scales = fit(block.reshape(-1, GROUP).T.contiguous())
        yield _packed(codes, form).reshape(len(block), -1), scales.bfloat16().T.reshape(len(block), -1)


def quantize(weight: Weight, form: str) -> Weight:
    """A float weight in `int8` or `int4`."""
    assert form in QUANTIZED
    parts = parts_of(form, weight.shape)
    codes, scales = (torch.empty(part.shape, dtype=part.dtype, device=weight.device) for part in parts)
    row = 0
    for some_codes, some_scales in quantize_blocks(weight, form):
        end = row + len(some_codes)
        codes[row:end], scales[row:end] = some_codes, some_scales
        row = end
    return Weight(form, (codes, scales), weight.shape)

"""Weights in 8 or 4 bits: codes in groups of 32 along a row, each group with a scale of its own.

int8: a weight is code · scale, the codes -127 to 127: 8.5 bits a weight.
int4: a weight is code · scale + offset, the codes 0 to 15: 5 bits a weight. The offset costs half a bit and takes a
seventh off the error (measured on normal numbers: 0.071 of their deviation, 0.081 without).

Scales and offsets are bfloat16. Two codes of int4 share a byte: byte i of a group holds code i below and code i + 16
above. A row whose length is no whole number of groups is filled up; `shape` tells the true one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import torch

from byhand.errors import BadRequest, BadWeights
from byhand.weights import Weight

GROUP = 32
QUANTIZED = ("int8", "int4")
HIGHEST = {"int8": 127, "int4": 15}

# A group's ends are tried at these shares: to clip its few largest numbers can serve the many others better.
SHARES = (1.0, 0.9, 0.8)
# Numbers worked on at once: 4 MiB of float32.
BLOCK = 2**20


def _steps(numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (numbers / torch.where(scales == 0, 1.0, scales)).round_()


def _fit_int8(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (…, 32) and scales (…, 1): the largest number gets the last code, and the rest fall where they do."""
    scales = (groups.abs().amax(-1, keepdim=True) / HIGHEST["int8"]).bfloat16().float()
    return _steps(groups, scales).clamp_(-HIGHEST["int8"], HIGHEST["int8"]), scales


def _fit_line(groups: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Codes, scales, offsets and squared errors, when the first code is about `low` and the last about `high`.

    The line from code to number is then moved to where it fits those codes best (least squares), and rounded to
    bfloat16; the codes are found again for that line.
    """
    scales = (high - low) / HIGHEST["int4"]
    codes = _steps(groups - low, scales).clamp_(0, HIGHEST["int4"])
    code_mean, mean = codes.mean(-1, keepdim=True), groups.mean(-1, keepdim=True)
    apart = codes - code_mean
    power = apart.square().sum(-1, keepdim=True)
    slopes = (apart * (groups - mean)).sum(-1, keepdim=True) / torch.where(power == 0, 1.0, power)
    scales = slopes.bfloat16().float()
    offsets = (mean - scales * code_mean).bfloat16().float()
    codes = _steps(groups - offsets, scales).clamp_(0, HIGHEST["int4"])
    errors = (groups - codes * scales - offsets).square().sum(-1, keepdim=True)
    return codes, scales, offsets, errors


def _fit_int4(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (…, 32), and scale and offset (…, 2), of the least squared error among the ends tried."""
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    best = _fit_line(groups, low, high)
    for below, above in list(product(SHARES, SHARES))[1:]:
        tried = _fit_line(groups, low * below, high * above)
        better = tried[-1] < best[-1]
        best = tuple(torch.where(better, new, old) for new, old in zip(tried, best, strict=True))
    codes, scales, offsets, _ = best
    return codes, torch.cat((scales, offsets), dim=-1)


def _packed(codes: torch.Tensor, form: str) -> torch.Tensor:
    """Codes (rows, groups, 32) as they are kept: (rows, in) int8, or (rows, in / 2) uint8."""
    if form == "int8":
        return codes.to(torch.int8).flatten(1)
    small = codes.to(torch.uint8)
    return (small[..., : GROUP // 2] | small[..., GROUP // 2 :] << 4).flatten(1)


def empty(form: str, shape: tuple[int, int], device: torch.device | str = "cpu") -> Weight:
    """A quantised weight of this shape whose numbers are still to be written."""
    out_features, groups = shape[0], -(-shape[1] // GROUP)
    width, kind, scales = (GROUP, torch.int8, 1) if form == "int8" else (GROUP // 2, torch.uint8, 2)
    codes = torch.empty(out_features, groups * width, dtype=kind, device=device)
    return Weight(form, (codes, torch.empty(out_features, groups * scales, dtype=torch.bfloat16, device=device)), shape)


def shrinker(form: str) -> Callable[[Weight], Weight]:
    """`quantize` into a form that is checked at once."""
    if form not in QUANTIZED:
        raise BadRequest(f"quantize is {form!r}; it must be one of {', '.join(QUANTIZED)}", param="quantize")
    return partial(quantize, form=form)


def quantize(weight: Weight, form: str) -> Weight:
    """A float weight in `int8` or `int4`. Works block by block: no float copy of the whole is ever held."""
    assert form in QUANTIZED
    [numbers] = weight.tensors
    result = empty(form, weight.shape, weight.device)
    codes, scales = result.tensors
    out_features, in_features = weight.shape
    missing = -in_features % GROUP
    step = max(1, BLOCK // (in_features + missing))
    fit = _fit_int8 if form == "int8" else _fit_int4
    for start in range(0, out_features, step):
        block = torch.nn.functional.pad(numbers[start : start + step].float(), (0, missing))
        if not block.isfinite().all():
            raise BadWeights("a weight that is to be quantised holds numbers that are not finite")
        found, lines = fit(block.view(len(block), -1, GROUP))
        codes[start : start + step] = _packed(found, form)
        scales[start : start + step] = lines.flatten(1).bfloat16()
    return result

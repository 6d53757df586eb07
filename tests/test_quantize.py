"""Quantised weights: what they can hold they hold exactly, and what they cannot they miss by little."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from byhand.checkpoint import open_checkpoint
from byhand.errors import BadRequest, BadWeights
from byhand.formats import Weight, grouped, quantized_formats
from byhand.kernels import backend, backends, reference
from byhand.models import build
from byhand.quantize import quantize
from tests.checkpoints import logits_of, random_prompt, relative_error, tiny

EACH_FORM = pytest.mark.parametrize("form", quantized_formats())
EACH_BACKEND = pytest.mark.parametrize("kernels", backends())


def numbers(weight: Weight) -> torch.Tensor:
    return reference.rows_of(weight, slice(None))


def on_the_grid(form: str, rows: int, groups: int) -> torch.Tensor:
    """Numbers that have a code: every group holds the first code and the last."""
    generator = torch.Generator().manual_seed(0)
    low, high = (-127, 127) if form == "int8" else (0, 15)
    codes = torch.randint(low, high + 1, (rows, groups, 32), generator=generator).float()
    codes[..., 5], codes[..., 20] = low, high
    scales = torch.rand(rows, groups, 1, generator=generator).add(0.1).bfloat16().float()
    offsets = scales * -8 if form == "int4" else 0.0
    return (codes * scales + offsets).flatten(1)


@EACH_FORM
def test_numbers_on_the_grid_come_back_exactly(form: str) -> None:
    matrix = on_the_grid(form, 7, 5)
    assert torch.equal(numbers(quantize(Weight.of(matrix), form)), matrix)


@EACH_FORM
@pytest.mark.parametrize("inner", [1, 31, 32, 100])
def test_any_length_keeps_its_shape(form: str, inner: int) -> None:
    matrix = torch.randn(5, inner)
    weight = quantize(Weight.of(matrix), form)
    assert (weight.format, weight.shape) == (form, (5, inner))
    assert numbers(weight).shape == (5, inner)
    assert (numbers(weight) - matrix).abs().max() <= (0.02 if form == "int8" else 0.3)


@pytest.mark.parametrize(("form", "bound", "bits"), [("int8", 0.006, 8.5), ("int4", 0.074, 5.0)])
def test_error_and_size_on_normal_numbers(form: str, bound: float, bits: float) -> None:
    matrix = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    weight = quantize(Weight.of(matrix), form)
    assert (numbers(weight) - matrix).square().mean().sqrt() < bound
    assert weight.nbytes * 8 / matrix.numel() == bits


@EACH_FORM
def test_constant_and_empty_groups(form: str) -> None:
    matrix = torch.zeros(3, 64)
    matrix[1] = 0.5
    matrix[2, 40] = -3.0
    assert (numbers(quantize(Weight.of(matrix), form)) - matrix).abs().max() <= 0.01


@EACH_FORM
def test_blocks_change_nothing(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = Weight.of(torch.randn(50, 96).bfloat16())
    whole = quantize(weight, form)
    monkeypatch.setattr(grouped, "BLOCK", 7 * 96)
    assert all(map(torch.equal, whole.tensors, quantize(weight, form).tensors))


@EACH_FORM
@pytest.mark.parametrize("inner", [40, 64])
def test_a_transposed_weight_is_turned(form: str, inner: int) -> None:
    matrix = torch.randn(64, inner)
    turned = quantize(Weight.of(matrix.T.contiguous().T), form)
    assert all(map(torch.equal, turned.tensors, quantize(Weight.of(matrix), form).tensors))


@EACH_FORM
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(form: str, bad: float) -> None:
    matrix = torch.ones(4, 64)
    matrix[2, 3] = bad
    with pytest.raises(BadWeights, match="not finite"):
        quantize(Weight.of(matrix), form)


@EACH_FORM
@EACH_BACKEND
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_quantised_model_equals_the_model_of_its_numbers(
    form: str, kernels: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(tiny(tmp_path, family))
    ids = random_prompt(128, 40, seed=1)
    ours = logits_of(build(checkpoint, backend(kernels), quantize=form), ids, [1, 20, 39])
    monkeypatch.setattr(
        "byhand.models.shrinker", lambda form: lambda weight: Weight.of(numbers(quantize(weight, form)))
    )
    plain = logits_of(build(checkpoint, backend("reference"), quantize=form), ids)
    assert relative_error(ours, plain) < 2e-5
    full = logits_of(build(checkpoint, backend("reference")), ids)
    assert relative_error(ours, full) > 1e-3


def test_an_unknown_form_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="quantize is 'int3'; it must be one of int8, int4"):
        build(open_checkpoint(tiny(tmp_path)), backend("reference"), quantize="int3")

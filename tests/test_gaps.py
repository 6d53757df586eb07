"""Blocks in which torch computes between kernels: captured with those operations, or not at all, which is said."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from byhand.cache.kv_cache import Batch, KVCache, LayerSpec
from byhand.formats import Weight, quantized_formats
from byhand.kernels.cpu import Cpu, calls
from byhand.quantize import quantize
from byhand.weights import DTYPES
from tests.test_blocks import batch_of

SPEC = [LayerSpec(1, 16)]
Between = Callable[[torch.Tensor, Batch], torch.Tensor]


class Part:
    """A product, something of torch's, and another product."""

    def __init__(self, kernels: Cpu, between: Between, seed: int = 0) -> None:
        dice = torch.Generator().manual_seed(seed)
        self.kernels, self.between = kernels, between
        self.weight = Weight.of(torch.randn(16, 16, generator=dice) / 4)

    def __call__(self, x: torch.Tensor, batch: Batch, cache: KVCache) -> torch.Tensor:
        x = self.between(self.kernels.linear(x, self.weight), batch)
        return self.kernels.linear(x, self.weight)


def check(layers: list[Any], kernels: Cpu, passes: int = 5) -> None:
    """As many passes, each the bits of the layers by themselves."""
    cache = KVCache(SPEC, 32)
    for number in range(passes):
        x, batch = torch.randn(2, 16), batch_of([[number], [number + 1]], [number + 1, 1])
        truth = x
        for layer in layers:
            truth = layer(truth, batch, cache)
        assert torch.equal(kernels.blocks(layers, x, batch, cache), truth), number


GAIN, TABLE = torch.rand(16), torch.randn(4, 16)
DONE_AGAIN: dict[str, Between] = {
    "a number": lambda x, _: x * 3,
    "a tensor that lives as long": lambda x, _: x * GAIN,
    "a view of such": lambda x, _: x + TABLE.T.contiguous().T[2] * TABLE[1],
    "several, one after another": lambda x, _: torch.where(x > 0, x * 2, x.abs().sqrt()).clamp(max=3),
    "in place": lambda x, _: x.mul_(2).add_(GAIN),
    "a part in place": lambda x, _: [x[:, :3].zero_(), x][1],
    "memory of its own": lambda x, _: [y := torch.zeros(2, 16), y[:, 2:9].copy_(x[:, 2:9])][0],
    "softmax and a choice": lambda x, _: x.softmax(1).gather(1, x.argsort(1)),
    "two results": lambda x, _: x.sort(1).values + x.sort(1).indices,
    "parts": lambda x, _: torch.cat(x.split((5, 11), dim=1)[::-1], dim=1),
    "padded": lambda x, _: torch.nn.functional.pad(x, (4, 0))[:, :16],
}


@pytest.mark.parametrize("is_inference", [True, False])
@pytest.mark.parametrize("name", DONE_AGAIN)
def test_operations_are_done_again(name: str, is_inference: bool) -> None:
    kernels = Cpu()
    layers = [Part(kernels, DONE_AGAIN[name], seed) for seed in range(3)]
    with torch.inference_mode(is_inference):
        check(layers, kernels)
    assert len(kernels.captured) == 3
    assert None not in kernels.captured.values()
    [whole] = kernels.captured_all.values()
    assert len(whole.layers) == 3
    assert whole.capture.gaps
    assert not kernels.uncaptured


TWOS = np.full(16, 2.0, np.float32)
REFUSED: dict[str, tuple[Between, str]] = {
    "a number of a tensor": (lambda x, _: x * x.max().item(), "makes numbers of a tensor"),
    "a list of a tensor": (lambda x, _: x * len(x.tolist()), "makes numbers of a tensor"),
    "an array of a tensor": (lambda x, _: x + torch.from_numpy(x.numpy()), "makes numbers of a tensor"),
    "a question": (lambda x, _: x if (x > 1e9).any() else x * 2, "makes numbers of a tensor"),
    "a tensor of numbers": (lambda x, _: x * torch.tensor([2.0]), "makes numbers of a tensor"),
    "the batch's positions": (lambda x, batch: x + batch.position_ids[:, None], "reads the batch itself"),
    "a part of the batch": (lambda x, batch: x * batch.slot_mappings[0][1:], "reads the batch itself"),
    "what another has": (lambda x, _: [GAIN.add_(0), x][1] * 2, "add_ writes outside of the block"),
    "the batch's numbers": (lambda x, batch: x * batch.context_lens[0], "differs from pass to pass"),
    "what is new each time": (
        lambda x, _: x + torch.from_numpy(TWOS.copy()),
        "differs from pass to pass",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_differs_from_pass_to_pass_is_not_captured_and_said(name: str) -> None:
    between, why = REFUSED[name]
    notes: list[str] = []
    kernels = Cpu(note=notes.append)
    plain = Part(kernels, lambda x, _: x, 1)
    with torch.inference_mode():
        check([plain, Part(kernels, between), plain], kernels)
    assert [block is None for block in kernels.captured.values()].count(True) == 1
    said = [note for note in notes if "kernel by kernel" in note]
    assert len(said) == len(kernels.uncaptured) == 1
    assert why in said[0]


def test_operations_keep_nothing_alive() -> None:
    kernels = Cpu()

    class Scaled:
        def __init__(self) -> None:
            self.gain = torch.rand(16)
            self.part = Part(kernels, lambda x, _: x * self.gain.view(1, 16))

        def __call__(self, *given: Any) -> torch.Tensor:
            return self.part(*given)

    layer = Scaled()
    check([layer], kernels)
    assert None not in kernels.captured.values()
    watched = [weakref.ref(layer), weakref.ref(layer.gain)]
    del layer
    gc.collect()
    assert [watch() for watch in watched] == [None, None]


def test_what_is_gone_is_not_read() -> None:
    kernels, held = Cpu(), [torch.rand(16)]
    layer = Part(kernels, lambda x, _: x * held[0])
    check([layer], kernels)
    held[0] = torch.rand(16)
    gc.collect()
    check([layer], kernels)


@pytest.mark.parametrize("form", [*DTYPES, *quantized_formats()])
@pytest.mark.parametrize("rows", [4, 40])
@pytest.mark.parametrize("inner", [16, 23])
def test_what_the_backend_itself_leaves_to_torch(form: str, rows: int, inner: int) -> None:
    """Rows that are filled up to a group, and weights that are stored in columns."""
    kernels, cache = Cpu(prefill="fast"), KVCache(SPEC, 32)
    matrix = torch.randn(16, inner).to(DTYPES.get(form, torch.float32))
    wide = quantize(Weight.of(matrix), form) if form in quantized_formats() else Weight.of(matrix.T.contiguous().T)
    back = Weight.of(torch.randn(inner, 16))

    def layer(x: torch.Tensor, *_: object) -> torch.Tensor:
        return kernels.linear(kernels.linear(x, back), wide)

    batch = batch_of([[1] * (rows // 4)] * 4, [rows // 4] * 4)
    for _ in range(4):
        x = torch.randn(rows, 16)
        assert torch.equal(kernels.blocks([layer], x, batch, cache), layer(x))
    assert None not in kernels.captured.values()
    assert len(kernels.captured) == 1


def test_a_kind_of_layer_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To look costs time in a prompt of each new length; what one misses is found out, and then looked at."""
    looked: list[object] = []

    class Looking(calls.Gaps):
        def __enter__(self) -> Any:
            looked.append(self)
            return super().__enter__()

    monkeypatch.setattr(calls, "Gaps", Looking)
    kernels = Cpu()
    check([Part(kernels, lambda x, _: x, seed) for seed in range(5)], kernels)
    assert len(looked) == 1
    check([Part(kernels, lambda x, _: x * 2, seed) for seed in range(2)], kernels)
    assert None not in kernels.captured.values()
    assert len(looked) > 1

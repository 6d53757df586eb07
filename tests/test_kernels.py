"""Every backend against the plain formula, written out in float64."""

from __future__ import annotations

import math
import random

import pytest
import torch

from byhand.errors import BadRequest
from byhand.kernels import Kernels, backend, backends, reference
from byhand.kv_cache import PAGE_SIZE, Batch, KVCache, LayerSpec
from byhand.weights import DTYPES, Weight

EACH_BACKEND = pytest.mark.parametrize("kernels", [backend(name) for name in backends()], ids=backends())
HEADS, KV_HEADS, HEAD_DIM = 6, 2, 10


def close(ours: torch.Tensor, truth: torch.Tensor, bound: float = 2e-6) -> bool:
    return bool((ours - truth).abs().max() <= bound * truth.abs().max())


def test_reference_is_a_backend_and_nonsense_is_not() -> None:
    assert "reference" in backends()
    with pytest.raises(BadRequest, match=r"'abacus'.*reference"):
        backend("abacus")


@EACH_BACKEND
@pytest.mark.parametrize("rows", [1, 2, 7, 33])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_linear(kernels: Kernels, dtype: str, rows: int, transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "BLOCK", 200)
    matrix = torch.randn(37, 52).to(DTYPES[dtype])
    if transposed:
        matrix = matrix.T.contiguous().T
    x, bias = torch.randn(rows, 52), torch.randn(37)
    truth = x.double() @ matrix.double().T
    assert close(kernels.linear(x, Weight.of(matrix)), truth)
    assert close(kernels.linear(x, Weight.of(matrix), bias), truth + bias)


def test_linear_never_upcasts_a_whole_head(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    rows = reference._ROWS["bfloat16"]

    def record(weight: Weight, which: slice) -> torch.Tensor:
        seen.append(rows(weight, which))
        return seen[-1]

    monkeypatch.setitem(reference._ROWS, "bfloat16", record)
    monkeypatch.setattr(reference, "BLOCK", 1000)
    reference.linear(torch.randn(1, 64), Weight.of(torch.randn(512, 64).bfloat16()))
    assert sum(len(block) for block in seen) == 512
    assert max(block.numel() for block in seen) <= 1000


@EACH_BACKEND
@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(kernels: Kernels, dtype: str) -> None:
    matrix = torch.randn(20, 8).to(DTYPES[dtype])
    ids = torch.tensor([3, 19, 3, 0])
    out = kernels.embedding(ids, Weight.of(matrix))
    assert out.dtype == torch.float32
    assert torch.equal(out, torch.stack([matrix[token].float() for token in ids.tolist()]))


@EACH_BACKEND
def test_norms(kernels: Kernels) -> None:
    x, gain, shift = torch.randn(5, 3, 16) * 4 + 1, torch.randn(16), torch.randn(16)
    wide = x.double()
    root = (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    assert close(kernels.rms_norm(x, gain, 1e-3), wide / root * gain)
    centred = wide - wide.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    assert close(kernels.layer_norm(x, gain, shift, 1e-3), centred / deviation * gain + shift)
    assert close(kernels.layer_norm(x, None, None, 1e-3), centred / deviation)


@EACH_BACKEND
def test_rotate_turns_pairs_of_dimensions(kernels: Kernels) -> None:
    x, angles = torch.randn(4, 3, 8), torch.rand(4, 4) * 6
    cos, sin = (torch.cat((part, part), dim=-1) for part in (angles.cos(), angles.sin()))
    out = kernels.rotate(x, cos, sin)
    pairs = torch.complex(x[..., :4].double(), x[..., 4:].double())
    turned = pairs * torch.polar(torch.ones(4, 4).double(), angles.double())[:, None]
    assert close(out, torch.cat((turned.real, turned.imag), dim=-1))


@EACH_BACKEND
def test_curves(kernels: Kernels) -> None:
    x, up = torch.linspace(-6, 6, 97), torch.randn(97)
    wide = x.double()
    assert torch.equal(kernels.relu(x), x.clamp(min=0))
    assert close(kernels.gelu(x), wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2))))
    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    assert close(kernels.gelu_tanh(x), wide * 0.5 * (1 + torch.tanh(inner)))
    assert close(kernels.silu(x), wide / (1 + torch.exp(-wide)))
    assert close(kernels.silu_mul(x, up), wide / (1 + torch.exp(-wide)) * up)


def ragged(
    chunks: list[tuple[int, int]], seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, KVCache, Batch, list[torch.Tensor]]:
    """Runs of (context, rows) whose keys and values lie in shuffled pages; also each run's keys and values in order."""
    generator = torch.Generator().manual_seed(seed)
    pages = list(range(200))
    random.Random(seed).shuffle(pages)
    cache = KVCache([LayerSpec(1, 2), LayerSpec(KV_HEADS, HEAD_DIM)], 200, dtype=dtype)
    cache.keys[1].fill_(torch.nan)
    cache.values[1].fill_(torch.nan)
    tables, stored, starts = [], [], [0]
    for context, rows in chunks:
        table = tuple(pages.pop() for _ in range(-(-context // PAGE_SIZE)))
        slots = torch.tensor([table[at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE for at in range(context)])
        pair = torch.randn(2, context, KV_HEADS, HEAD_DIM, generator=generator)
        cache.write(1, slots, pair[0], pair[1])
        tables.append(table)
        stored.append(pair)
        starts.append(starts[-1] + rows)
    empty = torch.zeros(starts[-1], dtype=torch.long)
    batch = Batch(empty, empty, empty, tuple(starts), tuple(context for context, _ in chunks), tuple(tables))
    return torch.randn(starts[-1], HEADS, HEAD_DIM, generator=generator), cache, batch, stored


def direct(
    query: torch.Tensor,  # (heads, head_dim)
    position: int,
    pair: torch.Tensor,  # (2, context, kv heads, head_dim)
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of one row, one head and one key at a time."""
    out = torch.zeros(HEADS, HEAD_DIM, dtype=torch.float64)
    for head in range(HEADS):
        keys, values = pair[:, :, head * KV_HEADS // HEADS].double()
        weights, total = [], 0.0
        first = 0 if window is None else max(0, position - window + 1)
        for at in range(first, position + 1):
            score = float(query[head].double() @ keys[at]) * scale
            if softcap is not None:
                score = softcap * math.tanh(score / softcap)
            if slopes is not None:
                score += float(slopes[head]) * (at - position)
            weights.append((at, math.exp(score)))
        total = sum(weight for _, weight in weights) + (math.exp(float(sinks[head])) if sinks is not None else 0)
        for at, weight in weights:
            out[head] += weight / total * values[at]
    return out


OPTIONS = {
    "plain": {},
    "window_1": {"window": 1},
    "window_5": {"window": 5},
    "window_20": {"window": 20},
    "window_beyond": {"window": 1000},
    "softcap": {"softcap": 1.5},
    "slopes": {"slopes": torch.tensor([0.5 ** (head + 1) for head in range(HEADS)])},
    "sinks": {"sinks": torch.linspace(-2, 2, HEADS)},
    "everything": {"window": 9, "softcap": 2.0, "slopes": torch.rand(HEADS), "sinks": torch.randn(HEADS)},
}


@EACH_BACKEND
@pytest.mark.parametrize("block", [2**22, 300])
@pytest.mark.parametrize("name", OPTIONS)
def test_attention(kernels: Kernels, name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "BLOCK", block)
    options, scale = OPTIONS[name], 0.4
    chunks = [(1, 1), (40, 1), (16, 16), (37, 11), (33, 33)]
    q, cache, batch, stored = ragged(chunks)
    out = kernels.attention(q, cache, 1, batch, scale=scale, **options)
    truth = [
        direct(q[start + row], context - rows + row, pair, scale=scale, **options)
        for (context, rows), start, pair in zip(chunks, batch.query_starts, stored, strict=False)
        for row in range(rows)
    ]
    assert out.dtype == torch.float32
    assert close(out, torch.stack(truth))


@EACH_BACKEND
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_over_a_narrow_cache_is_still_summed_in_float32(kernels: Kernels, dtype: torch.dtype) -> None:
    chunks = [(40, 3), (17, 1)]
    q, cache, batch, stored = ragged(chunks, dtype=dtype)
    out = kernels.attention(q, cache, 1, batch, scale=0.4)
    truth = [
        direct(q[start + row], context - rows + row, pair.to(dtype), scale=0.4)
        for (context, rows), start, pair in zip(chunks, batch.query_starts, stored, strict=False)
        for row in range(rows)
    ]
    assert out.dtype == torch.float32
    assert close(out, torch.stack(truth))


def test_attention_over_a_long_prompt_never_holds_all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    attend = reference._attend

    def record(q: torch.Tensor, *rest: torch.Tensor, **options: object) -> torch.Tensor:
        sizes.append(q.shape[0] * HEADS * len(rest[0]))
        return attend(q, *rest, **options)

    monkeypatch.setattr(reference, "_attend", record)
    monkeypatch.setattr(reference, "BLOCK", 2**18)
    q, cache, batch, _ = ragged([(2048, 2048)])
    reference.attention(q, cache, 1, batch, scale=0.3)
    assert len(sizes) > 10
    assert max(sizes) <= 2**18

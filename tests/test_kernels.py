"""Every backend against the plain formula, written out in float64."""

from __future__ import annotations

import math
import random

import pytest
import torch

from byhand.cache.kv_cache import PAGE_SIZE, Batch, KVCache, LayerSpec
from byhand.errors import BadRequest
from byhand.formats import Weight, quantized_formats
from byhand.kernels import Kernels, backend, backends, reference
from byhand.kernels.cpu import Cpu
from byhand.kernels.native.llvm import HAS_PAIR_SUMS
from byhand.quantize import quantize
from byhand.weights import DTYPES

EACH_BACKEND = pytest.mark.parametrize("kernels", [backend(name) for name in backends()], ids=backends())
FORMATS = (*DTYPES, *quantized_formats())
HEADS, KV_HEADS, HEAD_DIM = 6, 2, 10


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


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
    rows = reference.rows_of

    def record(weight: Weight, which: slice) -> torch.Tensor:
        seen.append(rows(weight, which))
        return seen[-1]

    monkeypatch.setattr(reference, "rows_of", record)
    monkeypatch.setattr(reference, "BLOCK", 1000)
    reference.linear(torch.randn(1, 64), Weight.of(torch.randn(512, 64).bfloat16()))
    assert sum(len(block) for block in seen) == 512
    assert max(block.numel() for block in seen) <= 1000


def make_weight(form: str, out: int, inner: int, *, transposed: bool = False, seed: int = 0) -> Weight:
    """A random weight of any format."""
    matrix = torch.randn(out, inner, generator=torch.Generator().manual_seed(seed))
    if form in quantized_formats():
        return quantize(Weight.of(matrix), form)
    matrix = matrix.to(DTYPES[form])
    return Weight.of(matrix.T.contiguous().T if transposed else matrix)


def exact(weight: Weight) -> torch.Tensor:
    """What a weight means, in float64, read here by hand."""
    if weight.format in DTYPES:
        return weight.tensors[0].double()
    codes, scales = weight.tensors
    scales = scales.double()
    if weight.format == "int8":
        numbers = codes.double().view(len(codes), -1, 32) * scales[..., None]
    else:
        pairs = codes.view(len(codes), -1, 16)
        steps = torch.stack((pairs % 16, pairs // 16), dim=2).flatten(2).double()
        numbers = steps * scales[:, ::2, None] + scales[:, 1::2, None]
    return numbers.flatten(1)[:, : weight.shape[1]]


@EACH_BACKEND
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("out", [9, 30, 301])
@pytest.mark.parametrize("inner", [8, 32, 96, 203])
def test_linear_of_every_format_and_odd_size(kernels: Kernels, form: str, out: int, inner: int) -> None:
    weight, bias = make_weight(form, out, inner), torch.randn(out)
    for rows in range(1, 18):
        x, residual = torch.randn(rows, inner), torch.randn(rows, out)
        truth = x.double() @ exact(weight).T
        assert close(kernels.linear(x, weight), truth, 1e-5)
        before = residual.clone()
        assert close(kernels.linear(x, weight, bias, residual), truth + bias + residual, 1e-5)
        assert torch.equal(residual, before)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_work(form: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byhand.kernels.cpu.calls.SMALL", 0)
    kernels, weight = Cpu(threads=threads), make_weight(form, 1003, 160)
    for rows in (1, 5):
        x = torch.randn(rows, 160)
        assert close(kernels.linear(x, weight), x.double() @ exact(weight).T, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("out", [3, 700])
def test_weights_stored_in_columns(dtype: str, threads: int, out: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byhand.kernels.cpu.calls.SMALL", 0)
    kernels, weight = Cpu(threads=threads), make_weight(dtype, out, 107, transposed=True)
    bias = torch.randn(out)
    for rows in (1, 2, 7):
        x, residual = torch.randn(rows, 107), torch.randn(rows, out)
        truth = x.double() @ exact(weight).T + bias + residual
        assert close(kernels.linear(x, weight, bias, residual), truth, 1e-5)


@EACH_BACKEND
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_several_matrices_over_one_input(kernels: Kernels, form: str, rows: int) -> None:
    weights = [make_weight(form, out, 70, seed=out) for out in (50, 7, 33)]
    biases, x = [torch.randn(50), None, torch.randn(33)], torch.randn(rows, 70)
    outs = kernels.linears(x, weights, biases)
    assert len(outs) == 3
    for out, weight, bias in zip(outs, weights, biases, strict=True):
        assert close(out, x.double() @ exact(weight).T + (0 if bias is None else bias), 1e-5)


@EACH_BACKEND
def test_matrices_of_different_formats_over_one_input(kernels: Kernels) -> None:
    weights, x = [make_weight("float32", 5, 40), make_weight("int8", 6, 40)], torch.randn(2, 40)
    for out, weight in zip(kernels.linears(x, weights, (None, None)), weights, strict=True):
        assert close(out, x.double() @ exact(weight).T, 1e-5)


@EACH_BACKEND
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rows", [1, 6, 40])
@pytest.mark.parametrize("size", [5, 83])
def test_gated(kernels: Kernels, form: str, rows: int, size: int) -> None:
    gate, up = (make_weight(form, size, 64, seed=seed) for seed in (1, 2))
    gate_bias, up_bias, x = torch.randn(size), torch.randn(size), torch.randn(rows, 64)
    left, right = x.double() @ exact(gate).T, x.double() @ exact(up).T
    assert close(kernels.gated(x, gate, up), left * left.sigmoid() * right, 1e-5)
    left, right = left + gate_bias, right + up_bias
    assert close(kernels.gated(x, gate, up, gate_bias, up_bias), left * left.sigmoid() * right, 1e-5)


@EACH_BACKEND
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("form", ["bfloat16", "int4"])
@pytest.mark.parametrize("rows", [1, 9, 70])
def test_gated_by_other_activations(kernels: Kernels, activation: str, form: str, rows: int) -> None:
    gate, up = (make_weight(form, 48, 64, seed=seed) for seed in (1, 2))
    gate_bias, x = torch.randn(48), torch.randn(rows, 64)
    apart = kernels.act_and_mul(activation, kernels.linear(x, gate, gate_bias), kernels.linear(x, up))
    assert torch.equal(kernels.gated(x, gate, up, gate_bias, None, activation), apart)
    assert not close(kernels.gated(x, gate, up, gate_bias, None), apart, 1e-2)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_fast_prefill_rounds_to_bfloat16_where_that_is_faster_and_exact_does_not(form: str, transposed: bool) -> None:
    weight, x = make_weight(form, 60, 96, transposed=transposed), torch.randn(100, 96)
    truth, bias = x.double() @ exact(weight).T, torch.randn(60)
    plain, fast = (Cpu(prefill=way).linear(x, weight, bias) for way in ("exact", "fast"))
    assert close(plain, truth + bias, 1e-5)
    assert close(fast, truth + bias, 1e-2)
    assert close(fast, truth + bias, 1e-5) == (form == "float32" or not HAS_PAIR_SUMS)
    # Without such products torch would round by hand, which takes ten times as long as not rounding at all.
    assert HAS_PAIR_SUMS or torch.equal(fast, plain)
    with pytest.raises(BadRequest, match="prefill is 'sloppy'"):
        Cpu(prefill="sloppy")


@EACH_BACKEND
@pytest.mark.parametrize("form", FORMATS)
def test_embedding(kernels: Kernels, form: str) -> None:
    weight = make_weight(form, 20, 40)
    ids = torch.tensor([3, 19, 3, 0])
    out = kernels.embedding(ids, weight)
    assert out.dtype == torch.float32
    assert close(out, exact(weight)[ids], 1e-7)


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
    residual = torch.randn(x.shape)
    assert close(kernels.rms_norm(x, gain, 1e-3, residual), wide / root * gain + residual)
    assert close(kernels.layer_norm(x, gain, shift, 1e-3, residual), centred / deviation * gain + shift + residual)


@EACH_BACKEND
def test_rotate_turns_pairs_of_dimensions(kernels: Kernels) -> None:
    x, angles = torch.randn(4, 3, 8), torch.rand(4, 4) * 6
    cos, sin = (torch.cat((part, part), dim=-1) for part in (angles.cos(), angles.sin()))
    out = kernels.rotate(x, cos, sin)
    pairs = torch.complex(x[..., :4].double(), x[..., 4:].double())
    turned = pairs * torch.polar(torch.ones(4, 4).double(), angles.double())[:, None]
    assert close(out, torch.cat((turned.real, turned.imag), dim=-1))


@EACH_BACKEND
def test_activations(kernels: Kernels) -> None:
    x, up = torch.linspace(-6, 6, 97), torch.randn(97)
    wide = x.double()
    assert torch.equal(kernels.relu(x), x.clamp(min=0))
    assert close(kernels.gelu(x), wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2))))
    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    assert close(kernels.gelu_tanh(x), wide * 0.5 * (1 + torch.tanh(inner)))
    assert close(kernels.silu(x), wide / (1 + torch.exp(-wide)))
    assert close(kernels.act_and_mul("silu", x, up), wide / (1 + torch.exp(-wide)) * up)
    for name in ("relu", "gelu", "gelu_tanh", "silu"):
        assert torch.equal(kernels.act_and_mul(name, x, up), getattr(kernels, name)(x) * up)


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
    batch = Batch(empty, empty, (empty,), tuple(starts), tuple(context for context, _ in chunks), (tuple(tables),))
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


@EACH_BACKEND
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (6, 2), (5, 1)])
@pytest.mark.parametrize("head_dim", [16, 20, 64])
def test_attend_rotates_writes_and_attends(
    kernels: Kernels, dtype: str, rotated: bool, heads: tuple[int, int], head_dim: int
) -> None:
    num_heads, kv_heads = heads
    caches = [KVCache([LayerSpec(kv_heads, head_dim)], 12, dtype=DTYPES[dtype]) for _ in range(2)]
    for tensor in (*caches[0].keys, *caches[0].values, *caches[1].keys, *caches[1].values):
        tensor.normal_(generator=torch.Generator().manual_seed(1))
    # Two runs: one token at position 18, three from position 31 on, across a page's end.
    slots = torch.tensor([4 * 16 + 2, 7 * 16 + 15, 9 * 16, 9 * 16 + 1])
    empty = torch.zeros(4, dtype=torch.long)
    batch = Batch(empty, empty, (slots,), (0, 1, 4), (19, 34), (((2, 4), (3, 7, 9)),))
    # Rows that lie apart, as parts of one fused product do.
    wide = torch.randn(4, (num_heads + 2 * kv_heads) * head_dim)
    q, k, v = wide.split((num_heads * head_dim, kv_heads * head_dim, kv_heads * head_dim), dim=1)
    angles = torch.rand(4, head_dim), torch.rand(4, head_dim)
    rotary = (lambda position_ids: angles) if rotated else None
    ours = kernels.attend(q, k, v, rotary, caches[0], 0, batch, scale=0.2)
    truth = reference.attend(q, k, v, rotary, caches[1], 0, batch, scale=0.2)
    assert close(ours, truth, 1e-5)
    for mine, theirs in ((caches[0].keys, caches[1].keys), (caches[0].values, caches[1].values)):
        assert torch.allclose(mine[0].float(), theirs[0].float(), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_long_context_is_cut_in_parts(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byhand.kernels.cpu.calls.SMALL", 0)
    q, cache, batch, _ = ragged([(1500, 1), (700, 3), (3, 1)])
    options = {**OPTIONS[name], "scale": 0.4}
    truth = reference.attention(q, cache, 1, batch, **options)
    assert close(Cpu(threads=threads).attention(q, cache, 1, batch, **options), truth, 1e-5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_attention_of_many_rows(name: str, dtype: str, threads: int) -> None:
    q, cache, batch, _ = ragged([(33, 33), (700, 130), (64, 64), (65, 1), (200, 49)], dtype=DTYPES[dtype])
    options = {**OPTIONS[name], "scale": 0.4}
    truth = reference.attention(q, cache, 1, batch, **options)
    assert close(Cpu(threads=threads).attention(q, cache, 1, batch, **options), truth, 5e-6)


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (6, 2), (5, 1)])
@pytest.mark.parametrize("head_dim", [16, 20, 48, 64, 80])
def test_many_rows_are_rotated_written_and_attended_to(heads: tuple[int, int], head_dim: int) -> None:
    num_heads, kv_heads = heads
    caches = [KVCache([LayerSpec(kv_heads, head_dim)], 12) for _ in range(2)]
    for tensor in (*caches[0].keys, *caches[0].values, *caches[1].keys, *caches[1].values):
        tensor.normal_(generator=torch.Generator().manual_seed(1))
    empty, slots = torch.zeros(43, dtype=torch.long), torch.tensor([*range(90, 128), *range(16, 21)])
    batch = Batch(empty, empty, (slots,), (0, 38, 43), (70, 5), (((3, 5, 6, 7, 7), (1,)),))
    wide = torch.randn(43, (num_heads + 2 * kv_heads) * head_dim)
    q, k, v = wide.split((num_heads * head_dim, kv_heads * head_dim, kv_heads * head_dim), dim=1)
    angles = torch.rand(43, head_dim), torch.rand(43, head_dim)

    def rotary(position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return angles

    ours = Cpu().attend(q, k, v, rotary, caches[0], 0, batch, scale=0.2)
    assert close(ours, reference.attend(q, k, v, rotary, caches[1], 0, batch, scale=0.2), 1e-5)
    assert torch.allclose(caches[0].keys[0], caches[1].keys[0], atol=1e-6)
    assert torch.equal(caches[0].values[0], caches[1].values[0])


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

"""Each fast kernel within 1e-5 (max|Δ| / max|truth|) of the formula in float64, on shapes that nobody chose."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from byhand.cache.kv_cache import PAGE_SIZE, Batch, KVCache, LayerSpec
from byhand.formats import quantized_formats
from byhand.kernels.cpu import Cpu
from byhand.kernels.native.llvm import HAS_PAIR_SUMS
from byhand.sampling.look import topk_lse
from byhand.weights import DTYPES
from tests.test_kernels import HEADS, KV_HEADS, OPTIONS, close, direct, exact, make_weight, ragged

FORMATS = (*DTYPES, *quantized_formats())
BOUND = 1e-5


@pytest.fixture(autouse=True)
def _shared_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("byhand.kernels.cpu.calls.SMALL", 0)  # else small work is done by one thread


def shapes(seed: str, count: int, rows: int, inner: int, out: int) -> Iterator[tuple[Cpu, int, int, int]]:
    """Kernels on one to three threads, and (rows, inner, out) up to these; the smallest are the likeliest."""
    dice = random.Random(seed)
    for _ in range(count):
        sizes = [1 + int((most - 1) * dice.random() ** 2) for most in (rows, inner, out)]
        yield Cpu(threads=dice.randint(1, 3)), *sizes


def silu(x: torch.Tensor) -> torch.Tensor:
    return x * x.sigmoid()


@pytest.mark.parametrize("form", FORMATS)
def test_products(form: str) -> None:
    for kernels, rows, inner, out in shapes(f"products {form}", 40, 70, 1500, 400):
        weights = [make_weight(form, size, inner, seed=size) for size in (out, out, max(1, out // 3))]
        x, bias, residual = torch.randn(rows, inner), torch.randn(out), torch.randn(rows, out)
        first, second, third = (x.double() @ exact(weight).T for weight in weights)
        where = (form, kernels.threads, rows, inner, out)
        assert close(kernels.linear(x, weights[0], bias, residual), first + bias + residual, BOUND), where
        truths = (first, second + bias, third)
        for found, truth in zip(kernels.linears(x, weights, (None, bias, None)), truths, strict=True):
            assert close(found, truth, BOUND), where
        assert close(kernels.gated(x, *weights[:2], bias, None), silu(first + bias) * second, BOUND), where


def test_one_row_of_codes_in_whole_numbers() -> None:
    """Activations large, small and 0: what their digits do not hold would show beside the sum of their sizes."""
    for kernels, _, inner, out in shapes("codes", 60, 1, 20_000, 40):
        weight, x = make_weight("int4", out, inner, seed=out), torch.randn(1, inner)
        x *= torch.where(torch.rand(1, inner) < 0.1, 1000.0, 1.0) * (torch.rand(1, inner) < 0.8)
        x[:, : inner // 3] = 0.0
        for scale in (1.0, 1e-20, 1e20):
            wide, numbers = (scale * x).double(), exact(weight)
            difference = (kernels.linear(scale * x, weight) - wide @ numbers.T).abs()
            assert difference.max() <= 1e-6 * wide.abs().sum() * numbers.abs().max(), (inner, out, scale)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("form", FORMATS)
def test_what_is_no_number_stays_none(form: str, bad: float) -> None:
    weight, x = make_weight(form, 30, 256), torch.randn(1, 256)
    x[0, 77] = bad
    assert not Cpu().linear(x, weight).isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_weights_stored_in_columns(dtype: str) -> None:
    for kernels, rows, inner, out in shapes(f"columns {dtype}", 25, 40, 600, 1500):
        weight, bias = make_weight(dtype, out, inner, transposed=True), torch.randn(out)
        x, residual = torch.randn(rows, inner), torch.randn(rows, out)
        truth = x.double() @ exact(weight).T + bias + residual
        assert close(kernels.linear(x, weight, bias, residual), truth, BOUND), (rows, inner, out)


@pytest.mark.parametrize("form", FORMATS)
def test_rows_of_a_table(form: str) -> None:
    for kernels, rows, inner, vocab in shapes(f"tables {form}", 25, 64, 900, 500):
        weight, ids = make_weight(form, vocab, inner), torch.randint(vocab, (rows,))
        assert close(kernels.embedding(ids, weight), exact(weight)[ids], 1e-7), (rows, inner, vocab)


def test_norms_and_activations() -> None:
    for kernels, rows, size, _ in shapes("rows", 40, 30, 3000, 1):
        x, gain, shift = torch.randn(rows, size) * 3 + 1, torch.randn(size), torch.randn(size)
        wide = x.double()
        root = (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        assert close(kernels.rms_norm(x, gain, 1e-5), wide / root * gain, BOUND), (rows, size)
        centred = wide - wide.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + 1e-2).sqrt()
        assert close(kernels.layer_norm(x, gain, shift, 1e-2), centred / deviation * gain + shift, BOUND), (rows, size)
        gelu, tanh = torch.nn.functional.gelu(wide), torch.nn.functional.gelu(wide, approximate="tanh")
        for name, truth in {"silu": silu(wide), "gelu": gelu, "gelu_tanh": tanh, "relu": wide.clamp(min=0)}.items():
            assert close(getattr(kernels, name)(x), truth, BOUND), (name, rows, size)
        assert close(kernels.act_and_mul("silu", x, x.flip(0)), silu(wide) * wide.flip(0), BOUND), (rows, size)


def test_surveys() -> None:
    for kernels, k, vocab, _ in shapes("topk_lse", 40, 64, 60_000, 1):
        logits = torch.randn(max(vocab, k + 1)) * 5
        [found], (ids, values, mass, moment) = kernels.topk_lse(logits[None], [k]), topk_lse(logits.numpy(), k)
        assert found is not None
        assert found[:2] == (ids, values)
        # Both are sums over all but the best: beside the whole mass, which is at least one.
        assert abs(found[2] - mass) <= BOUND * max(1, mass), (k, vocab)
        assert abs(found[3] - moment) <= BOUND * max(1, abs(moment)), (k, vocab)


# Attention: few rows of each run, and, where a run has many, the other way to compute it.


@pytest.mark.parametrize("name", OPTIONS)
def test_attention_of_few_rows(name: str) -> None:
    chunks = [(1, 1), (40, 1), (37, 11), (64, 3), (65, 16)]
    q, cache, batch, stored = ragged(chunks)
    truth = [
        direct(q[start + row], context - rows + row, pair, scale=0.4, **OPTIONS[name])
        for (context, rows), start, pair in zip(chunks, batch.query_starts, stored, strict=False)
        for row in range(rows)
    ]
    for threads in (1, 2, 3):
        out = Cpu(threads=threads).attention(q, cache, 1, batch, scale=0.4, **OPTIONS[name])
        assert close(out, torch.stack(truth), BOUND), threads


def turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """x (rows, heads, head_dim) in float64, the pairs (i, i + head_dim / 2) turned by angles (rows, head_dim / 2)."""
    first, second = x.double().chunk(2, dim=-1)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    both = torch.complex(first, second) * turn
    return torch.cat((both.real, both.imag), dim=-1)


def attended(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None) -> torch.Tensor:
    """One run's rows, the last of its context, over keys and values (context, kv heads, head_dim), in float64."""
    rows, heads, head_dim = q.shape
    group = heads // keys.shape[1]
    keys, values = (x.double().repeat_interleave(group, 1) for x in (keys, values))
    scores = torch.einsum("rhd,chd->hrc", q, keys) * head_dim**-0.5
    distances = torch.arange(len(keys)) - torch.arange(len(keys) - rows, len(keys))[:, None]
    hidden = (distances > 0) | (distances <= -(window or len(keys) + 1))
    pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hrc,chd->rhd", pattern, values)


def laid_out(chunks: list[tuple[int, int]], dice: random.Random) -> Batch:
    """Runs of (context, rows), their pages shuffled."""
    pages = list(range(sum(-(-context // PAGE_SIZE) for context, _ in chunks)))
    dice.shuffle(pages)
    tables = [tuple(pages.pop() for _ in range(-(-context // PAGE_SIZE))) for context, _ in chunks]
    slots = [
        table[at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE
        for table, (context, rows) in zip(tables, chunks, strict=True)
        for at in range(context - rows, context)
    ]
    starts = [0]
    for _, rows in chunks:
        starts.append(starts[-1] + rows)
    nothing = torch.zeros(starts[-1], dtype=torch.long)
    contexts = tuple(context for context, _ in chunks)
    return Batch(nothing, nothing, (torch.tensor(slots),), tuple(starts), contexts, (tuple(tables),))


@pytest.mark.parametrize("is_long", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotated_written_and_attended(dtype: str, is_long: bool) -> None:
    dice = random.Random(f"attend {dtype} {is_long}")
    for _ in range(12):
        kv_heads, group, head_dim = dice.randint(1, 4), dice.randint(1, 5), 2 * dice.randint(1, 40)
        runs = [dice.randint(1, 300 if is_long else 90) for _ in range(dice.randint(1, 4))]
        chunks = [(context, dice.randint(1, min(context, 200 if is_long else 20))) for context in runs]
        batch, window = laid_out(chunks, dice), dice.choice([None, dice.randint(1, 100), dice.randint(1, 250)])
        cache = KVCache(
            [LayerSpec(kv_heads, head_dim, window)], sum(map(len, batch.page_tables[0])), dtype=DTYPES[dtype]
        )
        cache.keys[0].normal_()
        cache.values[0].normal_()
        rows, heads = batch.query_starts[-1], kv_heads * group
        q, k, v = (torch.randn(rows, size * head_dim) for size in (heads, kv_heads, kv_heads))
        half = torch.rand(rows, head_dim // 2).double() * 6
        both = torch.cat((half, half), -1)
        angles = (both.cos().float(), both.sin().float())
        options: dict[str, Any] = {"scale": head_dim**-0.5, "window": window}
        kernels = Cpu(threads=dice.randint(1, 3))
        out = kernels.attend(q, k, v, lambda _, found=angles: found, cache, 0, batch, **options).view(
            rows, heads, head_dim
        )

        flat_keys, flat_values = cache.keys[0].flatten(0, 1), cache.values[0].flatten(0, 1)
        step = torch.finfo(DTYPES[dtype]).eps
        assert close(flat_keys[batch.slot_mappings[0]], turned(k.view(rows, -1, head_dim), half), max(step, BOUND))
        assert close(flat_values[batch.slot_mappings[0]], v.view(rows, -1, head_dim).double(), max(step, BOUND))
        turned_q = turned(q.view(rows, heads, head_dim), half)
        for run, (context, _) in enumerate(chunks):
            start, stop = batch.query_starts[run : run + 2]
            table = torch.tensor(batch.page_tables[0][run])
            keys, values = (x[0][table].flatten(0, 1)[:context] for x in (cache.keys, cache.values))
            truth = attended(turned_q[start:stop], keys, values, window)
            assert close(out[start:stop], truth, BOUND), (chunks, kv_heads, group, head_dim, window, kernels.threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_many_rows_in_pairs_of_bfloat16(name: str, dtype: str) -> None:
    dice = random.Random(f"pairs {name} {dtype}")
    for head_dim in (32, 64, 80, 96):
        runs = [(300, 160), *((dice.randint(1, 200), 0) for _ in range(3))]
        batch = laid_out([(context, rows or dice.randint(1, context)) for context, rows in runs], dice)
        shape = (sum(map(len, batch.page_tables[0])), PAGE_SIZE, KV_HEADS, head_dim)
        cache = KVCache([LayerSpec(KV_HEADS, head_dim)], shape[0], dtype=DTYPES[dtype])
        for numbers in (cache.keys[0], cache.values[0]):
            numbers.copy_(torch.randn(shape).bfloat16())
            for context, table in zip(batch.context_lens, batch.page_tables[0], strict=True):
                numbers[table[-1], (context - 1) % PAGE_SIZE + 1 :] = torch.nan  # no token was written there
        # What is rounded already stays: the ways differ in the weights alone, each by half a step of bfloat16 at most.
        q = torch.randn(batch.query_starts[-1], HEADS, head_dim).bfloat16().float()
        options = {**OPTIONS[name], "scale": 0.25}
        exact, fast = (
            Cpu(threads=dice.randint(1, 3), prefill=way).attention(q, cache, 0, batch, **options)
            for way in ("exact", "fast")
        )
        largest = cache.values[0].nan_to_num().abs().max().float()
        assert (fast - exact).abs().max() <= 2**-9 * largest, head_dim
        is_exact = bool((fast - exact).abs().max() <= 1e-6)
        assert is_exact == (name == "window_1" or head_dim == 80 or not HAS_PAIR_SUMS), head_dim

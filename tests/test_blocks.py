"""Blocks that run as one call: the same bits as kernel by kernel, and nothing captured that could not be run again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from byhand.cache.kv_cache import PAGE_SIZE, Batch, KVCache, LayerSpec
from byhand.checkpoint import open_checkpoint
from byhand.formats import Weight, quantized_formats
from byhand.kernels import reference
from byhand.kernels.cpu import MANY_ROWS, Cpu
from byhand.kernels.cpu.capture import Arena
from byhand.kernels.cpu.operands import Spare
from byhand.kernels.native.llvm import HAS_PAIR_SUMS
from byhand.models import Model, build
from byhand.quantize import quantize
from byhand.sampling.look import topk_lse
from byhand.weights import DTYPES
from tests.checkpoints import CONFIGS, tiny


def batch_of(ids: list[list[int]], contexts: list[int]) -> Batch:
    """Rows of several runs, each the last of its context; run r has the pages r · 8 and after, in two orders."""
    places = [list(range(context - len(rows), context)) for rows, context in zip(ids, contexts, strict=True)]
    starts = [0]
    for rows in ids:
        starts.append(starts[-1] + len(rows))
    orders = (range(8), (3, 1, 7, 0, 2, 6, 4, 5))
    page_tables = tuple(tuple(tuple(run * 8 + page for page in order) for run in range(len(ids))) for order in orders)
    return Batch(
        input_ids=torch.tensor([token for rows in ids for token in rows]),
        position_ids=torch.tensor([position for run in places for position in run]),
        slot_mappings=tuple(
            torch.tensor(
                [
                    tables[run][at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE
                    for run, places_of in enumerate(places)
                    for at in places_of
                ]
            )
            for tables in page_tables
        ),
        query_starts=tuple(starts),
        context_lens=tuple(contexts),
        page_tables=page_tables,
    )


PASSES = [
    ([[3, 5, 7, 11, 2], [9]], [5, 1]),
    ([[4], [8]], [6, 2]),
    ([[1], [13]], [7, 3]),
    ([[2], [6], [10, 12]], [8, 4, 2]),
    ([[21]], [9]),
    ([[22]], [10]),
]


def run_passes(model: Model) -> list[torch.Tensor]:
    """The hidden states after each of the passes."""
    cache = KVCache(model.layer_specs, 32)
    with torch.inference_mode():
        return [model.forward(batch_of(*rows), cache).clone() for rows in PASSES]


@pytest.mark.parametrize(("family", "variant"), CONFIGS)
def test_a_block_as_one_call_gives_the_same_bits(family: str, variant: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny(tmp_path, family, variant))
    fused, plain = Cpu(), Cpu(fuse=False)
    for ours, truth in zip(run_passes(build(checkpoint, fused)), run_passes(build(checkpoint, plain)), strict=True):
        assert torch.equal(ours, truth)
    assert not plain.captured
    captured = [block for block in fused.captured.values() if block is not None]
    assert len(captured) == len(fused.captured) > 0
    [whole] = fused.captured_all.values()  # of one row, the last that was captured
    ones = [block for (_, _, rows), block in fused.captured.items() if rows == 1 and block is not None]
    assert whole.capture.names == [name for block in ones for name in block.capture.names]


SPEC = [LayerSpec(1, 16)]


def linear_block(
    kernels: Cpu, weight: Weight, between: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[..., torch.Tensor]:
    def layer(x: torch.Tensor, *_: object) -> torch.Tensor:
        return kernels.linear(between(kernels.linear(x, weight)), weight)

    return layer


@pytest.mark.parametrize(
    "between", [lambda x: x, lambda x: x + 1, lambda x: x[:, :], lambda x: x.add_(1), lambda x: x.flip(1).T.T]
)
def test_what_torch_computes_between_kernels_is_done_again(between: Callable[[torch.Tensor], torch.Tensor]) -> None:
    kernels, cache, weight = Cpu(), KVCache(SPEC, 8), Weight.of(torch.randn(16, 16))
    layer = linear_block(kernels, weight, between)
    for _ in range(4):
        x = torch.randn(1, 16)
        found = kernels.blocks([layer], x, batch_of([[1]], [1]), cache)
        assert torch.equal(found, layer(x))
    assert None not in kernels.captured.values()
    assert not kernels.uncaptured


def test_the_input_is_read_and_left_as_it_is() -> None:
    kernels, cache, weight = Cpu(), KVCache(SPEC, 8), Weight.of(torch.eye(16))
    layer = linear_block(kernels, weight, lambda x: x)
    for number in range(3):
        x = torch.full((2, 16), float(number))
        out = kernels.blocks([layer], x, batch_of([[1], [2]], [1, 1]), cache)
        assert torch.equal(out, x)
        assert out.data_ptr() != x.data_ptr()


def test_rows_of_the_input_may_lie_apart() -> None:
    kernels, cache = Cpu(), KVCache(SPEC, 8)
    [layer] = scaling(kernels, 1.0)
    for _ in range(3):
        x = torch.randn(2, 40)[:, :16]
        assert torch.equal(kernels.blocks([layer], x, batch_of([[1], [2]], [1, 1]), cache), x)


def test_a_new_layer_in_the_place_of_an_old_one_is_captured_anew() -> None:
    kernels, cache = Cpu(), KVCache(SPEC, 8)
    x, batch = torch.randn(1, 16), batch_of([[1]], [1])
    for number in range(1, 20):
        layer = linear_block(kernels, Weight.of(number * torch.eye(16)), lambda x: x)
        torch.testing.assert_close(kernels.blocks([layer], x, batch, cache), number * number * x)
        kernels.blocks([layer], x, batch, cache)
        del layer


def test_captured_blocks_keep_no_layer_alive() -> None:
    kernels, cache = Cpu(), KVCache(SPEC, 8)
    layers = [linear_block(kernels, Weight.of(torch.eye(16)), lambda x: x) for _ in range(3)]
    for _ in range(2):
        kernels.blocks(layers, torch.randn(1, 16), batch_of([[1]], [1]), cache)
    assert len(kernels.captured_all) == 1
    watched = [*map(weakref.ref, layers), weakref.ref(cache)]
    del layers, cache
    gc.collect()
    assert [watch() for watch in watched] == [None] * 4


def scaling(kernels: Cpu, *scales: float) -> list[Callable[..., torch.Tensor]]:
    """Blocks that multiply by the squares of these."""
    return [linear_block(kernels, Weight.of(scale * torch.eye(16)), lambda x: x) for scale in scales]


class Calls:
    """What `_start` was called with."""

    def __init__(self, kernels: Cpu, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: list[int] = []
        start = kernels._start

        def counted(at: int, count: int, threads: int) -> None:
            self.counts.append(count)
            start(at, count, threads)

        monkeypatch.setattr(kernels, "_start", counted)


def test_captured_blocks_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, cache, batch = Cpu(), KVCache(SPEC, 8), batch_of([[1]], [1])
    layers, x = scaling(kernels, 1.0, 2.0, 4.0), torch.randn(1, 16)
    kernels.blocks(layers, x, batch, cache)
    calls = Calls(kernels, monkeypatch)
    for _ in range(2):
        assert torch.equal(kernels.blocks(layers, x, batch, cache), 64 * x)
    assert calls.counts == [6, 6]


def test_blocks_that_do_not_follow_each_other_run_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, cache, batch = Cpu(), KVCache(SPEC, 8), batch_of([[1]], [1])
    [first, second, third], x = scaling(kernels, 1.0, 2.0, 3.0), torch.randn(1, 16)
    calls = Calls(kernels, monkeypatch)
    orders = [[first, second, third], [second, first, third], [first, third], [first], [first, second, first]]
    for _ in range(3):
        for order in orders:
            by_hand = x
            for layer in order:
                by_hand = layer(by_hand)
            calls.counts.clear()
            assert torch.equal(kernels.blocks(order, x, batch, cache), by_hand)
    # The first was captured to read what comes from outside, and the second to read what the first has left.
    assert calls.counts == [2, 2, 2]
    calls.counts.clear()
    kernels.blocks(orders[0], x, batch, cache)
    assert calls.counts == [6]


def test_a_new_layer_among_old_ones_is_never_passed_over() -> None:
    kernels, cache, batch, x = Cpu(), KVCache(SPEC, 8), batch_of([[1]], [1]), torch.randn(1, 16)
    layers = scaling(kernels, 1.0, 2.0, 3.0)
    for place in (1, 2, 0, 1):
        for _ in range(3):
            kernels.blocks(layers, x, batch, cache)
        layers[place] = scaling(kernels, 5.0)[0]
        by_hand = x
        for layer in layers:
            by_hand = layer(by_hand)
        assert torch.equal(kernels.blocks(layers, x, batch, cache), by_hand)


def test_what_is_captured_is_of_these_layers_and_this_cache() -> None:
    kernels, cache = Cpu(), KVCache(SPEC, 8)
    layers = scaling(kernels, 1.0, 2.0)
    for _ in range(2):
        kernels.blocks(layers, torch.randn(1, 16), batch_of([[1]], [1]), cache)
    [whole] = kernels.captured_all.values()
    assert whole.is_of(layers, cache)
    assert not whole.is_of(layers, KVCache(SPEC, 8))
    assert not whole.is_of(layers[::-1], cache)
    assert not whole.is_of(layers[:1], cache)


def test_a_layer_that_cannot_be_captured_leaves_the_others_captured() -> None:
    kernels, cache, batch, x = Cpu(), KVCache(SPEC, 8), batch_of([[1]], [1]), torch.randn(1, 16)
    layers = scaling(kernels, 1.0, 2.0)
    layers.insert(1, linear_block(kernels, Weight.of(torch.eye(16)), lambda x: x + len(x.tolist())))
    for _ in range(3):
        assert torch.equal(kernels.blocks(layers, x, batch, cache), 4 * (x + 1))
    blocks = [kernels.captured[id(layer), id(cache), 1] for layer in layers]
    assert [block is not None for block in blocks] == [True, False, True]
    assert not kernels.captured_all


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_cache_is_written_to_and_read(dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny(tmp_path))
    fused, plain = (build(checkpoint, Cpu(fuse=fuse)) for fuse in (True, False))
    found: list[list[torch.Tensor]] = []
    with torch.inference_mode():
        for model in (fused, plain):
            caches = [KVCache(model.layer_specs, 32, dtype=kind) for kind in (torch.float32, dtype, dtype)]
            loop = [(batch_of([[7 + at]], [1 + at // 3]), caches[at % 3]) for at in range(12)]
            found.append([model.forward(batch, cache).clone() for batch, cache in loop])
    for ours, truth in zip(*found, strict=True):
        assert torch.equal(ours, truth)


def test_an_arena_hands_out_apart_and_again() -> None:
    arena = Arena()
    first = [arena.take(3, 5), arena.take(2**18 + 1), arena.take(7)]
    ranges = sorted((x.data_ptr(), x.data_ptr() + 4 * x.numel()) for x in first)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(ranges))
    assert all(arena.holds(x) for x in first)
    assert not arena.holds(torch.empty(3))
    arena.restart()
    assert [x.data_ptr() for x in (arena.take(3, 5), arena.take(2**18 + 1), arena.take(7))] == [
        x.data_ptr() for x in first
    ]


@pytest.mark.parametrize("vocab", [11, 64, 1000, 32003])
@pytest.mark.parametrize("k", [1, 2, 10])
def test_a_survey_is_the_samplers_own(vocab: int, k: int) -> None:
    logits = (torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * 12).round() / 4  # many ties
    [found], plain = Cpu().topk_lse(logits[None], [k]), topk_lse(logits.numpy(), k)
    assert found is not None
    assert found[:2] == plain[:2]
    assert found[2:] == pytest.approx(plain[2:], rel=2e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_of_what_is_no_number_is_left_to_the_sampler(bad: float) -> None:
    logits = torch.randn(100)
    logits[77] = bad
    assert Cpu().topk_lse(logits[None], [5]) == [None]


def test_rows_read_together_give_the_bits_of_each_alone() -> None:
    kernels = Cpu(threads=2)
    logits = torch.randn(9, 20_011, generator=torch.Generator().manual_seed(4)) * 5
    logits[3, 20_010] = float("nan")
    counts = [10, 1, 64, 10, 65, 20_011, 7, 30_000, 10]  # the fourth has no number, and three ask for too many
    together = kernels.topk_lse(logits, counts)
    assert [found is not None for found in together] == [True, True, True, False, False, False, True, False, True]
    for row, k, found in zip(logits, counts, together, strict=True):
        [alone] = kernels.topk_lse(row[None], [k])
        assert found == alone


@pytest.mark.parametrize("form", [*DTYPES, *quantized_formats()])
@pytest.mark.parametrize("inner", [37, 64, 96])
def test_rows_of_a_table(form: str, inner: int) -> None:
    matrix = torch.randn(50, inner, generator=torch.Generator().manual_seed(inner))
    weight = quantize(Weight.of(matrix), form) if form in quantized_formats() else Weight.of(matrix.to(DTYPES[form]))
    ids = torch.tensor([3, 49, 0, 3])
    torch.testing.assert_close(Cpu().embedding(ids, weight), reference.embedding(ids, weight), rtol=1e-6, atol=1e-7)
    with pytest.raises(IndexError):
        Cpu().embedding(torch.tensor([50]), weight)


@pytest.mark.parametrize("form", [*DTYPES, *quantized_formats()])
@pytest.mark.parametrize("rows", [5, 9])
def test_long_rows_of_weights_are_gone_through_in_pieces(form: str, rows: int) -> None:
    matrix = torch.randn(30, 2336, generator=torch.Generator().manual_seed(rows))
    weight = quantize(Weight.of(matrix), form) if form in quantized_formats() else Weight.of(matrix.to(DTYPES[form]))
    x = torch.randn(rows, 2336)
    truth = x.double() @ reference.rows_of(weight, slice(0, 30)).double().T
    assert (Cpu().linear(x, weight) - truth).abs().max() <= 2e-6 * truth.abs().max()


@pytest.mark.parametrize("form", [*DTYPES, *quantized_formats()])
@pytest.mark.parametrize("rows", [MANY_ROWS, MANY_ROWS + 13])
@pytest.mark.parametrize(("out", "inner"), [(30, 64), (37, 37), (200, 1030), (37, 64), (200, 1088)])
def test_many_rows_turn_the_weights_that_are_whole_pieces(form: str, rows: int, out: int, inner: int) -> None:
    matrix = torch.randn(out, inner, generator=torch.Generator().manual_seed(rows))
    weight = quantize(Weight.of(matrix), form) if form in quantized_formats() else Weight.of(matrix.to(DTYPES[form]))
    x, bias, residual = torch.randn(rows, inner), torch.randn(out), torch.randn(rows, out)
    truth = x.double() @ reference.rows_of(weight, slice(0, out)).double().T + bias + residual
    assert (Cpu().linear(x, weight, bias, residual) - truth).abs().max() <= 2e-6 * truth.abs().max()


@pytest.mark.parametrize("rows", [4, 7, 8, 13, 33])
@pytest.mark.parametrize(("out", "inner"), [(30, 64), (37, 37), (65, 2336)])
def test_fast_rounds_the_activations_of_a_few_rows_and_sums_in_float32(rows: int, out: int, inner: int) -> None:
    gate, up = (
        torch.randn(out, inner, generator=torch.Generator().manual_seed(seed)).bfloat16() / 4 for seed in (1, 2)
    )
    x, bias, residual = torch.randn(rows, inner), torch.randn(out), torch.randn(rows, out)
    rounded = x.bfloat16().double() if HAS_PAIR_SUMS else x.double()
    truth = rounded @ gate.double().T + bias + residual
    found = Cpu(prefill="fast").linear(x, Weight.of(gate), bias, residual)
    assert (found - truth).abs().max() <= 2e-6 * truth.abs().max()
    truth = torch.nn.functional.silu(rounded @ gate.double().T) * (rounded @ up.double().T)
    found = Cpu(prefill="fast").gated(x, Weight.of(gate), Weight.of(up))
    assert (found - truth).abs().max() <= 4e-6 * truth.abs().max()


@pytest.mark.parametrize("form", [*DTYPES, *quantized_formats()])
@pytest.mark.parametrize("rows", [MANY_ROWS, MANY_ROWS + 13, 525])
@pytest.mark.parametrize(("out", "inner"), [(32, 64), (37, 1088)])
def test_fast_rounds_many_rows_and_the_weights_and_sums_in_float32(form: str, rows: int, out: int, inner: int) -> None:
    def made(seed: int) -> Weight:
        matrix = torch.randn(out, inner, generator=torch.Generator().manual_seed(seed)) / 8
        return quantize(Weight.of(matrix), form) if form in quantized_formats() else Weight.of(matrix.to(DTYPES[form]))

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.bfloat16().double() if HAS_PAIR_SUMS and form != "float32" else x.double()

    def product(weight: Weight, bias: torch.Tensor) -> torch.Tensor:
        return rounded(x) @ rounded(reference.rows_of(weight, slice(0, out))).T + bias

    gate, up = map(made, (1, 2))
    x, bias, other, residual = torch.randn(rows, inner), torch.randn(out), torch.randn(out), torch.randn(rows, out)
    kernels = Cpu(prefill="fast")
    truth = product(gate, bias) + residual
    assert (kernels.linear(x, gate, bias, residual) - truth).abs().max() <= 5e-6 * truth.abs().max()
    truth = torch.nn.functional.silu(product(gate, bias)) * product(up, other)
    assert (kernels.gated(x, gate, up, bias, other) - truth).abs().max() <= 5e-6 * truth.abs().max()


@pytest.mark.parametrize("rows", [MANY_ROWS, 530])
def test_three_matrices_share_their_rows(rows: int) -> None:
    weights = [Weight.of(torch.randn(out, 96)) for out in (64, 37, 100)]
    x, biases = torch.randn(rows, 96), [torch.randn(64), None, torch.randn(100)]
    for found, weight, bias in zip(Cpu().linears(x, weights, biases), weights, biases, strict=True):
        truth = torch.nn.functional.linear(
            x.double(), weight.tensors[0].double(), bias if bias is None else bias.double()
        )
        assert (found - truth).abs().max() <= 2e-6 * truth.abs().max()


@pytest.mark.parametrize("prefill", ["exact", "fast"])
@pytest.mark.parametrize("rows", [300, 530])
def test_rows_that_are_too_many_for_the_third_cache_take_turns(
    rows: int, prefill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = [Weight.of(torch.randn(out, 96).bfloat16()) for out in (64, 37)]
    x, bias, residual, kernels = torch.randn(rows, 96), torch.randn(64), torch.randn(rows, 64), Cpu(prefill=prefill)
    whole = kernels.linears(x, weights, (bias, None)), kernels.linear(x, weights[0], bias, residual)
    monkeypatch.setattr("byhand.kernels.cpu.products.PACKED", 1)
    calls, run = [], kernels._run
    monkeypatch.setattr(kernels, "_run", lambda name, *rest, **more: (calls.append(name), run(name, *rest, **more)))
    parts = kernels.linears(x, weights, (bias, None)), kernels.linear(x, weights[0], bias, residual)
    assert all(map(torch.equal, (*whole[0], whole[1]), (*parts[0], parts[1])))
    passes = -(-rows // (2 * MANY_ROWS))
    assert len([name for name in calls if name.startswith("linear_many")]) == 2 * passes


@pytest.mark.parametrize("form", ["bfloat16", *quantized_formats()])
def test_fast_stays_near(form: str) -> None:
    def made(seed: int) -> Weight:
        matrix = torch.randn(48, 64, generator=torch.Generator().manual_seed(seed)) / 8
        return quantize(Weight.of(matrix), form) if form in quantized_formats() else Weight.of(matrix.bfloat16())

    x, (gate, up) = torch.randn(70, 64), map(made, (1, 2))
    truth = reference.gated(x, gate, up)
    found, exact = Cpu(prefill="fast").gated(x, gate, up), Cpu().gated(x, gate, up)
    assert (exact - truth).abs().max() <= 2e-6 * truth.abs().max()
    if HAS_PAIR_SUMS:
        assert 1e-4 * truth.abs().max() <= (found - truth).abs().max() <= 2e-2 * truth.abs().max()
    else:
        assert torch.equal(found, exact), "without such products nothing is rounded"


def test_spare_memory_is_taken_again_once_no_tensor_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    spare = Spare()
    first = spare.take(3, 40)
    view, place = first.view(-1)[5:7], first.data_ptr()
    del first
    assert spare.take(3, 40).data_ptr() != place  # the view still reads it
    del view
    assert spare.take(100).data_ptr() == place  # a little smaller
    held = spare.take(10)
    assert held.data_ptr() != place, "a large piece is not spent on a small result"
    monkeypatch.setattr(Spare, "MOST", 1000)
    spare.take(900)
    assert [array.size for array in spare._arrays] == [10, 900], "what is held stays, the rest is given back"


def test_a_large_result_stays_while_it_is_held() -> None:
    kernels, weight = Cpu(), Weight.of(torch.randn(1024, 32))
    x, y = torch.randn(300, 32), torch.randn(300, 32)
    first = kernels.linear(x, weight)
    before = first.clone()
    kernels.linear(y, weight)
    assert torch.equal(first, before)
    place = first.data_ptr()
    del first
    assert kernels.linear(y, weight).data_ptr() == place

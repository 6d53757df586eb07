"""The kernels for a processor: Numba's, at the memory's speed for few rows and at the multipliers' for many.

The arithmetic is in `native/`; here tensors become addresses (operands.py), and each call goes to what is fastest at
its size: the kernel for few rows or for many, or torch's product. How a call is made, and how all blocks become
one, is in calls.py and capture.py.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from byhand.cache.kv_cache import PAGE_SIZE, Batch, KVCache
from byhand.errors import BadRequest
from byhand.formats import Weight
from byhand.kernels import Rotary, TopkLse, reference
from byhand.kernels.cpu.calls import CAPTURED_ROWS, MANY_QUERIES, Calls, bits
from byhand.kernels.cpu.columns import in_bfloat16
from byhand.kernels.cpu.expected import many_rows
from byhand.kernels.cpu.operands import LayerCache, Matrix, address, address_and_stride, rows_apart
from byhand.kernels.native.chunks import many_numbers
from byhand.kernels.native.llvm import HAS_PAIR_SUMS
from byhand.kernels.native.panels import WIDE, packed_size

# Rows from which weights are transposed once for all, and from which prefill="fast" rounds activations to bfloat16 for
# weights of any format but float32. Level between 40 and 96 rows, by format and size (benchmarks/crossover.py); in
# large matrices of exact floats it pays from 16 on.
MANY_ROWS = 64
# float32 numbers of packed activations that stay in the third cache, 8 MiB: more rows are made in two passes or more.
PACKED = 2**21
# Rows from which prefill="fast" rounds them for weights in bfloat16.
ROUNDED_ROWS = 4
# Rows from which torch is faster on a weight that is stored in columns.
COLUMN_ROWS = 32
# The best so many are found in the same reading of the logits.
MANY_BEST = 64


def are_transposed(matrices: Sequence[Matrix], rows: int) -> bool:
    """Whether matrices are transposed for so many rows: all of them must be whole pieces."""
    return rows >= MANY_ROWS and all(matrix.can_be_transposed for matrix in matrices)


class Cpu(Calls):
    """The backend. `prefill`: "exact" keeps float32's accuracy for many rows; "fast" takes bfloat16 products there:
    for prompts, and for four or more runs that decode together. A processor without such products stays exact, which is
    faster than rounding by hand.

    threads: None for as many as torch has. `note` is told when kernels have to be compiled first, and how far that is.
    fuse: run the blocks as one call once they have been captured.
    """

    rotate = staticmethod(reference.rotate)

    def __init__(
        self,
        *,
        threads: int | None = None,
        prefill: str = "exact",
        note: Callable[[str], None] | None = None,
        fuse: bool = True,
    ) -> None:
        if prefill not in ("exact", "fast"):
            raise BadRequest(f"prefill is {prefill!r}; it must be 'exact' or 'fast'", param="prefill")
        super().__init__(threads, note, fuse, fast=prefill == "fast" and HAS_PAIR_SUMS)

    # Products.

    def _is_for_torch(self, matrix: Matrix, rows: int) -> bool:
        return matrix.stored_in_columns and rows >= COLUMN_ROWS

    def _is_fast(self, matrix: Matrix, rows: int) -> bool:
        fewest = ROUNDED_ROWS if matrix.format == "bfloat16" else MANY_ROWS
        return self.fast and rows >= fewest and matrix.format != "float32"

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """x (N, in) times weight (out, in) transposed, plus bias (out,), plus residual (N, out): (N, out)."""
        matrix = self._matrix(weight)
        rows = x.shape[0]
        if self._is_for_torch(matrix, rows):
            return self._many_rows(x, matrix, bias, residual)
        y = self._empty(rows, matrix.out)
        if matrix.stored_in_columns:
            self._linear_columns(x, matrix, bias, residual, y)
        else:
            self._linears(x, [(matrix, bias, y)], residual)
        return y

    def linears(self, x: Tensor, weights: Sequence[Weight], biases: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """`linear` with each of the weights, up to three of which are read in one go."""
        matrices = [self._matrix(weight) for weight in weights]
        first, rows = matrices[0], x.shape[0]
        if (
            self._is_for_torch(first, rows)
            or len(matrices) > 3
            or any(matrix.stored_in_columns or matrix.format != first.format for matrix in matrices)
        ):
            return tuple(self.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
        outs = tuple([self._empty(rows, matrix.out) for matrix in matrices])
        self._linears(x, list(zip(matrices, biases, outs, strict=True)), None)
        return outs

    def _linears(self, x: Tensor, parts: list[tuple[Matrix, Tensor | None, Tensor]], residual: Tensor | None) -> None:
        rows, first = x.shape[0], parts[0][0]
        if residual is not None:
            residual = residual.contiguous()
            self._read(residual)
        if (count := self._passes(first, rows)) > 1:
            some = -(-rows // count)
            for here in (slice(start, start + some) for start in range(0, rows, some)):
                pieces = [(matrix, bias, y[here]) for matrix, bias, y in parts]
                self._linears(x[here], pieces, residual if residual is None else residual[here])
            return
        arguments: list[int] = []
        for matrix, bias, y in parts:
            arguments += (matrix.numbers, matrix.scales, matrix.out, address(bias), y.data_ptr())
        arguments += [0] * (15 - len(arguments))
        matrices = [matrix for matrix, _, _ in parts]
        if are_transposed(matrices, rows):
            rounded, packed = self._packed(x, first)
            partitions = sum(matrix.tiles for matrix in matrices)
            numbers = (packed, rows, first.inner, address(residual), *arguments)
            self._run(many_rows("linear", first.format, rounded=rounded), self.threads, *numbers, partitions=partitions)
            return
        weight_format, x, row_bytes = self._activations(x, first)
        threads = self._threads_for(rows * first.inner * sum(matrix.out for matrix in matrices))
        numbers = (x.data_ptr(), row_bytes, rows, first.inner, address(residual), *arguments)
        self._run(f"linear_{weight_format}", threads, *numbers)

    def _passes(self, matrix: Matrix, rows: int) -> int:
        """In how many passes over the weights a product is made, so that the rows of one stay near."""
        steps = matrix.inner // 2 if self._is_fast(matrix, rows) else matrix.inner
        return -(-rows // max(2 * MANY_ROWS, PACKED // max(steps, 1)))

    def _packed(self, x: Tensor, matrix: Matrix) -> tuple[bool, int]:
        """What a product for many rows reads x as: whether it is rounded, and where it lies."""
        rows, inner = x.shape[0], matrix.inner
        x = self._padded(x, matrix)
        self._read(x)
        rounded = self._is_fast(matrix, rows)
        packed = self._scratch(packed_size(rows, inner, 2 if rounded else 1))
        name = "pack_bfloat16" if rounded else "pack_float32"
        self._run(name, self._threads_for(rows * inner), x.data_ptr(), packed, rows, inner)
        return rounded, packed

    def _activations(self, x: Tensor, matrix: Matrix) -> tuple[str, Tensor, int]:
        """What a product for few rows reads x as: the name its kernels have for it, the memory, and bytes from row to
        row.
        """
        rows, inner = x.shape[0], matrix.inner
        x = self._padded(x, matrix)
        self._read(x)
        if not self._is_fast(matrix, rows) or matrix.format != "bfloat16":
            return matrix.format, x, 4 * inner
        count = rows * inner
        rounded = self._empty((count + 1) // 2)  # two as large as one
        self._run("round_rows", self._threads_for(count), x.data_ptr(), rounded.data_ptr(), count)
        return "rounded", rounded, 2 * inner

    def _linear_columns(
        self, x: Tensor, matrix: Matrix, bias: Tensor | None, residual: Tensor | None, y: Tensor
    ) -> None:
        x = x.contiguous()
        if residual is not None:
            residual = residual.contiguous()
        self._read(x, residual)
        rows, inner = x.shape
        self._run(
            f"linear_columns_{matrix.format}",
            self._threads_for(rows * inner * matrix.out),
            *(x.data_ptr(), rows, inner, address(residual), matrix.numbers, matrix.out, address(bias), y.data_ptr()),
        )

    def _padded(self, x: Tensor, matrix: Matrix) -> Tensor:
        """x, its rows end to end and as long as the weight's, which quantised ones fill up to a whole group."""
        missing = matrix.inner - x.shape[1]
        return torch.nn.functional.pad(x, (0, missing)) if missing else x.contiguous()

    def gated(
        self, x: Tensor, gate: Weight, up: Weight, gate_bias: Tensor | None = None, up_bias: Tensor | None = None
    ) -> Tensor:
        """silu(linear(x, gate)) times linear(x, up), read in one go."""
        first, second = self._matrix(gate), self._matrix(up)
        rows = x.shape[0]
        if (
            self._is_for_torch(first, rows)
            or first.format != second.format
            or first.stored_in_columns
            or second.stored_in_columns
        ):
            return self.act_and_mul("silu", self.linear(x, gate, gate_bias), self.linear(x, up, up_bias))
        y = self._empty(rows, first.out)
        if are_transposed([first, second], rows):
            rounded, packed = self._packed(x, first)
            weights = [
                number
                for matrix, bias in ((first, gate_bias), (second, up_bias))
                for number in (matrix.numbers, matrix.scales, address(bias))
            ]
            numbers = (packed, rows, first.inner, first.out, *weights, y.data_ptr())
            self._run(many_rows("gated", first.format, rounded=rounded), self.threads, *numbers, partitions=first.tiles)
            return y
        weight_format, x, row_bytes = self._activations(x, first)
        self._run(
            f"gated_{weight_format}",
            self._threads_for(rows * first.inner * first.out),
            *(x.data_ptr(), row_bytes, rows, first.inner, first.out),
            *(first.numbers, first.scales, address(gate_bias), self._scratch(rows * first.out)),
            *(second.numbers, second.scales, address(up_bias), y.data_ptr()),
        )
        return y

    def _many_rows(self, x: Tensor, matrix: Matrix, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        if self._is_fast(matrix, x.shape[0]):
            y = in_bfloat16(x, matrix.weight, bias).float()
        else:
            y = reference.linear(x, matrix.weight, bias)
        return y if residual is None else y.add_(residual)

    def embedding(self, ids: Tensor, weight: Weight) -> Tensor:
        """The rows of weight (vocab, hidden) that ids (N,) name: (N, hidden)."""
        matrix = self._matrix(weight)
        rows = ids.shape[0]
        if rows > CAPTURED_ROWS or matrix.stored_in_columns or matrix.inner != weight.shape[1]:
            return reference.embedding(ids, weight)
        ids = ids.contiguous()
        if any(not 0 <= token < matrix.out for token in ids.tolist()):
            raise IndexError(f"an id is outside 0 to {matrix.out - 1}")
        y = torch.empty(rows, matrix.inner)
        name = f"embedding_{matrix.format}"
        threads = self._threads_for(rows * matrix.inner)
        self._run(name, threads, ids.data_ptr(), rows, matrix.numbers, matrix.scales, matrix.inner, y.data_ptr())
        return y

    def topk_lse(self, logits: Tensor, counts: Sequence[int]) -> list[TopkLse | None]:
        """The best so many of each row of logits (rows, vocab) and the mass of the others; None where they are many."""
        rows, vocab = logits.shape
        able = array("q", [k if k <= MANY_BEST and k < vocab else 0 for k in counts])
        most = max(able, default=0)
        if not most or logits.dtype != torch.float32 or not logits.is_contiguous():
            return [None] * rows
        values, ids = array("f", bytes(4 * rows * most)), array("q", bytes(8 * rows * most))
        results = array("d", bytes(24 * rows))
        addresses = [numbers.buffer_info()[0] for numbers in (values, ids, results)]
        threads = self._threads_for(rows * vocab) if rows > 1 else 1
        self._run(
            "topk_lse", threads, able.buffer_info()[0], logits.data_ptr(), vocab, most, *addresses, partitions=rows
        )
        found: list[TopkLse | None] = []
        for row, k in enumerate(counts):
            is_finite, mass, moment = results[3 * row : 3 * row + 3]
            best = slice(most * row, most * row + k)
            found.append((ids[best].tolist(), values[best].tolist(), mass, moment) if is_finite else None)
        return found

    # Norms and activation functions.

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
        """x (..., size) over its root mean square, times weight (size,), plus residual, of x's shape."""
        return self._norm("rms_norm", x, (weight.data_ptr(), bits(eps)), residual)

    def layer_norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, residual: Tensor | None = None
    ) -> Tensor:
        """x (..., size) less its mean, over its standard deviation, times weight, plus bias, plus residual."""
        return self._norm("layer_norm", x, (address(weight), address(bias), bits(eps)), residual)

    def _norm(self, name: str, x: Tensor, numbers: tuple[int, ...], residual: Tensor | None) -> Tensor:
        count, size = x.numel(), x.shape[-1]
        x, y = x.contiguous(), self._empty(*x.shape)
        residual = residual if residual is None else residual.contiguous()
        self._read(x, residual)
        threads = self._threads_for(count)
        self._run(name, threads, x.data_ptr(), *numbers, y.data_ptr(), count // size, size, address(residual))
        return y

    def relu(self, x: Tensor) -> Tensor:
        """max(x, 0)."""
        return self._activation("relu", x)

    def gelu(self, x: Tensor) -> Tensor:
        """x times the normal distribution function at x."""
        return self._activation("gelu", x)

    def gelu_tanh(self, x: Tensor) -> Tensor:
        """The approximation of gelu by tanh."""
        return self._activation("gelu_tanh", x)

    def silu(self, x: Tensor) -> Tensor:
        """x times its sigmoid."""
        return self._activation("silu", x)

    def _activation(self, name: str, x: Tensor) -> Tensor:
        count = x.numel()
        x, y = x.contiguous(), self._empty(*x.shape)
        self._read(x)
        self._run(f"act_{name}", self._threads_for(count), x.data_ptr(), y.data_ptr(), count)
        return y

    def act_and_mul(self, activation: str, gate: Tensor, up: Tensor) -> Tensor:
        """An activation function of gate, by its name, times up."""
        count = gate.numel()
        gate, up, y = gate.contiguous(), up.contiguous(), self._empty(*gate.shape)
        self._read(gate, up)
        addresses = gate.data_ptr(), up.data_ptr(), y.data_ptr()
        self._run(f"act_and_mul_{activation}", self._threads_for(count), *addresses, count)
        return y

    # Attention.

    def attention(
        self,
        q: Tensor,
        cache: KVCache,
        layer: int,
        batch: Batch,
        **options: Any,
    ) -> Tensor:
        """Causal attention of q (N, heads, head_dim) to its run's keys and values in the pages: same shape as q."""
        if self._knows(cache, layer, batch):
            return self._attend(q.flatten(1), None, None, None, cache, layer, batch, **options).view(q.shape)
        return reference.attention(q, cache, layer, batch, **options)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rotary: Rotary | None,
        cache: KVCache,
        layer: int,
        batch: Batch,
        **options: Any,
    ) -> Tensor:
        """Rotate q and k if there is a rotary embedding, write k and v to the cache, and attend: flat rows."""
        if self._knows(cache, layer, batch):
            return self._attend(q, k, v, rotary, cache, layer, batch, **options)
        return reference.attend(q, k, v, rotary, cache, layer, batch, **options)

    def _knows(self, cache: KVCache, layer: int, batch: Batch) -> bool:
        """Lay out the batch and the layer's cache if they are new; whether the kernels know the cache's dtype."""
        self._pass.enter(batch)
        layer_cache = self._layers.get((id(cache), layer))
        if layer_cache is None:
            layer_cache = self._layers[id(cache), layer] = LayerCache(cache, layer)
        return layer_cache.format is not None

    def _attend(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        rotary: Rotary | None,
        cache: KVCache,
        layer: int,
        batch: Batch,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        slopes: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        layer_cache = self._layers[id(cache), layer]
        rows, size = q.shape
        heads, head_dim = size // layer_cache.head_dim, layer_cache.head_dim
        seen = min(window, self._pass.table[3]) if window else self._pass.table[3]
        # A captured call serves contexts of any length.
        threads = self.threads if self._capture is not None else self._threads_for(rows * seen * size * 2)
        angles = self._angles_of(rotary, batch)
        q = rows_apart(q)
        self._read(q, k, v)
        out = self._empty(rows, size)
        if self._pass.most_rows >= MANY_QUERIES:
            is_rounded = self.fast and head_dim % WIDE == 0
            rest = [f"attend_many_{'rounded_' if is_rounded else ''}{layer_cache.format}"]
            count = threads * many_numbers(heads // layer_cache.kv_heads, head_dim)
        else:
            rest = [f"attend_splits_{layer_cache.format}", "combine_splits"]
            count = (rows + 2 * threads) * heads * (2 + head_dim + PAGE_SIZE)
        work = self._scratch(count + rows * size)
        self._run(
            [f"write_kv_{layer_cache.format}", *rest],
            threads,
            *(self._ticket.buffer_info()[0], *address_and_stride(q), *address_and_stride(k), *address_and_stride(v)),
            *(heads, layer_cache.kv_heads, head_dim, layer_cache.keys, layer_cache.values),
            *(window or 0, bits(scale), bits(softcap or 0.0), address(slopes), address(sinks)),
            *(work, work + 4 * count, out.data_ptr(), self._pass.at, angles.at),
        )
        return out

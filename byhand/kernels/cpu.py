"""The kernels for a processor: for few rows, Numba's that run at the memory's speed; for many rows, torch's products.

The arithmetic is in `native/`; here tensors become addresses, and each call goes to whoever is faster at its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from byhand.errors import BadRequest
from byhand.kernels import native, reference
from byhand.kernels.native.tiles import GROUP
from byhand.kv_cache import PAGE_SIZE, Batch, KVCache
from byhand.weights import FORMATS, Weight

# Rows from which torch's bfloat16 products, which prefill="fast" allows, are faster than ours; its float32 products
# never were, up to 512 rows (benchmarks/crossover.py).
FAST_ROWS = 32
# Rows from which torch is faster on a weight that is stored in columns.
COLUMN_ROWS = 32
# Rows of one run from which attention is torch's.
MANY_QUERIES = 32
# Numbers from which torch's own threads pay for a norm or a curve.
LARGE = 2**15
# Multiplications below which waking a second thread costs more than it saves.
SMALL = 2**16

# Numba's simplest threads cannot be called from two threads at once, and end the process if they are.
_ONE_AT_A_TIME = Lock()

Angles = tuple[Tensor, Tensor]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _rows_apart(x: Tensor) -> Tensor:
    """x (N, size) with each row in one piece; the rows may lie apart."""
    return x if x.stride(1) == 1 else x.contiguous()


def _row_places(x: Tensor | None) -> tuple[int, int]:
    """The address of x's first row, and the bytes from row to row."""
    if x is None:
        return 0, 0
    assert x.stride(1) == 1
    return x.data_ptr(), 4 * x.stride(0)


def in_bfloat16(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """`reference.linear` by bfloat16 products: x, the weight and the result are rounded, the sums are float32's."""
    rows = reference.ROWS[weight.format]
    x = x.bfloat16()
    if weight.format == "bfloat16":
        out = (x @ weight.tensors[0].T).float()
    else:
        out = torch.empty(x.shape[0], weight.shape[0])
        step = max(1, reference.BLOCK // weight.shape[1])
        for start in range(0, weight.shape[0], step):
            out[:, start : start + step] = x @ rows(weight, slice(start, start + step)).bfloat16().T
    return out if bias is None else out.add_(bias)


class _Matrix:
    """A weight as kernels take it: addresses and sizes."""

    __slots__ = ("format", "inner", "numbers", "out", "scales", "stored_in_columns", "weight")

    def __init__(self, weight: Weight) -> None:
        self.weight = weight  # keeps the memory alive
        self.out, self.inner = weight.shape
        self.format = weight.format
        codes = weight.tensors[0]
        self.stored_in_columns = not codes.is_contiguous()
        if self.stored_in_columns and not codes.T.is_contiguous():
            raise BadRequest(f"a weight of shape {weight.shape} is neither stored by rows nor by columns")
        self.numbers = codes.data_ptr()
        self.scales = weight.tensors[1].data_ptr() if len(weight.tensors) > 1 else 0
        if self.scales:
            self.inner = -(-self.inner // GROUP) * GROUP


class _Plan:
    """What attention needs of a batch besides its tensors, made once a pass: position and pages of every row."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.pages = torch.tensor([page for table in batch.page_tables for page in table] or [0])
        rows, address = [], self.pages.data_ptr()
        for run, (context, table) in enumerate(zip(batch.context_lens, batch.page_tables, strict=True)):
            count = batch.query_starts[run + 1] - batch.query_starts[run]
            rows += [(position, address) for position in range(context - count, context)]
            address += 8 * len(table)
        self.rows = torch.tensor(rows)
        self.rows_at, self.slots_at = self.rows.data_ptr(), batch.slots.data_ptr()
        self.longest = max(batch.context_lens, default=0)
        self.most_rows = max((stop - start for start, stop in pairwise(batch.query_starts)), default=0)


class _Layer:
    """One layer's pages as attention takes them: addresses and sizes."""

    __slots__ = ("cache", "head_dim", "keys", "kv_heads", "name", "values")

    def __init__(self, cache: KVCache, layer: int) -> None:
        self.cache = cache  # keeps the memory alive
        keys = cache.keys[layer]
        self.kv_heads, self.head_dim = keys.shape[2:]
        self.keys, self.values = keys.data_ptr(), cache.values[layer].data_ptr()
        self.name = f"attention_{FORMATS[keys.dtype]}" if keys.dtype in FORMATS else ""


class Cpu:
    """The backend. `prefill`: "exact" keeps float32's accuracy for many rows; "fast" takes bfloat16 products there.

    threads: None for as many as torch has. `note` is told, in one line, when kernels have to be compiled first.
    """

    relu, gelu, gelu_tanh, silu = map(
        staticmethod, (reference.relu, reference.gelu, reference.gelu_tanh, reference.silu)
    )
    rotate, embedding = staticmethod(reference.rotate), staticmethod(reference.embedding)

    def __init__(
        self,
        *,
        threads: int | None = None,
        prefill: str = "exact",
        note: Callable[[str], None] | None = None,
    ) -> None:
        if prefill not in ("exact", "fast"):
            raise BadRequest(f"prefill is {prefill!r}; it must be 'exact' or 'fast'", param="prefill")
        self.threads = threads or torch.get_num_threads()
        self.prefill = prefill
        self._note = note
        self._loaded: dict[str, Callable[..., None]] = {}
        self._matrices: dict[int, _Matrix] = {}
        self._tickets = torch.zeros(8, dtype=torch.int64)
        self._tickets_at = self._tickets.data_ptr()
        self._layers: dict[tuple[int, int], _Layer] = {}
        self._work = torch.empty(0)
        self._plan: _Plan | None = None

    # Kernels and what they work on.

    def prepare(self, form: str, cache_dtype: torch.dtype) -> None:
        """Compile what weights of this format and this cache need, unless a run before this one did."""
        names = [f"linear_{form}", f"gated_{form}", f"attention_{FORMATS[cache_dtype]}", "rms_norm", "layer_norm"]
        missing = [name for name in names if not native.kernels()[name].is_kept]
        if missing:
            if self._note is not None:
                self._note(f"compiling {len(missing)} kernels for this processor: {native.whether_kept()}")
            native.compile_kernels(missing)

    def _load(self, name: str) -> Callable[..., None]:
        self._loaded[name] = native.kernels()[name].load()
        return self._loaded[name]

    def _run(self, name: str, *arguments: Any) -> None:
        kernel = self._loaded.get(name) or self._load(name)
        with _ONE_AT_A_TIME:
            kernel(*arguments)

    def _matrix(self, weight: Weight) -> _Matrix:
        matrix = self._matrices.get(id(weight))
        if matrix is None:
            matrix = self._matrices[id(weight)] = _Matrix(weight)
        return matrix

    def _scratch(self, count: int) -> int:
        """The address of `count` float32 to work in, until the next call."""
        if self._work.numel() < count:
            self._work = torch.empty(count)
        return self._work.data_ptr()

    def _threads_for(self, multiplications: int) -> int:
        return self.threads if multiplications >= SMALL else 1

    # Products.

    def _is_for_torch(self, matrix: _Matrix, rows: int) -> bool:
        if matrix.stored_in_columns and rows >= COLUMN_ROWS:
            return True
        return self.prefill == "fast" and rows >= FAST_ROWS and matrix.format != "float32"

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """x (N, in) times weight (out, in) transposed, plus bias (out,), plus residual (N, out): (N, out)."""
        matrix = self._matrix(weight)
        rows = x.shape[0]
        if self._is_for_torch(matrix, rows):
            return self._many_rows(x, matrix, bias, residual)
        y = torch.empty(rows, matrix.out)
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
        outs = tuple([torch.empty(rows, matrix.out) for matrix in matrices])
        self._linears(x, list(zip(matrices, biases, outs, strict=True)), None)
        return outs

    def _linears(self, x: Tensor, parts: list[tuple[_Matrix, Tensor | None, Tensor]], residual: Tensor | None) -> None:
        matrix = parts[0][0]
        x = self._padded(x, matrix)
        if residual is not None:
            residual = residual.contiguous()
        arguments: list[int] = []
        outs = 0
        for part, bias, y in parts:
            arguments += (part.numbers, part.scales, part.out, _address(bias), y.data_ptr())
            outs += part.out
        arguments += [0] * (15 - len(arguments))
        rows, inner = x.shape[0], matrix.inner
        self._run(
            f"linear_{matrix.format}",
            self._threads_for(rows * inner * outs),
            *(x.data_ptr(), 4 * inner, rows, inner, _address(residual), *arguments),
        )

    def _linear_columns(
        self, x: Tensor, matrix: _Matrix, bias: Tensor | None, residual: Tensor | None, y: Tensor
    ) -> None:
        x = x.contiguous()
        if residual is not None:
            residual = residual.contiguous()
        rows, inner = x.shape
        self._run(
            f"linear_columns_{matrix.format}",
            self._threads_for(rows * inner * matrix.out),
            *(x.data_ptr(), rows, inner, _address(residual), matrix.numbers, matrix.out, _address(bias), y.data_ptr()),
        )

    def _padded(self, x: Tensor, matrix: _Matrix) -> Tensor:
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
            return self.silu_mul(self.linear(x, gate, gate_bias), self.linear(x, up, up_bias))
        x = self._padded(x, first)
        y = torch.empty(rows, first.out)
        self._run(
            f"gated_{first.format}",
            self._threads_for(rows * first.inner * first.out),
            *(x.data_ptr(), 4 * first.inner, rows, first.inner, first.out),
            *(first.numbers, first.scales, _address(gate_bias), self._scratch(rows * first.out)),
            *(second.numbers, second.scales, _address(up_bias), y.data_ptr()),
        )
        return y

    def _many_rows(self, x: Tensor, matrix: _Matrix, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        if self.prefill == "fast" and matrix.format != "float32":
            y = in_bfloat16(x, matrix.weight, bias)
        else:
            y = reference.linear(x, matrix.weight, bias)
        return y if residual is None else y.add_(residual)

    # Norms and curves.

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x (..., size) over its root mean square, times weight (size,)."""
        count, size = x.numel(), x.shape[-1]
        if count >= LARGE:
            return reference.rms_norm(x, weight, eps)
        x = x.contiguous()
        y = torch.empty_like(x)
        self._run("rms_norm", x.data_ptr(), weight.data_ptr(), eps, y.data_ptr(), count // size, size)
        return y

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """x (..., size) less its mean, over its standard deviation, times weight, plus bias."""
        count, size = x.numel(), x.shape[-1]
        if count >= LARGE:
            return reference.layer_norm(x, weight, bias, eps)
        x = x.contiguous()
        y = torch.empty_like(x)
        self._run("layer_norm", x.data_ptr(), _address(weight), _address(bias), eps, y.data_ptr(), count // size, size)
        return y

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) times up."""
        if gate.numel() >= LARGE:
            return reference.silu_mul(gate, up)
        gate, y = gate.contiguous(), up.clone(memory_format=torch.contiguous_format)
        self._run("silu_mul", gate.data_ptr(), y.data_ptr(), y.numel())
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
        if self._has_many_rows(cache, layer, batch):
            return reference.attention(q, cache, layer, batch, **options)
        return self._attend(q.flatten(1), None, None, None, cache, layer, batch, **options).view(q.shape)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        angles: Angles | None,
        cache: KVCache,
        layer: int,
        batch: Batch,
        **options: Any,
    ) -> Tensor:
        """Rotate q and k by the angles if there are any, write k and v to the cache, and attend: flat rows."""
        if self._has_many_rows(cache, layer, batch):
            return reference.attend(q, k, v, angles, cache, layer, batch, **options)
        return self._attend(q, k, v, angles, cache, layer, batch, **options)

    def _has_many_rows(self, cache: KVCache, layer: int, batch: Batch) -> bool:
        """Make the batch's plan and the layer's places if they are new; many rows of one run are torch's."""
        if self._plan is None or self._plan.batch is not batch:
            self._plan = _Plan(batch)
        places = self._layers.get((id(cache), layer))
        if places is None:
            places = self._layers[id(cache), layer] = _Layer(cache, layer)
        return self._plan.most_rows >= MANY_QUERIES or not places.name

    def _attend(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        angles: Angles | None,
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
        plan, places = self._plan, self._layers[id(cache), layer]
        assert plan is not None
        rows, size = q.shape
        heads = size // places.head_dim
        seen = min(window, plan.longest) if window else plan.longest
        threads = self.threads if rows * seen * size * 2 >= SMALL else 1
        # Parts enough that the threads end together, and none so short that putting them together costs more.
        parts = 1 if threads == 1 else max(1, min(-(-4 * threads // rows), seen // 64))
        cos, sin = (0, 0) if angles is None else (angles[0].data_ptr(), angles[1].data_ptr())
        q = _rows_apart(q)
        out = torch.empty(rows, size)
        count = rows * parts * heads * (2 + places.head_dim + PAGE_SIZE)
        work = self._scratch(count + rows * size)
        self._run(
            places.name,
            *(threads, self._tickets_at, q.data_ptr(), 4 * q.stride(0), *_row_places(k), *_row_places(v), cos, sin),
            *(plan.slots_at, rows, places.keys, places.values, plan.rows_at, heads, places.kv_heads, places.head_dim),
            *(window or 0, parts, scale, softcap or 0.0, _address(slopes), _address(sinks)),
            *(work, work + 4 * count, out.data_ptr()),
        )
        return out

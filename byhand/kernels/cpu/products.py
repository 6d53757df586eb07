"""The backend's products, each by what is fastest at its size, and its activation functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from byhand.formats import Weight
from byhand.kernels import reference
from byhand.kernels.cpu.calls import CAPTURED_ROWS, Calls
from byhand.kernels.cpu.columns import in_bfloat16
from byhand.kernels.cpu.expected import many_rows
from byhand.kernels.cpu.operands import Matrix, address
from byhand.kernels.native.arguments import OPERANDS, Elementwise, Embed, Gated, Linear, LinearColumns, Operand, Pack
from byhand.kernels.native.panels import packed_size

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


def are_transposed(matrices: Sequence[Matrix], rows: int) -> bool:
    """Whether matrices are transposed for so many rows: all of them must be whole pieces."""
    return rows >= MANY_ROWS and all(matrix.can_be_transposed for matrix in matrices)


class Products(Calls):
    """Linear layers, one or several at once, the rows of a table, and activation functions."""

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
        operands: list[int] = []
        for matrix, bias, y in parts:
            operands += Operand(matrix.numbers, matrix.scales, matrix.out, address(bias), y.data_ptr())
        operands += Operand() * (OPERANDS - len(parts))
        matrices = [matrix for matrix, _, _ in parts]
        if are_transposed(matrices, rows):
            rounded, packed = self._packed(x, first)
            partitions = sum(matrix.tiles for matrix in matrices)
            table = Linear(packed, x_stride=0, rows=rows, inner=first.inner, residual=address(residual))
            name = many_rows("linear", first.format, rounded=rounded)
            self._run(name, self.threads, *table, *operands, partitions=partitions)
            return
        weight_format, x, row_bytes = self._activations(x, first)
        threads = self._threads_for(rows * first.inner * sum(matrix.out for matrix in matrices))
        table = Linear(x.data_ptr(), row_bytes, rows, first.inner, residual=address(residual))
        self._run(f"linear_{weight_format}", threads, *table, *operands)

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
        self._run(name, self._threads_for(rows * inner), *Pack(x.data_ptr(), packed, rows, inner))
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
        self._run("round_rows", self._threads_for(count), *Elementwise(x.data_ptr(), 0, rounded.data_ptr(), count))
        return "rounded", rounded, 2 * inner

    def _linear_columns(
        self, x: Tensor, matrix: Matrix, bias: Tensor | None, residual: Tensor | None, y: Tensor
    ) -> None:
        x = x.contiguous()
        if residual is not None:
            residual = residual.contiguous()
        self._read(x, residual)
        rows, inner = x.shape
        table = LinearColumns(
            x=x.data_ptr(),
            rows=rows,
            inner=inner,
            residual=address(residual),
            weights=matrix.numbers,
            out=matrix.out,
            bias=address(bias),
            y=y.data_ptr(),
        )
        self._run(f"linear_columns_{matrix.format}", self._threads_for(rows * inner * matrix.out), *table)

    def _padded(self, x: Tensor, matrix: Matrix) -> Tensor:
        """x, its rows end to end and as long as the weight's, which quantised ones fill up to a whole group."""
        missing = matrix.inner - x.shape[1]
        return torch.nn.functional.pad(x, (0, missing)) if missing else x.contiguous()

    def gated(
        self,
        x: Tensor,
        gate: Weight,
        up: Weight,
        gate_bias: Tensor | None = None,
        up_bias: Tensor | None = None,
        activation: str = "silu",
    ) -> Tensor:
        """An activation function, by its name, of linear(x, gate), times linear(x, up), read in one go."""
        first, second = self._matrix(gate), self._matrix(up)
        rows = x.shape[0]
        if (
            self._is_for_torch(first, rows)
            or first.format != second.format
            or first.stored_in_columns
            or second.stored_in_columns
        ):
            return self.act_and_mul(activation, self.linear(x, gate, gate_bias), self.linear(x, up, up_bias))
        y = self._empty(rows, first.out)
        if are_transposed([first, second], rows):
            rounded, x_at = self._packed(x, first)
            name, threads, partitions = (
                many_rows(f"gated_{activation}", first.format, rounded=rounded),
                self.threads,
                first.tiles,
            )
            x_stride = gate_at = 0
        else:
            weight_format, x, x_stride = self._activations(x, first)
            name, threads, partitions = (
                f"gated_{activation}_{weight_format}",
                self._threads_for(rows * first.inner * first.out),
                0,
            )
            x_at, gate_at = x.data_ptr(), self._scratch(rows * first.out)
        table = Gated(
            x=x_at,
            x_stride=x_stride,
            rows=rows,
            inner=first.inner,
            out=first.out,
            gate_weights=first.numbers,
            gate_scales=first.scales,
            gate_bias=address(gate_bias),
            gate=gate_at,
            up_weights=second.numbers,
            up_scales=second.scales,
            up_bias=address(up_bias),
            y=y.data_ptr(),
        )
        self._run(name, threads, *table, partitions=partitions)
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
        table = Embed(ids.data_ptr(), rows, matrix.numbers, matrix.scales, matrix.inner, y.data_ptr())
        self._run(name, threads, *table)
        return y

    # Activation functions.

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
        self._run(f"act_{name}", self._threads_for(count), *Elementwise(x.data_ptr(), 0, y.data_ptr(), count))
        return y

    def act_and_mul(self, activation: str, gate: Tensor, up: Tensor) -> Tensor:
        """An activation function of gate, by its name, times up."""
        count = gate.numel()
        gate, up, y = gate.contiguous(), up.contiguous(), self._empty(*gate.shape)
        self._read(gate, up)
        table = Elementwise(gate.data_ptr(), up.data_ptr(), y.data_ptr(), count)
        self._run(f"act_and_mul_{activation}", self._threads_for(count), *table)
        return y

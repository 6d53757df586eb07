"""Sixteen float32 at once, inside Numba: the only room that speaks LLVM.

Everything is LLVM's generic vector arithmetic, which it lowers to AVX-512, to two AVX2 registers or to four NEON
ones alike; nothing here names a processor. Memory is named by addresses (int64, bytes), so that a kernel takes plain
numbers from Python and any dtype of torch without a copy. Loads and stores need no alignment.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils as _cgutils
from numba.extending import intrinsic, models, overload, register_model

LANES = 16
GROUP = 32  # quantised weights share one scale in groups of so many

_FLOAT, _HALF = ir.FloatType(), ir.HalfType()
cgutils: Any = _cgutils  # it has no types
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_FLOATS = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(_I32, LANES)


class VectorType(types.Type):
    """The Numba type of sixteen float32 in registers."""

    def __init__(self) -> None:
        super().__init__(name="float32x16")


vector = VectorType()


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend: Any) -> None:
        super().__init__(manager, frontend, _FLOATS)  # type: ignore[no-untyped-call]


def _all_lanes(kind: ir.Type, value: float) -> ir.Constant:
    return ir.Constant(ir.VectorType(kind, LANES), [value] * LANES)


def _spread(builder: Any, value: Any) -> Any:
    """A scalar in every lane."""
    kind = ir.VectorType(value.type, LANES)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


def _read(builder: Any, address: Any, kind: ir.Type) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1, typ=kind)


def _call(builder: Any, name: str, result: ir.Type, arguments: list[Any], fastmath: tuple[str, ...] = ()) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, arguments, fastmath=fastmath)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    # fmuladd, not fma: on a processor without the instruction it is a product and a sum, not a call.
    return _call(builder, "llvm.fmuladd.v16f32", _FLOATS, [a, b, c])


def _sum(builder: Any, a: Any) -> Any:
    return _call(builder, "llvm.vector.reduce.fadd.v16f32", _FLOAT, [_FLOAT(0.0), a], ("reassoc",))


# How a format's numbers become float32. Each takes an address and gives one vector.


def _load_float32(builder: Any, address: Any) -> Any:
    return _read(builder, address, _FLOATS)


def _load_bfloat16(builder: Any, address: Any) -> Any:
    # A bfloat16 is the upper half of a float32.
    wide = builder.zext(_read(builder, address, ir.VectorType(_I16, LANES)), _INTS)
    return builder.bitcast(builder.shl(wide, _all_lanes(_I32, 16)), _FLOATS)


def _load_float16(builder: Any, address: Any) -> Any:
    return builder.fpext(_read(builder, address, ir.VectorType(_HALF, LANES)), _FLOATS)


def _load_int8(builder: Any, address: Any) -> Any:
    return builder.sitofp(builder.sext(_read(builder, address, ir.VectorType(_I8, LANES)), _INTS), _FLOATS)


def _load_int4(builder: Any, address: Any) -> list[Any]:
    # Sixteen bytes: the low halves are the group's first sixteen codes, the high halves the rest. Widened first and
    # masked then, for lanes of 8 bits have no shifts of their own on x86.
    wide = builder.zext(_read(builder, address, ir.VectorType(_I8, LANES)), _INTS)
    halves = builder.and_(wide, _all_lanes(_I32, 15)), builder.lshr(wide, _all_lanes(_I32, 4))
    return [builder.sitofp(half, _FLOATS) for half in halves]


def _load_scale(builder: Any, address: Any) -> list[Any]:
    # One bfloat16, widened among the integers, which have nothing else to do.
    bits = builder.shl(builder.zext(_read(builder, address, _I16), _I32), _I32(16))
    return [_spread(builder, builder.bitcast(bits, _FLOAT))]


def _load_line(builder: Any, address: Any) -> list[Any]:
    # Scale and offset, two bfloat16 side by side, in one reading.
    both = _spread(builder, _read(builder, address, _I32))
    scale, offset = builder.shl(both, _all_lanes(_I32, 16)), builder.and_(both, _all_lanes(_I32, 0xFFFF0000))
    return [builder.bitcast(bits, _FLOATS) for bits in (scale, offset)]


class Format:
    """How a weight row is read: `block` numbers at a time, which are `block_bytes` bytes.

    A quantised block has `scale_bytes` bytes more, elsewhere: what its codes are multiplied by, and what is added.
    """

    def __init__(
        self,
        block: int,
        block_bytes: int,
        load: Callable[[Any, Any], list[Any]],
        scale_bytes: int = 0,
        load_scale: Callable[[Any, Any], list[Any]] = _load_scale,
    ) -> None:
        self.block = block
        self.block_bytes = block_bytes
        self.load = load
        self.scale_bytes = scale_bytes
        self.load_scale = load_scale


def _pair_of_int8(builder: Any, address: Any) -> list[Any]:
    return [_load_int8(builder, address), _load_int8(builder, builder.add(address, _I64(LANES)))]


FORMATS = {
    "float32": Format(16, 64, lambda builder, address: [_load_float32(builder, address)]),
    "bfloat16": Format(16, 32, lambda builder, address: [_load_bfloat16(builder, address)]),
    "float16": Format(16, 32, lambda builder, address: [_load_float16(builder, address)]),
    "int8": Format(GROUP, 32, _pair_of_int8, 2),
    "int4": Format(GROUP, 16, _load_int4, 4, _load_line),
}


# Dot products of some weight rows with some activation rows, the heart of every product.


class _Tile:
    """Writes the loop over a tile's inner dimension: columns (weight rows) times rows (of activations)."""

    def __init__(self, builder: Any, form: Format, columns: int, rows: int, unroll: int) -> None:
        self.builder, self.form, self.columns, self.rows, self.unroll = builder, form, columns, rows, unroll
        zero = _all_lanes(_FLOAT, 0.0)
        # Some sums at a time for each dot product: one alone would wait for its own last addition.
        self.sums = {
            (column, row, turn): cgutils.alloca_once_value(builder, zero)
            for column in range(columns)
            for row in range(rows)
            for turn in range(unroll)
        }

    def _offset(self, address: Any, stride: Any, count: int) -> Any:
        return self.builder.add(address, self.builder.mul(stride, _I64(count)))

    def _accumulate(self, place: tuple[int, int, int], weights: list[Any], x: list[Any]) -> None:
        builder, total = self.builder, self.sums[place]
        value = builder.load(total)
        for weight, activation in zip(weights, x, strict=True):
            value = _fma(builder, weight, activation, value)
        builder.store(value, total)

    def _accumulate_scaled(self, place: tuple[int, int, int], codes: list[Any], x: list[Any], line: list[Any]) -> None:
        # (Σ code · x) · scale + offset · Σ x: cheaper than to scale every code, while there is but one row.
        builder, total = self.builder, self.sums[place]
        part = _fma(builder, codes[1], x[1], builder.fmul(codes[0], x[0]))
        value = _fma(builder, part, line[0], builder.load(total))
        if len(line) > 1:
            value = _fma(builder, line[1], builder.fadd(x[0], x[1]), value)
        builder.store(value, total)

    def _scaled(self, codes: list[Any], line: list[Any]) -> list[Any]:
        if len(line) == 1:
            return [self.builder.fmul(code, line[0]) for code in codes]
        return [_fma(self.builder, code, *line) for code in codes]

    def _step(self, turn: int, block: Any, arguments: tuple[Any, ...]) -> None:
        weights, weight_stride, scales, scale_stride, x, x_stride = arguments
        builder, form = self.builder, self.form
        at = builder.mul(block, _I64(form.block * 4))
        activations = []
        for row in range(self.rows):
            address = builder.add(self._offset(x, x_stride, row), at)
            parts = range(0, form.block, LANES)
            activations.append([_load_float32(builder, builder.add(address, _I64(4 * part))) for part in parts])
        for column in range(self.columns):
            at = builder.mul(block, _I64(form.block_bytes))
            values = form.load(builder, builder.add(self._offset(weights, weight_stride, column), at))
            if form.scale_bytes:
                at = builder.mul(block, _I64(form.scale_bytes))
                line = form.load_scale(builder, builder.add(self._offset(scales, scale_stride, column), at))
                if self.rows == 1:
                    self._accumulate_scaled((column, 0, turn), values, activations[0], line)
                    continue
                values = self._scaled(values, line)
            for row in range(self.rows):
                self._accumulate((column, row, turn), values, activations[row])

    def write(self, arguments: tuple[Any, ...], blocks: Any, out: Any, out_stride: Any) -> None:
        """The loop in turns of `unroll` blocks, what is left block by block, and the sums into memory."""
        builder = self.builder
        whole = builder.udiv(blocks, _I64(self.unroll))
        done = builder.mul(whole, _I64(self.unroll))
        with cgutils.for_range(builder, whole, intp=_I64) as loop:
            first = builder.mul(loop.index, _I64(self.unroll))
            for turn in range(self.unroll):
                self._step(turn, builder.add(first, _I64(turn)), arguments)
        if self.unroll > 1:
            with cgutils.for_range(builder, builder.sub(blocks, done), intp=_I64) as loop:
                self._step(0, builder.add(done, loop.index), arguments)
        for row in range(self.rows):
            for column in range(self.columns):
                turns = [builder.load(self.sums[column, row, turn]) for turn in range(self.unroll)]
                while len(turns) > 1:
                    turns = [*turns[2:], builder.fadd(turns[0], turns[1])]
                place = builder.add(self._offset(out, out_stride, row), _I64(4 * column))
                builder.store(_sum(builder, turns[0]), builder.inttoptr(place, _FLOAT.as_pointer()), align=4)


def tile(form: Format, columns: int, rows: int, unroll: int = 1) -> Any:
    """An intrinsic: the dot products of `columns` weight rows and `rows` activation rows, into memory.

    Its arguments: weights, bytes from one weight row to the next, scales, bytes from one row of them to the next,
    x, bytes from row to row, blocks of the inner dimension, out, bytes from row to row.
    """

    @intrinsic
    def dots(context, weights, weight_stride, scales, scale_stride, x, x_stride, blocks, out, out_stride):  # type: ignore[no-untyped-def]
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _Tile(builder, form, columns, rows, unroll).write(arguments[:6], *arguments[6:])
            return context.get_dummy_value()

        return types.void(*(types.int64,) * 9), generate

    return dots


# Vectors and memory as kernels write them: one small intrinsic each.


def _typed(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make an intrinsic of fixed types from a function of (builder, its arguments) that gives the result's value."""

    def decorate(emit: Callable[..., Any]) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            value = emit(builder, *values)
            return context.get_dummy_value() if result is types.void else value

        # Numba asks for as many parameters as the intrinsic takes.
        names = ", ".join(["context", *"abcd"[: len(arguments)]])
        typing = eval(f"lambda {names}: kind", {"kind": (result(*arguments), generate)})
        typing.__name__ = emit.__name__.lstrip("_")
        return intrinsic(typing)

    return decorate


_address = types.int64
load_float32 = _typed(vector, _address)(_load_float32)
load_bfloat16 = _typed(vector, _address)(_load_bfloat16)
load_float16 = _typed(vector, _address)(_load_float16)


@_typed(types.void)
def stay_apart(builder: Any) -> Any:
    """Keep the function that says this from being copied into its callers: smaller code, and sooner compiled."""
    builder.function.attributes.add("noinline")


@_typed(types.float32, _address)
def one_float32(builder: Any, address: Any) -> Any:
    """The number at an address."""
    return _read(builder, address, _FLOAT)


@_typed(types.float32, _address)
def one_bfloat16(builder: Any, address: Any) -> Any:
    """The same in bfloat16."""
    return builder.bitcast(builder.shl(builder.zext(_read(builder, address, _I16), _I32), _I32(16)), _FLOAT)


@_typed(types.float32, _address)
def one_float16(builder: Any, address: Any) -> Any:
    """The same in float16."""
    return builder.fpext(_read(builder, address, _HALF), _FLOAT)


@_typed(types.int64, _address)
def integer(builder: Any, address: Any) -> Any:
    """The int64 at an address."""
    return _read(builder, address, _I64)


@_typed(types.void, _address, vector)
def store(builder: Any, address: Any, value: Any) -> Any:
    """Put sixteen float32 at an address."""
    return builder.store(value, builder.inttoptr(address, _FLOATS.as_pointer()), align=4)


@_typed(types.void, _address, types.float32)
def put(builder: Any, address: Any, value: Any) -> Any:
    """Put one float32 at an address."""
    return builder.store(value, builder.inttoptr(address, _FLOAT.as_pointer()), align=4)


def _to_bfloat16(builder: Any, value: Any, kind: Any, narrow: Any, constant: Callable[[int], Any]) -> Any:
    # Round to nearest, ties to even, as torch does; a NaN keeps its upper half and is made a quiet one.
    bits = builder.bitcast(value, kind)
    upper = builder.lshr(bits, constant(16))
    rounded = builder.add(bits, builder.add(builder.and_(upper, constant(1)), constant(0x7FFF)))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(
        builder.select(is_nan, builder.or_(upper, constant(64)), builder.lshr(rounded, constant(16))), narrow
    )


@_typed(types.void, _address, types.float32)
def put_bfloat16(builder: Any, address: Any, value: Any) -> Any:
    """Put one number as bfloat16, rounded to nearest."""
    return builder.store(
        _to_bfloat16(builder, value, _I32, _I16, _I32), builder.inttoptr(address, _I16.as_pointer()), align=2
    )


@_typed(types.void, _address, types.float32)
def put_float16(builder: Any, address: Any, value: Any) -> Any:
    """Put one number as float16."""
    return builder.store(builder.fptrunc(value, _HALF), builder.inttoptr(address, _HALF.as_pointer()), align=2)


@_typed(types.int64, _address, types.int64)
def take_ticket(builder: Any, address: Any, count: Any) -> Any:
    """Add to the int64 at an address, whoever else does too; give what was there before."""
    return builder.atomic_rmw("add", builder.inttoptr(address, _I64.as_pointer()), count, "monotonic")


@_typed(types.void, _address, types.int64)
def put_integer(builder: Any, address: Any, value: Any) -> Any:
    """Put one int64 at an address."""
    return builder.store(value, builder.inttoptr(address, _I64.as_pointer()), align=8)


@_typed(vector, types.float32)
def spread(builder: Any, value: Any) -> Any:
    """One number in all sixteen lanes."""
    return _spread(builder, value)


@_typed(types.float32, vector)
def total(builder: Any, value: Any) -> Any:
    """The sum of the lanes."""
    return _sum(builder, value)


@_typed(types.float32, vector)
def highest(builder: Any, value: Any) -> Any:
    """The largest lane."""
    return _call(builder, "llvm.vector.reduce.fmax.v16f32", _FLOAT, [value], ("nnan",))


@_typed(vector, vector, vector, vector)
def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c."""
    return _fma(builder, a, b, c)


@_typed(vector)
def lane_numbers(builder: Any) -> Any:
    """0, 1, …, 15."""
    return ir.Constant(_FLOATS, list(map(float, range(LANES))))


@_typed(vector, vector, vector, vector, types.float32)
def where_less(builder: Any, a: Any, b: Any, chosen: Any, other: Any) -> Any:
    """`chosen` in the lanes where a < b, `other` in the rest."""
    return builder.select(builder.fcmp_ordered("<", a, b), chosen, _spread(builder, other))


# exp(x) = 2ⁿ · exp(r), n whole and |r| ≤ ln 2 / 2, where Taylor's sum to the seventh power is exact to float32.
_TAYLOR = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4


@_typed(vector, vector)
def exp(builder: Any, x: Any) -> Any:
    """The exponential of each lane: 0 below -87, infinite above 88.7."""
    low, high = _all_lanes(_FLOAT, -87.0), _all_lanes(_FLOAT, 88.7)
    scaled = builder.fmul(x, _all_lanes(_FLOAT, 1.4426950408889634))
    whole = _call(builder, "llvm.rint.v16f32", _FLOATS, [scaled])
    rest = _fma(builder, whole, _all_lanes(_FLOAT, -_LN2_HIGH), x)
    rest = _fma(builder, whole, _all_lanes(_FLOAT, -_LN2_LOW), rest)
    value = _all_lanes(_FLOAT, _TAYLOR[0])
    for coefficient in _TAYLOR[1:]:
        value = _fma(builder, value, rest, _all_lanes(_FLOAT, coefficient))
    # 2ⁿ in two factors, for 2¹²⁸ is no float32 although exp(88.7) is.
    exponent = builder.fptosi(whole, _INTS)
    half = builder.ashr(exponent, _all_lanes(_I32, 1))
    for part in (half, builder.sub(exponent, half)):
        bits = builder.shl(builder.add(part, _all_lanes(_I32, 127)), _all_lanes(_I32, 23))
        value = builder.fmul(value, builder.bitcast(bits, _FLOATS))
    value = builder.select(builder.fcmp_ordered("<", x, low), _all_lanes(_FLOAT, 0.0), value)
    return builder.select(builder.fcmp_ordered(">", x, high), _all_lanes(_FLOAT, float("inf")), value)


@_typed(vector, vector, vector)
def _add(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


@_typed(vector, vector, vector)
def _subtract(builder: Any, a: Any, b: Any) -> Any:
    return builder.fsub(a, b)


@_typed(vector, vector, vector)
def _multiply(builder: Any, a: Any, b: Any) -> Any:
    return builder.fmul(a, b)


@_typed(vector, vector, vector)
def _divide(builder: Any, a: Any, b: Any) -> Any:
    return builder.fdiv(a, b)


def _overload(sign: Any, function: Any) -> None:
    @overload(sign)
    def typing(a, b):  # type: ignore[no-untyped-def]
        if isinstance(a, VectorType) and isinstance(b, VectorType):
            return lambda a, b: function(a, b)
        return None


_overload(operator.add, _add)
_overload(operator.sub, _subtract)
_overload(operator.mul, _multiply)
_overload(operator.truediv, _divide)


@njit
def silu(x):  # type: ignore[no-untyped-def]
    """x times its sigmoid, lane by lane."""
    one = spread(1.0)
    return x / (one + exp(spread(0.0) - x))


LOADS = {"float32": load_float32, "bfloat16": load_bfloat16, "float16": load_float16}
ONES = {"float32": one_float32, "bfloat16": one_bfloat16, "float16": one_float16}
PUTS = {"float32": put, "bfloat16": put_bfloat16, "float16": put_float16}
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}

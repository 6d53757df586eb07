"""Sixteen float32 at once, inside Numba: the vector type, and what kernels do with it and with memory.

Memory is named by addresses (int64, bytes), so that a kernel takes plain numbers from Python, and tensors of any dtype
without a copy. `load…`, `one…` read sixteen numbers or one; `store`, `put…` write them. No alignment is needed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from string import ascii_lowercase
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, overload, register_model

from byhand.kernels.native import llvm
from byhand.kernels.native.llvm import LANES


class VectorType(types.Type):
    """The Numba type of sixteen float32 in registers."""

    def __init__(self) -> None:
        super().__init__(name="float32x16")


vector = VectorType()


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend: Any) -> None:
        super().__init__(manager, frontend, llvm.FLOATS)  # type: ignore[no-untyped-call]


def typed(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make an intrinsic of fixed types from a function of (builder, its arguments) that gives the result's value."""

    def decorate(emit: Callable[..., Any]) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            value = emit(builder, *values)
            return context.get_dummy_value() if result is types.void else value

        # Numba asks for as many parameters as the intrinsic takes.
        names = ", ".join(["context", *ascii_lowercase[: len(arguments)]])
        typing = eval(f"lambda {names}: kind", {"kind": (result(*arguments), generate)})
        typing.__name__ = emit.__name__.lstrip("_")
        return intrinsic(typing)

    return decorate


_address = types.int64
load_float32 = typed(vector, _address)(llvm.load_float32)
load_bfloat16 = typed(vector, _address)(llvm.load_bfloat16)
load_float16 = typed(vector, _address)(llvm.load_float16)


@typed(types.void)
def not_inlined(builder: Any) -> Any:
    """Keep the function that says this from being copied into its callers: smaller code, and sooner compiled."""
    builder.function.attributes.add("noinline")


@typed(types.void, _address)
def fetch_early(builder: Any, address: Any) -> Any:
    """Ask for the cache line at an address, into the second cache, before it is read."""
    llvm.fetch_early(builder, address, keep=True)


def on_stack(size: int) -> Any:
    """An intrinsic: the address of so many bytes that are there as long as the function that asks runs."""

    @typed(types.int64)
    def allocate(builder: Any) -> Any:
        kind = ir.ArrayType(llvm.FLOATS, size // 64)
        return builder.ptrtoint(llvm.cgutils.alloca_once(builder, kind), llvm.I64)

    return allocate


@typed(types.float32, _address)
def one_float32(builder: Any, address: Any) -> Any:
    """The number at an address."""
    return llvm.read(builder, address, llvm.FLOAT)


@typed(types.float32, _address)
def one_bfloat16(builder: Any, address: Any) -> Any:
    """The same in bfloat16."""
    return builder.bitcast(
        builder.shl(builder.zext(llvm.read(builder, address, llvm.I16), llvm.I32), llvm.I32(16)), llvm.FLOAT
    )


@typed(types.float32, _address)
def one_float16(builder: Any, address: Any) -> Any:
    """The same in float16."""
    return builder.fpext(llvm.read(builder, address, llvm.HALF), llvm.FLOAT)


@typed(types.int64, _address)
def integer(builder: Any, address: Any) -> Any:
    """The int64 at an address."""
    return llvm.read(builder, address, llvm.I64)


@njit
def argument(table, number):  # type: ignore[no-untyped-def]
    """The int64 of that number in a kernel's table of arguments."""
    return integer(table + 8 * number)


@njit
def fraction(table, number):  # type: ignore[no-untyped-def]
    """The float32 of that number in the table."""
    return one_float32(table + 8 * number)


@typed(types.void, _address, vector)
def store(builder: Any, address: Any, value: Any) -> Any:
    """Put sixteen float32 at an address."""
    return llvm.write(builder, address, value)


@typed(types.void, _address, types.float32)
def put(builder: Any, address: Any, value: Any) -> Any:
    """Put one float32 at an address."""
    return llvm.write(builder, address, value)


@typed(types.void, _address, types.float32)
def put_bfloat16(builder: Any, address: Any, value: Any) -> Any:
    """Put one number as bfloat16, rounded to nearest."""
    upper = llvm.to_bfloat16(builder, value, llvm.I32, llvm.I32)
    return llvm.write(builder, address, builder.trunc(upper, llvm.I16), 2)


@typed(types.void, _address, vector)
def store_bfloat16(builder: Any, address: Any, value: Any) -> Any:
    """Put sixteen numbers as bfloat16, rounded to nearest."""
    narrow = ir.VectorType(llvm.I16, LANES)
    halves = builder.trunc(llvm.lanes_to_bfloat16(builder, value), narrow)
    return llvm.write(builder, address, halves, 2)


@typed(types.void, _address, vector)
def store_rounded(builder: Any, address: Any, value: Any) -> Any:
    """The same as one side of pairs that are multiplied."""
    narrow = llvm.rounded(builder, value)
    return llvm.write(builder, address, narrow, 2)


@typed(types.void, _address, vector)
def store_float16(builder: Any, address: Any, value: Any) -> Any:
    """Put sixteen numbers as float16."""
    narrow = ir.VectorType(llvm.HALF, LANES)
    return llvm.write(builder, address, builder.fptrunc(value, narrow), 2)


@typed(types.void, _address, types.float32)
def put_float16(builder: Any, address: Any, value: Any) -> Any:
    """Put one number as float16."""
    return llvm.write(builder, address, builder.fptrunc(value, llvm.HALF), 2)


@typed(types.float64, _address)
def one_double(builder: Any, address: Any) -> Any:
    """The float64 at an address."""
    return llvm.read(builder, address, llvm.DOUBLE)


@typed(types.void, _address, types.float64)
def put_double(builder: Any, address: Any, value: Any) -> Any:
    """Put one float64 at an address."""
    return llvm.write(builder, address, value, 8)


@typed(types.int64, _address, types.int64)
def take_ticket(builder: Any, address: Any, count: Any) -> Any:
    """Add to the int64 at an address, whoever else does too; give what was there before."""
    return builder.atomic_rmw("add", builder.inttoptr(address, llvm.I64.as_pointer()), count, "monotonic")


@typed(types.void, _address, types.int64)
def put_integer(builder: Any, address: Any, value: Any) -> Any:
    """Put one int64 at an address."""
    return llvm.write(builder, address, value, 8)


@typed(vector, types.float32)
def broadcast(builder: Any, value: Any) -> Any:
    """One number in all sixteen lanes."""
    return llvm.broadcast(builder, value)


@typed(types.float32, vector)
def total(builder: Any, value: Any) -> Any:
    """The sum of the lanes."""
    return llvm.total(builder, value)


@typed(types.float32, vector)
def highest(builder: Any, value: Any) -> Any:
    """The largest lane."""
    return llvm.highest(builder, value)


@typed(vector, vector, vector)
def larger(builder: Any, a: Any, b: Any) -> Any:
    """The larger of two in each lane."""
    return llvm.larger(builder, a, b)


@typed(vector, vector, vector, vector)
def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c."""
    return llvm.fma(builder, a, b, c)


@typed(vector)
def lane_numbers(builder: Any) -> Any:
    """0, 1, …, 15."""
    return ir.Constant(llvm.FLOATS, list(map(float, range(LANES))))


@typed(vector, vector, vector, vector, types.float32)
def where_less(builder: Any, a: Any, b: Any, chosen: Any, other: Any) -> Any:
    """`chosen` in the lanes where a < b, `other` in the rest."""
    return builder.select(builder.fcmp_ordered("<", a, b), chosen, llvm.broadcast(builder, other))


# exp(x) = 2ⁿ · exp(r), n whole and |r| ≤ ln 2 / 2, where Taylor's sum to the seventh power is exact to float32.
_TAYLOR = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4


@typed(vector, vector)
def exp(builder: Any, x: Any) -> Any:
    """The exponential of each lane: 0 below -87, infinite above 88.7."""
    low, high = llvm.all_lanes(llvm.FLOAT, -87.0), llvm.all_lanes(llvm.FLOAT, 88.7)
    value = builder.select(builder.fcmp_ordered("<", x, low), llvm.all_lanes(llvm.FLOAT, 0.0), _exp_within(builder, x))
    return builder.select(builder.fcmp_ordered(">", x, high), llvm.all_lanes(llvm.FLOAT, float("inf")), value)


def _exp_within(builder: Any, x: Any) -> Any:
    scaled = builder.fmul(x, llvm.all_lanes(llvm.FLOAT, 1.4426950408889634))
    whole = llvm.call(builder, "llvm.rint.v16f32", llvm.FLOATS, [scaled])
    rest = llvm.fma(builder, whole, llvm.all_lanes(llvm.FLOAT, -_LN2_HIGH), x)
    rest = llvm.fma(builder, whole, llvm.all_lanes(llvm.FLOAT, -_LN2_LOW), rest)
    value = llvm.all_lanes(llvm.FLOAT, _TAYLOR[0])
    for coefficient in _TAYLOR[1:]:
        value = llvm.fma(builder, value, rest, llvm.all_lanes(llvm.FLOAT, coefficient))
    return llvm.times_power(builder, value, whole)


@typed(vector, vector)
def decay(builder: Any, x: Any) -> Any:
    """The same for numbers that are at most 0."""
    low = llvm.all_lanes(llvm.FLOAT, -87.0)
    return builder.select(builder.fcmp_ordered("<", x, low), llvm.all_lanes(llvm.FLOAT, 0.0), _exp_within(builder, x))


@typed(vector, vector, vector)
def _add(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


@typed(vector, vector, vector)
def _subtract(builder: Any, a: Any, b: Any) -> Any:
    return builder.fsub(a, b)


@typed(vector, vector, vector)
def _multiply(builder: Any, a: Any, b: Any) -> Any:
    return builder.fmul(a, b)


@typed(vector, vector, vector)
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
    one = broadcast(1.0)
    return x / (one + exp(broadcast(0.0) - x))


@njit
def relu(x):  # type: ignore[no-untyped-def]
    """max(x, 0), lane by lane; a NaN stays one."""
    return x - where_less(x, broadcast(0.0), x, 0.0)


@njit
def gelu_tanh(x):  # type: ignore[no-untyped-def]
    """x · (1 + tanh(a)) / 2 = x · sigmoid(2a), where a = √(2/π) · (x + 0.044715 x³)."""
    doubled = x * fma(x * x, broadcast(0.0713548162726), broadcast(1.59576912161))
    return x / (broadcast(1.0) + exp(broadcast(0.0) - doubled))


@njit
def gelu(x):  # type: ignore[no-untyped-def]
    """x · Φ(x), lane by lane; the error function by Abramowitz and Stegun 7.1.26, within 1.5e-7."""
    one, zero = broadcast(1.0), broadcast(0.0)
    size = x - where_less(x, zero, x * broadcast(2.0), 0.0)  # |x|
    t = one / fma(size, broadcast(0.3275911 * 0.7071067811865476), one)
    series = fma(t, broadcast(1.061405429), broadcast(-1.453152027))
    series = fma(t, series, broadcast(1.421413741))
    series = fma(t, series, broadcast(-0.284496736))
    series = fma(t, series, broadcast(0.254829592))
    beyond = series * t * exp(zero - x * x * broadcast(0.5)) * broadcast(0.5)  # what lies beyond |x|
    below = where_less(x, zero, beyond, 0.0) + where_less(
        zero - one, zero - where_less(x, zero, one, 0.0), one - beyond, 0.0
    )
    return x * below


ACTIVATIONS = {"relu": relu, "gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}
LOADS = {"float32": load_float32, "bfloat16": load_bfloat16, "float16": load_float16}
ONES = {"float32": one_float32, "bfloat16": one_bfloat16, "float16": one_float16}
STORES = {"float32": store, "bfloat16": store_bfloat16, "float16": store_float16}
PUTS = {"float32": put, "bfloat16": put_bfloat16, "float16": put_float16}
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}

"""How LLVM is asked for arithmetic on sixteen float32 at once: what vectors.py and tiles.py are written with.

Everything is LLVM's generic vector arithmetic, which it lowers to AVX-512, to two AVX2 registers or to four NEON
ones alike; only `choose_from`, `times_power` and `add_pairs` name a processor's own. Memory is named by addresses
(int64, bytes); reading needs no alignment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils as _cgutils

from byhand.kernels.native.compiled import features

LANES = 16

# What Numba's published types leave out.
cgutils: Any = _cgutils
FLOAT, HALF, DOUBLE = ir.FloatType(), ir.HalfType(), ir.DoubleType()
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOATS = ir.VectorType(FLOAT, LANES)
INTS = ir.VectorType(I32, LANES)


def all_lanes(kind: ir.Type, value: float) -> ir.Constant:
    """A constant in every lane."""
    return ir.Constant(ir.VectorType(kind, LANES), [value] * LANES)


def broadcast(builder: Any, value: Any, lanes: int = LANES) -> Any:
    """A scalar in every lane."""
    nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = builder.insert_element(nothing, value, I32(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def read(builder: Any, address: Any, kind: ir.Type) -> Any:
    """What lies at an address."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1, typ=kind)


def write(builder: Any, address: Any, value: Any, align: int = 4) -> Any:
    """Put a value at an address, which is a multiple of `align`."""
    return builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=align)


def read_some(builder: Any, address: Any, count: Any, kind: ir.VectorType) -> Any:
    """The first so many lanes of what lies at an address, int32; the others are 0, and their memory is not touched."""
    counts = broadcast(builder, builder.trunc(count, I32), kind.count)
    is_there = builder.icmp_signed("<", ir.Constant(kind, list(range(kind.count))), counts)
    pointer, nothing = builder.inttoptr(address, kind.as_pointer()), ir.Constant(kind, [0] * kind.count)
    return call(builder, f"llvm.masked.load.v{kind.count}i32.p0", kind, [pointer, I32(1), is_there, nothing])


def fetch_early(builder: Any, address: Any, *, keep: bool = False) -> None:
    """Ask for the cache line at an address, which need not exist; to keep it in the second cache, or read once."""
    pointer = builder.inttoptr(address, I8.as_pointer())
    # What is read once must not push out what others come back to. A reading (0), so near (2 or 0), of data (1).
    call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, I32(0), I32(2 if keep else 0), I32(1)])


def call(builder: Any, name: str, result: ir.Type, arguments: list[Any], fastmath: tuple[str, ...] = ()) -> Any:
    """A call of one of LLVM's intrinsics."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, arguments, fastmath=fastmath)


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c."""
    # fmuladd, not fma: on a processor without the instruction it is a product and a sum, not a call.
    return call(builder, "llvm.fmuladd.v16f32", FLOATS, [a, b, c])


def total(builder: Any, a: Any) -> Any:
    """The sum of the lanes."""
    return call(builder, "llvm.vector.reduce.fadd.v16f32", FLOAT, [FLOAT(0.0), a], ("reassoc",))


def highest(builder: Any, a: Any) -> Any:
    """The largest lane."""
    return call(builder, "llvm.vector.reduce.fmax.v16f32", FLOAT, [a], ("nnan",))


def larger(builder: Any, a: Any, b: Any) -> Any:
    """The larger of two in each lane."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Sixteen vectors as rows of a matrix: its columns. Halves of ever larger pieces are swapped."""
    lanes = range(LANES)
    for size in (1, 2, 4, 8):
        low = ir.Constant(INTS, [lane + LANES - size if lane & size else lane for lane in lanes])
        high = ir.Constant(INTS, [lane + LANES if lane & size else lane + size for lane in lanes])
        for row in lanes:
            if not row & size:
                a, b = rows[row], rows[row + size]
                rows[row], rows[row + size] = builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high)
    return rows


def _has(feature: str) -> bool:
    """Whether the processor that Numba compiles for has a feature."""
    return f"+{feature}" in features().split(",")


# Some instructions are asked for by a processor's own name. One is AVX-512's choice of sixteen numbers by the lower
# four bits of sixteen lanes: a whole code book in one step; without it tiles.py converts and scales the codes.
HAS_CODE_BOOKS = HAS_POWERS = _has("avx512f")


def choose_from(builder: Any, book: Any, codes: Any) -> Any:
    """book[code & 15] for the code in each lane."""
    return call(builder, "llvm.x86.avx512.permvar.sf.512", FLOATS, [book, codes])


def times_power(builder: Any, value: Any, whole: Any) -> Any:
    """value · 2ⁿ for whole numbers n in float32, however large or small."""
    if HAS_POWERS:
        name, everywhere, as_set = "llvm.x86.avx512.mask.scalef.ps.512", I16(-1), I32(4)
        return call(builder, name, FLOATS, [value, whole, value, everywhere, as_set])
    # In two factors, for 2¹²⁸ is no float32 although exp(88.7) is.
    exponent = builder.fptosi(whole, INTS)
    half = builder.ashr(exponent, all_lanes(I32, 1))
    for part in (half, builder.sub(exponent, half)):
        bits = builder.shl(builder.add(part, all_lanes(I32, 127)), all_lanes(I32, 23))
        value = builder.fmul(value, builder.bitcast(bits, FLOATS))
    return value


class _Bfloat16(ir.Type):  # type: ignore[misc]
    """LLVM's type of one bfloat16, which llvmlite has no name for."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat16)

    def __hash__(self) -> int:
        return hash("bfloat")


# Another multiplies 32 bfloat16 by 32 others and adds the products, two by two, to sixteen float32.
HAS_PAIR_SUMS = _has("avx512bf16")
_PAIRS = ir.VectorType(_Bfloat16(), 2 * LANES)


def add_pairs(builder: Any, a: Any, b: Any, sums: Any) -> Any:
    """sums + the products of a's and b's bfloat16, two in each lane (int32)."""
    if HAS_PAIR_SUMS:
        pairs = [builder.bitcast(value, _PAIRS) for value in (a, b)]
        return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, [sums, *pairs])
    for half in (upper_half, lower_half):
        sums = fma(builder, half(builder, a), half(builder, b), sums)
    return sums


# A third multiplies 64 whole numbers of 8 bits, the one without and the other with a sign, and adds the products, four
# by four, to sixteen of 32 bits.
HAS_PRODUCTS = _has("avx512vnni")


def add_products(builder: Any, a: Any, b: Any, sums: Any) -> Any:
    """sums + the products of a's bytes and b's, four in each lane (int32); b's have a sign."""
    return call(builder, "llvm.x86.avx512.vpdpbusd.512", INTS, [sums, a, b])


def to_bfloat16(builder: Any, value: Any, kind: Any, constant: Callable[[int], Any]) -> Any:
    """A float32's bits as a bfloat16's, in the lower half of an integer of this kind."""
    # Round to nearest, ties to even, as torch does; a NaN keeps its upper half and is made a quiet one.
    bits = builder.bitcast(value, kind)
    upper = builder.lshr(bits, constant(16))
    rounded = builder.add(bits, builder.add(builder.and_(upper, constant(1)), constant(0x7FFF)))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.select(is_nan, builder.or_(upper, constant(64)), builder.lshr(rounded, constant(16)))


def lanes_to_bfloat16(builder: Any, value: Any) -> Any:
    """The same in each lane."""
    return to_bfloat16(builder, value, INTS, lambda number: all_lanes(I32, number))


def rounded(builder: Any, value: Any) -> Any:
    """Sixteen float32 as the bfloat16 (int16) that `add_pairs` takes; under 2⁻¹²⁶ they may be 0, as they are there."""
    if HAS_PAIR_SUMS:
        narrow = builder.fptrunc(value, ir.VectorType(_Bfloat16(), LANES))
        return builder.bitcast(narrow, ir.VectorType(I16, LANES))
    return builder.trunc(lanes_to_bfloat16(builder, value), ir.VectorType(I16, LANES))


def rounded_pairs(builder: Any, first: Any, second: Any) -> Any:
    """Two vectors rounded to bfloat16: the first's numbers in the lower halves of the lanes, the second's above."""
    lower, upper = (builder.zext(rounded(builder, value), INTS) for value in (first, second))
    return builder.or_(lower, builder.shl(upper, all_lanes(I32, 16)))


def lower_half(builder: Any, pairs: Any) -> Any:
    """The first bfloat16 of each lane, as float32."""
    return builder.bitcast(builder.shl(pairs, all_lanes(I32, 16)), FLOATS)


def upper_half(builder: Any, pairs: Any) -> Any:
    """The second."""
    return builder.bitcast(builder.and_(pairs, all_lanes(I32, 0xFFFF0000)), FLOATS)


# How a format's numbers become float32. Each takes an address and gives one vector.


def load_float32(builder: Any, address: Any) -> Any:
    """Sixteen float32."""
    return read(builder, address, FLOATS)


def load_bfloat16(builder: Any, address: Any) -> Any:
    """Sixteen bfloat16."""
    # A bfloat16 is the upper half of a float32.
    wide = builder.zext(read(builder, address, ir.VectorType(I16, LANES)), INTS)
    return builder.bitcast(builder.shl(wide, all_lanes(I32, 16)), FLOATS)


def load_float16(builder: Any, address: Any) -> Any:
    """Sixteen float16."""
    return builder.fpext(read(builder, address, ir.VectorType(HALF, LANES)), FLOATS)


def load_int8(builder: Any, address: Any) -> Any:
    """Sixteen codes of int8."""
    return builder.sitofp(builder.sext(read(builder, address, ir.VectorType(I8, LANES)), INTS), FLOATS)


def load_int4(builder: Any, address: Any) -> list[Any]:
    """The 32 codes of a group of int4."""
    # Sixteen bytes: the low halves are the group's first sixteen codes, the high halves the rest. Widened first and
    # masked then, for lanes of 8 bits have no shifts of their own on x86.
    wide = builder.zext(read(builder, address, ir.VectorType(I8, LANES)), INTS)
    halves = builder.and_(wide, all_lanes(I32, 15)), builder.lshr(wide, all_lanes(I32, 4))
    return [builder.sitofp(half, FLOATS) for half in halves]


def load_int4_by_book(builder: Any, address: Any, affine: list[Any]) -> list[Any]:
    """The 32 numbers of a group of int4 with its scale and offset: all sixteen that can be are made first."""
    book = fma(builder, ir.Constant(FLOATS, list(map(float, range(LANES)))), *affine)
    wide = builder.zext(read(builder, address, ir.VectorType(I8, LANES)), INTS)
    return [choose_from(builder, book, codes) for codes in (wide, builder.lshr(wide, all_lanes(I32, 4)))]


def load_scale(builder: Any, address: Any) -> list[Any]:
    """The scale of a group of int8."""
    # One bfloat16, widened among the integers, which have nothing else to do.
    bits = builder.shl(builder.zext(read(builder, address, I16), I32), I32(16))
    return [broadcast(builder, builder.bitcast(bits, FLOAT))]


def load_affine(builder: Any, address: Any) -> list[Any]:
    """The scale and the offset of a group of int4."""
    # Scale and offset, two bfloat16 side by side, in one reading.
    both = broadcast(builder, read(builder, address, I32))
    return [lower_half(builder, both), upper_half(builder, both)]

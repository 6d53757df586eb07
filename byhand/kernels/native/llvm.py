"""How LLVM is asked for arithmetic on sixteen float32 at once: what vectors.py and tiles.py are written with.

Everything is LLVM's generic vector arithmetic, which it lowers to AVX-512, to two AVX2 registers or to four NEON
ones alike; only `choose_from` names a processor, and is used on no other. Memory is named by addresses (int64, bytes);
reading needs no alignment.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import binding, ir
from numba.core import cgutils as _cgutils

LANES = 16

# What Numba's published types leave out.
cgutils: Any = _cgutils
numba_config: Any = numba.config
FLOAT, HALF, DOUBLE = ir.FloatType(), ir.HalfType(), ir.DoubleType()
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOATS = ir.VectorType(FLOAT, LANES)
INTS = ir.VectorType(I32, LANES)


def all_lanes(kind: ir.Type, value: float) -> ir.Constant:
    """A constant in every lane."""
    return ir.Constant(ir.VectorType(kind, LANES), [value] * LANES)


def spread(builder: Any, value: Any) -> Any:
    """A scalar in every lane."""
    kind = ir.VectorType(value.type, LANES)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(INTS, [0] * LANES))


def read(builder: Any, address: Any, kind: ir.Type) -> Any:
    """What lies at an address."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1, typ=kind)


def fetch_early(builder: Any, address: Any) -> None:
    """Ask for the line of memory at an address, which need not exist, for one reading and no more."""
    place = builder.inttoptr(address, I8.as_pointer())
    # A reading (0) with no locality (0), of data (1): what is read once must not push out what others come back to.
    call(builder, "llvm.prefetch.p0", ir.VoidType(), [place, I32(0), I32(0), I32(1)])


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


def _has(feature: str) -> bool:
    """Whether the processor that Numba compiles for has a feature."""
    if numba_config.CPU_NAME or numba_config.CPU_FEATURES is not None:
        return f"+{feature}" in str(numba_config.CPU_FEATURES or "").split(",")
    return bool(binding.get_host_cpu_features().get(feature))


# The one instruction that is asked for by a processor's own name: AVX-512's choice of sixteen numbers by the lower four
# bits of sixteen lanes. It is a whole code book in one step; without it tiles.py converts and scales the codes.
HAS_CODE_BOOKS = _has("avx512f")


def choose_from(builder: Any, book: Any, codes: Any) -> Any:
    """book[code & 15] for the code in each lane."""
    return call(builder, "llvm.x86.avx512.permvar.sf.512", FLOATS, [book, codes])


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


def load_int4_by_book(builder: Any, address: Any, line: list[Any]) -> list[Any]:
    """The 32 numbers of a group of int4 with its scale and offset: all sixteen that can be are made first."""
    book = fma(builder, ir.Constant(FLOATS, list(map(float, range(LANES)))), *line)
    wide = builder.zext(read(builder, address, ir.VectorType(I8, LANES)), INTS)
    return [choose_from(builder, book, codes) for codes in (wide, builder.lshr(wide, all_lanes(I32, 4)))]


def load_scale(builder: Any, address: Any) -> list[Any]:
    """The scale of a group of int8."""
    # One bfloat16, widened among the integers, which have nothing else to do.
    bits = builder.shl(builder.zext(read(builder, address, I16), I32), I32(16))
    return [spread(builder, builder.bitcast(bits, FLOAT))]


def load_line(builder: Any, address: Any) -> list[Any]:
    """The scale and the offset of a group of int4."""
    # Scale and offset, two bfloat16 side by side, in one reading.
    both = spread(builder, read(builder, address, I32))
    scale, offset = builder.shl(both, all_lanes(I32, 16)), builder.and_(both, all_lanes(I32, 0xFFFF0000))
    return [builder.bitcast(bits, FLOATS) for bits in (scale, offset)]

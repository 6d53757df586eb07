"""Runs a list of kernels, one after another, each in partitions that the threads take: a whole block in one call.

An entry of the list is five int64: the kernel's machine code, its table of arguments, its partitions, and two counters
that start at 0: partitions taken, partitions done. Nobody waits for a thread that has taken nothing: one that comes
late, or never, costs time and no more.
"""

from __future__ import annotations

import platform
import sys
from typing import Any

from llvmlite import ir
from numba import prange, types

from byhand.kernels.native import llvm
from byhand.kernels.native.compiled import inlined
from byhand.kernels.native.llvm import cgutils
from byhand.kernels.native.vectors import argument, put_integer, take_ticket, typed

ENTRY = 5
# Looks at a counter before the thread offers its processor to others.
PATIENCE = 4096
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
IS_WINDOWS = sys.platform == "win32"

_BYTES = llvm.I8.as_pointer()
_FAILURE = ir.LiteralStructType([_BYTES, llvm.I32, _BYTES, _BYTES, llvm.I32]).as_pointer()
# How Numba's functions are called: where the result goes, where a failure goes, the arguments.
_KERNEL = ir.FunctionType(llvm.I32, [_BYTES.as_pointer(), _FAILURE.as_pointer(), llvm.I64, llvm.I64])


@typed(types.void, types.int64, types.int64, types.int64)
def call_kernel(builder: Any, function: Any, table: Any, partition: Any) -> Any:
    """Call the machine code at an address with a table of arguments and the number of a partition."""
    results = [cgutils.alloca_once(builder, kind) for kind in (_BYTES, _FAILURE)]
    return builder.call(builder.inttoptr(function, _KERNEL.as_pointer()), [*results, table, partition])


@typed(types.int64, types.int64)
def look(builder: Any, address: Any) -> Any:
    """The int64 at an address that other threads count up, with all that they wrote before."""
    return builder.load_atomic(builder.inttoptr(address, llvm.I64.as_pointer()), "acquire", 8)


@typed(types.void, types.int64)
def count_up(builder: Any, address: Any) -> Any:
    """Add one to the int64 at an address; who sees it sees all that was written before."""
    return builder.atomic_rmw("add", builder.inttoptr(address, llvm.I64.as_pointer()), llvm.I64(1), "release")


@typed(types.void)
def pause(builder: Any) -> Any:
    """Wait a moment."""
    if IS_X86:
        llvm.call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])


@typed(types.void)
def yield_processor(builder: Any) -> Any:
    """Let other threads have the processor."""
    if not IS_WINDOWS:
        kind = ir.FunctionType(llvm.I32, [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])


@inlined
def work(entries, count):
    """What one thread does: of each entry, partitions as long as there are any; then wait until all are done."""
    for number in range(count):
        entry = entries + 8 * ENTRY * number
        partitions = argument(entry, 2)
        while look(entry + 24) < partitions:
            partition = take_ticket(entry + 24, 1)
            if partition < partitions:
                call_kernel(argument(entry, 0), argument(entry, 1), partition)
                count_up(entry + 32)
        looks = 0
        while look(entry + 32) < partitions:
            looks += 1
            pause()
            if looks % PATIENCE == 0:
                yield_processor()


def run_list(entries, count, threads):
    """Run a list of kernels with so many threads."""
    for number in range(count):
        put_integer(entries + 8 * (ENTRY * number + 3), 0)
        put_integer(entries + 8 * (ENTRY * number + 4), 0)
    if threads == 1:
        for number in range(count):
            entry = entries + 8 * ENTRY * number
            for partition in range(argument(entry, 2)):
                call_kernel(argument(entry, 0), argument(entry, 1), partition)
    else:
        for _ in prange(threads):
            work(entries, count)

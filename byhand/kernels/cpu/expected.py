"""Which kernels a model will call: its layers say it while they are made, so that all can be compiled before it runs.

`cpu/__init__.py` chooses among these as the rows of a pass are few or many.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from byhand.kernels.cpu.operands import Matrix
from byhand.kernels.native.panels import WIDE

ALWAYS = ("run_list", "topk_lse")
# What only passes of many rows call is loaded when the first of them comes.
_FOR_MANY_ROWS = re.compile("(linear|gated_[a-z_]+)_many_|pack_")


def usual(weight_format: str, cached: str, *, fast: bool = False) -> set[str]:
    """What most models call, with weights in one format and the cache in another: worth loading before one is known."""
    products = few_rows("linear", weight_format, fast=fast) | few_rows("gated_silu", weight_format, fast=fast)
    return {*ALWAYS, "rms_norm", f"embedding_{weight_format}", *products, *of_attention([WIDE], cached, fast=fast)}


def loaded_at_once(names: Iterable[str]) -> list[str]:
    """Those of some kernels that a short prompt needs."""
    return [name for name in names if not _FOR_MANY_ROWS.match(name)]


def of_layer(call: str, matrices: Sequence[Matrix], *, fast: bool) -> set[str]:
    """What one of the backend's methods calls, over matrices if it takes any."""
    if call == "embedding":
        [matrix] = matrices
        by_rows = not matrix.stored_in_columns and matrix.inner == matrix.weight.shape[1]
        return {f"embedding_{matrix.format}"} if by_rows else set()
    if call == "linear" or call.startswith("gated_"):
        return _of_product(call, matrices, fast=fast)
    return {call if call.endswith("_norm") else f"act_{call}"}


def of_attention(head_dims: Iterable[int], cached: str, *, fast: bool) -> set[str]:
    """What attention calls for heads of these sizes."""
    many = {f"attend_many_{'rounded_' if fast and size % WIDE == 0 else ''}{cached}" for size in head_dims}
    return {f"write_kv_{cached}", f"attend_splits_{cached}", "combine_splits", *many}


def _of_product(call: str, matrices: Sequence[Matrix], *, fast: bool) -> set[str]:
    first = matrices[0]
    if any(matrix.stored_in_columns or matrix.format != first.format for matrix in matrices):
        if call != "linear":
            return {call.replace("gated", "act_and_mul")}.union(
                *(_of_product("linear", [matrix], fast=fast) for matrix in matrices)
            )
        return {f"linear_columns_{first.format}"}
    names = few_rows(call, first.format, fast=fast)
    if all(matrix.can_be_transposed for matrix in matrices):
        rounded = fast and first.format != "float32"
        names |= {many_rows(call, first.format, rounded=rounded), f"pack_{'bfloat16' if rounded else 'float32'}"}
    return names


def few_rows(call: str, weight_format: str, *, fast: bool) -> set[str]:
    """`linear` or `gated_silu`, `gated_gelu`, … for few rows of activations: some of them may be rounded first."""
    rounding = {"round_rows", f"{call}_rounded"} if fast and weight_format == "bfloat16" else set()
    return {f"{call}_{weight_format}", *rounding}


def many_rows(call: str, weight_format: str, *, rounded: bool) -> str:
    """`linear` or `gated_silu`, `gated_gelu`, … for many rows."""
    return f"{call}_many_rounded_{weight_format}" if rounded else f"{call}_many_{weight_format}"

"""The kernels of the CPU backend in Numba, without torch: what there is, and for which formats.

Read in this order: llvm and vectors (registers), tiles and codes (formats), products, panels, rows, attention, chunks
(the arithmetic), team (who runs it), compiled and compiling (when it is compiled, and where).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

from byhand.formats import float_formats, formats
from byhand.kernels.native import attention as attention_page
from byhand.kernels.native import chunks, codes, llvm, panels, products, rows, team, tiles, topk_lse, vectors
from byhand.kernels.native.compiled import Kernel, cache_folder, specialise

FLOATS = float_formats()
FORMATS = tuple(formats())


_PRODUCTS = [
    products.add_tails, products.multiply_one, products.multiply_eight, products.multiply_few, products.multiply_rows,
    products.multiply_partition, products.linear,
]  # fmt: skip
_PANELS = [panels.accumulate_rows, panels.sum_tile, panels.tile_of_linear, panels.linear_many]


GATED = tuple(f"gated_{name}" for name in vectors.ACTIVATIONS)


@cache
def _gate_into(name: str) -> Any:
    """`products.gate_into` by one of the activation functions."""
    return specialise([products.gate_into], {"activation": vectors.ACTIVATIONS[name]}, name)["gate_into"]


def _tiles(weight_format: tiles.TileFormat, unroll: int) -> dict[str, Any]:
    return {
        "BLOCK": weight_format.block,
        "BLOCK_BYTES": weight_format.block_bytes,
        "SCALE_BYTES": weight_format.scale_bytes,
        "one_by_one": tiles.tile(weight_format, 1, 1, 2),
        "two_by_one": tiles.tile(weight_format, 2, 1, unroll),
        "four_by_two": tiles.tile(weight_format, 4, 2),
        "four_by_three": tiles.tile(weight_format, 4, 3),
        "four_by_four": tiles.tile(weight_format, 4, 4),
        "two_by_eight": tiles.tile(weight_format, 2, 8),
        **(codes.for_one_row() if weight_format.in_whole_numbers and llvm.HAS_PRODUCTS else {}),
    }


def _products(name: str) -> list[Kernel]:
    weight_format = tiles.FORMATS[name]
    templates = [*_PRODUCTS, products.embedding, products.add_rows, products.columns_partition, products.linear_columns]
    names = {
        **_tiles(weight_format, weight_format.unroll),
        "BYTES": vectors.SIZES.get(name, 1),
        "load": vectors.LOADS.get(name, vectors.load_float32),
        "one": vectors.ONES.get(name, vectors.one_float32),
        "unpack": tiles.unpacking(weight_format),
    }
    scope = specialise(templates, names, name)
    made = ("linear", "embedding", *(("linear_columns",) if name in FLOATS else ()))
    return [*(Kernel(scope[kernel].py_func) for kernel in made), *_gated(products.gated, scope, name)]


def _gated(template: Any, scope: dict[str, Any], label: str) -> list[Kernel]:
    """The kernels of a gate by each activation function, over the products of a scope."""
    made = []
    for name in vectors.ACTIVATIONS:
        function = FunctionType(template.__code__, {**scope, "gate_into": _gate_into(name)}, f"gated_{name}_{label}")
        function.__qualname__ = function.__name__
        made.append(Kernel(function))
    return made


def _rounded_products() -> list[Kernel]:
    """linear and gated over weights and activations in bfloat16."""
    one = vectors.one_bfloat16
    names = {**_tiles(tiles.PAIRS, 2), "BYTES": 2, "X_BYTES": 2, "one": one, "one_x": one}
    scope = specialise(_PRODUCTS, names, "rounded")
    return [Kernel(scope["linear"].py_func), *_gated(products.gated, scope, "rounded")]


def _many(name: str, products: str) -> list[Kernel]:
    """linear and gated for many rows: of weights in a format, products "exact" or "rounded" to bfloat16."""
    weight_format, rounded = tiles.FORMATS[name], products == "rounded"
    transpose = tiles.transposing(weight_format, early=panels.WIDE, pairs=rounded)
    if rounded and name == "bfloat16":  # pairs as they are, moved like float32
        weight_format, transpose = tiles.PAIRS, tiles.transposing(tiles.FORMATS["float32"], early=panels.WIDE)
    names = {
        "BLOCK": weight_format.block,
        "BLOCK_BYTES": weight_format.block_bytes,
        "SCALE_BYTES": weight_format.scale_bytes,
        "transpose": transpose,
    }
    if rounded:
        names["STEP"] = 2
        names |= {
            f"accumulate_{count}": tiles.accumulation(tiles.PAIRS, rows, 2)
            for count, rows in panels.ACCUMULATED.items()
        }
    label = f"rounded_{name}" if rounded else name
    scope = specialise(_PANELS, names, label)
    return [Kernel(scope["linear_many"].py_func), *_gated(panels.gated_many, scope, f"many_{label}")]


def _packing(name: str) -> list[Kernel]:
    names = {"STEP": 2, "put_some": vectors.store_rounded} if name == "bfloat16" else {}
    scope = specialise([panels.pack], names, name)
    return [Kernel(scope["pack"].py_func)]


def _attention(name: str) -> list[Kernel]:
    page = attention_page
    templates = [page.write_row, page.score_some, page.weighted_sum, page.attend_split, page.write_keys]
    weight_format = tiles.FORMATS[name]
    counts = ("one", "two", "three", "four")
    names = {
        "BYTES": vectors.SIZES[name],
        "one": vectors.ONES[name],
        "put_one": vectors.PUTS[name],
        "put_some": vectors.STORES[name],
        "accumulate_narrow": tiles.accumulation(weight_format, 1, 1),
        **{f"accumulate_{count}": tiles.accumulation(weight_format, rows, 4) for rows, count in enumerate(counts, 1)},
        **{f"{count}_heads": tiles.tile(weight_format, 4, rows) for rows, count in enumerate(counts, 1)},
        "one_head": tiles.tile(weight_format, 4, 1),
    }
    made = [page.write_kv, page.attend_splits]
    scope = specialise([*templates, *made], names, name)
    return [Kernel(scope[kernel.__name__].py_func) for kernel in made]


def _chunks(name: str, products: str) -> list[Kernel]:
    """Attention of many rows over a cache in this dtype, with products that are "exact" or "rounded"."""
    weight_format, rounded = tiles.FORMATS[name], products == "rounded"
    label = f"rounded_{name}" if rounded else name
    names = {
        "BYTES": vectors.SIZES[name],
        "one": vectors.ONES[name],
        "transpose": tiles.transposing(weight_format, pairs=rounded),
        "unpack": tiles.unpacking(weight_format),
        "pair": tiles.pairing(weight_format),
    }
    if rounded:
        names |= {"STEP": 2, "put_some": vectors.store_rounded, **chunks.accumulations(tiles.PAIRS, label)}
    if rounded and name == "bfloat16":  # pairs as they are, moved like float32
        names |= {"BLOCK": tiles.PAIRS.block, "transpose": tiles.transposing(tiles.FORMATS["float32"])}
    templates = [chunks.multiply_into, chunks.take_page, chunks.take_query, chunks.soften_row, chunks.attend_rows]
    scope = specialise([*templates, chunks.attend_many], names, label)
    return [Kernel(scope["attend_many"].py_func)]


def _activation(name: str) -> list[Kernel]:
    names = {"activation": vectors.ACTIVATIONS[name], "gate_into": _gate_into(name)}
    scope = specialise([rows.act, rows.act_and_mul], names, name)
    return [Kernel(scope["act"].py_func), Kernel(scope["act_and_mul"].py_func)]


def _rest() -> list[Kernel]:
    small = (rows.rms_norm, rows.layer_norm, rows.round_rows, topk_lse.topk_lse)
    run_list = Kernel(team.run_list, "void(int64, int64, int64)", parallel=True)
    return [*map(Kernel, (*small, attention_page.combine_splits)), run_list]


@cache
def _makers() -> dict[str, tuple[Any, ...]]:
    """For each kernel who makes it, and of what."""
    return {
        **{
            f"{kind}_{weight_format}": (_products, weight_format)
            for kind in ("linear", *GATED, "embedding")
            for weight_format in FORMATS
        },
        **{f"linear_columns_{weight_format}": (_products, weight_format) for weight_format in FLOATS},
        **{f"{kind}_rounded": (_rounded_products,) for kind in ("linear", *GATED)},
        **{
            f"{kind}_many_{weight_format}": (_many, weight_format, "exact")
            for kind in ("linear", *GATED)
            for weight_format in FORMATS
        },
        **{
            f"{kind}_many_rounded_{weight_format}": (_many, weight_format, "rounded")
            for kind in ("linear", *GATED)
            for weight_format in FORMATS
        },
        **{f"pack_{weight_format}": (_packing, weight_format) for weight_format in ("float32", "bfloat16")},
        **{
            f"{kind}_{weight_format}": (_attention, weight_format)
            for kind in ("write_kv", "attend_splits")
            for weight_format in FLOATS
        },
        **{f"attend_many_{weight_format}": (_chunks, weight_format, "exact") for weight_format in FLOATS},
        **{f"attend_many_rounded_{weight_format}": (_chunks, weight_format, "rounded") for weight_format in FLOATS},
        **{f"{kind}_{name}": (_activation, name) for kind in ("act", "act_and_mul") for name in vectors.ACTIVATIONS},
        **dict.fromkeys(("rms_norm", "layer_norm", "round_rows", "topk_lse"), (_rest,)),
        **dict.fromkeys(("combine_splits", "run_list"), (_rest,)),
    }


@cache
def _made(make: Callable[..., list[Kernel]], *of: str) -> dict[str, Kernel]:
    return {kernel.name: kernel for kernel in make(*of)}


def maker(name: str) -> tuple[Any, ...]:
    """Who makes a kernel, and of what: those of one maker share their functions."""
    found: tuple[Any, ...] = _makers()[name]
    return found


def kernel(name: str) -> Kernel:
    """A kernel by name: run_list, linear_bfloat16, attend_splits_float32, rms_norm, act_relu, …

    Others of its kind are made with it and no more: Numba looks through all that was ever made when it loads the first.
    """
    return _made(*maker(name))[name]


def kernels() -> dict[str, Kernel]:
    """Every kernel by name."""
    return {name: kernel(name) for name in _makers()}


def whether_kept() -> str:
    """What becomes of compiled kernels, for a note."""
    if cache_folder() is None:
        return "for this run only, as their cache cannot be written (BYHAND_CACHE names another folder)"
    return "once, the next run finds them ready"

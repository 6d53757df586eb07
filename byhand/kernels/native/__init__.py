"""The kernels of the CPU backend in Numba, without torch: what there is, and for which formats.

Read in this order: llvm and vectors (registers), tiles and codes (formats), products, panels, rows, attention, chunks
(the arithmetic), team (who runs it), compiled and compiling (when it is compiled, and where).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from byhand.formats import float_formats, formats
from byhand.kernels.native import attention as attention_page
from byhand.kernels.native import chunks, codes, llvm, panels, products, rows, team, tiles, topk_lse, vectors
from byhand.kernels.native.compiled import Kernel, cache_folder, specialise

FLOATS = float_formats()
FORMATS = tuple(formats())


_PRODUCTS = [
    products.add_tails, products.multiply_one, products.multiply_eight, products.multiply_few, products.multiply_rows,
    products.multiply_partition, products.linear, products.gated,
]  # fmt: skip
_PANELS = [panels.mix_rows, panels.sum_tile, panels.tile_of_linear, panels.linear_many, panels.gated_many]


@cache
def _gate_into(curve: str) -> Any:
    """`products.gate_into` by one of the curves."""
    return specialise([products.gate_into], {"bend": vectors.CURVES[curve]}, curve)["gate_into"]


def _tiles(form: tiles.Format, unroll: int) -> dict[str, Any]:
    return {
        "BLOCK": form.block,
        "BLOCK_BYTES": form.block_bytes,
        "SCALE_BYTES": form.scale_bytes,
        "one_by_one": tiles.tile(form, 1, 1, 2),
        "two_by_one": tiles.tile(form, 2, 1, unroll),
        "four_by_two": tiles.tile(form, 4, 2),
        "four_by_three": tiles.tile(form, 4, 3),
        "four_by_four": tiles.tile(form, 4, 4),
        "two_by_eight": tiles.tile(form, 2, 8),
        **(codes.for_one_row() if form.in_whole_numbers and llvm.HAS_PRODUCTS else {}),
    }


def _products(name: str) -> list[Kernel]:
    form = tiles.FORMATS[name]
    templates = [*_PRODUCTS, products.embedding, products.add_rows, products.columns_partition, products.linear_columns]
    names = {
        **_tiles(form, form.unroll),
        "BYTES": vectors.SIZES.get(name, 1),
        "gate_into": _gate_into("silu"),
        "load": vectors.LOADS.get(name, vectors.load_float32),
        "one": vectors.ONES.get(name, vectors.one_float32),
        "unpack": tiles.unpacking(form),
    }
    scope = specialise(templates, names, name)
    made = ("linear", "gated", "embedding", *(("linear_columns",) if name in FLOATS else ()))
    return [Kernel(scope[kernel].py_func) for kernel in made]


def _rounded_products() -> list[Kernel]:
    """linear and gated over weights and activations in bfloat16."""
    one = vectors.one_bfloat16
    names = {**_tiles(tiles.PAIRS, 2), "BYTES": 2, "X_BYTES": 2, "one": one, "one_x": one}
    names["gate_into"] = _gate_into("silu")
    scope = specialise(_PRODUCTS, names, "rounded")
    return [Kernel(scope[kernel].py_func) for kernel in ("linear", "gated")]


def _many(name: str, products: str) -> list[Kernel]:
    """linear and gated for many rows: of weights in a format, products "exact" or "rounded" to bfloat16."""
    form, rounded = tiles.FORMATS[name], products == "rounded"
    turn = tiles.turning(form, early=panels.WIDE, pairs=rounded)
    if rounded and name == "bfloat16":  # pairs as they are, moved like float32
        form, turn = tiles.PAIRS, tiles.turning(tiles.FORMATS["float32"], early=panels.WIDE)
    names = {"BLOCK": form.block, "BLOCK_BYTES": form.block_bytes, "SCALE_BYTES": form.scale_bytes, "turn": turn}
    names["gate_into"] = _gate_into("silu")
    if rounded:
        names["STEP"] = 2
        names |= {f"mix_{count}": tiles.mixture(tiles.PAIRS, rows, 2) for count, rows in panels.MIXTURES.items()}
    scope = specialise(_PANELS, names, f"rounded_{name}" if rounded else name)
    return [Kernel(scope[kernel].py_func) for kernel in ("linear_many", "gated_many")]


def _packing(name: str) -> list[Kernel]:
    names = {"STEP": 2, "put_some": vectors.store_rounded} if name == "bfloat16" else {}
    scope = specialise([panels.pack], names, name)
    return [Kernel(scope["pack"].py_func)]


def _attention(name: str) -> list[Kernel]:
    page = attention_page
    templates = [page.write_row, page.score_some, page.weigh_some, page.attend_part, page.write_keys]
    form = tiles.FORMATS[name]
    counts = ("one", "two", "three", "four")
    names = {
        "BYTES": vectors.SIZES[name],
        "one": vectors.ONES[name],
        "put_one": vectors.PUTS[name],
        "put_some": vectors.STORES[name],
        "mix_narrow": tiles.mixture(form, 1, 1),
        **{f"mix_{count}": tiles.mixture(form, rows, 4) for rows, count in enumerate(counts, 1)},
        **{f"{count}_heads": tiles.tile(form, 4, rows) for rows, count in enumerate(counts, 1)},
        "one_head": tiles.tile(form, 4, 1),
    }
    made = [page.write_kv, page.attend_parts]
    scope = specialise([*templates, *made], names, name)
    return [Kernel(scope[kernel.__name__].py_func) for kernel in made]


def _chunks(name: str, products: str) -> list[Kernel]:
    """Attention of many rows over a cache in this dtype, with products that are "exact" or "rounded"."""
    form, rounded = tiles.FORMATS[name], products == "rounded"
    label = f"rounded_{name}" if rounded else name
    names = {
        "BYTES": vectors.SIZES[name],
        "one": vectors.ONES[name],
        "turn": tiles.turning(form, pairs=rounded),
        "unpack": tiles.unpacking(form),
        "pair": tiles.pairing(form),
    }
    if rounded:
        names |= {"STEP": 2, "put_some": vectors.store_rounded, **chunks.mixing(tiles.PAIRS, label)}
    if rounded and name == "bfloat16":  # pairs as they are, moved like float32
        names |= {"BLOCK": tiles.PAIRS.block, "turn": tiles.turning(tiles.FORMATS["float32"])}
    templates = [chunks.multiply_into, chunks.take_page, chunks.take_query, chunks.soften_row, chunks.attend_rows]
    scope = specialise([*templates, chunks.attend_many], names, label)
    return [Kernel(scope["attend_many"].py_func)]


def _curve(name: str) -> list[Kernel]:
    names = {"bend": vectors.CURVES[name], "gate_into": _gate_into(name)}
    scope = specialise([rows.curve, rows.curve_mul], names, name)
    return [Kernel(scope["curve"].py_func), Kernel(scope["curve_mul"].py_func)]


def _rest() -> list[Kernel]:
    small = (rows.rms_norm, rows.layer_norm, rows.round_rows, topk_lse.topk_lse)
    run_list = Kernel(team.run_list, "void(int64, int64, int64)", parallel=True)
    return [*map(Kernel, (*small, attention_page.gather_rows)), run_list]


@cache
def _makers() -> dict[str, tuple[Any, ...]]:
    """For each kernel who makes it, and of what."""
    return {
        **{f"{kind}_{form}": (_products, form) for kind in ("linear", "gated", "embedding") for form in FORMATS},
        **{f"linear_columns_{form}": (_products, form) for form in FLOATS},
        **{f"{kind}_rounded": (_rounded_products,) for kind in ("linear", "gated")},
        **{f"{kind}_many_{form}": (_many, form, "exact") for kind in ("linear", "gated") for form in FORMATS},
        **{f"{kind}_many_rounded_{form}": (_many, form, "rounded") for kind in ("linear", "gated") for form in FORMATS},
        **{f"pack_{form}": (_packing, form) for form in ("float32", "bfloat16")},
        **{f"{kind}_{form}": (_attention, form) for kind in ("write_kv", "attend_parts") for form in FLOATS},
        **{f"attend_many_{form}": (_chunks, form, "exact") for form in FLOATS},
        **{f"attend_many_rounded_{form}": (_chunks, form, "rounded") for form in FLOATS},
        **{f"{kind}_{name}": (_curve, name) for kind in ("curve", "curve_mul") for name in vectors.CURVES},
        **dict.fromkeys(("rms_norm", "layer_norm", "round_rows", "topk_lse"), (_rest,)),
        **dict.fromkeys(("gather_rows", "run_list"), (_rest,)),
    }


@cache
def _made(make: Callable[..., list[Kernel]], *of: str) -> dict[str, Kernel]:
    return {kernel.name: kernel for kernel in make(*of)}


def maker(name: str) -> tuple[Any, ...]:
    """Who makes a kernel, and of what: those of one maker share their functions."""
    found: tuple[Any, ...] = _makers()[name]
    return found


def kernel(name: str) -> Kernel:
    """A kernel by name: run_list, linear_bfloat16, attend_parts_float32, rms_norm, curve_relu, …

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

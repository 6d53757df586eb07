"""What kernels are called with: each takes a table of int64, whose numbers have names here.

Who calls makes a table by the names, `Norm(x=…, eps=bits(1e-5), …)`: addresses, counts, and float32 in the lower half.
A kernel reads it by them, `argument(at, NORM.x)`. Every table begins with the partitions, which whoever runs it puts
in front. An address of 0 stands for nothing.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

T = TypeVar("T")


def numbered(kind: type[T], first: int = 1) -> T:
    """The table whose numbers are their own places: in a kernel, its names."""
    fields: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
    return kind(*range(first, first + len(fields)))


PARTITIONS = 0


class Linear(NamedTuple):
    """Products of one x with up to three matrices, of which each has an `Operand` behind this table."""

    x: int  # (rows, inner) float32, rounded or packed, as the kernel's name says
    x_stride: int  # bytes from row to row; nothing where x is packed
    rows: int
    inner: int
    residual: int  # (rows, out) of the first matrix


class Operand(NamedTuple):
    """A matrix (out, inner) of a product, and where the result goes."""

    weights: int = 0
    scales: int = 0
    out: int = 0
    bias: int = 0  # (out,)
    y: int = 0  # (rows, out)


class Gated(NamedTuple):
    """Two products of one x, the one through an activation function times the other."""

    x: int
    x_stride: int
    rows: int
    inner: int
    out: int
    gate_weights: int
    gate_scales: int
    gate_bias: int
    gate: int  # (rows, out) to work in; nothing for many rows
    up_weights: int
    up_scales: int
    up_bias: int
    y: int


class LinearColumns(NamedTuple):
    """A product with a matrix that is stored as (inner, out)."""

    x: int
    rows: int
    inner: int
    residual: int
    weights: int
    out: int
    bias: int
    y: int


class Pack(NamedTuple):
    """x (rows, inner) in the order in which products of many rows read it."""

    x: int
    y: int
    rows: int
    inner: int


class Embed(NamedTuple):
    """The rows of weights that ids (rows,) name: y (rows, inner)."""

    ids: int
    rows: int
    weights: int
    scales: int
    inner: int
    y: int


class Norm(NamedTuple):
    """y (rows, size) = x, normed row by row, times weight (size,), plus bias, plus residual (rows, size)."""

    x: int
    weight: int
    bias: int  # nothing for rms_norm
    eps: int
    y: int
    rows: int
    size: int
    residual: int


class Elementwise(NamedTuple):
    """y (size,) of x (size,), and of `other` where there are two."""

    x: int
    other: int
    y: int
    size: int


class Attend(NamedTuple):
    """Attention of rows of queries, after their keys and values are written: all its kernels take this one table."""

    tickets: int  # one int64, by which partitions take work
    q: int  # (rows, heads · head_dim), and the bytes from row to row
    q_stride: int
    k: int  # (rows, kv heads · head_dim); nothing where they are in the cache already
    k_stride: int
    v: int
    v_stride: int
    heads: int
    kv_heads: int
    head_dim: int
    keys: int  # the layer's pages
    values: int
    window: int  # 0: none
    scale: int  # float32, as softcap is
    softcap: int
    slopes: int  # (heads,)
    sinks: int  # (heads,)
    work: int
    rotated: int  # as many numbers as q
    out: int  # (rows, heads · head_dim)
    batch: int  # the table of `BatchRows`
    angles: int  # the table of `Angles`


class BatchRows(NamedTuple):
    """A pass's rows, laid out once for all layers. Not a kernel's table: nothing stands in front."""

    rows: int
    slots: int  # (rows,): where each row's key and value go
    plan: int  # (rows, 2): position, address of the run's pages
    longest: int  # context
    runs: int  # (how many, 4): first row, rows, address of the pages, context
    run_count: int


class Angles(NamedTuple):
    """By what rows are rotated, (rows, head_dim) each; nothing where they are not. Nothing stands in front."""

    cos: int
    sin: int


class TopkLse(NamedTuple):
    """The best of each row of logits, a partition a row."""

    counts: int  # (rows,): how many
    logits: int  # (rows, size)
    size: int
    most: int  # the largest count
    values: int  # (rows, most), as ids
    ids: int
    results: int  # (rows, 3) float64: whether all is finite, mass, moment


LINEAR, GATED, LINEAR_COLUMNS = numbered(Linear), numbered(Gated), numbered(LinearColumns)
OPERAND, FIRST_OPERAND, OPERANDS, OPERAND_SIZE = numbered(Operand, 0), len(Linear._fields) + 1, 3, len(Operand._fields)
PACK, EMBED, NORM, ELEMENTWISE = numbered(Pack), numbered(Embed), numbered(Norm), numbered(Elementwise)
ATTEND, BATCH, ANGLES, TOPK_LSE = numbered(Attend), numbered(BatchRows, 0), numbered(Angles, 0), numbered(TopkLse)

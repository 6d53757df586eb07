"""Kernels: the arithmetic of a pass, in several backends with the same names, signatures and meaning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from byhand.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch
    from torch import Tensor

    from byhand.cache.kv_cache import Batch, KVCache
    from byhand.formats import Weight


# Of a row of logits: the best k ids, falling, and their logits; and over all others the sums of
# w = exp(logit - highest) and of w · (logit - highest), in float64.
TopkLse = tuple[list[int], list[float], float, float]

# From position_ids (N,) to the cosines and sines, (N, head_dim) float32 each, by which queries and keys are rotated.
Rotary: TypeAlias = "Callable[[Tensor], tuple[Tensor, Tensor]]"


class Kernels(Protocol):
    """What every backend offers. N counts tokens; activations and sums are float32 whatever the weights are."""

    def expect(self, call: str, *weights: Weight) -> None:
        """A layer says that it will call the method of this name, with these weights."""

    def load(self, weight_format: str, cache_dtype: torch.dtype) -> None:
        """Make a beginning, while a model with weights of a format is built: nothing that takes long."""

    def prepare(self, head_dims: Iterable[int], cache_dtype: torch.dtype) -> None:
        """Make ready for what was expected, and attention over such a cache: what is to be compiled is compiled now."""

    def blocks(self, layers: Sequence[Callable[..., Tensor]], x: Tensor, batch: Batch, cache: KVCache) -> Tensor:
        """Blocks of a model, one after another: layer(x, batch, cache).

        A backend may run all their kernels as one call; the next call may overwrite the result.
        """

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """x (N, in) times weight (out, in) transposed, plus bias (out,), plus residual (N, out): (N, out)."""

    def linears(self, x: Tensor, weights: Sequence[Weight], biases: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """`linear` with each of several weights, read in one go."""

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

    def embedding(self, ids: Tensor, weight: Weight) -> Tensor:
        """The rows of weight (vocab, hidden) that ids (N,) name: (N, hidden)."""

    def topk_lse(self, logits: Tensor, counts: Sequence[int]) -> list[TopkLse | None]:
        """What each row of logits (rows, vocab) says of its best k, or None where the sampler's own way is as good."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
        """x (..., size) over its root mean square, times weight (size,), plus residual, of x's shape."""

    def layer_norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, residual: Tensor | None = None
    ) -> Tensor:
        """x (..., size) less its mean, over its standard deviation, times weight, plus bias, plus residual."""

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (N, heads, head_dim) rotated by its position's angles, cos and sin (N, head_dim)."""

    def relu(self, x: Tensor) -> Tensor:
        """max(x, 0)."""

    def gelu(self, x: Tensor) -> Tensor:
        """x times the normal distribution function at x, by erf."""

    def gelu_tanh(self, x: Tensor) -> Tensor:
        """The approximation of gelu by tanh that GPT-2 was trained with."""

    def silu(self, x: Tensor) -> Tensor:
        """x times its sigmoid."""

    def act_and_mul(self, activation: str, gate: Tensor, up: Tensor) -> Tensor:
        """An activation function of gate, by its name, times up."""

    def attention(
        self,
        q: Tensor,
        cache: KVCache,
        layer: int,
        batch: Batch,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        slopes: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Causal attention of q (N, heads, head_dim) to its run's keys and values in the pages: same shape as q.

        `window`: only the last `window` keys, the query's own included. `softcap`: scores become
        softcap · tanh(score / softcap). `slopes` (heads,): ALiBi, slope · (key position − query position) is added.
        `sinks` (heads,): one more score per head that takes its part of the softmax and gives no value.
        """

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rotary: Rotary | None,
        cache: KVCache,
        layer: int,
        batch: Batch,
        **options: Any,
    ) -> Tensor:
        """Rotate q and k if there is a rotary embedding, write k and v into the batch's slots of the cache, then
        `attention` with its options. q and the result are (N, heads · head_dim), k and v (N, kv heads · head_dim).
        """


BACKENDS = ("cpu", "reference")
NAMES = ("auto", *BACKENDS)


def backends() -> tuple[str, ...]:
    """The names of the backends: one file each in this folder."""
    return BACKENDS


def backend(name: str = "reference", **options: Any) -> Kernels:
    """Open a backend by name; the options are `cpu.Cpu`'s."""
    if name not in BACKENDS:
        raise BadRequest(f"kernels is {name!r}; it must be one of {', '.join(BACKENDS)}", param="kernels")
    module = import_module(f"{__name__}.{name}")
    return cast(Kernels, module if name == "reference" else module.Cpu(**options))


def open_kernels(
    name: str, device: torch.device, note: Callable[[str], None], *, threads: int | None, prefill: str
) -> Kernels:
    """The kernels for a device: "auto" takes the fastest that run; a note says why a processor gets slow ones."""
    if name not in NAMES:
        raise BadRequest(f"kernels is {name!r}; it must be one of {', '.join(NAMES)}", param="kernels")
    if name == "cpu" and device.type != "cpu":
        raise BadRequest(f"kernels is 'cpu', but the device is {device}", param="kernels")
    if name == "reference" or device.type != "cpu":
        return backend("reference")
    try:
        return backend("cpu", threads=threads, prefill=prefill, note=note)
    except ImportError as error:  # Numba is missing, or refuses the NumPy that is here
        if name == "cpu":
            raise BadRequest(f"kernels is 'cpu', but Numba cannot be imported: {error}", param="kernels") from error
        note(f"Numba cannot be imported ({error}), so the slow reference kernels run")
        return backend("reference")

"""What all decoders have in common: an embedding, blocks that each add to a stream, a last norm; the head apart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from byhand.cache.kv_cache import Batch, KVCache
from byhand.formats import described
from byhand.kernels import reference
from byhand.layers.attention import Attention
from byhand.layers.linear import Head
from byhand.layers.norm import Norm
from byhand.layers.observing import Layer, Observer
from byhand.weights import Weights


class Block(Layer, ABC):
    """One layer of a decoder. An architecture's own says which parts it has, and in which order they add to x."""

    activations = ("resid_pre", "resid_mid", "resid_post")

    @abstractmethod
    def __call__(self, x: Tensor, batch: Batch, cache: KVCache) -> Tensor:
        """x (N, hidden) → (N, hidden)."""


class Decoder(Layer, ABC):
    """The whole. An architecture's Model makes the parts, and embeds."""

    activations = ("embed", "final")

    def __init__(
        self,
        config: Any,
        weights: Weights,
        *,
        context_length: int,
        blocks: Sequence[Block],
        norm: Norm | None,
        lm_head: Head,
    ) -> None:
        self.config = config
        self.kernels = lm_head.kernels
        self.device = weights.device
        self.formats = weights.formats
        self.dtype = described(self.formats.values())
        self.vocab_size: int = config.vocab_size
        self.context_length = context_length
        self.lm_head = lm_head
        self.norm = norm
        self.blocks = list(blocks)
        self._stack = [*self.blocks, *([] if norm is None else [norm])]
        self.layer_specs = tuple(part.spec for block in blocks for part in parts(block) if isinstance(part, Attention))

    @abstractmethod
    def embed(self, batch: Batch) -> Tensor:
        """What the first block reads: (N, hidden)."""

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Read the batch, write its keys and values: (N, hidden) after the final norm."""
        if self.observer is None:
            return self.kernels.blocks(self._stack, self.embed(batch), batch, cache)
        # Blocks that run as one call show nothing between their kernels. One by one they give the same bits.
        x = self.show("embed", self.embed(batch))
        return self.show("final", reference.blocks(self._stack, x, batch, cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every next token: (rows, hidden) → (rows, vocab)."""
        return self.lm_head(hidden)

    def observe(self, observer: Observer | None) -> None:
        """Have every part tell an observer its activations from the next pass on; None: nobody."""
        for path, layer in self.named_layers():
            layer.path, layer.observer = path, observer

    def activation_names(self) -> list[str]:
        """All that an observer is told of, in the order of a pass but for the parts of a block: "layers.3.attn.q"."""
        return [path + name for path, layer in self.named_layers() for name in layer.activations]

    def named_layers(self) -> Iterator[tuple[str, Layer]]:
        """Every part that shows something, by what stands before its names."""
        yield "", self
        for number, block in enumerate(self.blocks):
            yield f"layers.{number}.", block
            for part in parts(block):
                yield f"layers.{number}.{'attn' if isinstance(part, Attention) else 'mlp'}.", part


def parts(block: Block) -> list[Layer]:
    """The parts of a block that name activations: attention and MLP."""
    return [part for part in vars(block).values() if isinstance(part, Layer)]

"""Qwen3: Llama with a norm on each head's query and key before they are rotated, and a window on some layers.

arXiv:2505.09388.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from byhand.config import MAX_LAYERS, ConfigFields
from byhand.kernels import Kernels, Rotary
from byhand.layers import Attention, RMSNorm
from byhand.models import llama
from byhand.weights import Weights

MODEL_TYPES = ("qwen3",)
IGNORED = llama.IGNORED


class Config(llama.Config):
    """config.json, checked."""

    __slots__ = ()

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Read and check; BadConfig names what is wrong."""
        fields = ConfigFields(config)
        windows = fields.windows(fields.integer("num_hidden_layers", high=MAX_LAYERS))
        bias = fields.flag("attention_bias", False)
        return cls.read(fields, head_dim=128, qkv_bias=bias, o_bias=bias, mlp_bias=False, windows=windows)


class Block(llama.Block):
    """One layer."""

    def attention(
        self, config: llama.Config, layer: int, weights: Weights, kernels: Kernels, rotary: Rotary
    ) -> Attention:
        """Llama's, with the two norms."""
        q_norm, k_norm = (
            RMSNorm(kernels, weights.at(name), config.head_dim, config.rms_norm_eps) for name in ("q_norm", "k_norm")
        )
        return llama.attention(config, layer, weights, kernels, rotary, q_norm=q_norm, k_norm=k_norm)


class Model(llama.Model):
    """The whole."""

    block = Block

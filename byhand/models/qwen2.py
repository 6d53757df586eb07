"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and a window on some layers.

arXiv:2407.10671, arXiv:2412.15115.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from byhand.config import MAX_LAYERS, ConfigFields
from byhand.models import llama
from byhand.models.llama import Model

__all__ = ["IGNORED", "MODEL_TYPES", "Config", "Model"]

MODEL_TYPES = ("qwen2",)
IGNORED = llama.IGNORED


class Config(llama.Config):
    """config.json, checked."""

    __slots__ = ()

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Read and check; BadConfig names what is wrong."""
        fields = ConfigFields(config)
        windows = fields.windows(fields.integer("num_hidden_layers", high=MAX_LAYERS))
        return cls.read(fields, qkv_bias=True, o_bias=False, mlp_bias=False, windows=windows)

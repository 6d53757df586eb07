"""Qwen2 and Qwen2.5: Llama's shape, with biases on queries, keys and values.

arXiv:2407.10671, arXiv:2412.15115.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from byhand.cache.kv_cache import Batch, KVCache, LayerSpec
from byhand.config import MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, ConfigFields
from byhand.kernels import Kernels
from byhand.layers import ACTIVATIONS, Embedding, Gated, Head, Linear, RMSNorm, Together
from byhand.rope import RopeParameters, Rotary
from byhand.weights import Weights

MODEL_TYPES = ("qwen2",)
IGNORED = (r".*rotary_emb\.inv_freq",)

TINY: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "sliding_window": 5,
    "use_sliding_window": False,
    "max_window_layers": 1,
    "tie_word_embeddings": False,
}
TINY_VARIANTS: dict[str, dict[str, Any]] = {
    "multi_head": {"num_key_value_heads": None, "rope_theta": 10000.0},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 1},
    "window": {"use_sliding_window": True},
    "window_by_layer_types": {
        "use_sliding_window": True,
        "sliding_window": 9,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "rope_yarn": {
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        "rope_theta": 1000.0,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
    },
    "rope_linear": {
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
        "hidden_act": "gelu",
    },
}


@dataclass(frozen=True, slots=True)
class Config:
    """config.json, checked."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    hidden_act: str
    windows: tuple[int | None, ...]
    tie_word_embeddings: bool
    rope: RopeParameters

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Config:
        """Read and check; BadConfig names what is wrong."""
        fields = ConfigFields(config)
        layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
        heads = fields.integer("num_attention_heads", high=MAX_HEADS)
        return cls(
            vocab_size=fields.integer("vocab_size"),
            hidden_size=fields.integer("hidden_size"),
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=fields.key_value_heads(heads),
            head_dim=fields.rotary_head_dim(),
            max_position_embeddings=fields.integer("max_position_embeddings", high=MAX_POSITIONS),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6, high=1.0),
            hidden_act=fields.choice("hidden_act", "silu", ACTIVATIONS),
            windows=fields.windows(layers),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            rope=RopeParameters.from_json(fields),
        )


class Attention:
    """Grouped-query attention with rotated queries and keys."""

    def __init__(self, config: Config, layer: int, weights: Weights, kernels: Kernels) -> None:
        self.kernels = kernels
        self.layer = layer
        self.head_dim = config.head_dim
        self.window = config.windows[layer]
        hidden = config.hidden_size
        query_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(kernels, weights.at("q_proj"), hidden, query_size, bias=True)
        self.k_proj = Linear(kernels, weights.at("k_proj"), hidden, kv_size, bias=True)
        self.v_proj = Linear(kernels, weights.at("v_proj"), hidden, kv_size, bias=True)
        self.o_proj = Linear(kernels, weights.at("o_proj"), query_size, hidden, bias=False)
        self.qkv = Together(self.q_proj, self.k_proj, self.v_proj)

    def __call__(
        self, x: Tensor, residual: Tensor, batch: Batch, cache: KVCache, angles: tuple[Tensor, Tensor]
    ) -> Tensor:
        """x (N, hidden) → residual (N, hidden) + what was attended to; the rows' keys and values are in the cache."""
        q, k, v = self.qkv(x)  # (N, heads · head_dim), and twice (N, kv heads · head_dim)
        z = self.kernels.attend(
            q, k, v, angles, cache, self.layer, batch, scale=self.head_dim**-0.5, window=self.window
        )
        return self.o_proj(z, residual)


class MLP:
    """The gated feed-forward part: down(act(gate(x)) · up(x))."""

    def __init__(self, config: Config, weights: Weights, kernels: Kernels) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(kernels, weights.at("gate_proj"), hidden, inner, bias=False)
        self.up_proj = Linear(kernels, weights.at("up_proj"), hidden, inner, bias=False)
        self.down_proj = Linear(kernels, weights.at("down_proj"), inner, hidden, bias=False)
        self.gated = Gated(config.hidden_act, self.gate_proj, self.up_proj)

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """x (N, hidden) → residual (N, hidden) + what the MLP makes of x."""
        return self.down_proj(self.gated(x), residual)


class Block:
    """One layer: attention and MLP, each after a norm, each added to what came in."""

    def __init__(self, config: Config, layer: int, weights: Weights, kernels: Kernels) -> None:
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(kernels, weights.at("input_layernorm"), size, eps)
        self.self_attn = Attention(config, layer, weights.at("self_attn"), kernels)
        self.post_attention_layernorm = RMSNorm(kernels, weights.at("post_attention_layernorm"), size, eps)
        self.mlp = MLP(config, weights.at("mlp"), kernels)

    def __call__(self, x: Tensor, batch: Batch, cache: KVCache, angles: tuple[Tensor, Tensor]) -> Tensor:
        """x (N, hidden) → (N, hidden)."""
        x = self.self_attn(self.input_layernorm(x), x, batch, cache, angles)
        return self.mlp(self.post_attention_layernorm(x), x)


class Model:
    """The whole: embedding, layers, norm; and the head, apart, so that it is paid only for the rows asked for."""

    def __init__(self, config: Config, weights: Weights, kernels: Kernels) -> None:
        self.config = config
        self.kernels = kernels
        self.vocab_size = config.vocab_size
        self.context_length = config.max_position_embeddings
        self.device = weights.device
        self.layer_specs = tuple(
            LayerSpec(config.num_key_value_heads, config.head_dim, window) for window in config.windows
        )

        body = weights.under_first(("model", ""), "norm.weight")
        embedding, head = weights.tied_pair(
            body.name("embed_tokens.weight"),
            "lm_head.weight",
            (config.vocab_size, config.hidden_size),
            tie=config.tie_word_embeddings,
        )
        self.dtype = embedding.format
        self.embed_tokens = Embedding(kernels, embedding)
        self.rotary = Rotary(config.rope, config.head_dim, weights.device)
        self.layers = [
            Block(config, layer, body.at("layers").at(layer), kernels) for layer in range(config.num_hidden_layers)
        ]
        self.norm = RMSNorm(kernels, body.at("norm"), config.hidden_size, config.rms_norm_eps)
        self.lm_head = Head(kernels, head)

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Read the batch, write its keys and values: (N, hidden) after the final norm."""
        x = self.embed_tokens(batch.input_ids)
        angles = self.rotary(batch.position_ids)
        return self.kernels.blocks([*self.layers, self.norm], x, batch, cache, angles)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every next token: (rows, hidden) → (rows, vocab)."""
        return self.lm_head(hidden)

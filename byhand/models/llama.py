"""Llama, and Mistral, which is Llama with a sliding window.

Llama 2: arXiv:2307.09288. Llama 3: arXiv:2407.21783. Mistral 7B: arXiv:2310.06825.
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

MODEL_TYPES = ("llama", "mistral")
IGNORED = (r".*rotary_emb\.inv_freq",)

TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
TINY_VARIANTS: dict[str, dict[str, Any]] = {
    "multi_head": {"num_key_value_heads": None},
    "multi_query": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "head_dim": {"head_dim": 20, "hidden_act": "gelu_pytorch_tanh"},
    "rope_linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "rope_dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "rope_llama3": {
        "rope_theta": 500000.0,
        "rope_scaling": {**_LLAMA3, "original_max_position_embeddings": 32},
        "head_dim": 16,
    },
    "rope_yarn": {"rope_parameters": {**_YARN, "rope_theta": 1000.0}, "rope_theta": None, "head_dim": 16},
    "rope_yarn_mscale": {
        "rope_scaling": {**_YARN, "beta_fast": 2, "beta_slow": 0.25, "mscale": 0.7, "mscale_all_dim": 1.3},
        "head_dim": 16,
    },
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral_window": {"model_type": "mistral", "sliding_window": 7},
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
    attention_bias: bool
    mlp_bias: bool
    sliding_window: int | None
    tie_word_embeddings: bool
    rope: RopeParameters

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Config:
        """Read and check; BadConfig names what is wrong."""
        fields = ConfigFields(config)
        is_mistral = config.get("model_type") == "mistral"
        heads = fields.integer("num_attention_heads", high=MAX_HEADS)
        return cls(
            vocab_size=fields.integer("vocab_size"),
            hidden_size=fields.integer("hidden_size"),
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
            num_attention_heads=heads,
            num_key_value_heads=fields.key_value_heads(heads),
            head_dim=fields.rotary_head_dim(),
            max_position_embeddings=fields.integer("max_position_embeddings", high=MAX_POSITIONS),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6, high=1.0),
            hidden_act=fields.choice("hidden_act", "silu", ACTIVATIONS),
            attention_bias=not is_mistral and fields.flag("attention_bias", False),
            mlp_bias=not is_mistral and fields.flag("mlp_bias", False),
            sliding_window=_read_window(fields) if is_mistral else None,
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            rope=RopeParameters.from_json(fields),
        )


def _read_window(fields: ConfigFields) -> int | None:
    # Absent means 4,096, as in Mistral 7B v0.1; null means none, as in the later ones.
    if "sliding_window" in fields.fields and not fields.has("sliding_window"):
        return None
    return fields.integer("sliding_window", 4096, high=MAX_POSITIONS)


class Attention:
    """Grouped-query attention with rotated queries and keys."""

    def __init__(self, config: Config, layer: int, weights: Weights, kernels: Kernels) -> None:
        self.kernels = kernels
        self.layer = layer
        self.head_dim = config.head_dim
        self.window = config.sliding_window
        hidden, bias = config.hidden_size, config.attention_bias
        query_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(kernels, weights.at("q_proj"), hidden, query_size, bias=bias)
        self.k_proj = Linear(kernels, weights.at("k_proj"), hidden, kv_size, bias=bias)
        self.v_proj = Linear(kernels, weights.at("v_proj"), hidden, kv_size, bias=bias)
        self.o_proj = Linear(kernels, weights.at("o_proj"), query_size, hidden, bias=bias)
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
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(kernels, weights.at("gate_proj"), hidden, inner, bias=bias)
        self.up_proj = Linear(kernels, weights.at("up_proj"), hidden, inner, bias=bias)
        self.down_proj = Linear(kernels, weights.at("down_proj"), inner, hidden, bias=bias)
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
        spec = LayerSpec(config.num_key_value_heads, config.head_dim, config.sliding_window)
        self.layer_specs = (spec,) * config.num_hidden_layers

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

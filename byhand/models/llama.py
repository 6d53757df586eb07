"""Llama, and Mistral, which is Llama with a sliding window.

Llama 2: arXiv:2307.09288. Llama 3: arXiv:2407.21783. Mistral 7B: arXiv:2310.06825.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from byhand.cache.kv_cache import Batch, KVCache
from byhand.config import MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, ConfigFields
from byhand.kernels import Kernels, Rotary
from byhand.layers import ACTIVATIONS, Attention, Decoder, Embedding, GatedMLP, Head, Linear, MergedLinear, RMSNorm
from byhand.layers import Block as AnyBlock
from byhand.layers.rope import RopeParameters, RotaryEmbedding
from byhand.weights import Weights

MODEL_TYPES = ("llama", "mistral")
IGNORED = (r".*rotary_emb\.inv_freq",)


@dataclass(frozen=True, slots=True)
class Config:
    """config.json, checked. The biases and the windows are what its relatives say each in their own words."""

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
    tie_word_embeddings: bool
    rope: RopeParameters
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    windows: tuple[int | None, ...]  # of each layer

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Read and check; BadConfig names what is wrong."""
        fields = ConfigFields(config)
        is_mistral = config.get("model_type") == "mistral"
        bias = not is_mistral and fields.flag("attention_bias", False)
        mlp_bias = not is_mistral and fields.flag("mlp_bias", False)
        window = _read_window(fields) if is_mistral else None
        layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
        return cls.read(fields, qkv_bias=bias, o_bias=bias, mlp_bias=mlp_bias, windows=(window,) * layers)

    @classmethod
    def read(cls, fields: ConfigFields, *, head_dim: int | None = None, rms_norm_eps: float = 1e-6, **own: Any) -> Self:
        """What all relatives call the same; `own` is the rest. `head_dim`, `rms_norm_eps`: where there is none."""
        heads = fields.integer("num_attention_heads", high=MAX_HEADS)
        return cls(
            vocab_size=fields.integer("vocab_size"),
            hidden_size=fields.integer("hidden_size"),
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
            num_attention_heads=heads,
            num_key_value_heads=fields.key_value_heads(heads),
            head_dim=fields.rotary_head_dim(head_dim),
            max_position_embeddings=fields.integer("max_position_embeddings", high=MAX_POSITIONS),
            rms_norm_eps=fields.number("rms_norm_eps", rms_norm_eps, high=1.0),
            hidden_act=fields.choice("hidden_act", "silu", ACTIVATIONS),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            rope=RopeParameters.from_json(fields),
            **own,
        )


def _read_window(fields: ConfigFields) -> int | None:
    # Absent means 4,096, as in Mistral 7B v0.1; null means none, as in the later ones.
    if "sliding_window" in fields.fields and not fields.has("sliding_window"):
        return None
    return fields.integer("sliding_window", 4096, high=MAX_POSITIONS)


def attention(config: Config, layer: int, weights: Weights, kernels: Kernels, rotary: Rotary, **more: Any) -> Attention:
    """Grouped-query attention with rotated queries and keys; `more` is what a relative has besides."""
    hidden, head_dim = config.hidden_size, config.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    sizes = {"q_proj": heads * head_dim, "k_proj": kv_heads * head_dim, "v_proj": kv_heads * head_dim}
    qkv = (Linear(kernels, weights.at(name), hidden, size, bias=config.qkv_bias) for name, size in sizes.items())
    o_proj = Linear(kernels, weights.at("o_proj"), heads * head_dim, hidden, bias=config.o_bias)
    window = config.windows[layer]
    return Attention(MergedLinear(*qkv), o_proj, layer=layer, head_dim=head_dim, rotary=rotary, window=window, **more)


def mlp(config: Config, weights: Weights, kernels: Kernels) -> GatedMLP:
    """The gated feed-forward part."""
    hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
    gate, up = (Linear(kernels, weights.at(name), hidden, inner, bias=bias) for name in ("gate_proj", "up_proj"))
    return GatedMLP(config.hidden_act, gate, up, Linear(kernels, weights.at("down_proj"), inner, hidden, bias=bias))


class Block(AnyBlock):
    """One layer: attention and MLP, each after a norm, each added to what came in."""

    def __init__(self, config: Config, layer: int, weights: Weights, kernels: Kernels, rotary: Rotary) -> None:
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(kernels, weights.at("input_layernorm"), size, eps)
        self.self_attn = self.attention(config, layer, weights.at("self_attn"), kernels, rotary)
        self.post_attention_layernorm = RMSNorm(kernels, weights.at("post_attention_layernorm"), size, eps)
        self.mlp = mlp(config, weights.at("mlp"), kernels)

    def attention(self, config: Config, layer: int, weights: Weights, kernels: Kernels, rotary: Rotary) -> Attention:
        """The layer's attention, which a relative may make differently."""
        return attention(config, layer, weights, kernels, rotary)

    def __call__(self, x: Tensor, batch: Batch, cache: KVCache) -> Tensor:
        """x (N, hidden) → (N, hidden)."""
        x = self.show("resid_pre", x)
        x = self.show("resid_mid", self.self_attn(self.input_layernorm(x), x, batch, cache))
        return self.show("resid_post", self.mlp(self.post_attention_layernorm(x), x))


class Model(Decoder):
    """The whole: embedding, layers, norm, head. `block`: what a relative's layers are."""

    block: type[Block] = Block

    def __init__(self, config: Config, weights: Weights, kernels: Kernels) -> None:
        body = weights.under_first(("model", ""), "norm.weight")
        embedding, head = weights.tied_pair(
            body.name("embed_tokens.weight"),
            "lm_head.weight",
            (config.vocab_size, config.hidden_size),
            tie=config.tie_word_embeddings,
        )
        self.embed_tokens = Embedding(kernels, embedding)
        rotary = RotaryEmbedding(config.rope, config.head_dim, weights.device)
        layers = (body.at("layers").at(layer) for layer in range(config.num_hidden_layers))
        super().__init__(
            config,
            weights,
            context_length=config.max_position_embeddings,
            blocks=[self.block(config, layer, own, kernels, rotary) for layer, own in enumerate(layers)],
            norm=RMSNorm(kernels, body.at("norm"), config.hidden_size, config.rms_norm_eps),
            lm_head=Head(kernels, head),
        )

    def embed(self, batch: Batch) -> Tensor:
        """The tokens' embeddings: (N, hidden)."""
        return self.embed_tokens(batch.input_ids)

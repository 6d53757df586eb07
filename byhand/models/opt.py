"""OPT: learned positions that begin at 2, and in one size, 350m, norms after each part and a narrower embedding.

arXiv:2205.01068.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from byhand.cache.kv_cache import Batch, KVCache, LayerSpec
from byhand.config import MAX_HEADS, MAX_LAYERS, ConfigFields
from byhand.kernels import Kernels
from byhand.layers import ACTIVATIONS, Embedding, Head, LayerNorm, Linear, Together, activation
from byhand.weights import Weights

LEARNED_POSITIONS = "max_position_embeddings"
MODEL_TYPES = ("opt",)
IGNORED = (r"(model\.)?decoder\.version",)

# The first two rows of the position table belong to padding, which is never run here.
POSITION_OFFSET = 2
LAYER_NORM_EPS = 1e-5

TINY: dict[str, Any] = {
    "model_type": "opt",
    "vocab_size": 128,
    "hidden_size": 48,
    "ffn_dim": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "word_embed_proj_dim": 48,
    "do_layer_norm_before": True,
    "activation_function": "relu",
}
TINY_VARIANTS: dict[str, dict[str, Any]] = {
    "350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 20},
    "projections": {"word_embed_proj_dim": 64, "num_hidden_layers": 2},
    "untied": {"tie_word_embeddings": False, "word_embed_proj_dim": None},
    "no_bias": {"enable_bias": False, "num_attention_heads": 12},
    "plain_norms": {"layer_norm_elementwise_affine": False, "activation_function": "gelu"},
    "no_final_norm": {"_remove_final_layer_norm": True, "num_attention_heads": 1},
}


@dataclass(frozen=True, slots=True)
class Config:
    """config.json, checked."""

    vocab_size: int
    hidden_size: int
    ffn_dim: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    max_position_embeddings: int
    word_embed_proj_dim: int
    do_layer_norm_before: bool
    has_final_layer_norm: bool
    layer_norm_elementwise_affine: bool
    enable_bias: bool
    activation_function: str
    tie_word_embeddings: bool

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Config:
        """Read and check; BadConfig names what is wrong."""
        fields = ConfigFields(config)
        hidden_size = fields.integer("hidden_size")
        norm_before = fields.flag("do_layer_norm_before", True)
        return cls(
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden_size,
            ffn_dim=fields.integer("ffn_dim"),
            num_hidden_layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
            num_attention_heads=fields.integer("num_attention_heads", high=MAX_HEADS),
            head_dim=fields.share("hidden_size", "num_attention_heads"),
            max_position_embeddings=fields.integer("max_position_embeddings"),
            word_embed_proj_dim=fields.integer("word_embed_proj_dim", hidden_size),
            do_layer_norm_before=norm_before,
            has_final_layer_norm=norm_before and not fields.flag("_remove_final_layer_norm", False),
            layer_norm_elementwise_affine=fields.flag("layer_norm_elementwise_affine", True),
            enable_bias=fields.flag("enable_bias", True),
            activation_function=fields.choice("activation_function", "relu", ACTIVATIONS),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        )


def _norm(config: Config, weights: Weights, kernels: Kernels) -> LayerNorm:
    affine = config.layer_norm_elementwise_affine
    return LayerNorm(kernels, weights, config.hidden_size, LAYER_NORM_EPS, affine=affine)


class Attention:
    """Multi-head attention."""

    def __init__(self, config: Config, layer: int, weights: Weights, kernels: Kernels) -> None:
        self.kernels = kernels
        self.layer = layer
        self.head_dim = config.head_dim
        hidden, bias = config.hidden_size, config.enable_bias
        self.q_proj = Linear(kernels, weights.at("q_proj"), hidden, hidden, bias=bias)
        self.k_proj = Linear(kernels, weights.at("k_proj"), hidden, hidden, bias=bias)
        self.v_proj = Linear(kernels, weights.at("v_proj"), hidden, hidden, bias=bias)
        self.out_proj = Linear(kernels, weights.at("out_proj"), hidden, hidden, bias=bias)
        self.qkv = Together(self.q_proj, self.k_proj, self.v_proj)

    def __call__(self, x: Tensor, residual: Tensor, batch: Batch, cache: KVCache) -> Tensor:
        """x (N, hidden) → residual (N, hidden) + what was attended to; the rows' keys and values are in the cache."""
        q, k, v = self.qkv(x)  # (N, heads · head_dim) each
        z = self.kernels.attend(q, k, v, None, cache, self.layer, batch, scale=self.head_dim**-0.5)
        return self.out_proj(z, residual)


class Block:
    """One layer, its norms before each part or, in 350m, after it."""

    def __init__(self, config: Config, layer: int, weights: Weights, kernels: Kernels) -> None:
        self.norm_before = config.do_layer_norm_before
        bias = config.enable_bias
        self.self_attn = Attention(config, layer, weights.at("self_attn"), kernels)
        self.self_attn_layer_norm = _norm(config, weights.at("self_attn_layer_norm"), kernels)
        self.fc1 = Linear(kernels, weights.at("fc1"), config.hidden_size, config.ffn_dim, bias=bias)
        self.fc2 = Linear(kernels, weights.at("fc2"), config.ffn_dim, config.hidden_size, bias=bias)
        self.final_layer_norm = _norm(config, weights.at("final_layer_norm"), kernels)
        self.act = activation(config.activation_function, kernels)

    def mlp(self, x: Tensor, residual: Tensor) -> Tensor:
        """x (N, hidden) → residual (N, hidden) + what the MLP makes of x."""
        return self.fc2(self.act(self.fc1(x)), residual)

    def __call__(self, x: Tensor, batch: Batch, cache: KVCache) -> Tensor:
        """x (N, hidden) → (N, hidden)."""
        if self.norm_before:
            x = self.self_attn(self.self_attn_layer_norm(x), x, batch, cache)
            return self.mlp(self.final_layer_norm(x), x)
        x = self.self_attn_layer_norm(self.self_attn(x, x, batch, cache))
        return self.final_layer_norm(self.mlp(x, x))


class Model:
    """The whole: two embeddings, layers, norm; and the head, apart, so that it is paid only for the rows asked for."""

    def __init__(self, config: Config, weights: Weights, kernels: Kernels) -> None:
        self.config = config
        self.kernels = kernels
        self.vocab_size = config.vocab_size
        self.context_length = config.max_position_embeddings
        self.device = weights.device
        self.layer_specs = (LayerSpec(config.num_attention_heads, config.head_dim),) * config.num_hidden_layers

        # Meta's own files were saved without the head, and so without its prefix.
        decoder = weights.under_first(("model.decoder", "decoder", ""), "embed_positions.weight")
        hidden, width = config.hidden_size, config.word_embed_proj_dim
        embedding, head = weights.tied_pair(
            decoder.name("embed_tokens.weight"),
            "lm_head.weight",
            (config.vocab_size, width),
            tie=config.tie_word_embeddings,
        )
        positions = config.max_position_embeddings + POSITION_OFFSET
        projects = width != hidden
        self.dtype = embedding.format
        self.embed_tokens = Embedding(kernels, embedding)
        self.embed_positions = Embedding(kernels, decoder.table("embed_positions.weight", positions, hidden))
        self.project_in = Linear(kernels, decoder.at("project_in"), width, hidden, bias=False) if projects else None
        self.layers = [
            Block(config, layer, decoder.at("layers").at(layer), kernels) for layer in range(config.num_hidden_layers)
        ]
        has_norm = config.has_final_layer_norm
        self.final_layer_norm = _norm(config, decoder.at("final_layer_norm"), kernels) if has_norm else None
        self.project_out = Linear(kernels, decoder.at("project_out"), hidden, width, bias=False) if projects else None
        self.lm_head = Head(kernels, head)

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Read the batch, write its keys and values: (N, word_embed_proj_dim), ready for the head."""
        x = self.embed_tokens(batch.input_ids)
        if self.project_in is not None:
            x = self.project_in(x)
        x = x + self.embed_positions(batch.position_ids + POSITION_OFFSET)
        norms = [] if self.final_layer_norm is None else [self.final_layer_norm]
        x = self.kernels.blocks([*self.layers, *norms], x, batch, cache)
        return x if self.project_out is None else self.project_out(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every next token: (rows, word_embed_proj_dim) → (rows, vocab)."""
        return self.lm_head(hidden)

"""OPT: learned positions that begin at 2, and in one size, 350m, norms after each part and a narrower embedding.

arXiv:2205.01068.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from byhand.cache.kv_cache import Batch, KVCache
from byhand.config import MAX_HEADS, MAX_LAYERS, ConfigFields
from byhand.kernels import Kernels
from byhand.layers import ACTIVATIONS, MLP, Attention, Decoder, Embedding, Head, LayerNorm, Linear, MergedLinear
from byhand.layers import Block as AnyBlock
from byhand.weights import Weights

LEARNED_POSITIONS = "max_position_embeddings"
MODEL_TYPES = ("opt",)
IGNORED = (r"(model\.)?decoder\.version",)

# The first two rows of the position table belong to padding, which is never run here.
POSITION_OFFSET = 2
LAYER_NORM_EPS = 1e-5


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


class Block(AnyBlock):
    """One layer, its norms before each part or, in 350m, after it."""

    def __init__(self, config: Config, layer: int, weights: Weights, kernels: Kernels) -> None:
        self.norm_before = config.do_layer_norm_before
        hidden, inner, bias = config.hidden_size, config.ffn_dim, config.enable_bias
        attn = weights.at("self_attn")
        qkv = (Linear(kernels, attn.at(name), hidden, hidden, bias=bias) for name in ("q_proj", "k_proj", "v_proj"))
        out_proj = Linear(kernels, attn.at("out_proj"), hidden, hidden, bias=bias)
        self.self_attn = Attention(MergedLinear(*qkv), out_proj, layer=layer, head_dim=config.head_dim)
        self.self_attn_layer_norm = _norm(config, weights.at("self_attn_layer_norm"), kernels)
        self.mlp = MLP(
            config.activation_function,
            Linear(kernels, weights.at("fc1"), hidden, inner, bias=bias),
            Linear(kernels, weights.at("fc2"), inner, hidden, bias=bias),
        )
        self.final_layer_norm = _norm(config, weights.at("final_layer_norm"), kernels)

    def __call__(self, x: Tensor, batch: Batch, cache: KVCache) -> Tensor:
        """x (N, hidden) → (N, hidden)."""
        x = self.show("resid_pre", x)
        if self.norm_before:
            x = self.show("resid_mid", self.self_attn(self.self_attn_layer_norm(x), x, batch, cache))
            return self.show("resid_post", self.mlp(self.final_layer_norm(x), x))
        x = self.show("resid_mid", self.self_attn_layer_norm(self.self_attn(x, x, batch, cache)))
        return self.show("resid_post", self.final_layer_norm(self.mlp(x, x)))


class Model(Decoder):
    """The whole: two embeddings, layers, norm, head, and in 350m a projection at each end."""

    def __init__(self, config: Config, weights: Weights, kernels: Kernels) -> None:
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
        projects, has_norm = width != hidden, config.has_final_layer_norm
        self.embed_tokens = Embedding(kernels, embedding)
        self.embed_positions = Embedding(kernels, decoder.table("embed_positions.weight", positions, hidden))
        self.project_in = Linear(kernels, decoder.at("project_in"), width, hidden, bias=False) if projects else None
        self.project_out = Linear(kernels, decoder.at("project_out"), hidden, width, bias=False) if projects else None
        layers = (decoder.at("layers").at(layer) for layer in range(config.num_hidden_layers))
        super().__init__(
            config,
            weights,
            context_length=config.max_position_embeddings,
            blocks=[Block(config, layer, own, kernels) for layer, own in enumerate(layers)],
            norm=_norm(config, decoder.at("final_layer_norm"), kernels) if has_norm else None,
            lm_head=Head(kernels, head),
        )

    def embed(self, batch: Batch) -> Tensor:
        """The embeddings of tokens and positions: (N, hidden)."""
        x = self.embed_tokens(batch.input_ids)
        if self.project_in is not None:
            x = self.project_in(x)
        return x + self.embed_positions(batch.position_ids + POSITION_OFFSET)

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Read the batch, write its keys and values: (N, word_embed_proj_dim), ready for the head."""
        x = super().forward(batch, cache)
        return x if self.project_out is None else self.project_out(x)

"""GPT-2: learned positions, layer norms before each part, one projection for queries, keys and values.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from byhand.cache.kv_cache import Batch, KVCache
from byhand.config import MAX_HEADS, MAX_LAYERS, MAX_SIZE, ConfigFields
from byhand.kernels import Kernels
from byhand.layers import ACTIVATIONS, MLP, Attention, Decoder, Embedding, Head, LayerNorm, Linear, SplitLinear
from byhand.layers import Block as AnyBlock
from byhand.weights import Weights

LEARNED_POSITIONS = "n_positions"
MODEL_TYPES = ("gpt2",)
# The causal mask, which old files store with every layer.
IGNORED = (r".*\battn\.bias", r".*\battn\.masked_bias")


@dataclass(frozen=True, slots=True)
class Config:
    """config.json, checked."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    head_dim: int
    activation_function: str
    layer_norm_epsilon: float
    scale_attn_weights: bool
    scale_attn_by_inverse_layer_idx: bool
    tie_word_embeddings: bool

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Config:
        """Read and check; BadConfig names what is wrong."""
        fields = ConfigFields(config)
        n_embd = fields.integer("n_embd")
        if fields.flag("add_cross_attention", False):
            fields.refuse("add_cross_attention", "false: only a decoder on its own can be run")
        return cls(
            vocab_size=fields.integer("vocab_size"),
            n_positions=fields.integer("n_positions"),
            n_embd=n_embd,
            n_layer=fields.integer("n_layer", high=MAX_LAYERS),
            n_head=fields.integer("n_head", high=MAX_HEADS),
            n_inner=fields.integer("n_inner", 4 * n_embd, high=4 * MAX_SIZE),
            head_dim=fields.share("n_embd", "n_head"),
            activation_function=fields.choice("activation_function", "gelu_new", ACTIVATIONS),
            layer_norm_epsilon=fields.number("layer_norm_epsilon", 1e-5, high=1.0),
            scale_attn_weights=fields.flag("scale_attn_weights", True),
            scale_attn_by_inverse_layer_idx=fields.flag("scale_attn_by_inverse_layer_idx", False),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        )

    def attention_scale(self, layer: int) -> float:
        """What the scores of a layer are multiplied by."""
        scale = self.head_dim**-0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale


def _conv1d(kernels: Kernels, weights: Weights, in_features: int, out_features: int) -> Linear:
    # GPT-2's own layer, a linear one whose weight is stored as (in, out).
    return Linear(kernels, weights, in_features, out_features, bias=True, transposed=True)


class Block(AnyBlock):
    """One layer: attention and MLP, each after a norm, each added to what came in."""

    def __init__(self, config: Config, layer: int, weights: Weights, kernels: Kernels) -> None:
        size, eps = config.n_embd, config.layer_norm_epsilon
        attn, mlp = weights.at("attn"), weights.at("mlp")
        self.ln_1 = LayerNorm(kernels, weights.at("ln_1"), size, eps)
        self.attn = Attention(
            SplitLinear(_conv1d(kernels, attn.at("c_attn"), size, 3 * size), size, size, size),
            _conv1d(kernels, attn.at("c_proj"), size, size),
            layer=layer,
            head_dim=config.head_dim,
            scale=config.attention_scale(layer),
        )
        self.ln_2 = LayerNorm(kernels, weights.at("ln_2"), size, eps)
        self.mlp = MLP(
            config.activation_function,
            _conv1d(kernels, mlp.at("c_fc"), size, config.n_inner),
            _conv1d(kernels, mlp.at("c_proj"), config.n_inner, size),
        )

    def __call__(self, x: Tensor, batch: Batch, cache: KVCache) -> Tensor:
        """x (N, hidden) → (N, hidden)."""
        x = self.show("resid_pre", x)
        x = self.show("resid_mid", self.attn(self.ln_1(x), x, batch, cache))
        return self.show("resid_post", self.mlp(self.ln_2(x), x))


class Model(Decoder):
    """The whole: two embeddings, layers, norm, head."""

    def __init__(self, config: Config, weights: Weights, kernels: Kernels) -> None:
        # The first files, OpenAI's own among them, were saved without the head and its prefix.
        body = weights.under_first(("transformer", ""), "ln_f.weight")
        embedding, head = weights.tied_pair(
            body.name("wte.weight"),
            "lm_head.weight",
            (config.vocab_size, config.n_embd),
            tie=config.tie_word_embeddings,
        )
        self.wte = Embedding(kernels, embedding)
        self.wpe = Embedding(kernels, body.table("wpe.weight", config.n_positions, config.n_embd))
        super().__init__(
            config,
            weights,
            context_length=config.n_positions,
            blocks=[Block(config, layer, body.at("h").at(layer), kernels) for layer in range(config.n_layer)],
            norm=LayerNorm(kernels, body.at("ln_f"), config.n_embd, config.layer_norm_epsilon),
            lm_head=Head(kernels, head),
        )

    def embed(self, batch: Batch) -> Tensor:
        """The embeddings of tokens and positions: (N, hidden)."""
        return self.wte(batch.input_ids) + self.wpe(batch.position_ids)

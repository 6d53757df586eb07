"""GPT-2: learned positions, layer norms before each part, one projection for queries, keys and values.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from byhand.cache.kv_cache import Batch, KVCache, LayerSpec
from byhand.config import MAX_HEADS, MAX_LAYERS, MAX_SIZE, ConfigFields
from byhand.kernels import Kernels
from byhand.layers import ACTIVATIONS, Embedding, Head, LayerNorm, Linear, activation
from byhand.weights import Weights

LEARNED_POSITIONS = "n_positions"
MODEL_TYPES = ("gpt2",)
# The causal mask, which old files store with every layer.
IGNORED = (r".*\battn\.bias", r".*\battn\.masked_bias")

TINY: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 128,
    "n_positions": 256,
    "n_ctx": 256,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}
TINY_VARIANTS: dict[str, dict[str, Any]] = {
    "untied": {"tie_word_embeddings": False},
    "inverse_layer_scale": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "unscaled": {"scale_attn_weights": False, "n_head": 12},
    "narrow_relu": {"n_inner": 40, "activation_function": "relu"},
    "wide_gelu": {"n_inner": 256, "activation_function": "gelu", "n_head": 1},
    "silu": {"activation_function": "silu", "layer_norm_epsilon": 1e-3, "n_layer": 2},
}


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


class Attention:
    """Multi-head attention."""

    def __init__(self, config: Config, layer: int, weights: Weights, kernels: Kernels) -> None:
        self.kernels = kernels
        self.layer = layer
        self.scale = config.attention_scale(layer)
        self.c_attn = _conv1d(kernels, weights.at("c_attn"), config.n_embd, 3 * config.n_embd)
        self.c_proj = _conv1d(kernels, weights.at("c_proj"), config.n_embd, config.n_embd)

    def __call__(self, x: Tensor, residual: Tensor, batch: Batch, cache: KVCache) -> Tensor:
        """x (N, hidden) → residual (N, hidden) + what was attended to; the rows' keys and values are in the cache."""
        q, k, v = self.c_attn(x).chunk(3, dim=1)  # (N, heads · head_dim) each
        z = self.kernels.attend(q, k, v, None, cache, self.layer, batch, scale=self.scale)
        return self.c_proj(z, residual)


class MLP:
    """The feed-forward part: c_proj(act(c_fc(x)))."""

    def __init__(self, config: Config, weights: Weights, kernels: Kernels) -> None:
        self.c_fc = _conv1d(kernels, weights.at("c_fc"), config.n_embd, config.n_inner)
        self.c_proj = _conv1d(kernels, weights.at("c_proj"), config.n_inner, config.n_embd)
        self.act = activation(config.activation_function, kernels)

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """x (N, hidden) → residual (N, hidden) + what the MLP makes of x."""
        return self.c_proj(self.act(self.c_fc(x)), residual)


class Block:
    """One layer: attention and MLP, each after a norm, each added to what came in."""

    def __init__(self, config: Config, layer: int, weights: Weights, kernels: Kernels) -> None:
        size, eps = config.n_embd, config.layer_norm_epsilon
        self.ln_1 = LayerNorm(kernels, weights.at("ln_1"), size, eps)
        self.attn = Attention(config, layer, weights.at("attn"), kernels)
        self.ln_2 = LayerNorm(kernels, weights.at("ln_2"), size, eps)
        self.mlp = MLP(config, weights.at("mlp"), kernels)

    def __call__(self, x: Tensor, batch: Batch, cache: KVCache) -> Tensor:
        """x (N, hidden) → (N, hidden)."""
        x = self.attn(self.ln_1(x), x, batch, cache)
        return self.mlp(self.ln_2(x), x)


class Model:
    """The whole: two embeddings, layers, norm; and the head, apart, so that it is paid only for the rows asked for."""

    def __init__(self, config: Config, weights: Weights, kernels: Kernels) -> None:
        self.config = config
        self.kernels = kernels
        self.vocab_size = config.vocab_size
        self.context_length = config.n_positions
        self.device = weights.device
        self.layer_specs = (LayerSpec(config.n_head, config.head_dim),) * config.n_layer

        # The first files, OpenAI's own among them, were saved without the head and its prefix.
        body = weights.under_first(("transformer", ""), "ln_f.weight")
        embedding, head = weights.tied_pair(
            body.name("wte.weight"),
            "lm_head.weight",
            (config.vocab_size, config.n_embd),
            tie=config.tie_word_embeddings,
        )
        self.dtype = embedding.format
        self.wte = Embedding(kernels, embedding)
        self.wpe = Embedding(kernels, body.table("wpe.weight", config.n_positions, config.n_embd))
        self.h = [Block(config, layer, body.at("h").at(layer), kernels) for layer in range(config.n_layer)]
        self.ln_f = LayerNorm(kernels, body.at("ln_f"), config.n_embd, config.layer_norm_epsilon)
        self.lm_head = Head(kernels, head)

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Read the batch, write its keys and values: (N, hidden) after the final norm."""
        x = self.wte(batch.input_ids) + self.wpe(batch.position_ids)
        return self.kernels.blocks([*self.h, self.ln_f], x, batch, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every next token: (rows, hidden) → (rows, vocab)."""
        return self.lm_head(hidden)

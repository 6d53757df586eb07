"""Shapes of real models, as config.json says them: their checkpoints are made on the spot, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from byhand.errors import BadRequest

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

SHAPES: dict[str, dict[str, Any]] = {
    # SmolLM2-135M
    "smol-135m": {
        **_LLAMA,
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "rope_theta": 100000.0,
        "max_position_embeddings": 8192,
    },
    # Llama-3.2-1B
    "llama-1b": {
        **_LLAMA,
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "max_position_embeddings": 131072,
    },
    "opt-125m": {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": 768,
        "word_embed_proj_dim": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 2048,
        "do_layer_norm_before": True,
        "activation_function": "relu",
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    },
    # For tests: everything of a Llama, in no time.
    "tiny": {
        **_LLAMA,
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
    },
}

Sizes = tuple[int, ...]


def shape_config(name: str) -> dict[str, Any]:
    """The config of a shape by its name."""
    if name not in SHAPES:
        raise BadRequest(f"--shape is {name!r}; it must be one of {', '.join(SHAPES)}", param="--shape")
    return SHAPES[name]


def tensors_of(config: Mapping[str, Any]) -> dict[str, Sizes]:
    """The tensors of a checkpoint with this config, by the names that its family gives them."""
    return _opt_tensors(config) if config["model_type"] == "opt" else _llama_tensors(config)


def _llama_tensors(config: Mapping[str, Any]) -> dict[str, Sizes]:
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    block: dict[str, Sizes] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layers = range(config["num_hidden_layers"])
    return {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        **{f"model.layers.{layer}.{name}.weight": sizes for layer in layers for name, sizes in block.items()},
        "model.norm.weight": (hidden,),
    }


def _opt_tensors(config: Mapping[str, Any]) -> dict[str, Sizes]:
    hidden, inner, body = config["hidden_size"], config["ffn_dim"], "model.decoder"
    matrices: dict[str, Sizes] = {
        **{f"self_attn.{name}_proj": (hidden, hidden) for name in ("q", "k", "v", "out")},
        "fc1": (inner, hidden),
        "fc2": (hidden, inner),
    }
    block: dict[str, Sizes] = {}
    for name, sizes in matrices.items():
        block |= {f"{name}.weight": sizes, f"{name}.bias": sizes[:1]}
    for name in ("self_attn_layer_norm", "final_layer_norm"):
        block |= {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}
    layers = range(config["num_hidden_layers"])
    return {
        f"{body}.embed_tokens.weight": (config["vocab_size"], hidden),
        # The first two rows of OPT's position table belong to padding.
        f"{body}.embed_positions.weight": (config["max_position_embeddings"] + 2, hidden),
        **{f"{body}.layers.{layer}.{name}": sizes for layer in layers for name, sizes in block.items()},
        f"{body}.final_layer_norm.weight": (hidden,),
        f"{body}.final_layer_norm.bias": (hidden,),
    }

"""A small config.json of every architecture, and what differs in each variant: one for every branch of its code."""

from __future__ import annotations

from typing import Any

_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

# By family: config.json.
TINY: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 128,
        "n_positions": 256,
        "n_ctx": 256,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 4,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
    },
    "llama": {
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
    },
    "olmo2": {
        "model_type": "olmo2",
        "vocab_size": 128,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
    "opt": {
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
    },
    "qwen2": {
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
    },
    "qwen3": {
        "model_type": "qwen3",
        "vocab_size": 128,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": 5,
        "use_sliding_window": False,
        "max_window_layers": 1,
        "tie_word_embeddings": False,
    },
}

# By family and name: what to change in it.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "gpt2": {
        "untied": {"tie_word_embeddings": False},
        "inverse_layer_scale": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
        "unscaled": {"scale_attn_weights": False, "n_head": 12},
        "narrow_relu": {"n_inner": 40, "activation_function": "relu"},
        "wide_gelu": {"n_inner": 256, "activation_function": "gelu", "n_head": 1},
        "silu": {"activation_function": "silu", "layer_norm_epsilon": 1e-3, "n_layer": 2},
    },
    "llama": {
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
    },
    "olmo2": {
        "multi_head": {"num_key_value_heads": None, "rope_theta": 10000.0},
        "tied": {"tie_word_embeddings": True, "num_key_value_heads": 1},
        "biases": {"attention_bias": True},
        "eps": {"rms_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"},
        "one_wide_head": {"num_attention_heads": 1, "num_key_value_heads": 1},
        "rope_yarn": {"rope_scaling": _YARN, "rope_theta": 1000.0, "num_attention_heads": 3, "num_key_value_heads": 3},
    },
    "opt": {
        "350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 20},
        "projections": {"word_embed_proj_dim": 64, "num_hidden_layers": 2},
        "untied": {"tie_word_embeddings": False, "word_embed_proj_dim": None},
        "no_bias": {"enable_bias": False, "num_attention_heads": 12},
        "plain_norms": {"layer_norm_elementwise_affine": False, "activation_function": "gelu"},
        "no_final_norm": {"_remove_final_layer_norm": True, "num_attention_heads": 1},
    },
    "qwen2": {
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
    },
    "qwen3": {
        "multi_head": {"num_key_value_heads": None, "head_dim": 8},
        "tied": {"tie_word_embeddings": True, "num_key_value_heads": 1},
        "biases": {"attention_bias": True},
        "large_heads": {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_act": "gelu_new"},
        "window": {"use_sliding_window": True, "sliding_window": 6},
        "rope_yarn": {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 3,
                "truncate": False,
            },
            "rope_theta": 1000.0,
        },
    },
}

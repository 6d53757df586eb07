"""A Llama checkpoint as a GGUF file, in float32 or bfloat16."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, form: str, target: Path) -> None:
    """Write the file. Vectors stay float32, as llama.cpp wants them."""
    import gguf
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama":
        raise ValueError(f"only Llama checkpoints are converted, not {config['model_type']}")
    writer = gguf.GGUFWriter(str(target), "llama")
    _write_config(writer, config, gguf.LlamaFileType.ALL_F32 if form == "f32" else gguf.LlamaFileType.MOSTLY_BF16)
    _write_tokenizer(writer, folder, config)
    factors = rotary_factors(config)
    if factors is not None:
        _write_tensor(writer, "rope_freqs.weight", factors, "f32")
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                tensor = in_pairs(name, opened.get_tensor(name), config)
                _write_tensor(writer, gguf_name(name), tensor, form if tensor.ndim > 1 else "f32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_config(writer: Any, config: Mapping[str, Any], file_type: Any) -> None:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config.get("num_key_value_heads") or config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(file_type)


def _write_tokenizer(writer: Any, folder: Path, config: Mapping[str, Any]) -> None:
    """The vocabulary, filled up to the model's ids; llama.cpp loads no model without one."""
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = {entry["id"]: entry["content"] for entry in document.get("added_tokens", [])}
    strings = {token: text for text, token in document["model"]["vocab"].items()} | added
    ids = range(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([strings.get(token, f"<unused {token}>") for token in ids])
    writer.add_token_types([3 if token in added else 1 for token in ids])  # 3: a control token
    merges = document["model"].get("merges", [])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(_first(config.get("bos_token_id")))
    writer.add_eos_token_id(_first(config.get("eos_token_id")))
    writer.add_add_bos_token(False)


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, list) else value or 0)


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    if name.startswith("lm_head"):
        return "output.weight"
    if ".layers." not in name:
        return "token_embd.weight" if "embed_tokens" in name else "output_norm.weight"
    layer, _, part = name.partition(".layers.")[2].partition(".")
    stem, _, kind = part.rpartition(".")
    return f"blk.{layer}.{NAMES[stem]}.{kind}"


def in_pairs(name: str, tensor: Any, config: Mapping[str, Any]) -> Any:
    """Rows of queries and keys in llama.cpp's order: the two numbers that are turned together stand side by side."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config.get("num_key_value_heads")}
    projection = name.split(".")[-2]
    if projection not in heads:
        return tensor
    count = heads[projection] or config["num_attention_heads"]
    halves = tensor.reshape(count, 2, -1, *tensor.shape[1:])  # (heads, half, head_dim / 2, ...)
    return halves.transpose(1, 2).reshape(tensor.shape)


def rotary_factors(config: Mapping[str, Any]) -> Any:
    """What llama3's scaling divides each frequency by (float32), or None where nothing is scaled so."""
    import torch

    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") != "llama3":
        return None
    dim, base = config["head_dim"], config["rope_theta"]
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    slow, fast = scaling["low_freq_factor"], scaling["high_freq_factor"]
    factors = []
    for pair in range(dim // 2):
        turns = original / (2 * math.pi * base ** (2 * pair / dim))  # full turns within the original context
        share = min(1.0, max(0.0, (turns - slow) / (fast - slow)))
        factors.append(1 / ((1 - share) / factor + share))
    return torch.tensor(factors)


def _write_tensor(writer: Any, name: str, tensor: Any, form: str) -> None:
    import gguf
    import numpy as np
    import torch

    if form == "f32":
        writer.add_tensor(name, tensor.float().contiguous().numpy())
        return
    bits = tensor.to(torch.bfloat16).contiguous().view(torch.uint16).numpy()
    writer.add_tensor(name, bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

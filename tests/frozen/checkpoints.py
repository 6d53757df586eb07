"""Tiny checkpoints whose weights are the same bits with every version of torch and numpy; and the embedded one."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from byhand import LLM
from tests.checkpoints import CONFIGS
from tests.frozen.comparing import digest

SPREAD = 0.3 * 3**0.5  # evenly from -SPREAD to SPREAD, which has a deviation of 0.3


def shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes of a config's tensors, each shared one once; no numbers are made."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.tie_weights()
    for name, parameter in model.named_parameters():
        yield name, tuple(parameter.shape)


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A tensor's numbers. They follow from its name; tests/checkpoints.py tells why each kind is spread as it is."""
    # Raw words of PCG64 are promised to stay; what Generator makes of them is not. Sums are of whole numbers, and so
    # the same in whatever order a processor takes them.
    words = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    whole = (words >> 40).astype(np.int64).reshape(shape) - 2**23
    if "fc2" in name and len(shape) == 2:
        noise = (whole - whole.sum(1, keepdims=True) / shape[1]) / 2**23 * SPREAD
    else:
        noise = whole / 2**23 * SPREAD
    if len(shape) == 1:
        noise = noise + 1 if name.endswith("weight") else noise / 5
    elif "embed_tokens" in name or "wte" in name:
        noise = noise / 3
    return noise.astype(np.float32)


def write_words(folder: Path, count: int) -> None:
    """A tokenizer of so many words and nothing else: ids are all that the hashes speak of."""
    vocabulary = {f"w{token}": token for token in range(count)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    tokenizer = {"version": "1.0", **parts, "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def write_checkpoint(folder: Path, family: str, variant: str) -> Path:
    """Write the model of one of CONFIGS, once."""
    target = folder / f"{family}-{variant}"
    if not target.exists():
        target.mkdir(parents=True)
        config = CONFIGS[family, variant]
        (target / "config.json").write_text(json.dumps(config))
        save_file({name: numbers(name, shape) for name, shape in shapes(target)}, target / "model.safetensors")
        write_words(target, config["vocab_size"])
    return target


def digest_of(folder: Path) -> str:
    """Of all names and numbers of a checkpoint, whatever its file looks like."""
    tensors = load_file(folder / "model.safetensors")
    return digest(b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors)))


def open_embedded(folder: Path | None = None) -> LLM:
    """The embedded model, or a folder, on the processor's kernels whatever else there is to run on."""
    return LLM(folder, device="cpu", kernels="cpu")

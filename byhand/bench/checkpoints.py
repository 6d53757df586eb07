"""Checkpoints made on the spot: seeded random weights in a real shape, and a tokenizer trained on Python's own library.

Random weights cost what trained ones cost; what the model says is noise.
"""

from __future__ import annotations

import json
import shutil
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from byhand.bench.shapes import shape_config, tensors_of
from byhand.errors import BadRequest
from byhand.user_cache import user_cache

SCALE = 0.02
SPECIAL = ("<s>", "</s>")  # ids 0 and 1
# Characters that the tokenizer is trained on; what the vocabulary still lacks then is filled up.
CORPUS = 6_000_000
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint to measure: `name` stands in the results, `key` names what is converted from it."""

    name: str
    key: str
    folder: Path
    vocab_size: int
    context_length: int
    model_type: str


def cache_root() -> Path:
    """Where made and converted checkpoints are kept unless another folder is named."""
    return user_cache() / "bench"


def source_of(name: str, key: str, folder: Path) -> Source:
    """What a checkpoint's config says of it."""
    from byhand.checkpoint import read_json_object

    config = read_json_object(folder / "config.json")
    lengths = (config.get(field) for field in ("max_position_embeddings", "n_positions", "n_ctx"))
    length = next((value for value in lengths if isinstance(value, int)), 2048)
    return Source(name, key, folder, int(config.get("vocab_size", 0)), length, str(config.get("model_type", "")))


def make(shape: str, precision: str, root: Path, tell: Tell, seed: int = 0) -> Source:
    """The checkpoint of a shape under `root`, made unless it is there. Precisions under bf16 start from bf16."""
    config = shape_config(shape)
    dtype = DTYPES["fp32" if precision == "fp32" else "bf16"]
    folder = root / "checkpoints" / f"{shape}-{dtype}"
    if not (folder / "config.json").is_file():
        tell(f"making the checkpoint {shape} in {dtype} in {folder}")
        with _written_whole(folder) as part:
            write(config, dtype, part, seed)
    return source_of(shape, folder.name, folder)


class _written_whole:  # noqa: N801 - it reads as what it is: a context
    """A folder that is there only once it is complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.part = folder.with_name(folder.name + ".part")

    def __enter__(self) -> Path:
        shutil.rmtree(self.part, ignore_errors=True)
        try:
            self.part.mkdir(parents=True)
        except OSError as error:
            raise BadRequest(f"--cache: {self.part} cannot be made: {error.strerror}", param="--cache") from error
        return self.part

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.part.rename(self.folder)
        else:
            shutil.rmtree(self.part, ignore_errors=True)


written_whole = _written_whole


def write(config: Mapping[str, Any], dtype: str, folder: Path, seed: int = 0) -> None:
    """A checkpoint with this config: config.json, model.safetensors, and the tokenizer's files."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: _numbers(name, sizes, generator).to(getattr(torch, dtype)) for name, sizes in tensors_of(config).items()
    }
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    write_tokenizer(folder, config["vocab_size"], config["max_position_embeddings"])
    # Old converters read torch_dtype, new ones dtype.
    document = {**config, "torch_dtype": dtype, "dtype": dtype}
    (folder / "config.json").write_text(json.dumps(document, indent=1), encoding="utf-8")


def _numbers(name: str, sizes: tuple[int, ...], generator: Any) -> Any:
    """Norms leave alone, biases add nothing, all else is random."""
    import torch

    if name.endswith(".bias"):
        return torch.zeros(sizes)
    if "norm" in name:
        return torch.ones(sizes)
    return torch.randn(sizes, generator=generator) * SCALE


def library_texts() -> Iterator[str]:
    """The files of Python's own library, in the same order everywhere."""
    left = CORPUS
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def write_tokenizer(folder: Path, vocab_size: int, longest: int) -> None:
    """A byte-level BPE tokenizer in which every id up to vocab_size has a string."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    few = 10 if vocab_size < 5000 else None  # a small vocabulary has learnt all it can from a few files
    tokenizer.train_from_iterator(islice(library_texts(), few), trainer)
    document = json.loads(tokenizer.to_str())
    vocabulary = document["model"]["vocab"]
    vocabulary |= {f"<unused {token}>": token for token in range(len(vocabulary), vocab_size)}
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "unk_token": SPECIAL[1],  # CTranslate2 wants one
        "pad_token": SPECIAL[1],
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def count_read(folder: Path) -> int:
    """Numbers that a decoding step reads: all but tables of which it reads one row (positions, an untied embedding)."""
    import struct

    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            header = json.loads(opened.read(struct.unpack("<Q", opened.read(8))[0]))
        has_head = any(name.startswith("lm_head") for name in header)
        for name, entry in header.items():
            is_table = "embed_positions" in name or (has_head and "embed_tokens" in name)
            if name != "__metadata__" and not is_table:
                total += _product(entry["shape"])
    return total


def _product(sizes: list[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total

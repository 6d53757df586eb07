"""The architectures: one file each in this folder, found by looking, and the one way to build a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol, cast

import torch

from byhand.cache.kv_cache import Batch, KVCache, LayerSpec
from byhand.checkpoint import Checkpoint
from byhand.context import Context, read_context
from byhand.kernels import Kernels
from byhand.lookalikes import unknown_architecture
from byhand.quantize import shrinker
from byhand.weights import Weights


class Model(Protocol):
    """A model as the engine sees it. N counts the batch's tokens."""

    config: Any
    kernels: Kernels
    vocab_size: int
    context_length: int  # what the config states; `context_of` has the last word
    layer_specs: tuple[LayerSpec, ...]
    formats: dict[str, str]  # of each matrix, by its whole name in the checkpoint
    dtype: str  # these for people: "bfloat16", or "int4 and int8"
    device: torch.device

    def forward(self, batch: Batch, cache: KVCache) -> torch.Tensor:
        """Read the batch, write its keys and values: (N, hidden) float32, ready for `logits`."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores of every next token after the rows asked for: (rows, hidden) → (rows, vocab) float32."""


class ModelConfig(Protocol):
    """A config that has been checked, with config.json's own names."""

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the head is the token embedding."""


class ConfigReader(Protocol):
    """A Config class."""

    def from_json(self, config: Mapping[str, Any]) -> ModelConfig:
        """Read and check config.json; BadConfig names what is wrong."""


class ModelMaker(Protocol):
    """A Model class."""

    def __call__(self, config: Any, weights: Weights, kernels: Kernels) -> Model:
        """Take the tensors by their checkpoint names."""


class Architecture(Protocol):
    """What a file in this folder holds."""

    MODEL_TYPES: tuple[str, ...]  # and LEARNED_POSITIONS, the config's name for their number, where it has such
    IGNORED: tuple[str, ...]  # whole names, as patterns, of harmless buffers that old files carry
    Config: ConfigReader
    Model: ModelMaker


def architectures() -> dict[str, Architecture]:
    """Every `model_type` that can be opened, and the module that does it."""
    modules = (import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__))
    return {name: cast(Architecture, module) for module in modules for name in module.MODEL_TYPES}


def architecture_of(checkpoint: Checkpoint) -> Architecture:
    """The module for a checkpoint's `model_type`."""
    known = architectures()
    if checkpoint.model_type not in known:
        raise unknown_architecture(checkpoint.folder, checkpoint.model_type, known)
    return known[checkpoint.model_type]


def read_config(checkpoint: Checkpoint) -> ModelConfig:
    """Check a checkpoint's config.json against its architecture, without touching the weights."""
    architecture = architecture_of(checkpoint)
    checkpoint.quantized_as()  # refuses what others quantised
    return architecture.Config.from_json(checkpoint.config)


def context_of(checkpoint: Checkpoint, asked: int | None = None) -> Context:
    """How many tokens the model of a checkpoint reads: by its config, or `asked`."""
    learned = getattr(architecture_of(checkpoint), "LEARNED_POSITIONS", None)
    return read_context(checkpoint.config, learned, asked)


def build(
    checkpoint: Checkpoint,
    kernels: Kernels,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    quantize: str | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Model:
    """Build the model of a checkpoint; its weights stay mapped unless `dtype`, `device` or `quantize` change them.

    `note` is told what a person should know of them.
    """
    config = read_config(checkpoint)
    weights = Weights.open(checkpoint, dtype, device, None if quantize is None else shrinker(quantize))
    for line in weights.notes:
        note(line)
    architecture = architecture_of(checkpoint)
    model = architecture.Model(config, weights, kernels)
    weights.finish(architecture.IGNORED)
    return model

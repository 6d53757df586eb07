"""SamplingParams' fields as keywords: what may be written, for type checkers and editors. Checked by SamplingParams."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import torch

StageFunction = Callable[[Sequence[int], "torch.Tensor"], "torch.Tensor"]


class Options(TypedDict, total=False):
    """Every field but `n`, which changes what `generate` gives back, so that it stands there by itself."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    no_repeat_ngram_size: int
    logit_bias: Mapping[int, float] | None
    allowed_ids: Iterable[int] | None
    banned_ids: Iterable[int] | None
    json_schema: str | Mapping[str, Any] | None
    json_object: bool
    regex: str | None
    choices: str | Iterable[str] | None
    seed: int | None
    max_tokens: int | None
    min_tokens: int
    stop: str | Iterable[str] | None
    stop_ids: Iterable[int] | None
    ignore_eos: bool
    logprobs: int | None
    stages: Iterable[StageFunction] | None


class AllOptions(Options, total=False):
    """Every field."""

    n: int

"""Rotary position embeddings: which frequencies a config asks for, and the angles at each position.

RoFormer, arXiv:2104.09864. Of the ways to stretch it, this reads linear (position interpolation, arXiv:2306.15595),
dynamic (NTK), llama3 (Llama 3.1) and yarn (arXiv:2309.00071), each with the arithmetic of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from byhand.config import MAX_POSITIONS, ConfigFields

KINDS = ("default", "dynamic", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Long wavelengths are divided by `factor`, short ones stay, those between are blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """Dimensions that turn fewer than `beta_slow` times over the original context are divided by `factor`."""

    factor: float
    attention_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class DynamicScaling:
    """Beyond `max_position_embeddings` the base grows with the length of the text."""

    factor: float
    max_position_embeddings: int


Scaling = float | Llama3Scaling | YarnScaling | DynamicScaling


@dataclass(frozen=True, slots=True)
class RopeParameters:
    """The rotary part of a config: `scaling` is a number for linear, a set of numbers for the others."""

    rope_theta: float
    scaling: Scaling | None = None

    @classmethod
    def from_json(cls, config: ConfigFields, rope_theta: float = 10_000.0) -> RopeParameters:
        """Read `rope_parameters`, or the older `rope_theta` beside `rope_scaling` with its `type` or `rope_type`."""
        section = config.rope_section()
        for name, value in section.fields.items():
            if isinstance(value, Mapping):
                section.refuse(name, "no object: one set of numbers must serve all layers")
        top_level = config.number("rope_theta", rope_theta, low=2.0)
        theta = section.number("rope_theta", top_level, low=2.0)
        for fields in (config, section):
            fields.number("partial_rotary_factor", 1.0, low=1.0, high=1.0)
        return cls(theta, _read_scaling(section, config))


def _read_scaling(section: ConfigFields, config: ConfigFields) -> Scaling | None:
    kind = section.choice("rope_type" if section.has("rope_type") else "type", "default", KINDS)
    if kind == "linear":
        return section.number("factor", low=1e-6)
    if kind == "llama3":
        return _read_llama3(section, _original_positions(section, config))
    if kind == "yarn":
        return _read_yarn(section, config, _original_positions(section, config))
    if kind == "dynamic" and section.has("factor"):
        longest = config.integer("max_position_embeddings", high=MAX_POSITIONS)
        return DynamicScaling(section.number("factor", low=1e-6), longest)
    return None


def _original_positions(section: ConfigFields, config: ConfigFields) -> int:
    name = "original_max_position_embeddings"
    longest = config.integer("max_position_embeddings", high=MAX_POSITIONS)
    return config.integer(name, section.integer(name, longest, high=MAX_POSITIONS), high=MAX_POSITIONS)


def _read_llama3(section: ConfigFields, original: int) -> Llama3Scaling:
    low = section.number("low_freq_factor", low=1e-6)
    high = section.number("high_freq_factor", low=1e-6)
    if high <= low:
        section.refuse("high_freq_factor", f"above `low_freq_factor` ({low:g})")
    return Llama3Scaling(section.number("factor", low=1e-6), low, high, original)


def _read_yarn(section: ConfigFields, config: ConfigFields, original: int) -> YarnScaling:
    longest = config.integer("max_position_embeddings", high=MAX_POSITIONS)
    factor = section.number("factor", longest / original, low=1e-6)

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale = section.number("mscale", 0.0)
    mscale_all_dim = section.number("mscale_all_dim", 0.0)
    inferred = magnitude(mscale) / magnitude(mscale_all_dim) if mscale and mscale_all_dim else magnitude(1.0)
    return YarnScaling(
        factor=factor,
        attention_factor=section.number("attention_factor", inferred),
        beta_fast=section.number("beta_fast", 0.0) or 32.0,
        beta_slow=section.number("beta_slow", 0.0) or 1.0,
        truncate=section.flag("truncate", True),
        original_max_position_embeddings=original,
    )


def _blend_llama3(inverse: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    original = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelengths = 2 * math.pi / inverse
    smooth = (original / wavelengths - low) / (high - low)
    stretched = inverse / scaling.factor
    blended = (1 - smooth) * stretched + smooth * inverse
    short = torch.where(wavelengths < original / high, inverse, blended)
    return torch.where(wavelengths > original / low, stretched, short)


def _blend_yarn(inverse: torch.Tensor, scaling: YarnScaling, theta: float) -> torch.Tensor:
    half = len(inverse)
    original = scaling.original_max_position_embeddings

    def dimension_that_turns(times: float) -> float:
        return half * math.log(original / (times * 2 * math.pi)) / math.log(theta)

    low, high = dimension_that_turns(scaling.beta_fast), dimension_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(half, dtype=torch.float32) - low) / width).clamp(0, 1)
    return (inverse / scaling.factor) * ramp + inverse * (1 - ramp)


def inverse_frequencies(parameters: RopeParameters, head_dim: int) -> torch.Tensor:
    """Radians per position of each pair of dimensions: (head_dim / 2,) float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    inverse = 1.0 / parameters.rope_theta**exponents
    match parameters.scaling:
        case Llama3Scaling() as scaling:
            return _blend_llama3(inverse, scaling)
        case YarnScaling() as scaling:
            return _blend_yarn(inverse, scaling, parameters.rope_theta)
        case float() as factor:
            return inverse / factor
        case DynamicScaling() | None:
            return inverse


def dynamic_frequencies(
    parameters: RopeParameters, scaling: DynamicScaling, head_dim: int, position_ids: torch.Tensor
) -> torch.Tensor:
    """The same at each position, (N, head_dim / 2), for a text that ends there.

    So a position's keys are a function of itself alone, whatever pass computes them. transformers turns a pass by the
    length at its end: the same token by token, and not for a prompt that is longer than max_position_embeddings.
    """
    longest, factor = scaling.max_position_embeddings, scaling.factor
    lengths = (position_ids + 1).clamp(min=longest)
    growth = (factor * lengths / longest - (factor - 1)) ** (head_dim / (head_dim - 2))
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device) / head_dim
    return 1.0 / (parameters.rope_theta * growth)[:, None] ** exponents


# Rows for which the angles are looked up: with more, to compute them costs less than to keep them.
FEW = 64


class RotaryEmbedding:
    """Turns positions into the cosines and sines by which queries and keys are rotated.

    A model has one for each kind of layer; what it said last it says again, for all layers of a pass ask it.
    """

    def __init__(self, parameters: RopeParameters, head_dim: int, device: torch.device) -> None:
        self._parameters = parameters
        self._head_dim = head_dim
        self.inverse_frequencies = inverse_frequencies(parameters, head_dim).to(device)
        scaling = parameters.scaling
        self.attention_factor = scaling.attention_factor if isinstance(scaling, YarnScaling) else 1.0
        self._known = torch.empty(2, 0, head_dim)
        self._last: tuple[torch.Tensor | None, tuple[torch.Tensor, torch.Tensor]] = (None, (self._known, self._known))

    def __call__(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, (N, head_dim) float32 each; the second half of the dimensions repeats the first."""
        if self._last[0] is not position_ids:
            self._last = position_ids, self._look_up(position_ids)
        return self._last[1]

    def _look_up(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if position_ids.shape[0] > FEW or position_ids.device.type != "cpu":
            return self.compute(position_ids)
        longest = max(position_ids.tolist(), default=0)
        if longest >= self._known.shape[1]:
            self._known = torch.stack(self.compute(torch.arange(2 * longest + FEW)))
        cos, sin = self._known.index_select(1, position_ids).unbind()
        return cos, sin

    def compute(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same by the formula; for few rows they are looked up among those of the positions so far."""
        inverse, scaling = self.inverse_frequencies, self._parameters.scaling
        if isinstance(scaling, DynamicScaling) and (position_ids >= scaling.max_position_embeddings).any():
            inverse = dynamic_frequencies(self._parameters, scaling, self._head_dim, position_ids)
        angles = position_ids[:, None].float() * inverse
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * self.attention_factor, angles.sin() * self.attention_factor

"""Sampling settings in words."""

from __future__ import annotations

from byhand.sampling.params import SamplingParams


def settings_in_words(params: SamplingParams) -> str:
    """The settings that are not at rest: "temperature=0.8, top_k=5"."""
    ours, rest = params.to_json(), SamplingParams().to_json()
    names = [name for name in ours if ours[name] != rest[name] and name not in ("logprobs", "seed")]
    changed = [f"{name}={ours[name]:g}" if isinstance(ours[name], float) else f"{name}={ours[name]}" for name in names]
    if params.is_greedy:
        changed.insert(0, "greedy")
    return ", ".join(changed)

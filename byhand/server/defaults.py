"""What a request leaves open: the checkpoint's generation config says it, and where that is silent OpenAI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from byhand.sampling.params import SamplingParams

if TYPE_CHECKING:
    from byhand.engine.limits import Limits
    from byhand.llm import LLM

TEMPERATURE = 1.0


def with_defaults(llm: LLM, limits: Limits, said: Mapping[str, Any]) -> SamplingParams:
    """The settings of a request that says `said`, which is checked; a hint is not, and never refuses.

    How long a run may be is the request's business alone.
    """
    asked = {"max_tokens": None, **said}
    if llm.generation_config.get("do_sample") not in (True, 1):
        asked.setdefault("temperature", TEMPERATURE)
    params = llm.checkpoint_params(**asked)
    if "stop" in said:
        return params
    short = [word for word in params.stop if len(word) <= limits.stop_length]
    return params.replace(stop=short[: limits.stops])


def suggested(llm: LLM) -> dict[str, Any]:
    """What the generation config says where a request is silent: only what differs from off."""
    asked, silent = llm.checkpoint_params(max_tokens=None).to_json(), SamplingParams().to_json()
    return {name: value for name, value in asked.items() if value != silent[name]}

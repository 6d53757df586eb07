"""What a request leaves open: the checkpoint's generation config says it, and where that is silent OpenAI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from byhand.sampling.params import SamplingParams
from byhand.sampling.suggested import fitted

if TYPE_CHECKING:
    from byhand.engine.limits import Limits
    from byhand.llm import LLM

TEMPERATURE = 1.0


def with_defaults(llm: LLM, limits: Limits, given: Mapping[str, Any]) -> SamplingParams:
    """The settings of a request, which are checked here; a hint fills what it leaves open, and never refuses.

    How long a run may be is the request's business alone.
    """
    params = SamplingParams.from_json(given)
    said = [name for name, value in given.items() if value is not None and name != "stages"]
    asked: dict[str, Any] = {"max_tokens": None, **{name: getattr(params, name) for name in said}}
    if llm.generation_config.get("do_sample") not in (True, 1):
        asked.setdefault("temperature", TEMPERATURE)
    values = fitted(llm.checkpoint_hints(), asked)
    if "stop" in values and "stop" not in said:
        values["stop"] = [word for word in values["stop"] if len(word) <= limits.stop_length][: limits.stops]
    return params.replace(**{name: value for name, value in values.items() if name not in said})


def suggested(llm: LLM) -> dict[str, Any]:
    """What the generation config says where a request is silent: only what differs from off."""
    asked, silent = llm.checkpoint_params(max_tokens=None).to_json(), SamplingParams().to_json()
    return {name: value for name, value in asked.items() if value != silent[name]}

"""A request becomes runs: its settings, checked once, its prompts, and the flow of what they tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from starlette.requests import Request

from byhand.engine.events import Failed, Finished
from byhand.errors import BadRequest
from byhand.sampling.dice import fresh_seed
from byhand.sampling.params import CONSTRAINTS, SamplingParams
from byhand.server.answers import CachedTokens, UsageAnswer
from byhand.server.defaults import with_defaults
from byhand.server.flow import Ends, Flow
from byhand.server.problems import ApiError
from byhand.server.service import LONG_TEXT, Service, beside
from byhand.server.shapes import JsonObject, JsonSchema, OneOf, Regex, Sampling
from byhand.types import FinishReason, Position, Usage

if TYPE_CHECKING:
    from byhand.engine.limits import Limits
    from byhand.llm import LLM
    from byhand.sampling.chain import Settings

SAME_NAMES = (
    "top_p",
    "n",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "allowed_ids",
    "banned_ids",
    "stop_ids",
    "ignore_eos",
    "min_tokens",
)


@dataclass(slots=True)
class PromptIn:
    """One prompt: its text as it was sent, its ids, and the predictions after its positions as they come."""

    text: str
    ids: list[int]
    positions: list[Position] = field(default_factory=list)


@dataclass(slots=True)
class Job:
    """One request: prompts, settings, and how many candidates after each prompt position are wanted, if any."""

    prompts: list[PromptIn]
    settings: Settings
    read: int | None
    ends: Ends | None = None
    usages: dict[tuple[int, int], Usage] = field(default_factory=dict)

    def index(self, place: int, choice: int) -> int:
        """The number of a choice in the answer: prompt by prompt."""
        return place * self.settings.params.n + choice

    @property
    def usage(self) -> UsageAnswer:
        """Tokens of all prompts, each counted once, and of all choices."""
        prompt_tokens = sum(len(prompt.ids) for prompt in self.prompts)
        completion_tokens = sum(usage.completion_tokens for usage in self.usages.values())
        cached = sum(usage.cached_tokens for (_, choice), usage in self.usages.items() if choice == 0)
        return UsageAnswer(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=CachedTokens(cached_tokens=cached),
        )


# From a request to settings.


def _constraint(request: Sampling) -> dict[str, Any]:
    match request.response_format:
        case JsonObject():
            return {"json_object": True}
        case JsonSchema(json_schema=named):
            return {"json_schema": named.schema_}
        case Regex(regex=regex):
            return {"regex": regex}
        case OneOf(choices=choices):
            return {"choices": choices}
    return {}


def _refused(error: BadRequest, code: str) -> ApiError:
    """A refusal in the request's own words."""
    param = "response_format" if error.param in CONSTRAINTS else error.param
    return ApiError(400, str(error), code=code, param=param)


def params_of(
    llm: LLM, limits: Limits, request: Sampling, max_tokens: int | None, logprobs: int | None
) -> SamplingParams:
    """The settings that a request asks for, its gaps filled; the seed of one that names none is a new one."""
    given = {name: getattr(request, name) for name in SAME_NAMES if getattr(request, name) is not None}
    given.setdefault("seed", fresh_seed())
    if request.temperature is not None:
        given["temperature"] = request.temperature
    said = {**given, **_constraint(request), "max_tokens": max_tokens, "logprobs": logprobs}
    try:
        # Every value has been checked by its shape: what is left are values that do not go together.
        return with_defaults(llm, limits, said)
    except BadRequest as error:
        raise _refused(error, "invalid_combination") from None


async def prepared(request: Request, asked: Sampling, work: Callable[[], Job]) -> Job:
    """The job that a request asks for: made beside the loop where it is long, or has a grammar to be compiled."""
    data = await request.body()
    return await beside(LONG_TEXT + len(data) if asked.response_format else len(data), work)


def checked(llm: LLM, params: SamplingParams) -> Settings:
    """The settings, once and for all: ids that the model lacks and constraints that cannot be followed are refused."""
    if max(params.stop_ids, default=0) >= llm.vocab_size:
        message = f"`stop_ids` names token {max(params.stop_ids)}; this model's ids end at {llm.vocab_size - 1}"
        raise BadRequest(message, param="stop_ids")
    try:
        return llm.engine.check(params)
    except BadRequest as error:
        raise (_refused(error, "invalid_grammar") if error.param in CONSTRAINTS else error) from None


def check_runs(service: Service, prompts: int, params: SamplingParams) -> None:
    """Refuse a request that no server of these limits could ever take."""
    room = service.limits.running + service.limits.waiting
    if prompts * params.n > room:
        message = f"`prompt` and `n` ask for {prompts * params.n} runs; this server takes {room} at most"
        raise ApiError(400, message, code="limit_exceeded", param="prompt")


def open_flow(service: Service, job: Job) -> Flow:
    """Ask the worker for every prompt of a job, or for none."""
    flow = Flow(service.worker)
    try:
        for prompt in job.prompts:
            flow.submit(prompt.ids, job.settings, read_prompt=job.read, ends=job.ends)
    except BaseException:
        flow.cancel()
        raise
    return flow


# What the events of a job say.


def reason_of(event: Finished) -> Literal["stop", "length"]:
    """Why a choice ended, in OpenAI's words."""
    if event.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
        raise ApiError(503, "the run was ended by the server", code="aborted", headers={"Retry-After": "1"})
    return "stop" if event.finish_reason == FinishReason.STOP else "length"


def failure_of(event: Failed) -> Exception:
    """What a choice that failed is answered with."""
    return _refused(event.error, "run_refused") if isinstance(event.error, BadRequest) else event.error


class Clock:
    """Tells the metrics how long the first token took, and each one after it."""

    def __init__(self, service: Service) -> None:
        self._metrics = service.metrics
        self._begun = perf_counter()
        self._last: dict[int, float] = {}

    def tick(self, index: int) -> None:
        """A token came for this choice."""
        now = perf_counter()
        if index in self._last:
            self._metrics.between_tokens.observe(now - self._last[index])
        else:
            self._metrics.first_token.observe(now - self._begun)
        self._last[index] = now


def made_id(prefix: str) -> str:
    """An id of the server's making."""
    return f"{prefix}-{uuid4().hex}"

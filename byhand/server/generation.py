"""A request becomes runs, and what the runs tell becomes pieces: an opening, one piece a token, an ending.

Streams send the pieces as they come; answers in one piece are their sum.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from starlette.requests import Request

from byhand.engine.events import Failed, Finished, Read, Stepped
from byhand.errors import BadRequest
from byhand.sampling.dice import fresh_seed
from byhand.sampling.params import CONSTRAINTS, SamplingParams
from byhand.server.answers import CachedTokens, UsageAnswer
from byhand.server.defaults import with_defaults
from byhand.server.flow import Ends, Flow
from byhand.server.problems import ApiError
from byhand.server.service import LONG_TEXT, Service, beside
from byhand.server.shapes import JsonObject, JsonSchema, OneOf, Regex, Sampling
from byhand.types import FinishReason, Position, Step, Usage

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


@dataclass(frozen=True, slots=True)
class Piece:
    """Something new about one choice: it opens, gets a token, or ends."""

    index: int
    prompt: PromptIn
    step: Step | None = None
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: int | str | None = None

    @property
    def is_opening(self) -> bool:
        """True for the first piece of a choice."""
        return self.step is None and self.finish_reason is None


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


# From events to pieces.


async def pieces(service: Service, job: Job, flow: Flow) -> AsyncIterator[Piece]:
    """What happens to the choices of a job, until all have ended; the first error ends it for all."""
    clock = Clock(service)
    if job.read is None:
        for place in range(len(job.prompts)):
            for piece in _openings(job, place):
                yield piece
    async for place, event in flow:
        prompt = job.prompts[place]
        match event:
            case Read(positions=positions):
                prompt.positions += [replace(position, pieces=()) for position in positions]
                if len(prompt.positions) == len(prompt.ids):
                    for piece in _openings(job, place):
                        yield piece
            case Stepped(choice=choice, step=step):
                clock.tick(job.index(place, choice))
                yield Piece(job.index(place, choice), prompt, step)
            case Finished(choice=choice, finish_reason=reason, stop_reason=stop_reason, usage=usage):
                job.usages[place, choice] = usage
                ended = Piece(job.index(place, choice), prompt, None, _reason(reason), stop_reason)
                yield ended
            case Failed(error=error):
                raise _refused(error, "run_refused") if isinstance(error, BadRequest) else error


def _openings(job: Job, place: int) -> Sequence[Piece]:
    return [Piece(job.index(place, choice), job.prompts[place]) for choice in range(job.settings.params.n)]


def _reason(reason: FinishReason) -> Literal["stop", "length"]:
    if reason not in (FinishReason.STOP, FinishReason.LENGTH):
        raise ApiError(503, "the run was ended by the server", code="aborted", headers={"Retry-After": "1"})
    return "stop" if reason == FinishReason.STOP else "length"


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

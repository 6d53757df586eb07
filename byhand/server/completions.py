"""POST /v1/completions: OpenAI's older shape, with echo, token-id prompts, and log-probabilities with offsets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from time import time
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from byhand.sampling.params import SamplingParams
from byhand.server.answers import CompletionAnswer, CompletionChoice, Extras, LegacyLogprobs
from byhand.server.flow import while_there
from byhand.server.generation import (
    Job,
    Piece,
    PromptIn,
    check_params,
    check_runs,
    made_id,
    open_flow,
    params_of,
    pieces,
)
from byhand.server.logprobs import Offsets, empty_legacy, joined, legacy_prompt, legacy_step, prompt_logprobs
from byhand.server.service import Service, beside, service_of
from byhand.server.shapes import CompletionRequest, Sampling
from byhand.server.sse import EventStream
from byhand.text import Tokenizer

if TYPE_CHECKING:
    from byhand.llm import LLM

MAX_TOKENS = 16


def _prompts(prompt: Any) -> list[str | list[int]]:
    """A list of prompts, of one or of many."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


async def _encoded(llm: LLM, request: CompletionRequest) -> list[PromptIn]:
    """The prompts with their ids; token ids are never decoded and encoded again."""

    def encode(prompt: str | list[int]) -> PromptIn:
        ids = llm.encode(prompt)
        return PromptIn(prompt if isinstance(prompt, str) else llm.detokenize(prompt), ids)

    return [await beside(len(prompt), lambda prompt=prompt: encode(prompt)) for prompt in _prompts(request.prompt)]  # type: ignore[misc]


def depth_of_reading(request: Sampling, echoed: int | None) -> int | None:
    """How many candidates after each prompt position are wanted; at least one is looked at, none where nobody asks."""
    wanted = [depth for depth in (request.prompt_logprobs, echoed) if depth is not None]
    return max(1, *wanted) if wanted else None


def check_limits(service: Service, request: Sampling, params: SamplingParams) -> None:
    """Refuse more than one request may have."""
    service.limits.check("stops", len(request.stop) if isinstance(request.stop, list) else 0, param="stop")
    service.limits.check_params(params)
    service.limits.check("logprobs", request.prompt_logprobs or 0, param="prompt_logprobs")


async def job_of(service: Service, request: CompletionRequest) -> Job:
    """The runs that a request asks for."""
    llm = service.model(request.model)
    params = params_of(request, MAX_TOKENS if request.max_tokens is None else request.max_tokens, request.logprobs)
    check_limits(service, request, params)
    await check_params(llm, params)
    echoed = request.logprobs if request.echo else None
    check_runs(service, len(_prompts(request.prompt)), params)
    return Job(await _encoded(llm, request), params, depth_of_reading(request, echoed))


def extras(request: Sampling, piece: Piece) -> dict[str, Any]:
    """byhand's own fields of a choice, where they were asked for."""
    found: dict[str, Any] = {}
    if request.return_token_ids:
        found["token_ids"] = [piece.step.token.id] if piece.step else []
        if piece.is_opening:
            found["prompt_token_ids"] = piece.prompt.ids
        if piece.finish_reason:
            found["stop_reason"] = piece.stop_reason
    if request.prompt_logprobs is not None and piece.is_opening:
        found["prompt_logprobs"] = prompt_logprobs(piece.prompt.positions, request.prompt_logprobs)
    return found


def add_extras(whole: Extras, part: Extras) -> None:
    """Add what a later piece says to what is known of a choice."""
    for name in part.model_fields_set & set(Extras.model_fields):
        value = getattr(part, name)
        known = getattr(whole, name) if name in whole.model_fields_set else None
        setattr(whole, name, known + value if isinstance(known, list) else value)


class Choices:
    """Turns pieces into OpenAI's choices; remembers where each text's next token begins."""

    def __init__(self, request: CompletionRequest, tokenizer: Tokenizer) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._offsets: dict[int, Offsets] = {}

    def part(self, piece: Piece) -> CompletionChoice | None:
        """What a piece adds to its choice; None for an opening that has nothing to say."""
        more = extras(self._request, piece)
        text = piece.step.text if piece.step else ""
        if piece.is_opening:
            self._offsets[piece.index] = self._first_offset(piece)
            text = piece.prompt.text if self._request.echo else ""
            if not more and not self._request.echo:
                return None
        return CompletionChoice(
            text=text,
            index=piece.index,
            logprobs=self._logprobs(piece),
            finish_reason=piece.finish_reason,
            **more,
        )

    def _first_offset(self, piece: Piece) -> Offsets:
        start = len(piece.prompt.text) if self._request.echo else 0
        return Offsets(self._tokenizer, piece.prompt.ids if self._request.logprobs is not None else (), start)

    def _logprobs(self, piece: Piece) -> LegacyLogprobs | None:
        k = self._request.logprobs
        if k is None:
            return None
        if piece.step is not None:
            return legacy_step(piece.step, k, self._offsets[piece.index].push(piece.step.token.id))
        if piece.is_opening and self._request.echo:
            prompt = piece.prompt
            tokens = [position.token for position in prompt.positions]
            return legacy_prompt(tokens, prompt.positions, k, prompt.text, self._tokenizer)
        return empty_legacy(k)


class Completion:
    """One request on its way: the head that all its answers share, and its choices."""

    def __init__(self, service: Service, request: CompletionRequest, job: Job) -> None:
        self._service = service
        self._request = request
        self._job = job
        self._head = {"id": made_id("cmpl"), "created": int(time()), "model": service.name}
        self._choices = Choices(request, service.worker.llm.tokenizer)

    def _answer(self, choices: list[CompletionChoice]) -> CompletionAnswer:
        return CompletionAnswer(object="text_completion", choices=choices, **self._head)  # type: ignore[arg-type]

    async def chunks(self, flow: Any) -> AsyncIterator[dict[str, Any]]:
        """The answer in chunks, one a token."""
        options = self._request.stream_options
        with_usage = bool(options and options.include_usage)
        async for piece in pieces(self._service, self._job, flow):
            part = self._choices.part(piece)
            if part is not None:
                yield self._answer([part]).plain() | ({"usage": None} if with_usage else {})
        if with_usage:
            yield {**self._answer([]).plain(), "usage": self._job.usage.plain()}

    async def whole(self, flow: Any) -> dict[str, Any]:
        """The answer in one piece: the sum of its chunks."""
        parts: dict[int, list[CompletionChoice]] = {}
        async for piece in pieces(self._service, self._job, flow):
            part = self._choices.part(piece)
            if part is not None:
                parts.setdefault(part.index, []).append(part)
        answer = self._answer([self._sum(parts[index]) for index in sorted(parts)])
        answer.usage = self._job.usage
        return answer.plain()

    def _sum(self, parts: list[CompletionChoice]) -> CompletionChoice:
        k = self._request.logprobs
        whole = CompletionChoice(
            text="".join(part.text for part in parts),
            index=parts[0].index,
            logprobs=None if k is None else joined([part.logprobs for part in parts if part.logprobs], k),
            finish_reason=parts[-1].finish_reason,
        )
        for part in parts:
            add_extras(whole, part)
        return whole


async def completions(body: CompletionRequest, request: Request) -> Response:
    """Go on with a text. Extras of byhand are documented in docs/server.md."""
    service = service_of(request)
    job = await job_of(service, body)
    completion = Completion(service, body, job)
    flow = open_flow(service, job)
    if body.stream:
        return EventStream(completion.chunks(flow), flow)
    with flow:
        return JSONResponse(await while_there(request.receive, completion.whole(flow)))

"""POST /v1/completions: OpenAI's older shape, with echo, token-id prompts, and log-probabilities with offsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from byhand.sampling.params import SamplingParams
from byhand.server.answering import Answering, add_extras
from byhand.server.answers import CompletionAnswer, CompletionChoice, LegacyLogprobs
from byhand.server.generation import Job, Piece, PromptIn, check_runs, checked, params_of, prepared
from byhand.server.logprobs import Offsets, empty_legacy, joined, legacy_prompt, legacy_step, prompt_logprobs
from byhand.server.service import Service, service_of
from byhand.server.shapes import CompletionRequest, Sampling

if TYPE_CHECKING:
    from byhand.llm import LLM

MAX_TOKENS = 16


def _prompts(prompt: Any) -> list[str | list[int]]:
    """A list of prompts, of one or of many."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


def _encoded(llm: LLM, prompt: str | list[int]) -> PromptIn:
    """A prompt with its ids; token ids are never decoded and encoded again."""
    ids = llm.encode(prompt)
    return PromptIn(prompt if isinstance(prompt, str) else llm.detokenize(prompt), ids)


def depth_of_reading(request: Sampling, echoed: int | None) -> int | None:
    """How many candidates after each prompt position are wanted; at least one is looked at, none where nobody asks."""
    wanted = [depth for depth in (request.prompt_logprobs, echoed) if depth is not None]
    return max(1, *wanted) if wanted else None


def check_limits(service: Service, request: Sampling, params: SamplingParams) -> None:
    """Refuse more than one request may have."""
    service.limits.check("stops", len(request.stop) if isinstance(request.stop, list) else 0, param="stop")
    service.limits.check_params(params)
    service.limits.check("logprobs", request.prompt_logprobs or 0, param="prompt_logprobs")


def job_of(service: Service, request: CompletionRequest) -> Job:
    """The runs that a request asks for."""
    llm = service.model(request.model)
    max_tokens = MAX_TOKENS if request.max_tokens is None else request.max_tokens
    params = params_of(llm, service.limits, request, max_tokens, request.logprobs)
    check_limits(service, request, params)
    settings = checked(llm, params)
    echoed = request.logprobs if request.echo else None
    prompts = _prompts(request.prompt)
    check_runs(service, len(prompts), params)
    return Job([_encoded(llm, prompt) for prompt in prompts], settings, depth_of_reading(request, echoed))


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


class Completion(Answering[CompletionChoice]):
    """One request on its way; remembers where each text's next token begins."""

    def __init__(self, service: Service, asked: CompletionRequest, job: Job) -> None:
        super().__init__(service, asked, job, "cmpl")
        self._request = asked
        self._tokenizer = service.worker.llm.tokenizer
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

    def chunk(self, parts: list[CompletionChoice]) -> CompletionAnswer:
        """A chunk of a stream."""
        return CompletionAnswer(object="text_completion", choices=parts, **self.head)

    def total(self, parts: Sequence[list[CompletionChoice]]) -> CompletionAnswer:
        """The whole answer."""
        answer = self.chunk([self._sum(of_one) for of_one in parts])
        answer.usage = self.job.usage
        return answer

    def _sum(self, parts: list[CompletionChoice]) -> CompletionChoice:
        k = self._request.logprobs
        whole = CompletionChoice(
            text="".join(part.text for part in parts),
            index=parts[0].index,
            logprobs=None if k is None else joined([part.logprobs for part in parts if part.logprobs], k),
            finish_reason=parts[-1].finish_reason,
        )
        add_extras(whole, parts)
        return whole


async def completions(body: CompletionRequest, request: Request) -> Response:
    """Go on with a text. Extras of byhand are documented in docs/server.md."""
    service = service_of(request)
    job = await prepared(request, body, lambda: job_of(service, body))
    return await Completion(service, body, job).respond(request)

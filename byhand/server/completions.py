"""POST /v1/completions: OpenAI's older shape, with echo, token-id prompts, and log-probabilities with offsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from byhand.sampling.params import SamplingParams
from byhand.server.answering import Answering, add_extras, ending_extras, opening_extras, token_extras
from byhand.server.answers import CompletionAnswer, CompletionChoice
from byhand.server.generation import Job, PromptIn, check_runs, checked, params_of, prepared, reason_of
from byhand.server.logprobs import Offsets, empty_legacy, joined, legacy_prompt, legacy_step
from byhand.server.service import Service, service_of
from byhand.server.shapes import CompletionRequest, Sampling

if TYPE_CHECKING:
    from byhand.engine.events import Finished
    from byhand.llm import LLM
    from byhand.types import Step

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


class Completion(Answering[CompletionChoice]):
    """One request on its way; remembers where each text's next token begins."""

    def __init__(self, service: Service, asked: CompletionRequest, job: Job) -> None:
        super().__init__(service, asked, job, "cmpl")
        self._request = asked
        self._tokenizer = service.worker.llm.tokenizer
        self._offsets: dict[int, Offsets] = {}

    def opening(self, index: int, prompt: PromptIn) -> CompletionChoice | None:
        """The prompt where it is echoed; None where there is nothing to say."""
        asked, more = self._request, opening_extras(self._request, prompt)
        start = len(prompt.text) if asked.echo else 0
        known = prompt.ids if asked.logprobs is not None else ()
        self._offsets[index] = Offsets(self._tokenizer, known, start)
        if not more and not asked.echo:
            return None
        logprobs = None if asked.logprobs is None else empty_legacy(asked.logprobs)
        if asked.echo and asked.logprobs is not None:
            tokens = [position.token for position in prompt.positions]
            logprobs = legacy_prompt(tokens, prompt.positions, asked.logprobs, prompt.text, self._tokenizer)
        text = prompt.text if asked.echo else ""
        return CompletionChoice(text=text, index=index, logprobs=logprobs, finish_reason=None, **more)

    def token(self, index: int, prompt: PromptIn, step: Step) -> CompletionChoice:
        """A token's text."""
        k, logprobs, more = self._request.logprobs, None, token_extras(self._request, step)
        if k is not None:
            logprobs = legacy_step(step, k, self._offsets[index].push(step.token.id))
        return CompletionChoice(text=step.text, index=index, logprobs=logprobs, finish_reason=None, **more)

    def ending(self, index: int, prompt: PromptIn, event: Finished) -> CompletionChoice:
        """Why it ends."""
        k, reason, more = self._request.logprobs, reason_of(event), ending_extras(self._request, event)
        logprobs = None if k is None else empty_legacy(k)
        return CompletionChoice(text="", index=index, logprobs=logprobs, finish_reason=reason, **more)

    def chunk(self, parts: list[CompletionChoice], **usage: Any) -> CompletionAnswer:
        """A chunk of a stream."""
        return CompletionAnswer(object="text_completion", choices=parts, **self.head, **usage)

    def total(self, parts: Sequence[list[CompletionChoice]]) -> CompletionAnswer:
        """The whole answer."""
        return self.chunk([self._sum(of_one) for of_one in parts], usage=self.job.usage)

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

"""POST /v1/chat/completions: messages through the checkpoint's own template."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import time
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from byhand.server.answers import ChatAnswer, ChatChoice, ChatChunk, ChatLogprobs, ChatMessage, ChunkChoice, Delta
from byhand.server.completions import add_extras, check_limits, depth_of_reading, extras
from byhand.server.flow import Flow, while_there
from byhand.server.generation import Job, Piece, PromptIn, check_params, made_id, open_flow, params_of, pieces
from byhand.server.logprobs import chat_step
from byhand.server.problems import ApiError
from byhand.server.service import Service, service_of
from byhand.server.shapes import ChatRequest, Templated
from byhand.server.sse import EventStream

if TYPE_CHECKING:
    from byhand.llm import LLM


def _plain_messages(request: Templated) -> list[dict[str, Any]]:
    """The messages as templates know them: a developer speaks as the system."""
    messages = [message.model_dump(exclude_none=True) for message in request.messages]
    for message in messages:
        if message["role"] == "developer":
            message["role"] = "system"
    return messages


async def render(llm: LLM, request: Templated, *, with_tools: bool = True) -> PromptIn:
    """The prompt that a template makes. It is a stranger's program in a process of its own: a thread waits for it."""
    tools = [tool.model_dump(exclude_none=True) for tool in request.tools or []] if with_tools else []
    values: dict[str, Any] = dict(request.chat_template_kwargs or {})
    if request.continue_final_message and request.add_generation_prompt:
        message = "`continue_final_message` and `add_generation_prompt` cannot both be true"
        raise ApiError(400, message, code="invalid_combination", param="continue_final_message")

    def work() -> PromptIn:
        text = llm.render_chat(
            _plain_messages(request),
            tools=tools or None,
            continue_final=bool(request.continue_final_message),
            add_generation_prompt=request.add_generation_prompt is not False,
            **values,
        )
        # A template writes its own start-of-sequence token.
        return PromptIn(text, llm.encode(llm.tokenizer.encode(text, add_special_tokens=False)))

    return await asyncio.to_thread(work)


async def job_of(service: Service, request: ChatRequest) -> Job:
    """The runs that a request asks for."""
    llm = service.model(request.model)
    if request.top_logprobs is not None and not request.logprobs:
        message = "`top_logprobs` needs `logprobs` to be true"
        raise ApiError(400, message, code="invalid_combination", param="top_logprobs")
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        message = "`max_tokens` and `max_completion_tokens` are two names of one thing, and differ"
        raise ApiError(400, message, code="invalid_combination", param="max_tokens")
    params = params_of(request, min(limits, default=None), (request.top_logprobs or 0) if request.logprobs else None)  # type: ignore[type-var]
    check_limits(service, request, params)
    await check_params(llm, params)
    prompt = await render(llm, request, with_tools=request.tool_choice != "none")
    return Job([prompt], params, depth_of_reading(request, None))


class Chat:
    """One request on its way: the head that all its answers share."""

    def __init__(self, service: Service, request: ChatRequest, job: Job) -> None:
        self._service = service
        self._request = request
        self._job = job
        self._head = {"id": made_id("chatcmpl"), "created": int(time()), "model": service.name}

    def _part(self, piece: Piece) -> ChunkChoice:
        if piece.is_opening:
            delta = Delta(role="assistant", content="")
        else:
            delta = Delta(content=piece.step.text) if piece.step else Delta()
        return ChunkChoice(
            index=piece.index,
            delta=delta,
            logprobs=self._logprobs(piece),
            finish_reason=piece.finish_reason,
            **extras(self._request, piece),
        )

    def _logprobs(self, piece: Piece) -> ChatLogprobs | None:
        if not self._request.logprobs or piece.step is None:
            return None
        return ChatLogprobs(content=[chat_step(piece.step, self._request.top_logprobs or 0)], refusal=None)

    async def chunks(self, flow: Flow) -> AsyncIterator[dict[str, Any]]:
        """The answer in chunks: the role, one a token, the finish reason, and the usage if it was asked for."""
        options = self._request.stream_options
        with_usage = bool(options and options.include_usage)
        async for piece in pieces(self._service, self._job, flow):
            yield self._chunk([self._part(piece)]) | ({"usage": None} if with_usage else {})
        if with_usage:
            yield {**self._chunk([]), "usage": self._job.usage.plain()}

    def _chunk(self, choices: list[ChunkChoice]) -> dict[str, Any]:
        return ChatChunk(object="chat.completion.chunk", choices=choices, **self._head).plain()  # type: ignore[arg-type]

    async def whole(self, flow: Flow) -> dict[str, Any]:
        """The answer in one piece: the sum of its chunks."""
        parts: dict[int, list[ChunkChoice]] = {}
        async for piece in pieces(self._service, self._job, flow):
            parts.setdefault(piece.index, []).append(self._part(piece))
        choices = [self._sum(parts[index]) for index in sorted(parts)]
        answer = ChatAnswer(object="chat.completion", choices=choices, usage=self._job.usage, **self._head)  # type: ignore[arg-type]
        return answer.plain()

    def _sum(self, parts: list[ChunkChoice]) -> ChatChoice:
        content = [entry for part in parts if part.logprobs for entry in part.logprobs.content or []]
        reason = parts[-1].finish_reason
        assert reason is not None
        whole = ChatChoice(
            index=parts[0].index,
            message=ChatMessage(role="assistant", content="".join(part.delta.content for part in parts), refusal=None),
            logprobs=ChatLogprobs(content=content, refusal=None) if self._request.logprobs else None,
            finish_reason=reason,
        )
        for part in parts:
            add_extras(whole, part)
        return whole


async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer messages. Extras of byhand are documented in docs/server.md."""
    service = service_of(request)
    job = await job_of(service, body)
    chat = Chat(service, body, job)
    flow = open_flow(service, job)
    if body.stream:
        return EventStream(chat.chunks(flow), flow)
    with flow:
        return JSONResponse(await while_there(request.receive, chat.whole(flow)))

"""POST /v1/chat/completions: messages through the checkpoint's own template."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from byhand.server.answering import Answering, add_extras, ending_extras, opening_extras, token_extras
from byhand.server.answers import (
    CalledTool,
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatLogprobs,
    ChatMessage,
    ChunkChoice,
    Delta,
)
from byhand.server.completions import check_limits, depth_of_reading
from byhand.server.generation import Job, PromptIn, checked, params_of, reason_of
from byhand.server.logprobs import chat_step
from byhand.server.problems import ApiError
from byhand.server.service import Service, service_of
from byhand.server.shapes import ChatRequest, Templated
from byhand.server.tools import ToolText, begins_in_thought, teaches_calls

if TYPE_CHECKING:
    from byhand.engine.events import Finished
    from byhand.llm import LLM
    from byhand.types import Step

THOUGHTS = ("reasoning_content", "reasoning")


def _plain_messages(request: Templated) -> list[dict[str, Any]]:
    """The messages as templates know them: a developer speaks as the system, arguments are objects."""
    messages = [message.model_dump(exclude_none=True) for message in request.messages]
    for message in messages:
        if message["role"] == "assistant":
            _complete(message)
        if message["role"] == "developer":
            message["role"] = "system"
        for call in message.get("tool_calls", ()):
            with suppress(ValueError, RecursionError):
                if isinstance(arguments := json.loads(call["function"]["arguments"]), dict):
                    call["function"]["arguments"] = arguments
    return messages


def _complete(message: dict[str, Any]) -> None:
    """No text is an empty text, no calls are none; what was thought has two names, and templates read either."""
    message.setdefault("content", "")
    if not message.get("tool_calls"):
        message.pop("tool_calls", None)
    thoughts = [message[name] for name in THOUGHTS if name in message]
    if len(set(thoughts)) > 1:
        reason = "`reasoning_content` and `reasoning` are two names of one thing, and differ"
        raise ApiError(400, reason, code="invalid_combination", param="messages")
    message.update(dict.fromkeys(THOUGHTS, thoughts[0]) if thoughts else {})


def render(llm: LLM, request: Templated, *, with_tools: bool = True) -> PromptIn:
    """The prompt that a template makes: a stranger's program in a process of its own, for which a thread must wait."""
    tools = [tool.model_dump(exclude_none=True) for tool in request.tools or []] if with_tools else []
    values: dict[str, Any] = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        values.setdefault("reasoning_effort", request.reasoning_effort)
    if request.continue_final_message and request.add_generation_prompt:
        message = "`continue_final_message` and `add_generation_prompt` cannot both be true"
        raise ApiError(400, message, code="invalid_combination", param="continue_final_message")
    if request.continue_final_message and request.messages[-1].content is None:
        message = "`continue_final_message` is true, but the last message has no content to continue"
        raise ApiError(400, message, code="invalid_combination", param="continue_final_message")

    text = llm.render_chat(
        _plain_messages(request),
        tools=tools or None,
        continue_final=bool(request.continue_final_message),
        add_generation_prompt=request.add_generation_prompt is not False,
        **values,
    )
    return PromptIn(text, llm.encode_rendered(text))


def job_of(service: Service, request: ChatRequest) -> Job:
    """The runs that a request asks for."""
    llm = service.model(request.model)
    if request.top_logprobs is not None and not request.logprobs:
        message = "`top_logprobs` needs `logprobs` to be true"
        raise ApiError(400, message, code="invalid_combination", param="top_logprobs")
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        message = "`max_tokens` and `max_completion_tokens` are two names of one thing, and differ"
        raise ApiError(400, message, code="invalid_combination", param="max_tokens")
    max_tokens = min(limits, default=None)  # type: ignore[type-var]
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    params = params_of(llm, service.limits, request, max_tokens, logprobs)
    check_limits(service, request, params)
    settings = checked(llm, params)
    prompt = render(llm, request, with_tools=request.tool_choice != "none")
    return Job([prompt], settings, depth_of_reading(request, None))


class Chat(Answering[ChunkChoice]):
    """One request on its way. `with_calls`: calls of tools are looked for in the text."""

    def __init__(self, service: Service, asked: ChatRequest, job: Job, *, with_calls: bool) -> None:
        super().__init__(service, asked, job, "chatcmpl")
        self._chat = asked
        self._with_calls = with_calls
        self._texts: dict[int, ToolText] = defaultdict(self._tool_text)
        if with_calls and asked.parallel_tool_calls is False:
            watched: dict[int, ToolText] = defaultdict(self._tool_text)  # the same on the worker's thread

            def ends(choice: int, step: Step) -> bool:
                watched[choice].push(step.text)
                return watched[choice].is_over

            job.ends = ends

    def _tool_text(self) -> ToolText:
        thinks = begins_in_thought(self.job.prompts[0].text)
        return ToolText(thinks=thinks, only_first=self._chat.parallel_tool_calls is False)

    def opening(self, index: int, prompt: PromptIn) -> ChunkChoice:
        """The role."""
        delta, more = Delta(role="assistant", content=""), opening_extras(self._chat, prompt)
        return ChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=None, **more)

    def token(self, index: int, prompt: PromptIn, step: Step) -> ChunkChoice:
        """A token's text, and the calls that it completes."""
        delta, logprobs, more = Delta(content=step.text), None, token_extras(self._chat, step)
        if self._with_calls:
            delta.content, calls = self._texts[index].push(step.text)
            if calls:
                delta.tool_calls = calls
        if self._chat.logprobs:
            logprobs = ChatLogprobs(content=[chat_step(step, self._chat.top_logprobs or 0)], refusal=None)
        return ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=None, **more)

    def ending(self, index: int, prompt: PromptIn, event: Finished) -> ChunkChoice:
        """What was held back, and why it ends."""
        delta, more = Delta(), ending_extras(self._chat, event)
        reason: Literal["stop", "length", "tool_calls"] = reason_of(event)
        if self._with_calls:
            said, _ = self._texts[index].flush()
            delta = Delta(content=said) if said else delta
            reason = "tool_calls" if reason == "stop" and self._texts[index].count > 0 else reason
        return ChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=reason, **more)

    def chunk(self, parts: list[ChunkChoice], **usage: Any) -> ChatChunk:
        """A chunk of a stream."""
        return ChatChunk(object="chat.completion.chunk", choices=parts, **self.head, **usage)

    def total(self, parts: Sequence[list[ChunkChoice]]) -> ChatAnswer:
        """The whole answer."""
        choices = [self._sum(of_one) for of_one in parts]
        return ChatAnswer(object="chat.completion", choices=choices, usage=self.job.usage, **self.head)

    def _sum(self, parts: list[ChunkChoice]) -> ChatChoice:
        content = [entry for part in parts if part.logprobs for entry in part.logprobs.content or []]
        reason = parts[-1].finish_reason
        assert reason is not None
        whole = ChatChoice(
            index=parts[0].index,
            message=_message([part.delta for part in parts]),
            logprobs=ChatLogprobs(content=content, refusal=None) if self._chat.logprobs else None,
            finish_reason=reason,
        )
        add_extras(whole, parts)
        return whole


def _message(deltas: list[Delta]) -> ChatMessage:
    text = "".join(delta.content for delta in deltas)
    calls = [call for delta in deltas for call in delta.tool_calls]
    if not calls:
        return ChatMessage(role="assistant", content=text, refusal=None)
    plain = [CalledTool(id=call.id, type="function", function=call.function) for call in calls]
    return ChatMessage(role="assistant", content=text if text.strip() else None, refusal=None, tool_calls=plain)


async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer messages. Extras of byhand are documented in docs/server.md."""
    service = service_of(request)
    job = await asyncio.to_thread(job_of, service, body)
    with_calls = bool(body.tools) and body.tool_choice != "none" and teaches_calls(service.worker.llm)
    return await Chat(service, body, job, with_calls=with_calls).respond(request)

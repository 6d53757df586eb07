"""One request on its way to its answer: in chunks, as the tokens come, or whole, which is the sum of the chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from time import time
from typing import Any, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from byhand.engine.events import Failed, Finished, Read, Stepped
from byhand.server.answers import Answer, ChunkChoice, CompletionChoice, Extras
from byhand.server.flow import Flow, while_there
from byhand.server.generation import Clock, Job, PromptIn, failure_of, made_id, open_flow
from byhand.server.logprobs import prompt_logprobs
from byhand.server.service import Service
from byhand.server.shapes import Sampling
from byhand.server.sse import EventStream
from byhand.types import Step

Part = TypeVar("Part", CompletionChoice, ChunkChoice)


class Answering(ABC, Generic[Part]):
    """A job, and the head that all its answers share."""

    def __init__(self, service: Service, asked: Sampling, job: Job, prefix: str) -> None:
        self._service = service
        self._asked = asked
        self.job = job
        self.head: dict[str, Any] = {"id": made_id(prefix), "created": int(time()), "model": service.name}

    @abstractmethod
    def opening(self, index: int, prompt: PromptIn) -> Part | None:
        """What a choice begins with, if anything."""

    @abstractmethod
    def token(self, index: int, prompt: PromptIn, step: Step) -> Part:
        """What a token adds to its choice."""

    @abstractmethod
    def ending(self, index: int, prompt: PromptIn, event: Finished) -> Part:
        """What a choice ends with."""

    @abstractmethod
    def chunk(self, parts: list[Part], **usage: Any) -> Answer:
        """A chunk of a stream."""

    @abstractmethod
    def total(self, parts: Sequence[list[Part]]) -> Answer:
        """The whole answer: the parts of each choice."""

    async def parts(self, flow: Flow) -> AsyncIterator[Part]:
        """What happens to the choices, until all have ended; the first error ends it for all."""
        clock, job = Clock(self._service), self.job
        if job.read is None:
            for place in range(len(job.prompts)):
                for part in self._openings(place):
                    yield part
        async for place, event in flow:
            prompt = job.prompts[place]
            match event:
                case Stepped(choice=choice, step=step):
                    index = job.index(place, choice)
                    clock.tick(index)
                    yield self.token(index, prompt, step)
                case Read(positions=positions):
                    prompt.positions += [replace(position, pieces=()) for position in positions]
                    if len(prompt.positions) == len(prompt.ids):
                        for part in self._openings(place):
                            yield part
                case Finished(choice=choice, usage=usage):
                    job.usages[place, choice] = usage
                    yield self.ending(job.index(place, choice), prompt, event)
                case Failed():
                    raise failure_of(event)

    def _openings(self, place: int) -> list[Part]:
        prompt, choices = self.job.prompts[place], self.job.settings.params.n
        parts = [self.opening(self.job.index(place, choice), prompt) for choice in range(choices)]
        return [part for part in parts if part is not None]

    async def chunks(self, flow: Flow) -> AsyncIterator[Answer]:
        """The answer in chunks, one a token, and at the end the usage if it was asked for."""
        options = self._asked.stream_options
        with_usage = bool(options and options.include_usage)
        usage: dict[str, Any] = {"usage": None} if with_usage else {}
        async for part in self.parts(flow):
            yield self.chunk([part], **usage)
        if with_usage:
            yield self.chunk([], usage=self.job.usage)

    async def whole(self, flow: Flow) -> dict[str, Any]:
        """The answer in one piece, which is the sum of its parts."""
        parts: dict[int, list[Part]] = {}
        async for part in self.parts(flow):
            parts.setdefault(part.index, []).append(part)
        return self.total([parts[index] for index in sorted(parts)]).plain()

    async def respond(self, request: Request) -> Response:
        """Ask the worker, and send what it tells; a client that hangs up ends it."""
        flow = open_flow(self._service, self.job)
        if self._asked.stream:
            return EventStream(self.chunks(flow), flow)
        with flow:
            return JSONResponse(await while_there(request.receive, self.whole(flow)))


# byhand's own fields of a choice, where they were asked for.


def opening_extras(request: Sampling, prompt: PromptIn) -> dict[str, Any]:
    """The prompt, as ids and as the model saw it."""
    found: dict[str, Any] = {}
    if request.return_token_ids:
        found = {"token_ids": [], "prompt_token_ids": prompt.ids}
    if request.prompt_logprobs is not None:
        found["prompt_logprobs"] = prompt_logprobs(prompt.positions, request.prompt_logprobs)
    return found


def token_extras(request: Sampling, step: Step) -> dict[str, Any]:
    """The token's id."""
    return {"token_ids": [step.token.id]} if request.return_token_ids else {}


def ending_extras(request: Sampling, event: Finished) -> dict[str, Any]:
    """What stopped it."""
    return {"token_ids": [], "stop_reason": event.stop_reason} if request.return_token_ids else {}


def add_extras(whole: Extras, parts: Sequence[Extras]) -> None:
    """Put together what the parts of a choice say in byhand's own fields."""
    for part in parts:
        for name in part.model_fields_set & set(Extras.model_fields):
            value = getattr(part, name)
            known = getattr(whole, name) if name in whole.model_fields_set else None
            setattr(whole, name, known + value if isinstance(known, list) else value)
